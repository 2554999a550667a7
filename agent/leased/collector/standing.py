# SPDX-License-Identifier: Apache-2.0
"""How a fleet stands: what follows from all its nodes' views together, by node, tenant and kind.

Rule: of one state of the records. Each answer is made when it is first asked for, and is then the
same for everybody who asks: a fleet of a thousand nodes is gone through once for each state, not
for each request. What is handed out is not to be changed.

Does not follow records and does not know when it is old (`fleet`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from leased.collector.accounts.clocks import last_ns
from leased.collector.live_lease import LiveLease
from leased.collector.node_view import NodeView, Want, summed
from leased.collector.planning.compliance import Tally, together
from leased.terms.resource import ResourceKind

Amounts = dict[ResourceKind, int]


class Standing:
    """Of these logs, without the nodes that are retired."""

    def __init__(self, logs: Iterable[NodeView], retired: frozenset[str]) -> None:
        self._logs, self._retired = list(logs), retired
        self._tallies: tuple[int, Mapping[str, Tally]] = (-1, {})

    @cached_property
    def known(self) -> list[NodeView]:
        """Each node, by its last log, by name; those that are not there any more, too."""
        latest = {view.node: view for view in self._logs}
        return sorted(latest.values(), key=lambda view: (view.name, view.node))

    @cached_property
    def nodes(self) -> list[NodeView]:
        """The same, that are there."""
        return [view for view in self.known if view.node not in self._retired]

    @cached_property
    def tenants(self) -> list[str]:
        """Everybody who had a lease or was refused one, sorted."""
        return sorted({tenant for view in self._logs for tenant in list(view.tenants)})

    @cached_property
    def leases(self) -> list[tuple[NodeView, LiveLease]]:
        """Every lease that is not proven clean."""
        return [(view, lease) for view in self.nodes for lease in list(view.leases.values())]

    @cached_property
    def watermarks(self) -> dict[str, int]:
        """When the last record of each node that is there was, by its wall clock; 0: none yet."""
        moments = ((view.node, view.moment) for view in self.nodes)
        return {node: at.wall_ns if at else 0 for node, at in moments}

    @cached_property
    def totals(self) -> Amounts:
        """What there is of each kind."""
        return summed(view.totals() for view in self.nodes)

    @cached_property
    def held_by(self) -> dict[str, Amounts]:
        """What each has of each kind, in one pass."""
        found: dict[str, Amounts] = {tenant: {} for tenant in self.tenants}
        for _, lease in self.leases:
            mine = found.setdefault(str(lease.subject.tenant), {})
            for one in lease.subject.allotments if lease.counts else ():
                mine[one.kind] = mine.get(one.kind, 0) + one.capacity
        return found

    @cached_property
    def borrowed_by(self) -> dict[str, Amounts]:
        """What each has that is somebody else's."""
        found: dict[str, Amounts] = {}
        for _, lease in self.leases:
            for kind, amount in lease.borrowed if lease.counts else ():
                mine = found.setdefault(str(lease.subject.tenant), {})
                mine[kind] = mine.get(kind, 0) + amount
        return found

    @cached_property
    def given(self) -> dict[tuple[str, ResourceKind], list[int]]:
        """When each was given what it has of each kind, sorted."""
        found: dict[tuple[str, ResourceKind], list[int]] = {}
        for _, lease in self.leases:
            for one in lease.subject.allotments:
                key = (str(lease.subject.tenant), one.kind)
                found.setdefault(key, []).append(lease.granted_wall_ns)
        return {key: sorted(moments) for key, moments in found.items()}

    def wanted(self, since_ns: int, now_ns: int) -> Iterator[tuple[str, ResourceKind, Want]]:
        """What was asked for in vain since then, for want of room, and has not been given
        afterwards. By a clock that is ahead all was given afterwards: of that nothing is."""
        until_ns = self.until_ns(now_ns)
        for view in self.nodes:
            for (tenant, kind), want in list(view.unmet.items()):
                given = self.given.get((tenant, kind), [])
                after = bisect_left(given, want.wall_ns)
                has = after < len(given) and given[after] <= until_ns
                if since_ns < want.wall_ns <= until_ns and not has:
                    yield tenant, kind, want

    def until_ns(self, now_ns: int) -> int:
        """The latest instant of which records are believed."""
        moments = [view.moment.wall_ns for view in self.known if view.moment]
        return last_ns(moments, now_ns)

    def tallies(self, from_ns: int, now_ns: int) -> Mapping[str, Tally]:
        """What was asked for and refused from the hour of an instant to now, by tenant."""
        since_ns, found = self._tallies
        if since_ns != from_ns:
            until_ns = self.until_ns(now_ns)
            found = together(view.compliance.between(from_ns, until_ns) for view in self.known)
            self._tallies = (from_ns, found)
        return found
