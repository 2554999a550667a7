# SPDX-License-Identifier: Apache-2.0
"""Whether a policy can be meant: every contradiction, by the key it lies in.

Rule: a policy is refused whole, at the first thing that is wrong with it, and what was in force
stays in force. A refusal names the key, its value and the reason.

Does not know the host: what does not fit its hardware is `lessor.fitting`'s to say, and whether a
cron line or a time zone exists is `service.policy.calendar`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.policy import (
    VERSION,
    Allocation,
    CapacityLimit,
    Group,
    LimitSet,
    Mode,
    Policy,
    Schedule,
    Strategy,
    TenantLimits,
)
from leased.terms.quantity import WHOLE_PM, print_duration, print_share, print_size
from leased.terms.resource import ResourceKind

CAPACITY_MAX: Final = 2**63 - 1
TTL_NS_MAX: Final = 30 * 86_400 * NS_PER_S
"""The reaper believes no deadline that is further ahead than 31 days (its --horizon-s). Who wants a
lease for longer renews it."""
SHARE_PM_MAX: Final = 100 * WHOLE_PM
REASON_CHARS_MAX: Final = 500
CRON_FIELDS: Final = 5
_CRON_FIELD: Final = re.compile(r"[0-9A-Za-z*,/#-]{1,64}", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_HOST: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_COUNTS: Final = ("leases_max", "waiting_max", "asks_max", "closed_leases_kept")


def _refuse(key: str, value: object, why: str) -> ConfigError:
    return ConfigError(f"policy.{key} = {value}: {why}")


def _time(ns: int) -> str:
    return print_duration(ns) if ns >= 0 else f"{ns}ns"


def _amount(limit: CapacityLimit) -> str:
    """A burst as documents write it."""
    in_bytes = limit.kind in (ResourceKind.MEM, ResourceKind.BLOCK)
    return print_size(limit.burst_capacity) if in_bytes else str(limit.burst_capacity)


def _pm(per_mille: int) -> str:
    return print_share(per_mille)


def check(policy: Policy) -> Policy:
    """Return `policy` if it can be meant. Raises ConfigError naming the key."""
    if policy.version != VERSION:
        raise _refuse("version", policy.version, f"this release knows version {VERSION}")
    _check_times(policy)
    for name in _COUNTS:
        if getattr(policy, name) < 1:
            raise _refuse(name, getattr(policy, name), "must be at least 1")
    _check_zone("timezone", policy.timezone)
    _check_yielding(policy)
    groups = _unique("groups", (name for name, _ in policy.groups))
    for name, group in policy.groups:
        _check_group(policy, name, group)
    _check_limits(policy, "tenant_default", policy.tenant_default)
    if policy.tenant_default.group is not None:
        raise _refuse("tenant_default.group", policy.tenant_default.group, "a group has members")
    tenants = _unique("tenants", (tenant for tenant, _ in policy.tenants))
    for tenant, limits in policy.tenants:
        _check_limits(policy, f"tenants.{tenant}", limits)
        _check_membership(f"tenants.{tenant}", limits, groups)
    _unique("allocation", map(_name_of, policy.allocations))
    for allocation in policy.allocations:
        _check_allocation(allocation, tenants)
    return policy


def _name_of(what: Allocation | CapacityLimit) -> str:
    """A kind, tier and NUMA node as a document writes them: "gpu", "mem.hbm", "mem.cxl@2"."""
    tier = "" if what.tier is None else f".{what.tier.name.lower()}"
    node = getattr(what, "node", None)
    return f"{what.kind.name.lower()}{tier}" + ("" if node is None else f"@{node}")


def _unique(key: str, names: Iterable[str]) -> dict[str, None]:
    seen: dict[str, None] = {}
    for name in names:
        if name in seen:
            raise ConfigError(f"policy.{key}.{name}: listed twice")
        seen[name] = None
    return seen


def _check_times(policy: Policy) -> None:
    if policy.ttl_ns_min < 100 * NS_PER_MS:
        raise _refuse(
            "ttl_min",
            _time(policy.ttl_ns_min),
            "below 100ms a lease could not be torn down in time",
        )
    for priority in Priority:
        ceiling = policy.ttl_ns_max(priority)
        if not policy.ttl_ns_min <= ceiling:
            raise _refuse(
                f"ttl_max_{priority.name.lower()}", _time(ceiling), "below policy.ttl_min"
            )
        if ceiling > TTL_NS_MAX:
            raise _refuse(
                f"ttl_max_{priority.name.lower()}",
                _time(ceiling),
                f"above {_time(TTL_NS_MAX)} the reaper holds no deadline: leases are renewed",
            )
    if not policy.ttl_ns_min <= policy.ttl_ns_default:
        raise _refuse("ttl_default", _time(policy.ttl_ns_default), "below policy.ttl_min")
    for name in ("grace_ns_release", "grace_ns_preempt", "wait_ns_max"):
        _not_negative(name.replace("_ns", ""), getattr(policy, name))
    if policy.grace_ns_preempt > policy.grace_ns_max:
        raise _refuse("grace_preempt", _time(policy.grace_ns_preempt), "above policy.grace_max")


def _check_yielding(policy: Policy) -> None:
    if not 0 <= policy.overage_pm <= SHARE_PM_MAX:
        raise _refuse("overage", _pm(policy.overage_pm), "a share of the limit, at most 10000%")
    _above_zero("overage_for", policy.overage_ns)
    borrowing, preemption = policy.borrowing, policy.preemption
    if not 0 < borrowing.limit_pm <= SHARE_PM_MAX:
        raise _refuse("borrowing.limit", _pm(borrowing.limit_pm), "above 0% and at most 10000%")
    _not_negative("borrowing.grace", borrowing.grace_ns)
    for name in preemption.__struct_fields__:
        if name != "enabled":
            _not_negative(f"preemption.{name.replace('_ns', '')}", getattr(preemption, name))
    for name in ("checkpoint_ns_max_scavenger", "checkpoint_ns_max_standard"):
        if getattr(preemption, name) > policy.grace_ns_max:
            key = f"preemption.{name.replace('_ns', '')}"
            raise _refuse(key, _time(getattr(preemption, name)), "above policy.grace_max")


def _check_membership(key: str, limits: TenantLimits, groups: dict[str, None]) -> None:
    if limits.group is not None and limits.group not in groups:
        raise _refuse(f"{key}.group", limits.group, "no such group; [groups] has none of that name")


def _check_group(policy: Policy, name: str, group: Group) -> None:
    if not _NAME.fullmatch(name):
        raise _refuse("groups", name, "a name is 1 to 64 of a-z A-Z 0-9 - _ .")
    _check_set(policy, f"groups.{name}", group.together)
    _check_set(policy, f"groups.{name}.each", group.each)
    for limit in group.together.capacities:
        if limit.mode is not Mode.HARD:
            where = f"groups.{name}.{_name_of(limit)}.mode"
            raise _refuse(where, limit.mode, "what a group has together is hard")
    for field in ("level_max", "duration_ns_max", "api_rate"):
        if getattr(group.together, field) is not None:
            where = f"groups.{name}.{field.replace('_ns', '')}"
            raise _refuse(where, getattr(group.together, field), "is each tenant's, not a sum")


def _check_limits(policy: Policy, key: str, limits: TenantLimits) -> None:
    _check_set(policy, key, limits)
    for index, change in enumerate(limits.changes):
        where = f"{key}.changes[{index}]"
        _check_set(policy, where, change.limits)
        if change.limits == LimitSet():
            raise ConfigError(f"policy.{where}: changes nothing; name a limit or leave it out")
        if not 0 < len(change.reason) <= REASON_CHARS_MAX:
            raise _refuse(f"{where}.reason", repr(change.reason), "say why, in 1 to 500 characters")
        _above_zero(f"{where}.expires_at", change.expires_wall_ns)
    _unique(f"{key}.schedules", (schedule.name for schedule in limits.schedules))
    for schedule in limits.schedules:
        _check_schedule(policy, f"{key}.schedules.{schedule.name}", schedule)


def _check_schedule(policy: Policy, where: str, schedule: Schedule) -> None:
    if not _NAME.fullmatch(schedule.name):
        raise _refuse(f"{where}.name", schedule.name, "1 to 64 of a-z A-Z 0-9 - _ .")
    _check_set(policy, where, schedule.limits)
    if schedule.limits == LimitSet():
        raise ConfigError(f"policy.{where}: changes nothing; name a limit or leave it out")
    if schedule.duration_ns <= 0:
        raise _refuse(f"{where}.duration", _time(schedule.duration_ns), "a window of no length")
    words = schedule.cron.split()
    if len(words) != CRON_FIELDS or not all(map(_CRON_FIELD.fullmatch, words)):
        raise _refuse(f"{where}.cron", schedule.cron, 'five fields, such as "0 8 * * 1-5"')
    _check_zone(f"{where}.timezone", schedule.timezone)


def _check_set(policy: Policy, key: str, limits: LimitSet) -> None:
    for name in ("leases_max", "concurrent_max", "waiting_max", "grace_ns_cut"):
        value = getattr(limits, name)
        if value is not None:
            _not_negative(f"{key}.{name.replace('_ns', '')}", value)
    if limits.duration_ns_max is not None and limits.duration_ns_max < policy.ttl_ns_min:
        raise _refuse(f"{key}.duration_max", _time(limits.duration_ns_max), "below policy.ttl_min")
    for name in ("submit_rate", "api_rate"):
        rate = getattr(limits, name)
        if rate is not None and (rate.count < 1 or rate.per_ns < 1):
            raise _refuse(f"{key}.{name}", rate, "must be above zero")
    seen: dict[tuple[object, ...], None] = {}
    for limit in limits.capacities:
        where = f"{key}.{_name_of(limit)}"
        for row in [(limit.scope, host) for host in limit.hosts or ("",)]:
            if row in seen or (limit.hosts and (limit.scope, "") in seen):
                raise ConfigError(f"policy.{where}: listed twice for the same host")
            seen[row] = None
        _check_capacity(policy, where, limit)
    for index, budget in enumerate(limits.budgets):
        where = f"{key}.budgets[{index}]"
        if (budget.capacity_ns is None) == (budget.cost_nano is None):
            raise ConfigError(f"policy.{where}: either capacity_seconds of a kind, or a cost")
        if (budget.capacity_ns is None) != (budget.kind is None):
            raise ConfigError(f"policy.{where}: a kind goes with capacity_seconds, and only there")
        _above_zero(where, budget.capacity_ns or budget.cost_nano or 0)


def _check_capacity(policy: Policy, where: str, limit: CapacityLimit) -> None:
    if not 0 <= limit.capacity <= CAPACITY_MAX:
        raise _refuse(where, limit.capacity, f"0 to {CAPACITY_MAX}")
    for host in limit.hosts:
        if not _HOST.fullmatch(host):
            raise _refuse(f"{where}.hosts", host, "a node id, 32 hex digits, as `leasectl` shows")
    if limit.mode is Mode.SOFT:
        overage_pm = policy.overage_pm if limit.overage_pm is None else limit.overage_pm
        if not 0 < overage_pm <= SHARE_PM_MAX:
            raise _refuse(f"{where}.overage", _pm(overage_pm), "above 0% and at most 10000%")
        overage_ns = policy.overage_ns if limit.overage_ns is None else limit.overage_ns
        _above_zero(f"{where}.overage_for", overage_ns)
    elif limit.overage_pm is not None or limit.overage_ns is not None:
        raise ConfigError(f'policy.{where}.overage: goes with mode = "soft"')
    if limit.mode is Mode.BURST:
        if limit.burst_capacity <= limit.capacity:
            raise _refuse(f"{where}.burst", _amount(limit), "not above its limit")
        if limit.burst_ns < policy.ttl_ns_min:
            raise _refuse(f"{where}.burst_ttl", _time(limit.burst_ns), "below policy.ttl_min")
    elif limit.burst_capacity or limit.burst_ns:
        raise ConfigError(f'policy.{where}.burst: goes with mode = "burst"')


def _check_allocation(allocation: Allocation, tenants: dict[str, None]) -> None:
    key = f"allocation.{_name_of(allocation)}"
    low, high = allocation.min_share_pm, allocation.max_share_pm
    if not 0 <= low <= high:
        raise _refuse(f"{key}.min_share", _pm(low), f"above max_share = {_pm(high)}")
    if not 0 < high <= WHOLE_PM:
        raise _refuse(f"{key}.max_share", _pm(high), "above 0% and at most 100%")
    _above_zero(f"{key}.window", allocation.window_ns)
    if not 0 <= allocation.half_life_ns <= allocation.window_ns:
        raise _refuse(f"{key}.half_life", _time(allocation.half_life_ns), "longer than the window")
    for name, rows in (
        ("weights", allocation.weights_pm),
        ("reservations", allocation.reservations),
    ):
        _unique(f"{key}.{name}", (tenant for tenant, _ in rows))
        for tenant, value in rows:
            _check_share(f"{key}.{name}.{tenant}", tenant, value, tenants)
    if allocation.strategy is not Strategy.RESERVATION and (
        allocation.reservations or allocation.opportunistic is not None
    ):
        raise ConfigError(f'policy.{key}.reservations: goes with strategy = "reservation"')
    if allocation.weights_pm and allocation.strategy is not Strategy.FAIR_SHARE:
        raise ConfigError(f'policy.{key}.weights: goes with strategy = "fair_share"')
    if allocation.opportunistic is not None:
        _not_negative(f"{key}.opportunistic", allocation.opportunistic)


def _check_share(where: str, tenant: TenantId, value: int, tenants: dict[str, None]) -> None:
    if tenant not in tenants:
        raise _refuse(where, value, "no such tenant; [tenants] has none of that name")
    _above_zero(where, value)


def _check_zone(where: str, zone: str) -> None:
    if not _ZONE.fullmatch(zone):
        raise _refuse(where, zone, 'a time zone has a name, such as "Europe/Berlin" or "UTC"')


def _not_negative(where: str, value: int) -> None:
    if value < 0:
        raise _refuse(where, value, "must not be negative")


def _above_zero(where: str, value: int) -> None:
    if value <= 0:
        raise _refuse(where, value, "must be above zero")


def schedules_of(policy: Policy) -> Iterator[tuple[str, str, Schedule]]:
    """(key, full name, schedule) of every schedule in the document."""
    for schedule in policy.tenant_default.schedules:
        yield "tenant_default", f"*/{schedule.name}", schedule
    for tenant, limits in policy.tenants:
        for schedule in limits.schedules:
            yield f"tenants.{tenant}", f"{tenant}/{schedule.name}", schedule
