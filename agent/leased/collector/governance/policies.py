# SPDX-License-Identifier: Apache-2.0
"""Policies: the operator's document and what the API has said, as the one policy that nodes get.

Rule: the operator's document is the ground; what the API says about a tenant is laid over it, limit
by limit. The base becomes the tenant's limits, schedules its `schedules`, overrides its `changes`
with their ends: a node opens and closes windows and lets go of overrides on time without asking
anybody, so they hold while the collector is away. The same state gives the same policy, byte for
byte, and what the time is makes no difference to it, ended overrides apart.

Does not sign (`chain.policy_note`) and does not know the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from leased.collector.governance.dimensions import BY_KEY, BY_KIND, Form
from leased.collector.governance.quotas import Override, Quota, Schedule, Terms
from leased.terms.identity import TenantId
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

_HOUR_NS = 3_600_000_000_000


def limits_of(limits: Mapping[str, int], terms: Terms, grace_ns: int | None = None) -> LimitSet:
    """Limits by the API's names as a policy has them."""
    fields: dict[str, Any] = {}
    capacities = []
    for key, raw in sorted(limits.items()):
        dimension = BY_KEY[key]
        if dimension.kind is not None:
            capacities.append(_capacity(dimension.kind, raw, terms))
        elif dimension.field:
            fields[dimension.field] = Rate(raw, _HOUR_NS) if dimension.form is Form.RATE else raw
    return LimitSet(capacities=tuple(capacities), grace_ns_cut=grace_ns, **fields)


def _capacity(kind: Any, raw: int, terms: Terms) -> CapacityLimit:
    burst = raw * (1000 + (terms.burst_pm or 0)) // 1000 if terms.mode is Mode.BURST else 0
    return CapacityLimit(
        kind,
        raw,
        mode=terms.mode,
        overage_pm=terms.overage_pm if terms.mode is Mode.SOFT else None,
        overage_ns=terms.overage_ns if terms.mode is Mode.SOFT else None,
        burst_capacity=burst,
        burst_ns=(terms.burst_ns or 0) if terms.mode is Mode.BURST else 0,
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
                value.count * (_HOUR_NS // value.per_ns) if isinstance(value, Rate) else value
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


def compile_policy(
    ground: Policy,
    quotas: Sequence[Quota],
    overrides: Sequence[Override],
    schedules: Sequence[Schedule],
    now_ns: int,
) -> Policy:
    """The policy of every node at `now_ns`. Raises ConfigError if it cannot be meant."""
    named = {quota.tenant: quota for quota in quotas}
    current = [one for one in overrides if one.expires_ns > now_ns]
    said = {*named, *(one.tenant for one in current), *(one.tenant for one in schedules)}
    tenants: dict[TenantId, TenantLimits] = dict(ground.tenants)
    for tenant in sorted(said):
        quota = named.get(tenant) or Quota(tenant)
        tenants[TenantId(tenant)] = _tenant(
            ground_of(ground, tenant),
            quota,
            [one for one in current if one.tenant == tenant],
            [one for one in schedules if one.tenant == tenant],
        )
    return check(msgspec.structs.replace(ground, tenants=tuple(sorted(tenants.items()))))


def _tenant(
    ground: TenantLimits,
    quota: Quota,
    overrides: Sequence[Override],
    schedules: Sequence[Schedule],
) -> TenantLimits:
    base = laid_over(ground, limits_of(quota.limits, quota.terms, quota.grace_ns))
    windows = [
        Window(one.id, one.cron, one.duration_ns, limits, one.timezone)
        for one in sorted(schedules, key=lambda one: (one.created_ns, one.id))
        if (limits := limits_of(one.limits, quota.terms)) != LimitSet()
    ]
    changes = [
        Change(limits_of(one.limits, quota.terms), one.expires_ns, one.reason) for one in overrides
    ]
    plain = {name: getattr(base, name) for name in LimitSet.__struct_fields__}
    return TenantLimits(
        **plain,
        group=ground.group,
        changes=(*ground.changes, *(one for one in changes if one.limits != LimitSet())),
        schedules=(*ground.schedules, *windows),
    )
