# SPDX-License-Identifier: Apache-2.0
"""The answers about the fleet: usage, allocations, nodes, leases, records.

Rule: names and nesting are those of the documented samples, and what is added is only added. Each
answer says how far the records reach that it follows from.

Does not compute (`views`).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from leased.collector.accounts.answers import Reach
from leased.collector.api.quota_answers import Quantities
from leased.collector.governance.quotas import Per
from leased.terms.policy import Strategy

Quantity = Annotated[Any, Meta(extra_json_schema={"type": ["number", "string", "null"]})]


class UsageOf(msgspec.Struct, frozen=True):
    """One dimension. `used` is what counts against the limit: all that is had if it is the whole
    fleet's (`per`), else what is on the node on which most is (`node`). `fleet_used` is on all;
    null: it is no amount that is had."""

    limit: Quantity
    used: Quantity
    available: Quantity
    overage: Quantity = None
    fleet_used: Quantity = None
    node: str | None = None
    per: Per | None = None


class UsageSeen(msgspec.Struct, frozen=True, kw_only=True):
    """`quota_utilization` is of the first dimension that has a limit (`cpu_cores` if it has one),
    `max_utilization` of `dominant_resource`. `borrowed` is what it has of others' quota, `lent`
    what others have of its own: nodes lend what is idle of all together, so that is each lender's
    part of what is borrowed, by what is idle of its quota."""

    tenant: str
    quotas: dict[str, UsageOf]
    quota_utilization: Decimal
    throttled: bool
    max_utilization: Decimal
    dominant_resource: str | None
    borrowed: Quantities
    lent: Quantities
    over_soft_since: str | None
    as_of: str
    reach: Reach


class ShareSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One node's part of one limit: `share` until `until`, `floor` for good. `bound` is the most
    that the node may still have, by all that it was handed and by what it holds: bounds never add
    up to more than the limit. `present`: it asks for its policy."""

    resource: str
    node: str
    floor: Quantity
    share: Quantity
    bound: Quantity
    held: Quantity
    until: str
    present: bool


class SharesSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's limits of the whole fleet, and how they are divided."""

    tenant: str
    quotas: Quantities
    shares: list[ShareSeen]
    as_of: str
    reach: Reach


class TenantShare(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant that has or wants something. `share` is its weight's, of the weights of all of
    them; together they are 1. `demand` is what it has, and the largest of what it was refused in
    the last minute for want of room; `entitled` what it should have by the strategy: never more
    than it wants where shares are fair, by priority all that it wants. `borrowed` of `allocated` is
    somebody else's. `dominant_share` is the largest that it has of anything, whatever its weight.
    """

    tenant: str
    weight: Decimal
    share: Decimal
    entitled: Quantities
    allocated: Quantities
    demand: Quantities
    borrowed: Quantities
    dominant_share: Decimal
    dominant_resource: str | None


class AllocationsSeen(msgspec.Struct, frozen=True, kw_only=True):
    """`strategy` is that of cpu_cores, `strategies` those of the others that have one. `fairness`
    is Jain's index of each kind, over the tenants that want some of it, of what each has to the
    smaller of what it wants and what it is entitled to: 1 where all have the same part of that,
    1/n where one of n has all. `fairness_index` is the lowest of them, 1 if nobody wants
    anything."""

    strategy: Strategy
    strategies: dict[str, Strategy]
    capacity: Quantities
    tenants: list[TenantShare]
    fairness: dict[str, Decimal]
    fairness_index: Decimal
    as_of: str
    reach: Reach


class TenantCompliance(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's requests: all, granted above its quota, refused because of it."""

    tenant: str
    quota_compliance: Decimal
    requests: int
    over: int
    refused: int


class ComplianceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Requests within quota, of all; 1 if nobody asked. `over` were granted above a quota (soft, in
    a burst, borrowed), `refused` because of one."""

    period: str
    since: str
    quota_compliance: Decimal
    requests: int
    over: int
    refused: int
    by_tenant: list[TenantCompliance]
    as_of: str
    reach: Reach


class LogSeen(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log was verified, and what was found."""

    log_id: str
    records: int
    head: str
    signed: int
    cosigned: int
    verdict: str
    why: str
    seen_at: str | None
    age_seconds: int | None


class NodeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `ending` leases are being cleaned, `fenced` are kept back. One that is `set_aside`
    is shown without what its records say, and `why`: they say too much."""

    node: str
    name: str
    version: str
    state: str
    why: str
    policy_generation: int
    policy_hash: str
    total: Quantities
    held: Quantities
    leases: int
    ending: int
    fenced: int
    resources: int
    unhealthy: list[str]
    refused: int
    logs: list[LogSeen]


class NodesSeen(msgspec.Struct, frozen=True):
    """Every node."""

    nodes: list[NodeSeen]
    as_of: str
    reach: Reach


class LeaseSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One lease. `sequence` is that of the record that granted it, in the log `log_id`."""

    lease_id: str
    node: str
    node_name: str
    tenant: str
    workload: str | None
    priority: str
    state: str
    ended: str | None
    remaining_ms: int
    granted_at: str
    generation: int
    resources: Quantities
    log_id: str
    sequence: int
    last_sequence: int


class LeasesSeen(msgspec.Struct, frozen=True):
    """A page of leases, by id; `count` is of all."""

    leases: list[LeaseSeen]
    count: int
    as_of: str
    reach: Reach
    next_cursor: str | None = None


class EventSeen(msgspec.Struct, frozen=True):
    """One record."""

    node_name: str
    node: str
    sequence: int
    kind: str
    at: str
    tenant: str
    lease_id: str


class EventsSeen(msgspec.Struct, frozen=True):
    """Records, the newest first."""

    events: list[EventSeen]
    as_of: str
    reach: Reach
