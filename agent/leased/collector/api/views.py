# SPDX-License-Identifier: Apache-2.0
"""The fleet over HTTP: usage against quota, allocations, nodes, live leases, records.

Rule: what is told follows from verified records alone. Of a limit of the whole fleet all that is
had is `used`; of a limit of each node, what the node has on which most of it is. What is held
counts until it is proven clean, as it does on the node.

Does not decide what a quota is (`quotas`) and does not read the archive (`books`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Final

import msgspec

from leased.collector.accounts.answers import Reach, cut
from leased.collector.accounts.reaching import reach_of_fleet
from leased.collector.api.allocations import seen_of
from leased.collector.api.fleet_answers import (
    AllocationsSeen,
    ComplianceSeen,
    EventSeen,
    EventsSeen,
    LeaseSeen,
    LeasesSeen,
    NodesSeen,
    TenantCompliance,
    UsageOf,
    UsageSeen,
)
from leased.collector.api.fleet_rows import lease_row, newest_first, newest_of, node_row
from leased.collector.api.problems import unread
from leased.collector.api.quota_answers import page, quantities
from leased.collector.api.quotas import unknown
from leased.collector.api.routes import Answer, Call, Caller
from leased.collector.archive.manifest import LogEntry
from leased.collector.fleet import Fleet
from leased.collector.governance.dimensions import BY_KEY, BY_KIND, Dimension, Form, show
from leased.collector.governance.lending import lent
from leased.collector.governance.quotas import Limit, Per
from leased.collector.node_view import NodeView
from leased.collector.planning.compliance import HOURS, Tally
from leased.terms.moment import HOUR_NS, MINUTE_NS, NS_PER_S
from leased.terms.policy import Policy
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind

PRIMARY: Final = "cpu_cores"
THROTTLED_NS: Final = MINUTE_NS


class Views:
    """The handlers. `limits` says what is in force for a tenant at an instant."""

    def __init__(
        self,
        fleet: Callable[[], Fleet],
        limits: Callable[[str, int], Mapping[str, Limit]],
        tenants: Callable[[], list[str]],
        ground: Callable[[], Policy],
    ) -> None:
        self._fleet, self._limits, self._tenants = fleet, limits, tenants
        self._ground = ground

    # -- usage against quota -----------------------------------------------------------------------

    def usage(self, call: Call) -> Answer:
        """What a tenant has, of what it may have."""
        tenant = call.path.tenant
        call.caller.require_tenant(tenant)
        if tenant not in self._tenants():
            raise unknown(tenant) if any(self._fleet().standing().watermarks.values()) else unread()
        return Answer(self.usage_of(tenant, call.now_ns))

    def usage_of(self, tenant: str, now_ns: int) -> UsageSeen:
        """The same as a struct, of a tenant that is known."""
        fleet, limits = self._fleet(), self._limits(tenant, now_ns)
        by_node = {view: _used(view, tenant, now_ns) for view in _telling(fleet, tenant)}
        rows: dict[str, UsageOf] = {}
        shares: dict[str, Decimal] = {}
        for key, dimension in BY_KEY.items():
            used = {view: found[key] for view, found in by_node.items() if key in found}
            limit = limits.get(key)
            if limit is None and not any(used.values()):
                continue
            rows[key] = _row(dimension, limit, used)
            if limit is not None and used:
                shares[key] = _ratio(_of(limit, used), limit.raw)
        primary = PRIMARY if PRIMARY in shares else next(iter(shares), None)
        most = max(shares, key=lambda key: shares[key], default=None)
        until_ns = fleet.standing().until_ns(now_ns)
        throttled = [view.throttled.get(tenant, 0) for view in fleet.nodes()]
        over = [
            since
            for view in fleet.nodes()
            for (holder, _), since in list(view.over.items())
            if holder == tenant
        ]
        return UsageSeen(
            tenant=tenant,
            quotas=rows,
            quota_utilization=shares[primary] if primary is not None else Decimal(0),
            throttled=any(now_ns - THROTTLED_NS < at <= until_ns for at in throttled),
            max_utilization=shares[most] if most is not None else Decimal(0),
            dominant_resource=most,
            borrowed=quantities(_borrowed(fleet, tenant)),
            lent=quantities(self._lent(fleet, tenant, now_ns)),
            over_soft_since=print_instant(min(over)) if over else None,
            as_of=print_instant(now_ns),
            reach=self.reach(now_ns),
        )

    def _lent(self, fleet: Fleet, tenant: str, now_ns: int) -> dict[str, int]:
        """What others have borrowed of a tenant."""
        borrowed: dict[ResourceKind, dict[str, int]] = {}
        for borrower, kinds in fleet.standing().borrowed_by.items():
            for kind, amount in kinds.items():
                borrowed.setdefault(kind, {})[borrower] = amount
        of_others = [kind for kind, mine in borrowed.items() if mine.keys() - {tenant}]
        if not of_others:
            return {}
        limits = {one: self._limits(one, now_ns) for one in self._tenants()}
        found: dict[str, int] = {}
        for kind in of_others:
            key = BY_KIND[kind].key
            idle = {
                one: _idle(fleet, one, kind, rows[key])
                for one, rows in limits.items()
                if key in rows and rows[key].lends
            }
            found[key] = lent(borrowed[kind], idle).get(tenant, 0)
        return {key: amount for key, amount in found.items() if amount}

    def shares_of(self, tenant: str, now_ns: int) -> dict[str, Fraction]:
        """Used of each limit above zero, exactly."""
        return self._shares({tenant: self._limits(tenant, now_ns)}, now_ns).get(tenant, {})

    def shares(self, now_ns: int) -> dict[str, dict[str, Fraction]]:
        """The same of everybody who has something, node by node and not tenant by tenant."""
        limits: dict[str, Mapping[str, Limit]] = {}
        for _, lease in self._fleet().leases():
            tenant = str(lease.subject.tenant)
            if tenant not in limits:
                limits[tenant] = self._limits(tenant, now_ns)
        return self._shares(limits, now_ns)

    def _shares(
        self, limits: Mapping[str, Mapping[str, Limit]], now_ns: int
    ) -> dict[str, dict[str, Fraction]]:
        used: dict[tuple[str, str], dict[NodeView, int]] = {}
        for view in self._fleet().nodes():
            here = {str(one.subject.tenant) for one in list(view.leases.values())}
            for tenant in limits if len(limits) == 1 else here & limits.keys():
                if limits[tenant]:
                    for key, amount in _used(view, tenant, now_ns).items():
                        used.setdefault((tenant, key), {})[view] = amount
        found: dict[str, dict[str, Fraction]] = {}
        for (tenant, key), amounts in used.items():
            limit = limits[tenant].get(key)
            if limit is not None and limit.raw:
                found.setdefault(tenant, {})[key] = Fraction(_of(limit, amounts), limit.raw)
        return found

    # -- allocations -------------------------------------------------------------------------------

    def allocations(self, call: Call) -> Answer:
        """How what there is is divided."""
        call.caller.require_all()
        return Answer(self.allocations_at(call.now_ns))

    def compliance(self, call: Call) -> Answer:
        """How much of what was asked for was within quota, in the last day."""
        call.caller.require_all()
        return Answer(self.compliance_at(call.now_ns))

    def compliance_at(self, now_ns: int) -> ComplianceSeen:
        """The same as a struct: the checklist and the metrics show a part of it."""
        from_ns = now_ns // HOUR_NS * HOUR_NS - (HOURS - 1) * HOUR_NS
        tallies = self._fleet().standing().tallies(from_ns, now_ns)
        whole = Tally()
        for tally in tallies.values():
            whole.add(tally)
        return ComplianceSeen(
            period=f"{HOURS}h",
            since=print_instant(from_ns),
            quota_compliance=cut(whole.share, 4),
            requests=whole.requests,
            over=whole.over,
            refused=whole.refused,
            by_tenant=[
                TenantCompliance(
                    tenant=tenant,
                    quota_compliance=cut(one.share, 4),
                    requests=one.requests,
                    over=one.over,
                    refused=one.refused,
                )
                for tenant, one in sorted(tallies.items())
            ],
            as_of=print_instant(now_ns),
            reach=self.reach(now_ns),
        )

    def allocations_at(self, now_ns: int) -> AllocationsSeen:
        """`allocations` as a struct: the checklist and the metrics show a part of it."""
        return seen_of(self._fleet(), self._ground(), now_ns)

    # -- nodes, leases, records --------------------------------------------------------------------

    def nodes(self, call: Call) -> Answer:
        """Every node, with its logs."""
        call.caller.require_all()
        return Answer(self.nodes_at(call.now_ns))

    def nodes_at(self, now_ns: int) -> NodesSeen:
        """The same as a struct, which the console reads."""
        fleet = self._fleet()
        logs: dict[str, list[LogEntry]] = {}
        for entry in list(fleet.entries.values()):
            logs.setdefault(entry.node, []).append(entry)
        rows = [node_row(logs.get(view.node, []), view, now_ns) for view in fleet.known()]
        seen = [
            msgspec.structs.replace(row, state="retired") if row.node in fleet.retired else row
            for row in rows
        ]
        return NodesSeen(seen, print_instant(now_ns), self.reach(now_ns))

    def leases(self, call: Call) -> Answer:
        """Leases that are not proven clean, soonest deadline first within a page's order."""
        rows = self.leases_of(call.caller, call.query.tenant, call.now_ns)
        shown, cursor = page(rows, call.query.limit, call.query.cursor, lambda one: one.lease_id)
        told = (print_instant(call.now_ns), self.reach(call.now_ns), cursor)
        return Answer(LeasesSeen(list(shown), len(rows), *told))

    def leases_of(self, caller: Caller, tenant: str | None, now_ns: int) -> list[LeaseSeen]:
        """Those that the caller may see, of a tenant or of all."""
        if tenant is not None:
            caller.require_tenant(tenant)
        found = [
            lease_row(view, lease, now_ns)
            for view, lease in self._fleet().leases(tenant)
            if caller.sees(str(lease.subject.tenant))
        ]
        return sorted(found, key=lambda one: one.lease_id)

    def events(self, call: Call) -> Answer:
        """The last records about leases, the newest first."""
        call.caller.require_all()
        views, limit = self._fleet().known(), call.query.limit
        # Of a thousand nodes only those count whose newest is among the newest: what is older than
        # `limit` nodes' last events is not shown.
        last = heapq.nlargest(limit, newest_of(views))
        newest = heapq.merge(
            *(newest_first(at, views[at]) for _, _, at in last),
            key=lambda found: found[:3],
            reverse=True,
        )
        rows = [
            EventSeen(
                views[at].name,
                views[at].node,
                one.sequence,
                one.kind,
                print_instant(one.wall_ns),
                one.tenant,
                one.lease_id,
            )
            for _, _, at, one in islice(newest, limit)
        ]
        return Answer(EventsSeen(rows, print_instant(call.now_ns), self.reach(call.now_ns)))

    def reach(self, now_ns: int) -> Reach:
        """How far the records go that all of this follows from."""
        return reach_of_fleet(self._fleet(), now_ns)


