# SPDX-License-Identifier: Apache-2.0
"""What the fleet's telemetry says: waste by lease, heat by node.

Rule: a figure stands beside how much it rests on (samples, coverage), and what too little was seen
of is *unknown*, with null where a number would be. Who may see some tenants only sees their leases.
`reach` is how far telemetry goes: nothing here follows from records.

Does not receive telemetry (`telemetry.receiver`) and bills nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import msgspec

from leased.collector.accounts.answers import Reach
from leased.collector.accounts.reaching import reach_of
from leased.collector.api import forms
from leased.collector.api.problems import Problem
from leased.collector.api.routes import Answer, Call, Route
from leased.collector.fleet import Fleet
from leased.collector.holdings import Holdings
from leased.collector.telemetry import views
from leased.collector.telemetry.decoding import FUTURE_NS_MAX
from leased.collector.telemetry.store import Store
from leased.economics.rates import RateCard
from leased.economics.waste import Judged, Waste
from leased.terms.moment import DAY_NS, NS_PER_S
from leased.terms.quantity import parse_duration

LAST_NS_MAX = 90 * DAY_NS
FRESH_NS = 2 * NS_PER_S
"""What was found so long ago is told again: nodes tell of themselves every ten seconds, and it is
the most that is asked here, by webhooks too."""


class WasteQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back, and which class."""

    last: forms.Duration = "1h"
    waste: Waste | None = None


class LeaseWaste(msgspec.Struct, frozen=True):
    """One kind of what a lease holds. `utilization`, `active` and `unused` are shares of 1."""

    lease_id: str
    tenant: str
    node: str
    kind: str
    capacity: int
    waste: Waste
    utilization: Decimal | None
    active: Decimal | None
    unused: Decimal | None
    samples: int
    coverage: Decimal


class WasteSeen(msgspec.Struct, frozen=True):
    """Every lease that was seen in the time."""

    last: str
    leases: list[LeaseWaste]
    reach: Reach


class NodeHeat(msgspec.Struct, frozen=True):
    """How hot, from 0 to 1, and what makes it so ("": nothing is known)."""

    node: str
    heat: Decimal
    by: str


class HeatSeen(msgspec.Struct, frozen=True):
    """Every node that was heard of in the last quarter of an hour, the hottest first."""

    nodes: list[NodeHeat]
    reach: Reach


class _Found(msgspec.Struct, frozen=True):
    """When, of how long, at which prices: what was found."""

    at_ns: int
    last_ns: int
    card: RateCard | None
    judged: list[Judged]


class Observed:
    """Answers from the store of rollups."""

    def __init__(
        self,
        state: Path,
        card: Callable[[], RateCard],
        fleet: Callable[[], Fleet],
    ) -> None:
        self._state, self._card, self._fleet = state, card, fleet
        self._last = _Found(0, 0, None, [])

    def waste(self, call: Call) -> Answer:
        """Waste by lease, as it was at most `FRESH_NS` ago."""
        last_ns = parse_duration(call.query.last)
        if not 0 < last_ns <= LAST_NS_MAX:
            raise Problem(422, "From 1s to 90d.", parameter="last")
        with self._store() as store:
            judged = self._judged(store, call.now_ns, last_ns)
            reach = self._reach(store, call.now_ns)
        shown = [
            _shown(one)
            for one in judged
            if call.caller.sees(one.held.tenant) and call.query.waste in (None, one.waste)
        ]
        return Answer(WasteSeen(call.query.last, shown, reach))

    def judged(self, now_ns: int, last_ns: int) -> list[Judged]:
        """Every lease that was seen within `last_ns`, and its class. Raises StateError."""
        with self._store() as store:
            return self._judged(store, now_ns, last_ns)

    def heat(self, call: Call) -> Answer:
        """Heat by node."""
        call.caller.require_all()
        with self._store() as store:
            found = views.heat(store, call.now_ns // NS_PER_S)
            reach = self._reach(store, call.now_ns)
        hottest = sorted(found.items(), key=lambda pair: (-pair[1].heat_pm, pair[0]))
        nodes = [NodeHeat(node, _share(one.heat_pm), one.by) for node, one in hottest]
        return Answer(HeatSeen(nodes, reach))

    def _store(self) -> closing[Store]:
        return closing(Store(self._state, reading=True))

    def _judged(self, store: Store, now_ns: int, last_ns: int) -> list[Judged]:
        card, last = self._card(), self._last
        if (last.last_ns, last.card) == (last_ns, card) and 0 <= now_ns - last.at_ns < FRESH_NS:
            return last.judged
        found = views.leases(store, *views.windows(now_ns, last_ns))
        judged = views.waste(found, card, holdings=Holdings(self._fleet()))
        self._last = _Found(now_ns, last_ns, card, judged)
        return judged

    def _reach(self, store: Store, now_ns: int) -> Reach:
        """How far telemetry goes: a node is behind of which nothing was heard for as long as heat
        is told of. When it was is not known of one that was heard while our own clock was ahead."""
        latest_s = (now_ns + FUTURE_NS_MAX) // NS_PER_S
        heard = {node: at_s if at_s <= latest_s else 0 for node, at_s in store.heard().items()}
        known = [view.node for view in self._fleet().nodes()]
        last = {node: heard.get(node, 0) * NS_PER_S for node in (*known, *heard)}
        return reach_of(last, now_ns - views.HEAT_S * NS_PER_S, now_ns)


def routes(observed: Observed) -> list[Route]:
    """The rows of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/optimize/waste",
            observed.waste,
            "Leases that hold more than they use",
            WasteSeen,
            takes_query=WasteQuery,
            slow=True,
            problems=(422, 503),
        ),
        Route(
            "GET",
            "/v1/governance/heat",
            observed.heat,
            "How hot each node runs",
            HeatSeen,
            slow=True,
            problems=(503,),
        ),
    ]


def _shown(one: Judged) -> LeaseWaste:
    held, seen = one.held, one.held.utilization
    return LeaseWaste(
        held.lease,
        held.tenant,
        held.node,
        held.kind.name.lower(),
        held.capacity,
        one.waste,
        None if seen.mean_pm is None else _share(seen.mean_pm),
        None if seen.active_share_pm is None else _share(seen.active_share_pm),
        None if one.unused_pm is None else _share(one.unused_pm),
        seen.sample_count,
        _share(seen.coverage_pm),
    )


@lru_cache(maxsize=1024)
def _share(pm: int) -> Decimal:
    """There are 1001, but for what a node makes up."""
    return Decimal(pm).scaleb(-3)
