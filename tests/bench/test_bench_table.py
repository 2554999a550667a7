# SPDX-License-Identifier: Apache-2.0
"""The table says what was measured: ratios of medians, bars kept and missed, the peer's log read
right.

Does not measure: the figures are made up.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import policy, published, table
from tests.bench.chain import chain_lines
from tests.bench.loadgen import Figures
from tests.bench.peer import read_log_file
from tests.bench.quota import quota_lines
from tests.bench.running_agent import RunningAgent
from tests.bench.throughput import CLIENTS


def _rows(renew: float, p99_ns: float) -> list[Figures]:
    latency = {"p50_ns": 100_000, "p99_ns": 1_000_000}
    return [
        {
            "clients": clients,
            "fdatasync_p50_ns": 50_000,
            "etcd": {"operations_per_s": rate, "latency": latency},
            "renew": {"operations_per_s": renew, "latency": latency | {"p99_ns": p99_ns}},
            "grant": {"operations_per_s": 10_000.0},
        }
        for clients in CLIENTS
        for rate in (9_000.0, 10_000.0, 90_000.0)
    ]


def _line(lines: list[table.Line], what: str) -> table.Line:
    [found] = [line for line in lines if line.what.startswith(what)]
    return found


def test_a_bar_is_kept_or_missed_by_the_median() -> None:
    kept = table.throughput_lines(_rows(25_000, 1_000_000))
    missed = table.throughput_lines(_rows(24_999, 1_000_001))
    assert _line(kept, "renew/s, 64").held is True and _line(kept, "renew/s, 64").value == "2.50 x"
    assert _line(missed, "renew/s, 64").held is False
    assert _line(kept, "renew p99, 64").held is True
    assert _line(missed, "renew p99, 64").held is False
    assert _line(kept, "renew/s, 8 ").held is None
    assert "MISSED" in table.render(missed) and "25,000/s to 10,000/s" in table.render(kept)


@pytest.mark.parametrize(("ended", "held"), [(10_000, True), (9_999, False)])
def test_a_lease_that_did_not_end_misses_the_bar(ended: int, held: bool) -> None:
    row = {
        "agent": "alive",
        "mode": "hold",
        "count": 10_000,
        "bytes": 4096,
        "ended": ended,
        "fenced": 0,
    }
    row |= {f"{name}_{share}_ns": 10**6 for name in ("cut", "proven") for share in ("p50", "p99")}
    row |= {"cut_max_ns": 2 * 10**9}
    assert table.expiry_lines([row])[0].held is held


def test_a_refilled_deadline_misses_the_bar() -> None:
    row = {"records": 1_000_000, "live_leases": 1000, "ready_s": 1.0, "deadlines_kept": 999}
    assert [line.held for line in table.restart_lines([row])] == [False]
    assert [line.held for line in table.restart_lines([row | {"deadlines_kept": 1000}])] == [True]


def _chain(rate: float, *, s_per_gib: float, append: float, signing: float) -> Figures:
    verify = {f"{way}_per_s": rate for way in ("walk", "strict", "all")}
    raw = {"openssl_per_s": 1e6, "nodes_per_s": 3e6, "endless_per_s": 1e5}
    return {
        "verify": verify | raw | {"records": 1_000_000, "message_bytes": 280.0},
        "recovery": {"s_per_gib": s_per_gib, "cpu_s": 1.0, "bytes": 1 << 20},
        "append": {
            "strict": {"records_per_s": append, "cpu_us": 8.0},
            "signed": {"records_per_s": 1.0, "cpu_us": 8.0, "signatures_per_s": 1.0},
            "signature_us": 40.0,
            "signing_share": signing,
        },
    }


def test_every_figure_of_the_chain_has_its_bar() -> None:
    kept = chain_lines(_chain(5e5, s_per_gib=10.0, append=4e4, signing=0.05))
    assert [line.held for line in kept] == [True] * 5
    missed = chain_lines(_chain(499_999, s_per_gib=10.1, append=39_999, signing=0.051))
    assert [line.held for line in missed] == [False] * 5


def test_collecting_is_told_by_the_processor() -> None:
    found = {"records": 10, "records_per_s": 1.0, "records_per_cpu_s": 1e5, "start_cpu_s": 0.5}
    assert [line.held for line in table.collect_lines(found)] == [True]
    assert [line.held for line in table.collect_lines(found | {"records_per_cpu_s": 9e4})] == [
        False
    ]


def test_stores_stand_beside_it_where_they_are_installed() -> None:
    rows = _rows(20_000, 1_000_000)
    assert not [line for line in table.throughput_lines(rows) if "Redis" in line.what]
    store = {"operations_per_s": 4_000.0, "latency": {"p50_ns": 10**6, "p99_ns": 10**7}}
    for row in rows:
        if row["clients"] == 64:
            row |= {"postgresql": store, "redis": store}
    lines = table.throughput_lines(rows)
    assert _line(lines, "renew/s, 64 clients, to Redis").value == "5.00 x"
    assert _line(lines, "grant/s, 64 clients, to PostgreSQL 15").value == "2.50 x"


def test_the_log_of_the_peer_is_read_without_its_first_tenth(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{1_000 * n}\t200\t{900 if n else 99_000}\n" for n in range(11)))
    figures = read_log_file(log, 1)
    assert figures["latency"] == {"count": 10, "p50_ns": 900_000, "p99_ns": 900_000}
    assert figures["operations_per_s"] == pytest.approx(10 * 1e6 / 9_900)


def test_an_error_of_the_peer_is_not_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("1000\t200\t10\n2000\t503\t1\n")
    with pytest.raises(SystemExit):
        read_log_file(log, 1)


@pytest.mark.parametrize(
    ("kind", "cut_ms", "whole_ms", "fenced", "cut_held", "whole_held"),
    [
        ("memory, 4 KiB pages", 5, 2_000, 0, True, None),
        ("memory, 4 KiB pages", 6, 2_000, 0, False, None),
        ("namespace, encrypted", 50, 1_000, 0, True, True),
        ("namespace, encrypted", 51, 1_001, 0, False, False),
        ("one core", 1, 10, 1, False, None),
    ],
)
def test_each_kind_has_its_bar_and_a_fence_misses_it(
    kind: str, cut_ms: int, whole_ms: int, fenced: int, cut_held: bool, whole_held: bool | None
) -> None:
    row = {"kind": kind, "ended": 3, "fenced": fenced, "cut_bound_ns": 1, "whole_bound_ns": 1}
    row |= {"kernel_alone_p50_ns": 10**6, "kernel_alone_p99_ns": 2 * 10**6}
    for share in ("p50", "p99", "max"):
        row |= {f"cut_{share}_ns": cut_ms * 10**6, f"proven_{share}_ns": whole_ms * 10**6}
        row |= {f"cut_to_proven_{share}_ns": 10**6}
    lines = table.kind_lines([row])
    assert _line(lines, "deadline to cut").held is cut_held
    assert _line(lines, "deadline to proof").held is whole_held
    for driver_ns, held in ((25_500_000, cut_ms <= 51), (25_000_000, cut_ms <= 50)):
        line = _line(table.kind_lines([row | {"driver_alone_p99_ns": driver_ns}]), "deadline to c")
        assert line.held is (held and not fenced)


def test_a_scrub_is_held_against_what_the_memory_takes() -> None:
    row = {"pages": "4 KiB", "scrub_bytes_per_s": 20e9, "memset_zero_bytes_per_s": 80e9}
    for theirs, held in ((40e9, True), (41e9, False)):
        lines = table.scrub_lines([{**row, "memset_other_bytes_per_s": theirs}])
        assert [line.held for line in lines] == [held, None]


def test_a_peer_is_refused_in_time_or_had_its_last_answer_in_time() -> None:
    row = {"rounds": 3, "gives_up_ms": 1074, "refused_p50_ns": 10**6, "taking_p50_ns": 10**6}
    row |= {"refused_max_ns": 6 * 10**6, "last_p50_ns": 10**6, "last_max_ns": 10**6}
    slow = {"refused_max_ns": 11 * 10**6, "last_max_ns": 13 * 10**6}
    alone = {**row, "way": "the kernel alone (ibv_dereg_mr)"}
    rows = [alone, {**row, "way": "in order"}, {**row, "way": "in order", **slow}]
    rows += [{**row, "way": "killed", "refused_max_ns": 10**9}, {**row, "way": "killed", **slow}]
    held = [line.held for line in table.region_lines(rows)]
    assert held == [None, True, True, True, False], "12 ms: twice what the kernel alone takes"
    ends = {**row, "way": "the kernel alone (cgroup.kill)", "taking_p50_ns": 10**9}
    for last_ns, holds in ((6_500_000, True), (6_499_999, False)):
        lines = table.region_lines([*rows, {**ends, "last_max_ns": last_ns}])
        assert [line.held for line in lines] == [None, True, True, True, holds, None]
    assert not table.region_lines([])


def test_every_decision_is_timed_under_the_load_that_it_says() -> None:
    floor = policy.Floor(policy.full_policy(30), leases=300, tenants=30, waiting=30)
    assert len(floor.lessor.table.leases) == 300 and len(floor.lessor.queue) == 30
    both = policy.Floor(policy.full_policy(30), leases=300, tenants=30, waiting=30, milli=200)
    rows = policy.measure_policy(rounds=4, say=lambda text: None, floor=floor, both=both)
    cases = (*policy.CASES, *policy.SEVERAL)
    assert [row["what"] for row in rows] == [what for what, _, _ in cases]
    assert all(0 < row["p50_ns"] <= row["p99_ns"] <= row["max_ns"] for row in rows)
    lines = table.policy_lines([{**rows[0], "p99_ns": 999_999}, {**rows[0], "p99_ns": 1_000_001}])
    assert [line.held for line in lines] == [True, False]


@pytest.mark.parametrize(("full", "held"), [(85, True), (84, False)])
def test_a_full_policy_may_cost_the_spine_so_much(full: int, held: bool) -> None:
    bare = {"renew": 100, "grant": 100}
    some = {"bare": bare, "full": {"renew": full, "grant": 100}}
    rows = [some, {**some, "bare": {"renew": 1_000, "grant": 100}}, {**some, "full": bare}]
    lines = table.policy_load_lines(rows)
    assert [line.held for line in lines] == [held, True]
    assert lines[0].value == f"{full / 100:.2f} x", "the median over rounds"


def test_metering_misses_its_bars_where_it_is_slow_large_or_no_better():
    duck = {"whole_s": 11.0, "metered_s": 10.0, "peak_mib": 2_000, "bills": 200, "cpu_s": 20.0}
    duck |= {"projected_s": 1.0, "raw_bytes": 1e9}
    slow = {"metered_s": 49.0}
    figures = {"events": 10_000_000, "leases": 3, "duckdb": [duck], "postgresql": [slow]}
    assert [line.held for line in table.metering_lines(figures)] == [False, False, False]
    fast = {**duck, "whole_s": 9.0, "peak_mib": 900, "metered_s": 8.0}
    figures = {**figures, "duckdb": [duck, fast, fast]}
    assert [line.held for line in table.metering_lines(figures)] == [True, True, True]
    small = {**figures, "events": 1_000}
    assert [line.held for line in table.metering_lines(small)] == [None, None, None]


def test_a_quota_is_as_late_as_the_latest():
    found = {"rounds": 3, "taken_p50_s": 0.1, "given_p50_s": 0.1, "taken_max_s": 0.2}
    assert [line.held for line in quota_lines(found | {"given_max_s": 2.0})] == [True]
    assert [line.held for line in quota_lines(found | {"given_max_s": 2.1})] == [False]


def _found(records: int, rate: float) -> Figures:
    row = {"records": records, "live_leases": 9, "ready_s": rate, "deadlines_kept": 9}
    return {"machine": {"kernel": "6.1.0-50", "commit": "abc"}, "short": False, "restart": [row]}


def test_a_part_that_is_measured_again_replaces_itself_alone() -> None:
    idle = {"agent": {"rss_bytes": 50_000_000, "cpu_share": 0.001}}
    kept = published.publish({}, _found(1_000_000, 9.0) | {"idle": idle}, "2026-01-01")
    later = published.publish(kept, _found(1_000_000, 2.0) | {"kinds": []}, "2026-02-01")
    assert "9.00 s | <= 5 s **missed** |" in published.markdown(kept)
    text = published.markdown(later)
    assert "2.00 s | <= 5 s |" in text and "`--only restart`, 2026-02-01, Linux 6.1, abc" in text
    assert "50.0 MB" in text and "`--only idle`, 2026-01-01" in text and "each kind" not in text


def test_what_the_reaper_writes_at_a_cut_waits_for_no_disk(tmp_path: Path) -> None:
    agent = RunningAgent(tmp_path)
    try:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", agent.runtime], check=True, capture_output=True, text=True
        )
        assert kind.stdout.strip() == "tmpfs", "as /run is, where it is installed"
        assert f'runtime_dir = "{agent.runtime}"' in agent.config.read_text()
    finally:
        agent.close()
    assert not agent.runtime.exists()


def test_the_readme_and_the_evidence_show_the_published_figures() -> None:
    kept = json.loads(published.KEPT.read_text())
    readme, evidence = published.README.read_text(), published.EVIDENCE.read_text()
    told = "run python -m tests.bench.published"
    assert published.written(readme, published.leading(kept)) == readme, told
    assert published.written(evidence, published.markdown(kept)) == evidence, told


def test_the_readme_shows_every_missed_bar_and_each_line_that_leads() -> None:
    kept = json.loads(published.KEPT.read_text())
    shown = published.leading(kept)
    assert shown.count("**missed**") == published.markdown(kept).count("**missed**")
    named = [re.sub(r"(?<=\d) x\b", " ×", one) for one in published.LEADING]
    assert [one for one in named if f"| {one}" not in shown] == []


def test_what_was_measured_over_a_mock_keeps_no_bar_of_a_gpu() -> None:
    row: Figures = {"model": "H100", "evidence": "emulated", "ended": 3, "fenced": 0}
    shares = ("p50", "p99", "max")
    row |= {f"{name}_{share}_ns": 10**6 for name in ("cut", "cut_to_proven") for share in shares}
    lines = table.gpu_lines(row)
    bars = [line for line in lines if line.bar]
    assert [line.bar for line in bars] == ["<= 5 s", "<= 1 s"]
    assert all(line.value == "not run" and line.held is None for line in bars)
    row |= {"evidence": "measured", "released_to_proven_s": {"no scrub": 1.5}}
    kept = {line.what: line.held for line in table.gpu_lines(row)}
    assert kept["release to proof, no scrub"] is False
    assert kept["release to proof, a full scrub of 141 GB"] is None


def test_whoever_asks_how_it_is_called_has_nothing_installed(tmp_path: Path) -> None:
    for tool in ("sh", "dirname", "ls"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    run, path = Path(__file__).with_name("run"), {"PATH": str(tmp_path)}
    asked = {**path, "PYTHON": sys.executable, "VIRTUAL_ENV": ""}
    done = subprocess.run([run, "--help"], env=asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "--only" in done.stdout and "throughput" in done.stdout