def _telling(fleet: Fleet, tenant: str) -> Iterator[NodeView]:
    """Nodes on which a tenant has something, and enough others to name every kind there is."""
    kinds: set[ResourceKind] = set()
    having = {view.log_id for view, _ in fleet.leases(tenant)}
    for at, view in enumerate(fleet.nodes()):
        there = view.totals().keys()
        if view.log_id in having or not at or not there <= kinds:
            kinds |= there
            yield view


def _used(view: NodeView, tenant: str, now_ns: int) -> dict[str, int]:
    """What a tenant has on a node, by the API's names."""
    there = list(view.leases.values())
    leases = [one for one in there if one.subject.tenant == tenant and one.counts]
    held = [one for one in leases if one.is_held]
    found = {BY_KIND[kind].key: amount for kind, amount in view.held(tenant).items()}
    for kind in view.totals():
        found.setdefault(BY_KIND[kind].key, 0)
    found["max_leases"] = len(leases)
    found["max_concurrent_tasks"] = len(held)
    oldest_ns = max((view.age_ns(one, now_ns) for one in held), default=0)
    found["max_task_duration"] = oldest_ns // NS_PER_S * NS_PER_S
    return found


def _of(limit: Limit, used: Mapping[NodeView, int]) -> int:
    """What counts against a limit."""
    return sum(used.values()) if limit.per is Per.FLEET else max(used.values())


