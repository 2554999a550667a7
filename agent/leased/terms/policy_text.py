# SPDX-License-Identifier: Apache-2.0
"""The policy document as people write it: the tables of a TOML file (or a JSON object) to a Policy.

Rule: one language for the file, the configuration's [policy] and `Admin.SetPolicy`; quantities have
the units people count in ("64GiB", 4 GPUs, "20%", "100/s"). What is absent is the built-in default;
what is unknown is refused, because a limit that is not understood must not be dropped.

A limit on capacity is keyed by what it counts: `gpu`, `"mem.hbm"`, `"mem.cxl@2"` (NUMA node 2); its
value is an amount, or a table with `limit` and what goes with it, or a list of those, one per host.

Does not judge what values mean together (`policy_check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from leased.terms import reading
from leased.terms.errors import ConfigError
from leased.terms.identity import parse_tenant
from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Allocation,
    Borrowing,
    Budget,
    CapacityLimit,
    Change,
    Group,
    LimitSet,
    Policy,
    Preemption,
    Schedule,
    TenantLimits,
)
from leased.terms.policy_check import check
from leased.terms.policy_keys import (
    ALLOCATION_KEYS,
    AMOUNT,
    BORROWING_KEYS,
    BUDGET_KEYS,
    CHANGE_KEYS,
    LIMIT_KEYS,
    POLICY_KEYS,
    PREEMPTION_KEYS,
    QUOTA_KEYS,
    SCHEDULE_KEYS,
    TENANT_KEYS,
    is_scope,
    scope_of,
    weight,
)
from leased.terms.reading import Keys, fields, integer, one
from leased.terms.resource import UNIT, ResourceKind

_ALSO: Final = (*LIMIT_KEYS, "budgets", *(kind.name.lower() for kind in ResourceKind))
_TABLES: Final = ("groups", "tenants", "tenant_default", "allocation", "borrowing", "preemption")


def read_policy(document: Mapping[str, Any], at: str = "policy.") -> Policy:
    """The policy that the decoded `document` says; `at` is what comes before its keys in errors.
    Raises ConfigError.
    """
    rest = dict(document)
    groups = tuple(
        (name, _group(one(reading.table, row, f"{at}groups.{name}"), f"{at}groups.{name}."))
        for name, row in _subtable(rest, "groups", at).items()
    )
    tenants = tuple(
        (
            one(parse_tenant, name, f"{at}tenants"),
            _tenant(one(reading.table, row, f"{at}tenants.{name}"), f"{at}tenants.{name}."),
        )
        for name, row in _subtable(rest, "tenants", at).items()
    )
    default = Policy().tenant_default
    if "tenant_default" in rest:
        default = _tenant(_subtable(rest, "tenant_default", at), f"{at}tenant_default.")
    allocations = tuple(
        _allocation(name, one(reading.table, row, f"{at}allocation.{name}"), at)
        for name, row in _subtable(rest, "allocation", at).items()
    )
    borrowing = Borrowing(
        **fields(_subtable(rest, "borrowing", at), BORROWING_KEYS, f"{at}borrowing.")
    )
    preemption = Preemption(
        **fields(_subtable(rest, "preemption", at), PREEMPTION_KEYS, f"{at}preemption.")
    )
    policy = Policy(
        groups=groups,
        tenants=tenants,
        tenant_default=default,
        allocations=allocations,
        borrowing=borrowing,
        preemption=preemption,
        **fields(rest, POLICY_KEYS, at, also=_TABLES),
    )
    try:
        return check(policy)
    except ConfigError as error:
        if at == "policy.":
            raise
        raise ConfigError(str(error).removeprefix("policy.")) from error


def _subtable(rest: dict[str, Any], key: str, at: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one(reading.table, rest.pop(key, {}), f"{at}{key}")
    return found


# ---- limits --------------------------------------------------------------------------------------


def _limits(row: Mapping[str, Any], at: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a LimitSet that `row` has, and what else it has."""
    plain: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    capacities: list[CapacityLimit] = []
    for key, value in row.items():
        if key in LIMIT_KEYS or key == "budgets":
            plain[key] = value
        elif is_scope(key):
            capacities += _capacities(key, value, f"{at}{key}")
        else:
            rest[key] = value
    budgets = _rows_of(lambda one: _budget(one, f"{at}budgets."))
    found = fields(plain, {**LIMIT_KEYS, "budgets": ("budgets", budgets)}, at)
    if capacities:
        found["capacities"] = tuple(capacities)
    return found, rest


