# SPDX-License-Identifier: Apache-2.0
"""The verbs of leasectl collector: what a running collector says of the fleet, over its API.

Rule: they work from anywhere that its API is reached from, with what the caller's token,
certificate or host may see, and read no file of the collector's. What needs its state directory
(pulling, checking, backing up, issuing bills) is `leased-collector`, on its host. With --json what
was sent is printed.

Does not speak HTTP (`collector_link`) and changes nothing (`collector_changes`).
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date as Date
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from leased.ctl import collector_changes, render
from leased.ctl.answer_text import show_answer
from leased.ctl.collector_link import Link, add_link
from leased.ctl.console import Console, length, plain
from leased.ctl.usage_text import Parser, Verbs, verb
from leased.ctl.whole_file import write_whole
from leased.terms.errors import EX_DATAERR, InvalidParameter
from leased.terms.moment import NS_PER_S

GOVERNANCE: Final = "/v1/governance"
SOUND: Final = ("OK", "BEHIND", "STALE")
"""Verdicts that want nobody: the others want an operator."""

TAGS: Final = ("cost_center", "project", "request_class", "budget_group")
_UNITS: Final = {"mem": "GiB", "block": "GiB", "net": "Gbit/s"}
"""What the API counts a kind in."""

Ask = Callable[[argparse.Namespace], dict[str, object]]
Show = Callable[[argparse.Namespace, Console, Link], int]


def register(verbs: Verbs) -> None:
    """Add the verb and its verbs."""
    top = verb(
        verbs,
        "collector",
        "ask the fleet's collector: nodes, heads, quotas, usage, bills",
        "leasectl collector --url https://collector.example.org:8443 status",
        json=False,
    )
    add_link(top)
    under = top.add_subparsers(
        dest="what", metavar="WHAT", required=True, parser_class=Parser, title="what"
    )
    _add(under, "status", "whether all nodes are followed, and what wants an operator", status)
    _add(under, "nodes", "every node: what it has, what it holds, which policy", nodes)
    _add(under, "heads", "how far each log was verified and cosigned, and its head", heads)
    one = _add(under, "leases", "leases that are not proven clean yet", leases, "--tenant acme")
    one.add_argument("--tenant", help="only of this one")
    most = collector_changes.LIST_MAX
    one.add_argument(
        "--limit", type=int, default=most, metavar="N", help="how many at most (default: all)"
    )
    one = _add(under, "events", "the last records about leases", events, "--limit 20")
    one.add_argument(
        "--limit", type=int, default=100, metavar="N", help="default: 100, at most 1000"
    )
    _register_money(under)
    _register_advice(under)
    collector_changes.register(under, _add)
    one = _add(
        under, "get", "what any path of the API answers", get, "/v1/openapi.json", json=False
    )
    one.add_argument("path", help="such as /v1/governance/quotas?limit=10")


def _register_money(under: Verbs) -> None:
    show, words = _answer("/v1/billing/usage", _usage), "acme --last 7d"
    one = _add(under, "usage", "what a tenant held, hour by hour", show, words, csv=True)
    one.add_argument("tenant", help="whose")
    _add_window(one)
    one.add_argument(
        "--by", choices=("hour", "day", "lease", "total"), default="day", help="default: day"
    )
    show = _answer(f"{GOVERNANCE}/costs", _costs)
    one = _add(under, "costs", "what every tenant cost", show, "--last 30d --top 5", csv=True)
    _add_window(one)
    one.add_argument("--top", type=int, default=10, metavar="N", help="the rest is OTHER")
    groups = (*TAGS, "kind", "tier", "priority")
    one.add_argument("--group-by", choices=groups, help="besides by tenant")
    one = _add(under, "bill", "the bill of a tenant", bill, "acme 2026-01 --out acme.json")
    one.add_argument("tenant", help="whose")
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="write what `leasectl verify --bill` takes there"
    )
    one = _add(
        under,
        "export",
        "the bill of a tenant as FOCUS in CSV, for other people's tools",
        export,
        "acme 2026-01 > acme.csv",
        json=False,
    )
    one.add_argument("tenant", help="whose")
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument("--focus", choices=("1.2", "1.4"), default="1.2", help="default: 1.2")
    show = _answer("/v1/billing/chargeback", lambda options: {"month": options.month})
    one = _add(under, "chargeback", "what a month cost, by cost centre", show, "2026-01")
    one.add_argument("month", help='such as "2026-01"')


def _register_advice(under: Verbs) -> None:
    _add(under, "allocations", "how what there is is divided", _answer(f"{GOVERNANCE}/allocations"))
    _add(under, "capacity", "what there is and who has it", _answer(f"{GOVERNANCE}/capacity"))
    show = _answer(
        f"{GOVERNANCE}/capacity/forecast",
        lambda options: {"horizon": options.horizon, "kind": options.kind},
    )
    one = _add(under, "forecast", "how much will be held", show, "--horizon 90d --kind gpu")
    one.add_argument("--horizon", default="90d", metavar="PERIOD", help="default: 90d")
    one.add_argument("--kind", default="cpu", choices=("cpu", "gpu", "mem", "block", "net"))
    _add(under, "idle", "nodes and leases that nobody uses", _answer(f"{GOVERNANCE}/optimize/idle"))
    show = _answer(f"{GOVERNANCE}/optimize/waste", lambda options: {"last": options.last})
    one = _add(under, "waste", "leases that hold more than they use", show, "--last 24h")
    one.add_argument("--last", default="1h", metavar="PERIOD", help="back from now (default: 1h)")
    _add(under, "health", "the daily checklist", _answer(f"{GOVERNANCE}/health"))
    _add(under, "heat", "how hot each node runs, and why", _answer(f"{GOVERNANCE}/heat"))


def _add(
    under: Verbs, name: str, summary: str, show: Show, words: str = "", **forms: bool
) -> argparse.ArgumentParser:
    one = verb(under, name, summary, f"leasectl collector {name} {words}".rstrip(), **forms)
    one.set_defaults(act=_carry_out, show=show, csv=False)
    return one


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last",
        default="30d",
        metavar="PERIOD",
        help="back from the last full hour that the fleet's records reach (default: 30d)",
    )
    parser.add_argument("--start", metavar="DATE", help="instead of --last")
    parser.add_argument("--end", metavar="DATE", help="its whole day")


def _carry_out(options: argparse.Namespace, console: Console) -> int:
    with Link(options) as link:
        show: Show = options.show
        return show(options, console, link)


def _answer(path: str, ask: Ask = lambda options: {}) -> Show:
    """Shows an answer as it is; `ask` says what of the options is asked for."""

    def show(options: argparse.Namespace, console: Console, link: Link) -> int:
        show_answer(link.get(path, **ask(options)), options, console)
        return 0

    return show


# ---- the fleet -----------------------------------------------------------------------------------


def status(options: argparse.Namespace, console: Console, link: Link) -> int:
    """How the fleet is; 65 if something wants an operator."""
    told = link.get("/v1/nodes")
    logs = [(node, log) for node in told["nodes"] for log in node["logs"]]
    bad = [(node, log) for node, log in logs if log["verdict"] not in SOUND]
    aside = [node for node in told["nodes"] if node.get("why")]
    ages = [log["age_seconds"] for _, log in logs if log["age_seconds"] is not None]
    document = {
        "nodes": len(told["nodes"]),
        "logs": len(logs),
        "records": sum(log["records"] for _, log in logs),
        "leases": sum(node["leases"] for node in told["nodes"]),
        "ending": sum(node["ending"] for node in told["nodes"]),
        "fenced": sum(node["fenced"] for node in told["nodes"]),
        "verdicts": dict(sorted(Counter(log["verdict"] for _, log in logs).items())),
        "not_heard_of_for_seconds": max(ages, default=None),
        "wanting": [{"node": node["name"], **log} for node, log in bad],
        "set_aside": [{"node": node["name"], "why": node["why"]} for node in aside],
        "as_of": told["as_of"],
    }
    if options.json:
        console.document(document)
        return EX_DATAERR if bad or aside else 0
    quiet = document["not_heard_of_for_seconds"]
    verdicts = ", ".join(f"{count} {name}" for name, count in document["verdicts"].items())
    pairs = [
        ("nodes", f"{document['nodes']}, {document['logs']} logs ({verdicts or 'none'})"),
        ("records", str(document["records"])),
        ("leases", "{leases} live, {ending} ending, {fenced} fenced".format(**document)),
        ("last heard", "-" if quiet is None else f"all within {length(quiet * NS_PER_S)}"),
        ("as of", document["as_of"]),
    ]
    console.say(*render.fields(pairs))
    for node, log in bad:
        console.say(f"{log['verdict']} {node['name']}, log {log['log_id']}: {log['why']}")
    for node in aside:
        console.say(f"set aside {node['name']}: {node['why']}")
    if bad:
        console.note("the evidence is on its host: `leased-collector verdict NODE`")
    return EX_DATAERR if bad or aside else 0


def nodes(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Every node."""
    told = link.get("/v1/nodes")
    if options.json:
        console.document(told)
        return 0
    rows = [
        (
            *(one["name"], one["state"], one["version"] or "-", str(one["policy_generation"])),
            *(str(one["leases"]), str(one["ending"]), str(one["fenced"])),
            ", ".join(f"{key} {value}" for key, value in one["total"].items()) or "-",
            ", ".join(one["unhealthy"]) or "-",
        )
        for one in told["nodes"]
    ]
    names = ("NODE", "STATE", "VERSION", "POLICY", "LEASES", "ENDING", "FENCED", "HAS", "UNHEALTHY")
    console.say(*render.table(names, rows))
    return 0