def _row(dimension: Dimension, limit: Limit | None, used: Mapping[NodeView, int]) -> UsageOf:
    most = max(used.values(), default=0)
    node = next((view.name for view, amount in used.items() if amount == most), None)
    is_counted = bool(used)
    counts = most if limit is None or not used else _of(limit, used)
    free = None if limit is None or not is_counted else max(0, limit.raw - counts)
    over = 0 if limit is None else max(0, counts - limit.raw)
    everywhere = most if dimension.form is Form.DURATION else sum(used.values())
    return UsageOf(
        limit=None if limit is None else show(dimension, limit.raw),
        used=show(dimension, counts) if is_counted else None,
        available=None if free is None else show(dimension, free),
        overage=show(dimension, over) if over else None,
        fleet_used=show(dimension, everywhere) if is_counted else None,
        node=node if most else None,
        per=None if limit is None else limit.per,
    )


def _ratio(part: int, whole: int) -> Decimal:
    return cut(Fraction(part, whole), 2) if whole else Decimal(1 if part else 0)


def _idle(fleet: Fleet, tenant: str, kind: ResourceKind, limit: Limit) -> int:
    """What a tenant may have of a kind, and has not."""
    views = [view for view in fleet.nodes() if view.totals().get(kind)]
    used = [view.held(tenant).get(kind, 0) for view in views]
    if limit.per is Per.FLEET:
        return max(0, limit.raw - sum(used))
    return sum(max(0, limit.raw - amount) for amount in used)


def _borrowed(fleet: Fleet, tenant: str) -> dict[str, int]:
    mine = fleet.standing().borrowed_by.get(tenant, {})
    return {BY_KIND[kind].key: amount for kind, amount in mine.items()}
