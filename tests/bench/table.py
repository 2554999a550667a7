# SPDX-License-Identifier: Apache-2.0
"""The figures as ratios against their bars, with the raw figures beside them.

Rule: a bar is written once, here; a figure that misses it is marked, not left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.loadgen import Figures
from tests.bench.policy_load import share_kept
from tests.bench.throughput import CLIENTS, STORE_CLIENTS, median_of

SMALL_BYTES_MAX = 1 << 20
"""The kernel unmaps a dying holder's pages before it tells that it is gone: 256 MiB take it 10 ms.
"""

Say = Callable[[str], None]

PULL_RECORDS_PER_S = 150_000
KEPT_MIN = 0.85


@dataclass(frozen=True)
class Line:
    """One comparison: `held` None where there is no bar."""

    what: str
    value: str
    bar: str
    held: bool | None
    raw: str


def throughput_lines(rows: list[Figures]) -> list[Line]:
    """Renew and grants against etcd."""
    lines: list[Line] = []
    for clients in CLIENTS:
        theirs = median_of(rows, clients, "etcd", "operations_per_s")
        for name, bar in (("renew", 2.5), ("grant", 1.0)):
            ours = median_of(rows, clients, name, "operations_per_s")
            ratio = ours / theirs
            held = ratio >= bar if clients == 64 else None
            lines.append(
                Line(
                    f"{name}/s, {clients} clients, to etcd LeaseGrant",
                    f"{ratio:.2f} x",
                    f">= {bar} x" if held is not None else "",
                    held,
                    f"{ours:,.0f}/s to {theirs:,.0f}/s",
                )
            )
        for share in ("p50_ns", "p99_ns"):
            lines.append(_latency_line(rows, clients, share))
    lines += _store_lines(rows)
    raw_ns = median_of(rows, 1, "fdatasync_p50_ns")
    ours_ns = median_of(rows, 1, "renew", "latency", "p50_ns")
    most_ns = 2 * raw_ns + 400_000
    lines.append(
        Line(
            "renew p50, 1 client, to 2 x fdatasync + 0.4 ms",
            f"{ours_ns / most_ns:.2f} x",
            "<= 1 x",
            ours_ns <= most_ns,
            f"{ours_ns / 1e6:.3f} ms, fdatasync {raw_ns / 1e6:.3f} ms",
        )
    )
    return lines


def _store_lines(rows: list[Figures]) -> list[Line]:
    """Beside what else leases could be kept in. No bar: neither arms, cuts or cleans anything."""
    lines: list[Line] = []
    for name, what in (("postgresql", "PostgreSQL 15 INSERT"), ("redis", "Redis AOF-always SET")):
        if not any(name in row for row in rows):
            continue
        theirs = median_of(rows, STORE_CLIENTS, name, "operations_per_s")
        p99 = median_of(rows, STORE_CLIENTS, name, "latency", "p99_ns") / 1e6
        for ours in ("renew", "grant"):
            rate = median_of(rows, STORE_CLIENTS, ours, "operations_per_s")
            raw = f"{rate:,.0f}/s to {theirs:,.0f}/s, whose p99 is {p99:.1f} ms"
            label = f"{ours}/s, {STORE_CLIENTS} clients, to {what}"
            lines.append(Line(label, f"{rate / theirs:.2f} x", "", None, raw))
    return lines


def _latency_line(rows: list[Figures], clients: int, share: str) -> Line:
    ours = median_of(rows, clients, "renew", "latency", share)
    theirs = median_of(rows, clients, "etcd", "latency", share)
    bars = {(64, "p99_ns"): 1.0, (1, "p50_ns"): 1.2}
    bar = bars.get((clients, share))
    return Line(
        f"renew {share[:3]}, {clients} clients, to etcd",
        f"{ours / theirs:.2f} x",
        f"<= {bar} x" if bar is not None else "",
        None if bar is None else ours <= bar * theirs,
        f"{ours / 1e6:.3f} ms to {theirs / 1e6:.3f} ms",
    )


def policy_lines(rows: list[Figures]) -> list[Line]:
    """One decision at a time, with the whole of a policy in force."""
    lines: list[Line] = []
    for row in rows:
        bar_ms = row["bar_ms"]
        p99 = row["p99_ns"] / 1e6
        lines.append(
            Line(
                f"policy: {row['what']}, p99",
                f"{p99:.3f} ms",
                "" if bar_ms is None else f"<= {bar_ms} ms",
                None if bar_ms is None else p99 <= bar_ms,
                f"p50 {row['p50_ns'] / 1e6:.3f} ms, max {row['max_ns'] / 1e6:.3f} ms, "
                f"{row['count']:,} times",
            )
        )
    return lines


def policy_load_lines(rows: list[Figures]) -> list[Line]:
    """The spine with the whole of a policy in force, to itself without one."""
    lines: list[Line] = []
    for what in ("renew", "grant"):
        kept = share_kept(rows, what)
        bare = statistics.median(row["bare"][what] for row in rows)
        full = statistics.median(row["full"][what] for row in rows)
        lines.append(
            Line(
                f"{what}s/s with a full policy, 64 clients, to without",
                f"{kept:.2f} x",
                f">= {KEPT_MIN} x",
                kept >= KEPT_MIN,
                f"{full:,.0f}/s to {bare:,.0f}/s",
            )
        )
    return lines


def pull_lines(row: Figures) -> list[Line]:
    """A collector that pulls and verifies a whole log."""
    quiet, pulled = row["call_quiet_ns"], row["call_pulled_ns"]
    return [
        Line(
            "pull: records pulled and verified over mutual TLS",
            f"{row['with_bodies_per_s']:,.0f}/s",
            f">= {PULL_RECORDS_PER_S:,}/s",
            row["with_bodies_per_s"] >= PULL_RECORDS_PER_S,
            f"{row['records']:,} records, {row['bytes'] / 1e6:.0f} MB; without bodies and leases "
            f"{row['records_per_s']:,.0f}/s; the agent's"
            f" {row['agent_cpu_us_per_record']:.1f} us",
        ),
        Line(
            "pull: a call to the agent meanwhile, p99",
            f"{pulled[1] / 1e6:.2f} ms",
            "",
            None,
            f"p50 {pulled[0] / 1e6:.2f} ms; in quiet p50 {quiet[0] / 1e6:.2f} ms,"
            f" p99 {quiet[1] / 1e6:.2f} ms",
        ),
    ]


def metering_lines(figures: Figures) -> list[Line]:
    """Events to hourly usage, peaks and bills: the median of the rounds. The bars are for ten
    million events."""
    rounds = sorted(figures["duckdb"], key=lambda one: one["whole_s"])
    ours = rounds[len(rounds) // 2]
    whole = figures["events"] >= 9_000_000
    per = f"{figures['events']:,} records, {figures['leases']:,} leases, {ours['bills']} bills"
    cpu = f"{ours['cpu_s']:.1f} s of processor; projected in {ours['projected_s']:.2f} s"
    if len(rounds) > 1:
        cpu += "; of " + ", ".join(f"{one['whole_s']:.2f}" for one in rounds) + " s"
    lines = [
        Line(
            "metering: raw segments to usage, peaks and bills, DuckDB",
            f"{ours['whole_s']:.2f} s",
            "<= 10 s" if whole else "",
            ours["whole_s"] <= 10 if whole else None,
            f"{per}, {cpu}",
        ),
        Line(
            "metering: most memory",
            f"{ours['peak_mib']} MiB",
            "<= 1536 MiB" if whole else "",
            ours["peak_mib"] <= 1_536 if whole else None,
            f"of {ours['raw_bytes'] / 1e6:,.0f} MB of raw segments",
        ),
    ]
    refresh = figures.get("refresh")
    if refresh is not None:
        told = f"and {refresh['billed_s']:.1f} s for {refresh['bills']} bills, asked for one by one"
        what = f"{refresh['whole_s']:.2f} s"
        raw = f"with all that is kept; {told}; {refresh['peak_mib']} MiB"
        lines.append(Line("metering: a refresh of the whole store", what, "", None, raw))
    theirs = figures.get("postgresql")
    if theirs is not None:
        theirs_s = statistics.median(one["metered_s"] for one in theirs)
        ours_s = statistics.median(one["metered_s"] for one in rounds)
        ratio = theirs_s / ours_s
        lines.append(
            Line(
                "metering: PostgreSQL 15 with the same SQL, to DuckDB",
                f"{ratio:.1f} x",
                ">= 5 x" if whole else "",
                ratio >= 5 if whole else None,
                f"{theirs_s:.2f} s to {ours_s:.2f} s, the same sums",
            )
        )
    return lines


def expiry_lines(rows: list[Figures]) -> list[Line]:
    """Deadline to cut and to proof."""
    lines: list[Line] = []
    for row in rows:
        what = f"{row['count']} x {row['bytes'] >> 10} KiB, agent {row['agent']}"
        cut, worst = row["cut_p99_ns"] / 1e6, row["cut_max_ns"] / 1e6
        proven = row["proven_p99_ns"] / 1e6
        if row["count"] == 1 and row["bytes"] <= SMALL_BYTES_MAX:
            bar, held = "p99 <= 5 ms", cut <= 5
        elif row["mode"] == "hold":
            bar, held = "all <= 2 s", worst <= 2000 and row["ended"] >= row["count"]
        else:
            bar, held = "", None
        raw = f"p50 {row['cut_p50_ns'] / 1e6:.2f}, max {worst:.2f} ms of {row['ended']}"
        lines.append(Line(f"deadline to cut, {what}", f"p99 {cut:.2f} ms", bar, held, raw))
        large = row["bytes"] >= 256 << 20
        lines.append(
            Line(
                f"deadline to proof, {what}",
                f"p99 {proven:.1f} ms",
                "p99 <= 250 ms" if large else "",
                proven <= 250 if large else None,
                f"p50 {row['proven_p50_ns'] / 1e6:.1f} ms, {row['fenced']} fenced",
            )
        )
    return lines


def scrub_lines(rows: list[Figures]) -> list[Line]:
    """Overwriting with reading back, to plain memset of the same memory; that of zero has no bar,
    because nothing reads memory as fast as some processors write zeroes."""
    lines: list[Line] = []
    for row in rows:
        ours = row["scrub_bytes_per_s"]
        for name, what, bar in (
            ("memset_other", "memset of a byte", 0.5),
            ("memset_zero", "memset of zero", None),
        ):
            theirs = row[f"{name}_bytes_per_s"]
            lines.append(
                Line(
                    f"scrub of {row['pages']} pages, to {what}",
                    f"{ours / theirs:.2f} x",
                    "" if bar is None else f">= {bar} x",
                    None if bar is None else ours >= bar * theirs,
                    f"{ours / 1e9:.1f} GB/s to {theirs / 1e9:.1f} GB/s",
                )
            )
    return lines


def kind_lines(rows: list[Figures]) -> list[Line]:
    """Deadline to cut and cut to proof of each kind that the machine has."""
    lines: list[Line] = []
    for row in rows:
        kind, of = row["kind"], f"of {row['ended']}, {row['fenced']} fenced"
        block = kind.startswith("namespace")
        half, alone = row["kernel_alone_p50_ns"] / 1e6, row["kernel_alone_p99_ns"] / 1e6
        driver = row.get("driver_alone_p99_ns", 0) / 1e6
        # Where the kernel's own killing, or what a driver does then, is the floor, twice that: the
        # slowest of a hundred beside the slowest of a hundred.
        bar_ms = max(50 if block else 5, 2 * (driver or alone))
        cut, whole = row["cut_p99_ns"] / 1e6, row["proven_p99_ns"] / 1e6
        raw = f"p50 {row['cut_p50_ns'] / 1e6:.2f}, max {row['cut_max_ns'] / 1e6:.2f} ms {of}"
        lines.append(
            Line(
                f"deadline to cut, {kind}",
                f"p99 {cut:.2f} ms",
                f"p99 <= {bar_ms:.0f} ms",
                cut <= bar_ms and not row["fenced"],
                f"{raw}; the kernel alone p50 {half:.2f} p99 {alone:.2f}"
                + (f", its driver p99 {driver:.2f}" if driver else "")
                + f"; published {row['cut_bound_ns'] / 1e6:.0f}",
            )
        )
        encrypted = kind == "namespace, encrypted"
        told = " ".join(
            f"{share} {row[f'cut_to_proven_{share}_ns'] / 1e6:.1f}" for share in ("p50", "max")
        )
        lines.append(
            Line(
                f"deadline to proof, {kind}",
                f"p99 {whole:.1f} ms",
                "p99 <= 1 s" if encrypted else "",
                whole <= 1000 if encrypted else None,
                f"cut to proof {told} ms; published {row['whole_bound_ns'] / 1e6:,.0f}",
            )
        )
    return lines


def region_lines(rows: list[Figures]) -> list[Line]:
    """Memory taken from a peer that reads it over RDMA, beside what the kernel alone takes. Where
    nobody is left who could refuse, the bar is for the last answer: the refusal is the peer's own
    timer's. It is twice what the kernel's own call takes, where that is more than was promised."""
    lines: list[Line] = []
    calls = {row["way"]: row for row in rows if row["way"].startswith("the kernel alone")}
    for row in rows:
        last, refused = row["last_max_ns"] / 1e6, row["refused_max_ns"] / 1e6
        silent = "kill" in row["way"]
        value, what = (last, "last answer") if silent else (refused, "refused")
        call = calls.get(f"the kernel alone ({'cgroup.kill' if silent else 'ibv_dereg_mr'})")
        own_ms = 0.0
        if call is not None:
            own_ms = call["last_max_ns" if silent else "refused_max_ns"] / 1e6
        bar_ms, judged = max(10, 2 * own_ms), row["way"] not in calls
        told = f"p50 {row['refused_p50_ns'] / 1e6:.2f}; last answer max {last:+.2f} ms"
        if silent:
            told = (
                f"p50 {row['last_p50_ns'] / 1e6:.2f}; everybody gone p50 "
                f"{row['taking_p50_ns'] / 1e6:.2f}; gives up after {refused:.0f} ms, its timer "
                f"says {row['gives_up_ms']:.0f}"
            )
        lines.append(
            Line(
                f"RDMA peer, {what} after {row['way']}",
                f"max {value:.2f} ms",
                f"<= {bar_ms:.0f} ms" if judged else "",
                value <= bar_ms if judged else None,
                f"{told}, of {row['rounds']}",
            )
        )
    return lines


GPU_BARS = {"a full scrub of 141 GB": 5, "no scrub": 1}
"""Seconds from the release to the proof, by the driver of a real GPU."""


def gpu_lines(row: Figures) -> list[Line]:
    """Deadline to cut and cut to proof of a GPU; whose driver it was is said. The bars are for a
    real one: over another driver they are neither kept nor missed."""
    where = f"{row['model']}, {row['evidence']}"
    raw = f"p50 {{:.2f}}, max {{:.2f}} ms of {row['ended']}, {row['fenced']} fenced"
    killed_ms = row.get("killed_ms")
    lines: list[Line] = []
    for name, what in (("cut", "deadline to cut"), ("cut_to_proven", "cut to proof, scrubbed")):
        middle, last, worst = (row[f"{name}_{share}_ns"] / 1e6 for share in ("p50", "p99", "max"))
        told, bar, held = raw.format(middle, worst), "", None
        if name == "cut" and killed_ms is not None:
            told += f"; the driver takes {killed_ms} ms to end such a process"
            bar, held = "<= 2 x the driver's", last <= 2 * killed_ms
        lines.append(Line(f"{what}, {where}", f"p99 {last:.1f} ms", bar, held, told))
    real = row["evidence"] != "emulated"
    for with_what, bar_s in GPU_BARS.items():
        took_s = row.get("released_to_proven_s", {}).get(with_what) if real else None
        value = "not run" if took_s is None else f"{took_s:.2f} s"
        held = None if took_s is None else took_s <= bar_s
        told = "" if real else "needs a real GPU: tests/hardware/run"
        lines.append(Line(f"release to proof, {with_what}", value, f"<= {bar_s} s", held, told))
    return lines


def restart_lines(rows: list[Figures]) -> list[Line]:
    """Time to serving."""
    lines: list[Line] = []
    for row in rows:
        kept = f"{row['deadlines_kept']} of {row['live_leases']} deadlines kept"
        million = row["records"] >= 1_000_000
        lines.append(
            Line(
                f"restart to serving, {row['records']:,} records",
                f"{row['ready_s']:.2f} s",
                "<= 5 s" if million else "",
                (row["ready_s"] <= 5 and row["deadlines_kept"] == row["live_leases"])
                if million
                else None,
                kept,
            )
        )
    return lines


def collect_lines(found: Figures) -> list[Line]:
    """From a node's disk to the collector's, by the installed programs."""
    rate = found["records_per_cpu_s"]
    what = f"pulled, verified and kept per s of one processor, {found['records']:,} records"
    raw = f"over mutual TLS; {found['records_per_s']:,.0f}/s on the clock with the program's start"
    start = f", which takes {found['start_cpu_s']:.2f} s of processor"
    return [Line(what, f"{rate:,.0f}/s", ">= 100,000/s", rate >= 100_000, raw + start)]


def api_lines(found: Figures) -> list[Line]:
    """Reads of the collector's API, and the console."""
    p99, p50 = found["p99_s"] * 1000, found["p50_s"] * 1000
    fleet = f"{found['nodes']:,} nodes, {found['days']} days"
    slowest = f"slowest {found['slowest']}, p50 {found['slowest_p50_s'] * 1000:.1f} ms"
    raw = f"p50 {p50:.1f} ms of {found['requests']:,}; {slowest}"
    lines = [Line(f"API reads p99, {fleet}", f"{p99:.1f} ms", "<= 50 ms", p99 <= 50, raw)]
    if "paint_s" in found:
        paint = found["paint_s"]
        raw = "headless Chromium, loopback, warm"
        lines.append(Line("console's first paint", f"{paint:.2f} s", "<= 1 s", paint <= 1, raw))
    return lines


def idle_lines(found: Figures) -> list[Line]:
    """Memory and processor when idle."""
    agent = found["agent"]
    size, share = agent["rss_bytes"] / 1e6, 100 * agent["cpu_share"]
    others = ", ".join(
        f"{name} {one['pss_bytes'] / 1e6:.1f} MB (PSS) {100 * one['cpu_share']:.2f} %"
        for name, one in found.items()
        if name != "agent"
    )
    return [
        Line("idle RSS of the agent", f"{size:.1f} MB", "<= 60 MB", size <= 60, others),
        Line("idle CPU of the agent", f"{share:.2f} %", "<= 0.5 %", share <= 0.5, others),
    ]


def render(lines: list[Line]) -> str:
    """The table as text."""
    marks = {True: "ok", False: "MISSED", None: ""}
    rows = [("what", "figure", "bar", "", "raw")]
    rows += [(line.what, line.value, line.bar, marks[line.held], line.raw) for line in lines]
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
