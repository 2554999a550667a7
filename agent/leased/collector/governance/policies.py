# SPDX-License-Identifier: Apache-2.0
"""Policies: the operator's document and what the API has said, as the one policy that nodes get.

Rule: the operator's document is the ground; what the API says about a tenant is laid over it, limit
by limit. The base becomes the tenant's limits, schedules its `schedules`, overrides its `changes`
with their ends: a node opens and closes windows and lets go of overrides on time without asking
anybody, so they hold while the collector is away. The same state gives the same policy, byte for
byte, and what the time is makes no difference to it, ended overrides apart.

A limit that is the whole fleet's (`quotas.Per`) is divided: each node gets a part of it for good,
in the base, in schedules and overrides alike, and a share for a while above that, as the last of
its `changes`. So a node that hears nothing any more falls back to its part for good by itself.

Does not sign (`chain.policy_note`) and does not know the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from leased.collector.governance.dimensions import BY_KEY, BY_KIND, DIVISIBLE, Form
from leased.collector.governance.division import floor_of
from leased.collector.governance.quotas import Override, Quota, Schedule, Terms
from leased.terms.identity import TenantId
from leased.terms.moment import HOUR_NS
from leased.terms.policy import (
    CapacityLimit,
    Change,
    LimitSet,
    Mode,
    Policy,
    Rate,
    TenantLimits,
)
from leased.terms.policy import Schedule as Window
from leased.terms.policy_check import check
from leased.terms.policy_turn import laid_over

SHARE = "this node's share of the fleet's quota, until it is handed another"
"""The reason that a node's `changes` give for it."""


def limits_of(limits: Mapping[str, int], terms: Terms, grace_ns: int | None = None) -> LimitSet:
    """Limits by the API's names as a policy has them."""
    fields: dict[str, Any] = {}
    capacities = []
    for key, raw in sorted(limits.items()):
        dimension = BY_KEY[key]
        if dimension.kind is not None:
            capacities.append(_capacity(dimension.kind, raw, terms))
        elif dimension.field:
            fields[dimension.field] = Rate(raw, HOUR_NS) if dimension.form is Form.RATE else raw
    return LimitSet(capacities=tuple(capacities), grace_ns_cut=grace_ns, **fields)


def _capacity(kind: Any, raw: int, terms: Terms) -> CapacityLimit:
    burst = raw * (1000 + (terms.burst_pm or 0)) // 1000 if terms.mode is Mode.BURST else 0
    # Nothing bursts to nothing: a part of a limit may be none of it.
    mode = Mode.HARD if terms.mode is Mode.BURST and not raw else terms.mode
    return CapacityLimit(
        kind,
        raw,
        mode=mode,
        overage_pm=terms.overage_pm if mode is Mode.SOFT else None,
        overage_ns=terms.overage_ns if mode is Mode.SOFT else None,
        burst_capacity=burst,
        burst_ns=(terms.burst_ns or 0) if mode is Mode.BURST else 0,
        when_over=terms.when_over,
        lend=terms.lend,
    )


