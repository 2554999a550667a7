# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes: money now, money since the beginning, usage, quota, chains, requests.

Rule: the gauges of cost are a partition: each unit of currency is in one series, so a plain `sum()`
is right. What alerts add up over time is a counter beside them, because `increase()` of a gauge
means nothing; counters come from the same cells as the bills (`tally`), and so survive a restart.
Where there is nothing to divide by, a quotient is absent, not 0.

Does not write the format (`exposition`) and does not price (`economics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Final

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.tally import Tally
from leased.collector.api.exposition import Samples, counter, gauge
from leased.collector.api.routes import Answer, Call, Route
from leased.collector.api.views import Views
from leased.collector.archive.floor import Floor
from leased.collector.fleet import Fleet
from leased.collector.governance.issuer import Issuer
from leased.collector.planning.rightsizing import TARGET_PM
from leased.collector.reconcile import Verdict
from leased.collector.telemetry.rollup import WINDOW_S
from leased.collector.webhooks.mailing import OUTCOMES, Mailing
from leased.economics.attribution import TYPE_OF, Basis, attribute
from leased.economics.contracts import Terms
from leased.economics.pools import UNIT, Pool
from leased.economics.rates import RateCard
from leased.economics.waste import Judged
from leased.terms.exposition import MEDIA_TYPE
from leased.terms.lease import Priority, is_probe
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.resource import ResourceKind, TierKind

IDLE: Final = "__idle__"
FENCED: Final = "__fenced__"
Cost = dict[tuple[str, ...], Fraction]
_Tier = tuple[ResourceKind, TierKind | None]
_Sort = tuple[str, bool, Priority | None, _Tier]
_RESOURCE: Final = {ResourceKind.MEM: "memory"}


class Metrics:
    """The handler, and the counters of the server itself."""

    def __init__(
        self,
        *,
        fleet: Callable[[], Fleet],
        ask: Callable[[Callable[[Accounts], Any]], Any],
        terms: Callable[[], Terms],
        views: Views,
        issuer: Issuer,
        tenants: Callable[[], list[str]],
        hooks: Mailing,
        waste: Callable[[], list[Judged]],
        queue_depth: Callable[[int], int | None],
        floor: Callable[[], Floor],
        free_bytes: Callable[[], int],
    ) -> None:
        self._fleet, self._ask, self._terms = fleet, ask, terms
        self._views, self._issuer, self._tenants = views, issuer, tenants
        self._hooks, self._waste, self._queue_depth = hooks, waste, queue_depth
        self._floor, self._free_bytes = floor, free_bytes
        self._looked_ns, self._spare = 0, Cost()
        self._requests: dict[tuple[str, ...], int] = {}

    def count(self, route: str, status: int) -> None:
        """A request was answered."""
        key = (route, str(status))
        self._requests[key] = self._requests.get(key, 0) + 1

    def show(self, call: Call) -> Answer:
        """Everything."""
        call.caller.require_all()
        lines = [
            *_present(self._fleet(), self._terms().card_at(call.now_ns)),
            *(self._ask(lambda accounts: accounts.once("metrics", self._past)) or ()),
            *self._quotas(call.now_ns),
            *_chains(self._fleet(), call.now_ns),
            *self._unused(call.now_ns),
            *self._waiting(call.now_ns),
            *self._own(),
            *self._told(),
        ]
        text = "".join(f"{line}\n" for line in lines)
        return Answer(raw=text.encode(), media_type=MEDIA_TYPE)

    def _past(self, accounts: Accounts) -> list[str]:
        return _past(accounts, self._floor())

    def _unused(self, now_ns: int) -> Iterable[str]:
        if now_ns - self._looked_ns >= WINDOW_S * NS_PER_S:
            # Telemetry is kept by the window: between two nothing is new.
            self._looked_ns = now_ns
            self._spare = _spare(self._waste(), self._fleet(), self._terms().card_at(now_ns))
        yield from gauge(
            "grey_cost_overprovisioned_dollars",
            "Cost of an hour of what leases hold beyond what they would at the target of use.",
            ("type",),
            self._spare,
        )

    def _waiting(self, now_ns: int) -> Iterable[str]:
        depth = self._queue_depth(now_ns)
        yield from gauge(
            "grey_scheduler_queue_depth",
            "Requests that wait on nodes, as these say; absent where none sends telemetry.",
            (),
            {} if depth is None else {(): depth},
        )

    def _told(self) -> Iterable[str]:
        outcomes = self._hooks.outcomes
        yield from counter(
            "grey_webhook_deliveries_total",
            "Attempts to deliver a webhook since the server started, by what came of them.",
            ("outcome",),
            {(one,): outcomes[one] for one in OUTCOMES},
        )
        yield from gauge(
            "grey_webhook_queue_deliveries",
            "Deliveries that wait for their receiver, and those that were given up.",
            ("state",),
            {(one,): self._hooks.count(one) for one in ("pending", "dead")},
        )

    def _quotas(self, now_ns: int) -> Iterable[str]:
        ratios: dict[tuple[str, ...], Fraction] = {}
        for tenant in self._tenants():
            for key, share in self._views.shares_of(tenant, now_ns).items():
                ratios[tenant, key] = share
        yield from gauge(
            "grey_quota_utilization_ratio",
            "Used of what a tenant may have on all nodes, or on the one where that is most.",
            ("tenant", "resource"),
            ratios,
        )
        yield from gauge(
            "grey_quota_compliance_ratio",
            "Requests of the last day that were within quota, of all.",
            (),
            {(): Fraction(self._views.compliance_at(now_ns).quota_compliance)},
        )
        yield from gauge(
            "grey_tenant_fairness_index",
            "Jain's index over what tenants have of what they want and are entitled to.",
            (),
            {(): self._views.allocations_at(now_ns).fairness_index},
        )

    def _own(self) -> Iterable[str]:
        issued = self._issuer.current
        retired = self._fleet().retired
        accepted = [one for one in self._issuer.accepted.values() if one.node not in retired]
        current = [self._issuer.is_current(one) for one in accepted]
        yield from gauge(
            "leased_collector_free_bytes",
            "Room on the disk of the state directory: without it nothing is pulled.",
            (),
            {(): self._free_bytes()},
        )
        yield from gauge(
            "leased_policy_generation",
            "The generation of the policy that nodes are handed.",
            (),
            {(): issued.generation},
        )
        yield from gauge(
            "leased_policy_nodes",
            "Nodes by whether they have the current policy.",
            ("current",),
            {("true",): sum(current), ("false",): len(current) - sum(current)},
        )
        yield from counter(
            "leased_http_requests_total",
            "Requests answered, by route and status.",
            ("route", "status"),
            dict(self._requests),
        )


def _present(fleet: Fleet, card: RateCard) -> Iterable[str]:
    """What an hour costs as things are."""
    hourly, tenants = _hourly(fleet, card)
    totals, held = fleet.standing().totals, fleet.held()
    yield from gauge(
        "grey_cluster_utilization_ratio",
        "Allocated of what there is.",
        ("resource",),
        {
            (_RESOURCE.get(kind, kind.name.lower()),): Fraction(held.get(kind, 0), total)
            for kind, total in totals.items()
            if total
        },
    )
    yield from gauge(
        "grey_cost_hourly_dollars",
        "Cost of an hour as things are; each part in one series, what nobody has as __idle__.",
        ("component", "tenant", "type"),
        hourly,
    )
    yield from gauge(
        "grey_cost_tenant_hourly_dollars",
        "Cost of an hour of what a tenant has.",
        ("tenant",),
        tenants,
    )
    idle: Cost = {}
    for (_, tenant, kind), cost in hourly.items():
        if tenant == IDLE:
            idle[(kind,)] = idle.get((kind,), Fraction(0)) + cost
    yield from gauge(
        "grey_cost_idle_resources_dollars",
        "Cost of an hour of what nobody has.",
        ("type",),
        idle,
    )


def _hourly(fleet: Fleet, card: RateCard) -> tuple[Cost, Cost]:
    hourly: Cost = {}
    tenants: Cost = {}
    left: dict[_Tier, int] = {}
    # Whole numbers first, and one price of each: thousands of leases are of a few sorts.
    amounts: dict[_Sort, int] = {}
    for view in fleet.nodes():
        for cell, capacity in view.tiers.items():
            left[cell] = left.get(cell, 0) + capacity
        for one in list(view.fences.values()):
            sort: _Sort = (FENCED, False, None, (one.kind, one.tier))
            amounts[sort] = amounts.get(sort, 0) + one.capacity
    for _, lease in fleet.leases():
        subject, held = lease.subject, lease.is_held
        whose = str(subject.tenant) if held else f"__{lease.state}__"
        free = held and is_probe(subject.tag)
        priority = subject.priority if held else None
        for one in lease.kept:
            sort = (whose, free, priority, (one.kind, one.tier))
            amounts[sort] = amounts.get(sort, 0) + one.capacity
    for (whose, free, priority, cell), amount in amounts.items():
        left[cell] = left.get(cell, 0) - amount
        price = Fraction(0) if free else card.cost(amount * HOUR_NS, *cell, priority)
        label = whose if priority is None else _apart(whose)
        _add(hourly, (cell[0].name.lower(), label, TYPE_OF[cell[0]]), price)
        if priority is not None:
            _add(tenants, (whose,), price)
    for cell, amount in left.items():
        price = card.cost(amount * HOUR_NS, *cell, None)
        _add(hourly, (cell[0].name.lower(), IDLE, TYPE_OF[cell[0]]), price)
    return hourly, tenants


def _apart(tenant: str) -> str:
    """A tenant among what is nobody's: one that is called `__idle__` is a series of its own."""
    return f"tenant:{tenant}" if tenant.startswith("__") else tenant


def _add(costs: Cost, key: tuple[str, ...], cost: Fraction) -> None:
    costs[key] = costs.get(key, Fraction(0)) + cost


def _spare(judged: Iterable[Judged], fleet: Fleet, card: RateCard) -> Cost:
    """Of leases of which enough was seen: the share that is not needed at the target."""
    seen = {
        (one.held.lease, one.held.kind): one.held.utilization.mean_pm or 0
        for one in judged
        if one.unused_pm is not None
    }
    found: Cost = {}
    for _, lease in fleet.leases():
        for one in lease.subject.allotments:
            used_pm = seen.get((lease.lease_id, one.kind))
            if used_pm is not None and lease.is_held:
                share = 1 - Fraction(used_pm, TARGET_PM.get(one.kind, WHOLE_PM))
                share = max(Fraction(0), share)
                priced = (one.kind, one.tier, lease.subject.priority)
                whole = card.cost(one.capacity * HOUR_NS, *priced)
                _add(found, (TYPE_OF[one.kind],), share * whole)
    return found


def _past(accounts: Accounts, floor: Floor) -> list[str]:
    """What was had since the first record, from the cells of the bills."""
    end_ns = (accounts.newest_ns() // HOUR_NS + 1) * HOUR_NS
    tally = Tally(accounts.source, accounts.terms, floor, end_ns)
    return [
        *counter(
            "grey_cost_dollars_total",
            "Cost of what tenants had since the first record.",
            ("tenant", "type"),
            tally.costs,
        ),
        *counter(
            "grey_lease_capacity_seconds_total",
            "Capacity times time had since the first record, in units of the kind.",
            ("tenant", "kind", "tier", "priority"),
            tally.seconds,
        ),
        *counter(
            "grey_scheduler_tasks_completed_total",
            "Leases that were given back: each is a task done.",
            ("tenant", "outcome"),
            {(tenant, "released"): int(count) for (tenant,), count in tally.tasks.items()},
        ),
        *_quotients(accounts, accounts.now_ns() // HOUR_NS * HOUR_NS),
    ]


def _quotients(accounts: Accounts, end_ns: int) -> Iterable[str]:
    """Of the last whole hour."""
    window = (end_ns - HOUR_NS, end_ns)
    cells = accounts.source.sums(window)
    cost = attribute(cells.items(), accounts.terms, Basis.RATE_CARD).tenants_total
    tasks = sum(accounts.source.tasks(window).values())
    core_ns = sum(
        amount
        for key, amount in cells.items()
        if key.pool is Pool.TENANT and key.kind is ResourceKind.CPU
    )
    core_hours = Fraction(core_ns, UNIT[ResourceKind.CPU] * HOUR_NS)
    per_task: Samples = {(): cost / tasks} if tasks else {}
    per_hour: Samples = {(): cost / core_hours} if core_hours else {}
    yield from gauge(
        "grey_cost_per_task_dollar",
        "Cost of the last whole hour by the tasks that it completed.",
        (),
        per_task,
    )
    yield from gauge(
        "grey_cost_per_cpu_hour_dollar",
        "Cost of the last whole hour by the core-hours that were had in it.",
        (),
        per_hour,
    )


def _chains(fleet: Fleet, now_ns: int) -> Iterable[str]:
    entries = list(fleet.entries.values())
    verified: dict[tuple[str, ...], int] = {}
    ages: dict[tuple[str, ...], Fraction] = {}
    bad: dict[tuple[str, ...], int] = {}
    for entry in entries:
        node = (entry.name,)
        verified[node] = verified.get(node, 0) + entry.head.size
        age_ns = entry.age_ns(now_ns)
        if age_ns is not None and entry.node not in fleet.retired:
            age = Fraction(age_ns, NS_PER_S)
            ages[node] = min(age, ages.get(node, age))
        if Verdict(entry.verdict).sticky and entry.log_id not in fleet.replaced:
            key = (entry.name, entry.verdict)
            bad[key] = bad.get(key, 0) + 1
    yield from counter(
        "grey_chain_verified_records_total",
        "Records of a node that were verified and kept.",
        ("node",),
        verified,
    )
    yield from gauge(
        "grey_chain_head_age_seconds",
        "Since a node last answered with a head that holds.",
        ("node",),
        ages,
    )
    yield from counter(
        "grey_chain_verify_failures_total",
        "Logs whose verdict wants an operator, by verdict.",
        ("node", "reason"),
        bad,
    )


def route(metrics: Metrics) -> Route:
    """The row of the table."""
    return Route(
        "GET",
        "/metrics",
        metrics.show,
        "Metrics for Prometheus",
        None,
        slow=True,
        also=("text/plain",),
        about="operations",
    )
