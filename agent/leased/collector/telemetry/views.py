# SPDX-License-Identifier: Apache-2.0
"""Views: what the fleet's telemetry says of leases and nodes: utilization, waste, heat.

Rule: everything says how much it rests on: samples and coverage. A lease is measured over the time
in which it was seen to be held; what it holds that nobody can see into has no utilization. Nothing
here is billed from.

Does not fetch: it is handed a store. Does not know prices beyond which of them are high.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from leased.collector.holdings import Holdings
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from leased.economics.heat import Heat, Signals, heat_of
from leased.economics.rates import RateCard
from leased.economics.waste import Held, Judged, judge
from leased.terms import series
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind, TierKind
from leased.terms.teardown import Utilization

HEAT_S: Final = 900
"""Heat is of the last quarter of an hour: placement acts on what is, not on what was."""

_HOT_REASONS: Final = ("hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake")
_KINDS: Final = {kind.name.lower(): kind for kind in ResourceKind}
_WAITED_FOR: Final = {
    "cpu": ResourceKind.CPU,
    "memory": ResourceKind.MEM,
    "io": ResourceKind.BLOCK,
}


class LeaseUse(msgspec.Struct, frozen=True):
    """What was seen of one kind of a lease. `capacity` in the raw unit, `held_ns` over how long it
    is measured; utilization is empty where nothing can be seen."""

    node: str
    lease: str
    tenant: str
    kind: ResourceKind
    capacity: int
    held_ns: int
    utilization: Utilization


def utilization_of(rollup: Rollup | None, held_ns: int) -> Utilization:
    """A rollup of shares (in ppm) as per mille, over `held_ns`."""
    if rollup is None or not rollup.count or not rollup.covered_ns:
        return Utilization()
    return Utilization(
        mean_pm=rollup.total // rollup.count // 1000,
        max_pm=rollup.most // 1000,
        active_share_pm=rollup.active * 1000 // rollup.count,
        sample_count=rollup.count,
        coverage_pm=min(1000, rollup.covered_ns * 1000 // max(1, held_ns)),
    )


def queue_depth(store: Store, now_s: int) -> int | None:
    """How many requests wait on all nodes together at `now_s` (Unix s), on the mean of the window
    that is open then and the one before; None: no node says."""
    first_s = now_s // WINDOW_S * WINDOW_S - WINDOW_S
    found = [
        -(-rollup.total // rollup.count)
        for _, rollup in store.read(["leased.queue.depth"], first_s, now_s + 1)
        if rollup.count
    ]
    return sum(found) if found else None


def leases(store: Store, begin_s: int, end_s: int, *, node: str = "") -> list[LeaseUse]:
    """Every lease that was seen in these windows, each kind by itself, by node and lease."""
    holding: dict[tuple[str, str, str], Rollup] = {}
    using: dict[tuple[str, str, str], Rollup] = {}
    tenants: dict[tuple[str, str, str], str] = {}
    for row in store.leases(begin_s, end_s, node=node):
        kind = row.kind
        if kind not in _KINDS or not row.lease:
            continue
        place = (row.node, row.lease, kind)
        sums = using if row.is_use else holding
        before = sums.get(place)
        sums[place] = row.rollup if before is None else before + row.rollup
        tenants[place] = row.tenant or tenants.get(place, "")
    found = []
    for place, held in sorted(holding.items()):
        where, lease, kind = place
        seen = utilization_of(using.get(place), held.covered_ns)
        one = LeaseUse(
            where, lease, tenants[place], _KINDS[kind], held.most, held.covered_ns, seen
        )
        found.append(one)
    return found


def waste(
    found: Iterable[LeaseUse],
    card: RateCard,
    *,
    holdings: Holdings | None = None,
) -> list[Judged]:
    """Each lease's class of waste, kind by kind. What lies in several tiers is priced by its
    kind; without `holdings` all is, and nothing is called fragmented."""
    held = [
        Held(
            one.lease,
            one.tenant,
            one.node,
            one.kind,
            one.capacity,
            one.utilization,
            tier=_only(holdings.tiers(one.node, one.lease, one.kind)) if holdings else None,
            node_capacity=holdings.capacity(one.node, one.kind) if holdings else None,
        )
        for one in found
    ]
    return judge(held, card)


def _only(tiers: Mapping[TierKind | None, int]) -> TierKind | None:
    return next(iter(tiers)) if len(tiers) == 1 else None


def heat(store: Store, now_s: int) -> dict[str, Heat]:
    """How hot each node is that has been heard of lately: in windows that are of the last quarter
    of an hour, in part or whole."""
    names = ("hw.temperature", "leased.gpu.throttled", "leased.pressure.time")
    signals: dict[str, dict[str, int]] = {}
    for key, rollup in store.read(names, now_s - HEAT_S, now_s + 1):
        told = signals.setdefault(key.node, {})
        name, value = _signal(key, rollup)
        if name:
            told[name] = max(told.get(name, value), value)
    return {where: heat_of(Signals(**told)) for where, told in signals.items()}


def waits(store: Store, begin_s: int, end_s: int) -> dict[tuple[str, ResourceKind], int]:
    """Which share of their time somebody in a tenant's leases waited for what they have of a kind,
    by tenant, in per mille, rounded up. Nobody sees who waits for a GPU."""
    found: dict[tuple[str, ResourceKind], tuple[int, int]] = {}
    for key, rollup in store.read(("leased.pressure.time",), begin_s, end_s):
        told = dict(key.attributes)
        kind = _WAITED_FOR.get(told.get(series.PRESSURE[0], ""))
        if key.lease and kind is not None and told.get(series.PRESSURE[1]) == "some":
            waited_ns, covered_ns = found.get((key.tenant, kind), (0, 0))
            found[key.tenant, kind] = waited_ns + rollup.total, covered_ns + rollup.covered_ns
    return {
        whose: min(1000, -(-waited_ns * 1000 // covered_ns))
        for whose, (waited_ns, covered_ns) in found.items()
        if covered_ns
    }


def _signal(key: Key, rollup: Rollup) -> tuple[str, int]:
    """What a rollup says about heat; "" for nothing."""
    told = dict(key.attributes)
    if key.name == "hw.temperature":
        # A drive's limits are another matter; its own controller slows it down.
        return ("millicelsius", rollup.most) if told.get(series.HW_TYPE) == "gpu" else ("", 0)
    if key.name == "leased.gpu.throttled":
        hot = told.get(series.REASON) in _HOT_REASONS and rollup.count
        return ("throttled_pm", rollup.total * 1000 // rollup.count) if hot else ("", 0)
    of_host = not key.lease and told.get(series.PRESSURE[1]) == "some"
    if of_host and rollup.covered_ns:
        return "pressed_pm", rollup.total * 1000 // rollup.covered_ns
    return "", 0


def windows(now_ns: int, period_ns: int) -> tuple[int, int]:
    """The windows of a period that ends now, in Unix seconds."""
    now_s = now_ns // NS_PER_S
    return now_s - period_ns // NS_PER_S, now_s + 1
