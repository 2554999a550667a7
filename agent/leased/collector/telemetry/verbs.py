# SPDX-License-Identifier: Apache-2.0
"""The verbs on telemetry: use, waste, heat.

Rule: every figure stands beside how much it rests on. What is not known is "-", never 0.

Does not receive anything (`receiver`).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import Any

import msgspec

from leased.collector.archive.manifests import is_there
from leased.collector.holdings import Holdings
from leased.collector.telemetry import views
from leased.collector.telemetry.store import Store
from leased.collector.verbs.pull import node_named
from leased.collector.verbs.store import add_terms, fleet_of, terms_by
from leased.ctl import render
from leased.ctl.asks import amount, parse_duration
from leased.ctl.console import Console, length
from leased.ctl.usage_text import Verbs, verb
from leased.economics.waste import Held, Judged, Waste
from leased.terms.moment import NS_PER_S


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(verbs, "use", "how much of what they hold leases use", "leased-collector use")
    _narrow(one)
    one.set_defaults(act=use)
    one = verb(
        verbs,
        "waste",
        "leases that hold more than they use, by class",
        "leased-collector waste --last 24h --class idle",
    )
    _narrow(one)
    one.add_argument(
        "--class", dest="waste", choices=tuple(map(str, Waste)), help="only this class"
    )
    add_terms(one)
    one.set_defaults(act=waste)
    one = verb(verbs, "heat", "how hot each node runs, and why", "leased-collector heat --json")
    one.set_defaults(act=heat)


def _narrow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last", default="1h", metavar="PERIOD", help="back from now (default: 1h)"
    )
    parser.add_argument("--node", help="only this node (its name, or its id)")


def use(options: argparse.Namespace, console: Console) -> int:
    """Utilization by lease and kind."""
    found = _leases(options, console)
    names = ("LEASE", "TENANT", "NODE", "HELD", "FOR", "MEAN", "MAX", "ACTIVE", "SEEN")
    lines = render.table(names, [_use_row(one) for one in found])
    console.answer(options.json, {"leases": [_plain(one) for one in found]}, *lines)
    return 0


def waste(options: argparse.Namespace, console: Console) -> int:
    """Classes of waste."""
    found, known = _leases(options, console), None
    terms = terms_by(options)
    if found and is_there(options.state):
        known = Holdings(fleet_of(options, terms))
    judged = views.waste(found, terms.card_at(console.wall_ns()), holdings=known)
    if options.waste is not None:
        judged = [one for one in judged if one.waste == options.waste]
    if options.json:
        console.document({"leases": [_judged(one) for one in judged]})
        return 0
    rows = [
        (
            *(render.short(one.held.lease), one.held.tenant or "-", render.short(one.held.node)),
            _of_kind(one.held),
            str(one.waste),
            _percent(one.unused_pm),
            _percent(one.held.utilization.coverage_pm),
        )
        for one in judged
    ]
    names = ("LEASE", "TENANT", "NODE", "HELD", "CLASS", "UNUSED", "SEEN")
    console.say(*render.table(names, rows))
    if known is None:
        console.note("by telemetry alone nothing is fragmented: there are no records here")
    return 0


def heat(options: argparse.Namespace, console: Console) -> int:
    """Heat by node."""
    with closing(Store(options.state, reading=True)) as store:
        found = views.heat(store, console.wall_ns() // NS_PER_S)
    hottest = sorted(found.items(), key=lambda pair: (-pair[1].heat_pm, pair[0]))
    rows = [(name, _percent(one.heat_pm), one.by or "-") for name, one in hottest]
    told = {"nodes": msgspec.to_builtins(found)}
    console.answer(options.json, told, *render.table(("NODE", "HEAT", "BY"), rows))
    return 0


def _leases(options: argparse.Namespace, console: Console) -> list[views.LeaseUse]:
    begin_s, end_s = views.windows(console.wall_ns(), parse_duration(options.last))
    with closing(Store(options.state, reading=True)) as store:
        node = options.node
        if node is not None:
            node = node_named(options.state, node, store.heard())
        return views.leases(store, begin_s, end_s, node=node or "")


def _use_row(one: views.LeaseUse) -> tuple[str, ...]:
    seen = one.utilization
    return (
        *(render.short(one.lease), one.tenant or "-", render.short(one.node)),
        _of_kind(one),
        length(one.held_ns) or "-",
        *map(_percent, (seen.mean_pm, seen.max_pm, seen.active_share_pm)),
        _percent(seen.coverage_pm),
    )


def _of_kind(one: views.LeaseUse | Held) -> str:
    kind = one.kind.name.lower()
    return f"{kind} {amount(kind, one.capacity)}"


def _judged(one: Judged) -> dict[str, Any]:
    return {**_plain(one.held), "class": str(one.waste), "unused_pm": one.unused_pm}


def _plain(one: views.LeaseUse | Held) -> dict[str, Any]:
    """As JSON has it, with the kind by its name."""
    told = msgspec.to_builtins(one)
    seen = msgspec.structs.asdict(one.utilization)
    return {**told, "kind": one.kind.name.lower(), "utilization": seen}


def _percent(pm: int | None) -> str:
    return "-" if pm is None else f"{pm // 10}%"