def _tenant(row: Mapping[str, Any], at: str) -> TenantLimits:
    found, rest = _limits(row, at)
    changes = rest.pop("changes", [])
    schedules = _subtable(rest, "schedules", at)
    more = fields(rest, TENANT_KEYS, at, also=(*_ALSO, "changes", "schedules"))
    return TenantLimits(
        changes=one(_rows_of(lambda row: _change(row, at)), changes, f"{at}changes"),
        schedules=tuple(
            _schedule(name, one(reading.table, window, f"{at}schedules.{name}"), at)
            for name, window in schedules.items()
        ),
        **found,
        **more,
    )


def _group(row: Mapping[str, Any], at: str) -> Group:
    rest = dict(row)
    each = _set(_subtable(rest, "each", at), f"{at}each.")
    return Group(_set(rest, at), each)


def _set(row: Mapping[str, Any], at: str) -> LimitSet:
    found, rest = _limits(row, at)
    fields(rest, {}, at, also=_ALSO)
    return LimitSet(**found)


def _change(value: Any, at: str) -> Change:
    found, rest = _limits(reading.table(value), f"{at}changes.")
    for key in CHANGE_KEYS:
        if key not in rest:
            raise ConfigError(f"{at}changes: needs {key}")
    return Change(LimitSet(**found), **fields(rest, CHANGE_KEYS, f"{at}changes.", also=_ALSO))


def _schedule(name: str, row: Mapping[str, Any], at: str) -> Schedule:
    found, rest = _limits(row, f"{at}schedules.{name}.")
    for key in ("cron", "duration"):
        if key not in rest:
            raise ConfigError(f"{at}schedules.{name}: needs {key}")
    more = fields(rest, SCHEDULE_KEYS, f"{at}schedules.{name}.", also=_ALSO)
    return Schedule(name, limits=LimitSet(**found), **more)


def _capacities(key: str, value: Any, where: str) -> list[CapacityLimit]:
    kind, tier, node = scope_of(key, where)
    found = []
    for row in value if isinstance(value, list) else [value]:
        if isinstance(row, dict):
            read = fields(row, _quota_keys(kind), f"{where}.")
            if "capacity" not in read:
                raise ConfigError(f"{where}: needs limit")
        else:
            read = {"capacity": one(AMOUNT[kind], row, where)}
        found.append(CapacityLimit(kind, tier=tier, node=node, **read))
    return found


def _quota_keys(kind: ResourceKind) -> Keys:
    return {
        **QUOTA_KEYS,
        "limit": ("capacity", AMOUNT[kind]),
        "burst": ("burst_capacity", AMOUNT[kind]),
    }


def _rows_of(read: reading.Read) -> reading.Read:
    return lambda value: reading.rows(value, read)


def _budget(value: Any, at: str) -> Budget:
    row = dict(reading.table(value))
    seconds = row.pop("capacity_seconds", None)
    found = fields(row, BUDGET_KEYS, at)
    if "period" not in found:
        raise ValueError('a budget needs its period: "day", "week" or "month"')
    kind, tier = found.pop("what", (None, None))
    if seconds is not None:
        if kind is None:
            raise ValueError("capacity_seconds needs to say of what: of = one of the kinds")
        found["capacity_ns"] = integer(seconds) * NS_PER_S * UNIT[kind]
    return Budget(kind=kind, tier=tier, **found)


# ---- how capacity is divided ---------------------------------------------------------------------


def _allocation(name: str, row: Mapping[str, Any], at: str) -> Allocation:
    where = f"{at}allocation.{name}"
    kind, tier, node = scope_of(name, where)
    if node is not None:
        raise ConfigError(f"{where}: a kind or a tier is divided, not a NUMA node")
    if not row:
        raise ConfigError(f"{where}: an empty table; name a strategy or leave it out")
    rest = dict(row)
    weights = _subtable(rest, "weights", f"{where}.")
    reservations = _subtable(rest, "reservations", f"{where}.")
    opportunistic = rest.pop("opportunistic", None)
    amount = AMOUNT[kind]
    if opportunistic is not None:
        opportunistic = one(amount, opportunistic, f"{where}.opportunistic")
    return Allocation(
        kind,
        tier,
        weights_pm=_by_tenant(weights, weight, f"{where}.weights"),
        reservations=_by_tenant(reservations, amount, f"{where}.reservations"),
        opportunistic=opportunistic,
        **fields(rest, ALLOCATION_KEYS, f"{where}."),
    )


def _by_tenant(row: Mapping[str, Any], read: reading.Read, where: str) -> tuple[Any, ...]:
    return tuple(
        (one(parse_tenant, tenant, where), one(read, value, f"{where}.{tenant}"))
        for tenant, value in row.items()
    )
