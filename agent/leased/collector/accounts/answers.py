# SPDX-License-Identifier: Apache-2.0
"""Answers: what the accounts tell, as the HTTP API sends it.

Rule: field names and nesting of the source document's samples are fixed; fields are only added.
Money and quantities are Decimals (JSON numbers), raw capacity x ns and ids are strings, instants
are RFC 3339. Every answer says how far the fleet's records reach (`Reach`).

Does not compute (`accounts`, `capacity`).
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec
from msgspec import UNSET, UnsetType

from leased.collector.accounts.periods import Window
from leased.economics.amounts import fixed, rounded
from leased.terms.quantity import print_instant


def money(amount: int, decimals: int) -> Decimal:
    """Whole units of 10**-decimals as a number."""
    return Decimal(fixed(amount, decimals))


def to_decimals(amount: Fraction, decimals: int) -> Decimal:
    """An exact amount as it is told: rounded once, to so many digits."""
    return money(rounded(amount, decimals), decimals)


def cut(share: Fraction, digits: int) -> Decimal:
    """A share as it is told: to so many digits and never rounded up, for 0.9999 is not all."""
    return Decimal(int(share * 10**digits)).scaleb(-digits)


class Reach(msgspec.Struct, frozen=True):
    """`watermark` is the oldest last record of any node: what ends before it is settled.
    `nodes_behind` have not reached the end of the period, which is `behind` of them; `provisional`:
    some have not. Which they are is told to who may see the whole fleet, and to nobody else."""

    as_of: str
    watermark: str
    nodes_behind: list[str]
    provisional: bool
    behind: int


class Interval(msgspec.Struct, frozen=True):
    """[start, end)."""

    start: str
    end: str


def interval_of(window: Window) -> Interval:
    """As answers tell it."""
    return Interval(print_instant(window.from_ns), print_instant(window.to_ns))


class UsageRow(msgspec.Struct, frozen=True):
    """One hour, day or whole period of one kind, tier, priority and tag; or one lease of it, and
    then from which records of which chain of which node that follows, and whether it is over."""

    start: str
    end: str
    kind: str
    tier: str | None
    priority: str
    cost_center: str | None
    project: str | None
    request_class: str | None
    budget_group: str | None
    unit: str
    capacity_seconds: Decimal
    cap_ns: str
    peak: Decimal
    """In units, the most of this kind and tier that the tenant held at once in the time."""
    cost: Decimal
    cost_exact: str
    leases: int | None | UnsetType = UNSET
    """How many it is made of; null where their records were removed, so that only hours are left.
    A row that is one lease has none."""
    node: str | UnsetType = UNSET
    log_id: str | UnsetType = UNSET
    lease_id: str | UnsetType = UNSET
    first_record: int | UnsetType = UNSET
    last_record: int | UnsetType = UNSET
    provisional: bool | UnsetType = UNSET


class UsageReport(msgspec.Struct, frozen=True):
    """What a tenant held. `total_cost` is rounded once, whatever the granularity: rounded rows may
    differ from it by their rounding."""

    tenant: str
    interval: Interval
    granularity: str
    currency: str
    rows: list[UsageRow]
    tasks: int
    total_cost: Decimal
    reach: Reach


class TenantCost(msgspec.Struct, frozen=True):
    """One share of what all tenants cost. `others`: how many tenants it is for, where it is
    not of one: somebody may be called OTHER."""

    tenant: str
    cost: Decimal
    share: Decimal
    others: int = 0


class NamedCost(msgspec.Struct, frozen=True):
    """The cost of a type, or a pool."""

    name: str
    cost: Decimal
    share: Decimal


class GroupCost(msgspec.Struct, frozen=True):
    """The cost of a group of what tenants had; null: of what has no such tag, or tier. `others`:
    how many groups it is for, where it is not of one."""

    group: str | None
    cost: Decimal
    share: Decimal
    others: int = 0


class Costs(msgspec.Struct, frozen=True):
    """`total_cost` is the sum of `by_tenant` (basis rate_card), or of that and `pools` (basis
    infrastructure). `by_type` is of all there was, `pools` too, whatever the basis. `groups` add up
    to the sum of `by_tenant`."""

    period: str
    total_cost: Decimal
    currency: str
    by_tenant: list[TenantCost]
    by_type: list[NamedCost]
    pools: list[NamedCost]
    idle_cost: Decimal
    basis: str
    interval: Interval
    reach: Reach
    groups: list[GroupCost] | UnsetType = UNSET


class CenterCost(msgspec.Struct, frozen=True):
    """What a cost centre is charged."""

    cost_center: str
    cost: Decimal
    share: Decimal


class Chargeback(msgspec.Struct, frozen=True):
    """What the infrastructure of a month cost, divided among the cost centres, all of it."""

    month: str
    total_infrastructure_cost: Decimal
    allocations: list[CenterCost]
    currency: str
    spread: str
    interval: Interval
    reach: Reach


class Amount(msgspec.Struct, frozen=True):
    """In units of the kind: cores, GiB, devices."""

    total: Decimal
    allocated: Decimal
    available: Decimal


class Workers(msgspec.Struct, frozen=True):
    """Nodes. Idle: no live lease; draining: grants are stopped."""

    total: int
    active: int
    draining: int
    idle: int


class CurrentCapacity(msgspec.Struct, frozen=True):
    """What there is now. `by_kind` has every kind, the named two are the source document's."""

    cpu_cores: Amount
    memory_gb: Amount
    workers: Workers
    by_kind: dict[str, Amount]