def shown_limits(limits: LimitSet) -> dict[str, int]:
    """What of a policy's limits the API has names for; what counts less than a kind has none."""
    found: dict[str, int] = {}
    for key, dimension in BY_KEY.items():
        value = getattr(limits, dimension.field) if dimension.field else None
        if value is not None:
            found[key] = (
                value.count * (HOUR_NS // value.per_ns) if isinstance(value, Rate) else value
            )
    for capacity in limits.capacities:
        if capacity.tier is None and capacity.node is None and not capacity.hosts:
            found[BY_KIND[capacity.kind].key] = capacity.capacity
    return found


def ground_of(policy: Policy, tenant: str) -> TenantLimits:
    """What the operator's document says about a tenant."""
    return dict(policy.tenants).get(TenantId(tenant), policy.tenant_default)


def default_limits(policy: Policy, tenant: str) -> dict[str, int]:
    """The limits of a tenant whom the API has said nothing about."""
    return shown_limits(ground_of(policy, tenant))


def default_lending(policy: Policy, tenant: str) -> frozenset[str]:
    """Of which of these others may borrow: a tenant that the document names lends what is hard."""
    named = dict(policy.tenants).get(TenantId(tenant))
    return frozenset(
        BY_KIND[one.kind].key
        for one in (() if named is None else named.capacities)
        if one.mode is Mode.HARD and one.lend
    )


def compile_policy(ground: Policy, said: Mapping[str, Saying]) -> Policy:
    """The policy of the fleet: every node's, where nothing is divided. Raises ConfigError if it
    cannot be meant."""
    tenants: dict[TenantId, TenantLimits] = dict(ground.tenants)
    for tenant, saying in said.items():
        tenants[TenantId(tenant)] = _tenant(ground_of(ground, tenant), saying)
    return check(msgspec.structs.replace(ground, tenants=tuple(sorted(tenants.items()))))


def policy_of_node(
    fleet: Policy, ground: Policy, said: Mapping[str, Saying], parts: Mapping[str, Part]
) -> Policy:
    """The policy `fleet` as one node gets it, with its parts of what is divided, tenant by
    tenant."""
    tenants: dict[TenantId, TenantLimits] = dict(fleet.tenants)
    for tenant, part in parts.items():
        tenants[TenantId(tenant)] = _tenant(ground_of(ground, tenant), said[tenant], part)
    return msgspec.structs.replace(fleet, tenants=tuple(tenants.items()))


def most_for_good(saying: Saying, part: Part) -> dict[str, int]:
    """The most that a part is for good, of whatever counts: base, overrides or schedules."""
    found: dict[str, int] = {}
    every: tuple[Quota | Override | Schedule, ...] = (saying.quota, *saying.overrides)
    for limits in (one.limits for one in (*every, *saying.schedules)):
        for key, raw in part.of(limits).items():
            if key in DIVISIBLE:
                found[key] = max(raw, found.get(key, 0))
    return found


class Saying(msgspec.Struct):
    """All that the API has said about one tenant."""

    quota: Quota
    overrides: list[Override] = []
    schedules: list[Schedule] = []


class Part(msgspec.Struct, frozen=True):
    """One node's part of a tenant's limits: `ppb` of each for good, or what `floors` say if that
    is less; `shares` until `until_ns`, and for how long more than that is borne."""

    ppb: int
    floors: dict[str, int]
    shares: dict[str, int]
    until_ns: int
    grace_ns: int | None = None

    def of(self, limits: Mapping[str, int]) -> dict[str, int]:
        """`limits`, with what is divided divided."""
        return {
            key: min(floor_of(raw, self.ppb, DIVISIBLE[key]), self.floors.get(key, raw))
            if key in DIVISIBLE
            else raw
            for key, raw in limits.items()
        }


def sayings(
    quotas: Sequence[Quota],
    overrides: Sequence[Override],
    schedules: Sequence[Schedule],
    now_ns: int,
) -> dict[str, Saying]:
    """What counts at `now_ns`, by tenant."""
    named = {quota.tenant: quota for quota in quotas}
    current = [one for one in overrides if one.expires_ns > now_ns]
    tenants = {*named, *(one.tenant for one in current), *(one.tenant for one in schedules)}
    found = {tenant: Saying(named.get(tenant) or Quota(tenant)) for tenant in sorted(tenants)}
    for override in current:
        found[override.tenant].overrides.append(override)
    for schedule in sorted(schedules, key=lambda one: (one.created_ns, one.id)):
        found[schedule.tenant].schedules.append(schedule)
    return found


def _tenant(ground: TenantLimits, saying: Saying, part: Part | None = None) -> TenantLimits:
    quota = saying.quota

    def of(limits: Mapping[str, int], grace_ns: int | None = None) -> LimitSet:
        return limits_of(limits if part is None else part.of(limits), quota.terms, grace_ns)

    base = laid_over(ground, of(quota.limits, quota.grace_ns))
    windows = [
        Window(one.id, one.cron, one.duration_ns, limits, one.timezone)
        for one in saying.schedules
        if (limits := of(one.limits)) != LimitSet()
    ]
    changes = [Change(of(one.limits), one.expires_ns, one.reason) for one in saying.overrides]
    if part is not None:
        share = limits_of(part.shares, quota.terms, part.grace_ns)
        changes.append(Change(share, part.until_ns, SHARE))
    plain = {name: getattr(base, name) for name in LimitSet.__struct_fields__}
    return TenantLimits(
        **plain,
        group=ground.group,
        changes=(*ground.changes, *(one for one in changes if one.limits != LimitSet())),
        schedules=(*ground.schedules, *windows),
    )
