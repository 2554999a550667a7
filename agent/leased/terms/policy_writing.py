# SPDX-License-Identifier: Apache-2.0
"""A policy as a document again: the tables and keys that `policy_text` reads, with the units that
people count in.

Rule: what is at its default is left out, and reading what was written gives the same policy; a
property test holds the two together. One key a line (`lines_of`), so that two policies can be
compared as texts.

Does not write TOML: a document is a dictionary, and JSON says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Allocation,
    Budget,
    CapacityLimit,
    Change,
    LimitSet,
    Policy,
    Rate,
    Schedule,
    TenantLimits,
)
from leased.terms.policy_keys import (
    ALLOCATION_KEYS,
    BORROWING_KEYS,
    CHANGE_KEYS,
    LIMIT_KEYS,
    POLICY_KEYS,
    PREEMPTION_KEYS,
    QUOTA_KEYS,
    SCHEDULE_KEYS,
    TENANT_KEYS,
)
from leased.terms.quantity import print_duration, print_instant, print_share, print_size
from leased.terms.reading import Keys
from leased.terms.resource import UNIT, ResourceKind

Document = dict[str, Any]
_MILLI: Final = 1000
_PER: Final = {NS_PER_S: "s", 60 * NS_PER_S: "min", 3_600 * NS_PER_S: "h"}


def document_of(policy: Policy) -> Document:
    """What `policy_text.read_policy` reads as `policy`."""
    document = _fields(policy, POLICY_KEYS)
    default = Policy().tenant_default
    if policy.tenant_default != default:
        document["tenant_default"] = _tenant(policy.tenant_default)
    for name, group in policy.groups:
        row = _limits(group.together)
        if group.each != LimitSet():
            row["each"] = _limits(group.each)
        document.setdefault("groups", {})[name] = row
    for tenant, limits in policy.tenants:
        document.setdefault("tenants", {})[tenant] = _tenant(limits)
    for key, value, keys in (
        ("borrowing", policy.borrowing, BORROWING_KEYS),
        ("preemption", policy.preemption, PREEMPTION_KEYS),
    ):
        if value != type(value)():
            document[key] = _fields(value, keys)
    for allocation in policy.allocations:
        name = scope_name(allocation.kind, allocation.tier, None)
        document.setdefault("allocation", {})[name] = _allocation(allocation)
    return document


def lines_of(document: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of everything in a document, key by key, whole tables opened."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from lines_of(value, f"{at}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, row in enumerate(value):
                yield from lines_of(row, f"{at}{key}[{index}].")
        else:
            yield f"{at}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def scope_name(kind: ResourceKind, tier: Any, node: int | None) -> str:
    """What a limit counts, as a key: "gpu", "mem.hbm", "mem.cxl@2"."""
    named = kind.name.lower() + ("" if tier is None else f".{tier.name.lower()}")
    return named if node is None else f"{named}@{node}"


def amount(kind: ResourceKind, capacity: int) -> int | str:
    """So much of a kind."""
    if kind in (ResourceKind.MEM, ResourceKind.BLOCK):
        return print_size(capacity)
    if kind is ResourceKind.NET:
        return _bit_rate(capacity)
    return _milli(capacity)


def _bit_rate(bits: int) -> str:
    for unit, scale in (("Tbit", 10**12), ("Gbit", 10**9), ("Mbit", 10**6), ("Kbit", 10**3)):
        if bits and bits % scale == 0:
            return f"{bits // scale}{unit}"
    return f"{bits}bit"


def _milli(thousandths: int) -> int | str:
    whole, rest = divmod(thousandths, _MILLI)
    return f"{whole}.{rest:03}".rstrip("0") if rest else whole


def _rate(rate: Rate) -> str:
    return f"{rate.count}/{_PER[rate.per_ns]}"


_SPECIAL: Final[Mapping[str, Callable[[Any], Any]]] = {
    "submit_rate": _rate,
    "api_rate": _rate,
    "hosts": list,
    "enabled": bool,
    "lend": bool,
    "borrow_idle": bool,
    "level_max": lambda level: level.name.lower(),
}


def _written(name: str, value: Any) -> Any:
    """The value of a field, by what its name says it is."""
    if name in _SPECIAL:
        return _SPECIAL[name](value)
    if "wall_ns" in name:
        return print_instant(value)
    if "_ns" in name:
        return print_duration(value)
    if name.endswith("_pm"):
        return print_share(value)
    return value.value if isinstance(value, StrEnum) else value


def _fields(struct: msgspec.Struct, keys: Keys) -> Document:
    """Every field of `keys` that is not at its default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
    found: Document = {}
    for key, (name, _) in keys.items():
        value = getattr(struct, name)
        if value != defaults[name] and value is not None:
            found[key] = _written(name, value)
    return found


def _limits(limits: LimitSet) -> Document:
    row = _fields(limits, LIMIT_KEYS)
    scopes: dict[str, list[Any]] = {}
    for limit in limits.capacities:
        name = scope_name(limit.kind, limit.tier, limit.node)
        scopes.setdefault(name, []).append(_capacity(limit))
    row |= {name: rows if len(rows) > 1 else rows[0] for name, rows in scopes.items()}
    if limits.budgets:
        row["budgets"] = [_budget(budget) for budget in limits.budgets]
    return row


def _capacity(limit: CapacityLimit) -> Any:
    row = {"limit": amount(limit.kind, limit.capacity), **_fields(limit, QUOTA_KEYS)}
    if limit.burst_capacity:
        row["burst"] = amount(limit.kind, limit.burst_capacity)
    return row["limit"] if len(row) == 1 else row


def _budget(budget: Budget) -> Document:
    row: Document = {"period": budget.period.value}
    if budget.kind is not None:
        row["of"] = scope_name(budget.kind, budget.tier, None)
    if budget.capacity_ns is not None and budget.kind is not None:
        row["capacity_seconds"] = budget.capacity_ns // (NS_PER_S * UNIT[budget.kind])
    if budget.cost_nano is not None:
        whole, rest = divmod(budget.cost_nano, 10**9)
        row["cost"] = f"{whole}.{rest:09}".rstrip("0").removesuffix(".") if rest else str(whole)
    return row


def _tenant(limits: TenantLimits) -> Document:
    row = _limits(limits) | _fields(limits, TENANT_KEYS)
    if limits.changes:
        row["changes"] = [_change(change) for change in limits.changes]
    if limits.schedules:
        row["schedules"] = {one.name: _schedule(one) for one in limits.schedules}
    return row


def _change(change: Change) -> Document:
    return _limits(change.limits) | {
        key: _written(name, getattr(change, name)) for key, (name, _) in CHANGE_KEYS.items()
    }


def _schedule(schedule: Schedule) -> Document:
    return _limits(schedule.limits) | _fields(schedule, SCHEDULE_KEYS)


def _allocation(allocation: Allocation) -> Document:
    row = _fields(allocation, ALLOCATION_KEYS)
    if allocation.weights_pm:
        row["weights"] = {tenant: f"{_milli(pm)}" for tenant, pm in allocation.weights_pm}
    if allocation.reservations:
        row["reservations"] = {
            tenant: amount(allocation.kind, held) for tenant, held in allocation.reservations
        }
    if allocation.opportunistic is not None:
        row["opportunistic"] = amount(allocation.kind, allocation.opportunistic)
    if not row:  # an empty table is refused
        row["strategy"] = allocation.strategy.value
    return row