class Utilization(msgspec.Struct, frozen=True):
    """Allocated of total, cut (never rounded up) to two digits. None: there is none of it.
    `overall` is the mean."""

    cpu: Decimal | None
    memory: Decimal | None
    overall: Decimal | None


class Headroom(msgspec.Struct, frozen=True):
    """What the soft limit allows on top."""

    burst_capacity_percent: int
    estimated_burst_duration_minutes: int


class Advice(msgspec.Struct, frozen=True):
    """What to do, and by when. `add_workers` is below zero where there are too many."""

    action: str
    by_date: str
    add_workers: int
    reason: str


class CapacityAlert(msgspec.Struct, frozen=True):
    """A kind of which more than `threshold` is allocated, or a queue in which more wait
    (`queue_depth`, with no utilization); `level` is warning or critical."""

    level: str
    resource: str
    utilization: Decimal | None
    threshold: Decimal


class Capacity(msgspec.Struct, frozen=True):
    """The capacity report. `recommendations` is what to do about it as things are; what is to come
    is the forecast's. `queue_depth`: how many requests wait, on all nodes that send telemetry; null
    where none does."""

    current: CurrentCapacity
    utilization: Utilization
    headroom: Headroom
    alerts: list[CapacityAlert]
    recommendations: list[Advice]
    reach: Reach
    queue_depth: int | None = None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The peak of what is held, expected at a date, named after its kind; in [lower, upper] with
    nine chances in ten. `confidence` is how often the backtest was within a tenth."""

    date: str
    predicted_cpu_demand: Decimal | UnsetType = UNSET
    predicted_gpu_demand: Decimal | UnsetType = UNSET
    predicted_mem_demand: Decimal | UnsetType = UNSET
    predicted_block_demand: Decimal | UnsetType = UNSET
    predicted_net_demand: Decimal | UnsetType = UNSET
    confidence: Decimal
    lower: Decimal
    upper: Decimal


class Forecast(msgspec.Struct, frozen=True):
    """Demand to come of a `kind`, in `unit`s, by the peak of each day: of a kind with several
    tiers, by the sum of what each had at its most in the hour. `reason` says why there are no
    predictions."""

    forecast_horizon: str
    methodology: str
    predictions: list[Prediction]
    recommendations: list[Advice]
    history_days: int
    backtest_points: int
    reason: str | None
    reach: Reach
    kind: str
    unit: str


class IdleResource(msgspec.Struct, frozen=True):
    """A node without a lease; or (`type` lease) what a lease of a tenant on a `node` holds of a
    `kind` and does nothing with, for a week at most."""

    resource: str
    idle_since: str
    idle_hours: int
    wasted_cost: Decimal
    recommendation: str
    type: str = "node"
    node: str | None = None
    tenant: str | None = None
    kind: str | None = None


class Idle(msgspec.Struct, frozen=True):
    """Nodes and leases idle now, and what all idle stretches of the last seven days cost, also if
    they have ended. A node that has a lease is not idle: nothing is counted twice."""

    idle_resources: list[IdleResource]
    total_waste_last_7d: Decimal
    currency: str
    reach: Reach


class ReservationAdvice(msgspec.Struct, frozen=True):
    """So many units of a kind and tier are worth reserving."""

    instance_type: str
    quantity: int
    term: str
    estimated_savings_percent: Decimal
    estimated_savings_annual: Decimal
    break_even_months: Decimal | None


class Reservations(msgspec.Struct, frozen=True):
    """Reserve the k-th unit if it was in use for more of the hours than its price is of the list
    price."""

    analysis_period: str
    recommendations: list[ReservationAdvice]
    currency: str
    reach: Reach