def heads(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Every log's head; 65 if one's verdict wants an operator."""
    told = link.get("/v1/nodes")
    found = [
        {"node": node["node"], "name": node["name"], **log}
        for node in told["nodes"]
        for log in node["logs"]
    ]
    wanting = any(one["verdict"] not in SOUND for one in found)
    if options.json:
        console.document({"heads": found, "as_of": told["as_of"]})
        return EX_DATAERR if wanting else 0
    rows = [
        (
            *(one["name"], render.short(one["log_id"]), one["verdict"]),
            *(str(one["records"]), str(one["signed"]), str(one["cosigned"]), one["head"]),
            "-" if one["age_seconds"] is None else length(one["age_seconds"] * NS_PER_S),
        )
        for one in found
    ]
    names = ("NODE", "LOG", "VERDICT", "RECORDS", "SIGNED", "COSIGNED", "HEAD", "HEARD BEFORE")
    console.say(*render.table(names, rows))
    return EX_DATAERR if wanting else 0


def leases(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Live leases, and those that are being cleaned."""
    if options.limit < 1:
        raise InvalidParameter("limit", "at least 1")
    told = link.rows("/v1/leases", "leases", options.limit, tenant=options.tenant)
    if options.json:
        console.document(told)
        return 0
    rows = [
        (
            *(render.short(one["lease_id"]), one["node_name"], one["tenant"], one["state"]),
            one["priority"],
            _held(one["resources"]),
            length(max(0, one["remaining_ms"]) * 1_000_000) if one["ended"] is None else "-",
            one["workload"] or "-",
        )
        for one in told["leases"]
    ]
    names = ("LEASE", "NODE", "TENANT", "STATE", "PRIORITY", "HOLDS", "LEFT", "WORKLOAD")
    console.say(*render.table(names, rows))
    return 0


def events(options: argparse.Namespace, console: Console, link: Link) -> int:
    """The newest records."""
    told = link.get("/v1/events", limit=options.limit)
    if options.json:
        console.document(told)
        return 0
    rows = [
        (
            *(one["at"], one["node_name"], str(one["sequence"]), one["kind"]),
            *(one["tenant"] or "-", render.short(one["lease_id"]) or "-"),
        )
        for one in told["events"]
    ]
    console.say(*render.table(("AT", "NODE", "RECORD", "WHAT", "TENANT", "LEASE"), rows))
    return 0


# ---- money ---------------------------------------------------------------------------------------


def _usage(options: argparse.Namespace) -> dict[str, object]:
    return {"tenant": options.tenant, **_window(options), "granularity": options.by}


def _costs(options: argparse.Namespace) -> dict[str, object]:
    return {**_window(options), "top": options.top, "group_by": options.group_by}


def bill(options: argparse.Namespace, console: Console, link: Link) -> int:
    """A bill; its canonical bytes into a file."""
    asked = {"tenant": options.tenant, "month": options.month}
    if options.out is not None:
        raw = link.raw("GET", "/v1/billing/bill", asked)
        write_whole(options.out, raw)
        console.note(f"{options.out}: sha256 {sha256(raw).hexdigest()}")
    show_answer(link.get("/v1/billing/summary", **asked), options, console)
    return 0


def export(options: argparse.Namespace, console: Console, link: Link) -> int:
    """FOCUS, as it is sent."""
    try:
        first = Date.fromisoformat(f"{options.month}-01")
        last = (first.replace(day=28) + timedelta(4)).replace(day=1) - timedelta(1)
    except (ValueError, OverflowError) as error:
        raise InvalidParameter("month", f'{options.month}: such as "2026-01"') from error
    asked = {"tenant": options.tenant, "start": first, "end": last}
    raw = link.raw("GET", "/v1/billing/usage", {**asked, "format": f"focus-{options.focus}"})
    console.out.write(raw.decode("utf-8"))
    return 0


def get(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Any path, as it is sent."""
    if not options.path.startswith("/"):
        raise InvalidParameter("path", f"{options.path}: begins with /")
    # As it is typed, letters that no URL has included; what is written as %XX stays.
    raw = link.raw("GET", quote(options.path, safe="%/?&=:+,;@!$'()*~"), {})
    try:
        console.say(msgspec.json.format(raw, indent=2).decode("utf-8"))
    except msgspec.DecodeError:
        console.out.write(plain(raw.decode("utf-8", "replace")))
    return 0


def _window(options: argparse.Namespace) -> dict[str, object]:
    """Which time, as the API is asked. Raises InvalidParameter."""
    if options.start is not None or options.end is not None:
        if options.start is None or options.end is None:
            raise InvalidParameter("start", "--start and --end go together")
        return {"start": options.start, "end": options.end}
    if not re.fullmatch(r"[1-9][0-9]{0,4}[hdw]", options.last, re.ASCII):
        raise InvalidParameter("last", f'{options.last}: such as "24h", "30d" or "4w"')
    return {"period": options.last}


def _held(resources: Mapping[str, Any]) -> str:
    """What is held, added up by kind."""
    found: Counter[str] = Counter()
    for name, amount in resources.items():
        found[name.partition(":")[0]] += amount
    held = (f"{kind} {amount:.10g}{_UNITS.get(kind, '')}" for kind, amount in found.items())
    return ", ".join(held) or "-"
