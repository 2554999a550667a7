# SPDX-License-Identifier: Apache-2.0
"""The policy at a moment: a document with its changes and schedules folded into plain limits.

Rule: a change that has not expired goes before an open schedule, and that before what the document
says without them, limit by limit. Of several open schedules the largest limit counts, of several
changes the last one in the document; so the order in which windows open makes no difference. What
is for other hosts is left out.

Does not know which windows are open (`service.policy.calendar` does, and hands their names in).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from leased.terms.identity import TenantId
from leased.terms.policy import Budget, CapacityLimit, Group, LimitSet, Policy, Rate, TenantLimits

_replace = msgspec.structs.replace
ANYBODY: Final = "*"
"""Whose windows those of tenant_default are."""


def window_name(tenant: str, schedule: str) -> str:
    """What an open window is called."""
    return f"{tenant}/{schedule}"


def turned(policy: Policy, *, wall_ns: int, windows: Iterable[str], host: str) -> Policy:
    """`policy` as it holds on `host` at `wall_ns` while `windows` are open."""
    opened = frozenset(windows)
    return _replace(
        policy,
        groups=tuple(
            (name, Group(_here(group.together, host), _here(group.each, host)))
            for name, group in policy.groups
        ),
        tenant_default=_turned(policy.tenant_default, ANYBODY, wall_ns, opened, host),
        tenants=tuple(
            (tenant, _turned(limits, tenant, wall_ns, opened, host))
            for tenant, limits in policy.tenants
        ),
    )


def next_turn_ns(policy: Policy, wall_ns: int) -> int | None:
    """The first instant after `wall_ns` at which something of the document ends, windows apart."""
    ends = [] if policy.expires_wall_ns is None else [policy.expires_wall_ns]
    for limits in (policy.tenant_default, *(limits for _, limits in policy.tenants)):
        ends += [change.expires_wall_ns for change in limits.changes]
    return min((end_ns for end_ns in ends if end_ns > wall_ns), default=None)


def _turned(
    limits: TenantLimits, tenant: TenantId | str, wall_ns: int, opened: frozenset[str], host: str
) -> TenantLimits:
    windows = [
        schedule.limits
        for schedule in limits.schedules
        if window_name(tenant, schedule.name) in opened
    ]
    layers: list[LimitSet] = [largest(windows)] if windows else []
    layers += [change.limits for change in limits.changes if change.expires_wall_ns > wall_ns]
    plain = _here(limits, host)
    for layer in layers:
        plain = laid_over(plain, _here(layer, host))
    return TenantLimits(**_fields(plain), group=limits.group)


def _fields(limits: LimitSet) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in LimitSet.__struct_fields__}


def _here(limits: LimitSet, host: str) -> LimitSet:
    """Without what is for other hosts; what names this one goes before what names none."""
    capacities: dict[tuple[int, int, int], CapacityLimit] = {}
    for limit in limits.capacities:
        if limit.hosts and host not in limit.hosts:
            continue
        if limit.hosts or limit.scope not in capacities:
            capacities[limit.scope] = limit
    return LimitSet(**{**_fields(limits), "capacities": tuple(capacities.values())})


def laid_over(below: LimitSet, above: LimitSet) -> LimitSet:
    """`below`, with every limit that `above` names replaced."""
    fields = _fields(below)
    for name, value in _fields(above).items():
        if name == "capacities":
            fields[name] = _replaced(below.capacities, above.capacities)
        elif name == "budgets":
            fields[name] = _merged(below.budgets, above.budgets, _budget_key)
        elif value is not None:
            fields[name] = value
    return LimitSet(**fields)


def _replaced(
    below: tuple[CapacityLimit, ...], above: tuple[CapacityLimit, ...]
) -> tuple[CapacityLimit, ...]:
    """What `above` counts is as it says, on every host; the rest as below. Each where it stood."""
    rows: dict[tuple[int, int, int], list[CapacityLimit]] = {}
    for limit in below:
        rows.setdefault(limit.scope, []).append(limit)
    named: dict[tuple[int, int, int], list[CapacityLimit]] = {}
    for limit in above:
        named.setdefault(limit.scope, []).append(limit)
    return tuple(limit for several in (rows | named).values() for limit in several)


def largest(several: Sequence[LimitSet]) -> LimitSet:
    """Of each limit, the largest that any of `several` names."""
    merged = several[0]
    for other in several[1:]:
        fields = _fields(merged)
        for name, value in _fields(other).items():
            mine = fields[name]
            if name in ("capacities", "budgets"):
                key, size = _LISTS[name]
                fields[name] = _merged(mine, value, key, size)
            elif mine is None or (value is not None and _size(value) > _size(mine)):
                fields[name] = value
        merged = LimitSet(**fields)
    return merged


def _merged(
    below: tuple[Any, ...],
    above: tuple[Any, ...],
    key: Callable[[Any], Any],
    size: Callable[[Any], int] | None = None,
) -> tuple[Any, ...]:
    rows = {key(row): row for row in below}
    for row in above:
        known = rows.get(key(row))
        if known is None or size is None or size(row) > size(known):
            rows[key(row)] = row
    return tuple(rows.values())


def _size(value: Any) -> int:
    return value.count * (10**18 // value.per_ns) if isinstance(value, Rate) else int(value)


def _budget_key(budget: Budget) -> tuple[Any, ...]:
    return (budget.period, budget.kind, budget.tier)


_LISTS: Final[dict[str, tuple[Callable[[Any], Any], Callable[[Any], int]]]] = {
    "capacities": (
        lambda limit: limit.scope,
        lambda limit: max(limit.capacity, limit.burst_capacity),
    ),
    "budgets": (_budget_key, lambda budget: budget.capacity_ns or budget.cost_nano or 0),
}
