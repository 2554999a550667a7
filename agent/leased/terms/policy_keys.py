# SPDX-License-Identifier: Apache-2.0
"""The keys of a policy document: which field each sets, and how its value is read.

Rule: every key of the language stands in one of these tables; a test holds them against the fields
of the policy, and the example file against them.

Does not put a policy together (`policy_text`).
"""

from __future__ import annotations

import re
from typing import Any, Final

from leased.terms import reading
from leased.terms.errors import ConfigError
from leased.terms.lease import Level
from leased.terms.policy import Mode, Period, Rate, Strategy, WhenOver
from leased.terms.quantity import parse_bit_rate, parse_instant, parse_milli, parse_share
from leased.terms.reading import Keys, duration, flag, integer, share, text
from leased.terms.resource import ResourceKind, TierKind

NANO_DIGITS: Final = 9
_NODE: Final = re.compile(r"\d{1,9}", re.ASCII)


def is_scope(key: str) -> bool:
    return key.partition("@")[0].partition(".")[0] in _KINDS


def scope_of(key: str, where: str) -> tuple[ResourceKind, TierKind | None, int | None]:
    """What "mem.cxl@2" counts. Raises ConfigError."""
    what, _, node = key.partition("@")
    kind, _, tier = what.partition(".")
    if kind not in _KINDS or (tier and tier not in _TIERS) or (node and not _NODE.fullmatch(node)):
        raise ConfigError(f'{where}: counts nothing; write it like gpu, "mem.hbm" or "mem.cxl@2"')
    if tier and _KINDS[kind] is not ResourceKind.MEM:
        raise ConfigError(f"{where}: only mem has tiers")
    return _KINDS[kind], _TIERS[tier] if tier else None, int(node) if node else None


def _budget_scope(value: Any) -> tuple[ResourceKind, TierKind | None]:
    kind, tier, node = scope_of(text(value), "of")
    if node is not None:
        raise ValueError("a budget is of a kind or a tier, not of a NUMA node")
    return kind, tier


def _cost(value: Any) -> int:
    """A decimal string of the rate card's currency, as 10^-9 of it."""
    whole, dot, fraction = text(value).partition(".")
    if (
        not whole.isdecimal()
        or (dot and not fraction.isdecimal())
        or len(fraction) > NANO_DIGITS
        or len(whole) > NANO_DIGITS
    ):
        raise ValueError('an amount in quotes, such as "100.00": money is never a float')
    return int(whole) * 10**NANO_DIGITS + int(fraction.ljust(NANO_DIGITS, "0") or 0)


def weight(value: Any) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return parse_share(value)
    try:
        return parse_milli(value)
    except ValueError:
        raise ValueError('a weight is a number: 2, "1.5" or "150%"') from None


def _size(value: Any) -> int:
    return reading.size(value)


def _bit_rate(value: Any) -> int:
    return parse_bit_rate(text(value))


def _rate(value: Any) -> Rate:
    return Rate(*reading.rate(value))


def _instant(value: Any) -> int:
    return parse_instant(text(value))


def _member(members: Any) -> reading.Read:
    return lambda value: reading.member(members, value)


_KINDS: Final = {kind.name.lower(): kind for kind in ResourceKind}
_TIERS: Final = {tier.name.lower(): tier for tier in TierKind}
AMOUNT: Final[dict[ResourceKind, reading.Read]] = {
    ResourceKind.MEM: _size,
    ResourceKind.BLOCK: _size,
    ResourceKind.NET: _bit_rate,
    ResourceKind.GPU: parse_milli,
    ResourceKind.CPU: parse_milli,
}
POLICY_KEYS: Final[Keys] = {
    "version": ("version", integer),
    "generation": ("generation", integer),
    "expires_at": ("expires_wall_ns", _instant),
    "ttl_default": ("ttl_ns_default", duration),
    "ttl_min": ("ttl_ns_min", duration),
    "ttl_max_scavenger": ("ttl_ns_max_scavenger", duration),
    "ttl_max_standard": ("ttl_ns_max_standard", duration),
    "ttl_max_guaranteed": ("ttl_ns_max_guaranteed", duration),
    "grace_release": ("grace_ns_release", duration),
    "grace_preempt": ("grace_ns_preempt", duration),
    "grace_max": ("grace_ns_max", duration),
    "leases_max": ("leases_max", integer),
    "waiting_max": ("waiting_max", integer),
    "wait_max": ("wait_ns_max", duration),
    "asks_max": ("asks_max", integer),
    "closed_leases_kept": ("closed_leases_kept", integer),
    "when_over": ("when_over", _member(WhenOver)),
    "overage": ("overage_pm", share),
    "overage_for": ("overage_ns", duration),
    "timezone": ("timezone", text),
}
LIMIT_KEYS: Final[Keys] = {
    "leases_max": ("leases_max", integer),
    "concurrent_max": ("concurrent_max", integer),
    "waiting_max": ("waiting_max", integer),
    "duration_max": ("duration_ns_max", duration),
    "submit_rate": ("submit_rate", _rate),
    "api_rate": ("api_rate", _rate),
    "level_max": ("level_max", _member(Level)),
    "cut_grace": ("grace_ns_cut", duration),
}
QUOTA_KEYS: Final[Keys] = {
    "mode": ("mode", _member(Mode)),
    "overage": ("overage_pm", share),
    "overage_for": ("overage_ns", duration),
    "burst_ttl": ("burst_ns", duration),
    "when_over": ("when_over", _member(WhenOver)),
    "lend": ("lend", flag),
    "hosts": ("hosts", lambda value: reading.rows(value, text)),
}
TENANT_KEYS: Final[Keys] = {"group": ("group", text)}
CHANGE_KEYS: Final[Keys] = {
    "expires_at": ("expires_wall_ns", _instant),
    "reason": ("reason", text),
}
SCHEDULE_KEYS: Final[Keys] = {
    "cron": ("cron", text),
    "timezone": ("timezone", text),
    "duration": ("duration_ns", duration),
}
BUDGET_KEYS: Final[Keys] = {
    "period": ("period", _member(Period)),
    "of": ("what", _budget_scope),
    "cost": ("cost_nano", _cost),
}
BORROWING_KEYS: Final[Keys] = {
    "enabled": ("enabled", flag),
    "limit": ("limit_pm", share),
    "grace": ("grace_ns", duration),
}
PREEMPTION_KEYS: Final[Keys] = {
    "enabled": ("enabled", flag),
    "runtime_min_scavenger": ("runtime_ns_min_scavenger", duration),
    "runtime_min_standard": ("runtime_ns_min_standard", duration),
    "wait": ("wait_ns", duration),
    "cooldown": ("cooldown_ns", duration),
    "checkpoint_max_scavenger": ("checkpoint_ns_max_scavenger", duration),
    "checkpoint_max_standard": ("checkpoint_ns_max_standard", duration),
}
ALLOCATION_KEYS: Final[Keys] = {
    "strategy": ("strategy", _member(Strategy)),
    "min_share": ("min_share_pm", share),
    "max_share": ("max_share_pm", share),
    "window": ("window_ns", duration),
    "half_life": ("half_life_ns", duration),
    "borrow_idle": ("borrow_idle", flag),
}
