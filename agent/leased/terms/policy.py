# SPDX-License-Identifier: Apache-2.0
"""The policy: who may have what, for how long, and who yields to whom, as one value.

Rule: every limit has its unit in its name; None is "no limit of its own". What is in force is made
valid once (`policy_check.check`); nothing else in the program asks whether a floor lies above a
ceiling. The hash of a policy is that of its canonical bytes, which leave out what is at its default
and the generation, so that the same document is the same policy everywhere and for ever.

Does not read files (`policy_text`), does not know the time (`policy_turn`) and does not judge
requests (`lessor`).
"""

from __future__ import annotations

import enum
import functools
import hashlib
from typing import Any, Final

import msgspec

from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Level, Priority
from leased.terms.moment import DAY_NS, MINUTE_NS, NS_PER_S
from leased.terms.resource import ResourceKind, TierKind

VERSION: Final = 1
"""Of the document. A policy of a later version is refused, not half understood."""


class Mode(enum.StrEnum):
    """What a limit on capacity means: nothing above it; above it for a while, and marked; above it
    up to a second limit, for the time of a burst.
    """

    HARD = "hard"
    SOFT = "soft"
    BURST = "burst"


class WhenOver(enum.StrEnum):
    """What becomes of a request that a limit does not let through: refused, unless it asked to
    wait; made to wait; refused, and the tenant's next requests slowed down.
    """

    REJECT = "reject"
    QUEUE = "queue"
    THROTTLE = "throttle"


class Strategy(enum.StrEnum):
    """How capacity that several want is divided."""

    PRIORITY = "priority"
    FAIR_SHARE = "fair_share"
    RESERVATION = "reservation"


class Period(enum.StrEnum):
    """What a budget is for; it begins anew at midnight of the policy's time zone."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Rate(msgspec.Struct, frozen=True):
    """At most `count` in `per_ns`, and as many at once as a second of it (at least one)."""

    count: int
    per_ns: int


class CapacityLimit(msgspec.Struct, frozen=True):
    """At most `capacity` (raw unit) of `kind` at once; of one tier or NUMA node of it, if named.

    `hosts` are the node ids it is for (none: every host). `overage_pm` and `overage_ns` are how far
    and how long a SOFT limit may be exceeded, `burst_capacity` and `burst_ns` how far and how long
    a BURST limit may; None: the policy's. `lend` false keeps what is idle of it from others.
    """

    kind: ResourceKind
    capacity: int
    tier: TierKind | None = None
    node: int | None = None
    mode: Mode = Mode.HARD
    overage_pm: int | None = None
    overage_ns: int | None = None
    burst_capacity: int = 0
    burst_ns: int = 0
    when_over: WhenOver | None = None
    lend: bool = True
    hosts: tuple[str, ...] = ()

    @property
    def scope(self) -> tuple[ResourceKind, int, int]:
        """What it counts, as a key: -1 is "any"."""
        return (
            self.kind,
            -1 if self.tier is None else int(self.tier),
            -1 if self.node is None else self.node,
        )


class Budget(msgspec.Struct, frozen=True):
    """What may be used up in a period: `capacity_ns` (raw unit x ns) of one kind, or of one tier of
    it, or `cost_nano` (10^-9 of the currency) of everything.
    """

    period: Period
    kind: ResourceKind | None = None
    tier: TierKind | None = None
    capacity_ns: int | None = None
    cost_nano: int | None = None


class LimitSet(msgspec.Struct, frozen=True):
    """Limits of somebody. `concurrent_max` counts leases that are used, `leases_max` also those
    that are still being cleaned. `duration_ns_max` is how old a lease may become by renewals.
    `grace_ns_cut` is how long what lies above a lowered limit may still be renewed.
    """

    leases_max: int | None = None
    waiting_max: int | None = None
    capacities: tuple[CapacityLimit, ...] = ()
    concurrent_max: int | None = None
    duration_ns_max: int | None = None
    submit_rate: Rate | None = None
    api_rate: Rate | None = None
    level_max: Level | None = None
    budgets: tuple[Budget, ...] = ()
    grace_ns_cut: int | None = None


class Change(msgspec.Struct, frozen=True):
    """Other limits until an instant, and why. What it does not name stays as it is."""

    limits: LimitSet
    expires_wall_ns: int
    reason: str


class Schedule(msgspec.Struct, frozen=True):
    """Other limits for `duration_ns` from every instant that `cron` names in `timezone`."""

    name: str
    cron: str
    duration_ns: int
    limits: LimitSet
    timezone: str = "UTC"


class TenantLimits(LimitSet, frozen=True):
    """Limits of one tenant, the group whose limits it shares, and what changes them in time."""

    group: str | None = None
    changes: tuple[Change, ...] = ()
    schedules: tuple[Schedule, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """Tenants that share limits: `together` is what they may have in sum, `each` what every one of
    them has that says nothing else.
    """

    together: LimitSet = LimitSet()
    each: LimitSet = LimitSet()


class Borrowing(msgspec.Struct, frozen=True):
    """Quota that is idle, lent: at most `limit_pm` of the borrower's own. Its owner comes first:
    then borrowers are told to leave within `grace_ns`, those of the lowest level first.
    """

    enabled: bool = False
    limit_pm: int = 500
    grace_ns: int = 300 * NS_PER_S


class Preemption(msgspec.Struct, frozen=True):
    """Whether a request may end leases of a lower level, and on what terms.

    A victim has run for at least the minimum of its class. `wait_ns` is how long the request waits
    first; `cooldown_ns` how long it leaves others alone after victims of its made way in vain.
    `checkpoint_ns_max_*` bounds the grace of a victim of that class, asked for at the grant or
    later, as time for a checkpoint.
    """

    enabled: bool = True
    runtime_ns_min_scavenger: int = 0
    runtime_ns_min_standard: int = 60 * NS_PER_S
    wait_ns: int = 0
    cooldown_ns: int = 60 * NS_PER_S
    checkpoint_ns_max_scavenger: int = 60 * NS_PER_S
    checkpoint_ns_max_standard: int = 300 * NS_PER_S


class Allocation(msgspec.Struct, frozen=True):
    """How one kind (or one tier of it) is divided.

    FAIR_SHARE: by `weights_pm` (1000 where none is named), nobody below `min_share_pm` or above
    `max_share_pm`, what was used within `window_ns` counted, half as much every `half_life_ns` (0:
    all of it the same). RESERVATION: `reservations` are always there for their tenants;
    `opportunistic` is for everybody (None: what is not reserved); `borrow_idle`: so is what is
    reserved and idle, until its tenant comes.
    """

    kind: ResourceKind
    tier: TierKind | None = None
    strategy: Strategy = Strategy.PRIORITY
    min_share_pm: int = 50
    max_share_pm: int = 500
    weights_pm: tuple[tuple[TenantId, int], ...] = ()
    window_ns: int = DAY_NS
    half_life_ns: int = 0
    reservations: tuple[tuple[TenantId, int], ...] = ()
    opportunistic: int | None = None
    borrow_idle: bool = True


class Policy(msgspec.Struct, frozen=True):
    """What may be granted, to whom, for how long. `generation` counts accepted documents;
    `expires_wall_ns` is when this one ends and the host's own policy holds again.
    """

    version: int = VERSION
    generation: int = 0
    expires_wall_ns: int | None = None
    ttl_ns_default: int = 60 * NS_PER_S
    ttl_ns_min: int = 1 * NS_PER_S
    ttl_ns_max_scavenger: int = 900 * NS_PER_S
    ttl_ns_max_standard: int = 14_400 * NS_PER_S
    ttl_ns_max_guaranteed: int = 86_400 * NS_PER_S
    grace_ns_release: int = 10 * NS_PER_S
    grace_ns_preempt: int = 30 * NS_PER_S
    grace_ns_max: int = 300 * NS_PER_S
    leases_max: int = 16_384
    waiting_max: int = 1_024
    wait_ns_max: int = 86_400 * NS_PER_S
    asks_max: int = 16
    closed_leases_kept: int = 4_096
    when_over: WhenOver = WhenOver.REJECT
    overage_pm: int = 200
    overage_ns: int = 15 * MINUTE_NS
    timezone: str = "UTC"
    borrowing: Borrowing = Borrowing()
    preemption: Preemption = Preemption()
    allocations: tuple[Allocation, ...] = ()
    groups: tuple[tuple[str, Group], ...] = ()
    tenant_default: TenantLimits = TenantLimits(level_max=Level.NORMAL)
    tenants: tuple[tuple[TenantId, TenantLimits], ...] = ()

    def ttl_ns_max(self, priority: Priority) -> int:
        """The TTL ceiling of a priority, in ns."""
        if priority is Priority.GUARANTEED:
            return self.ttl_ns_max_guaranteed
        return (
            self.ttl_ns_max_standard if priority is Priority.STANDARD else self.ttl_ns_max_scavenger
        )


class Price(msgspec.Struct, frozen=True, array_like=True):
    """What a capacity-second costs: 10^-12 of the currency, in per mille, per unit of the kind
    (`resource.UNIT`). Taken from the rate card, for budgets in money; bills are made elsewhere.
    """

    kind: ResourceKind
    tier: int
    priority: int
    pico_pm: int


class Running(msgspec.Struct, frozen=True, array_like=True):
    """A period of budgets that runs: when it began (wall ns), and when it ends (boottime ns)."""

    period: Period
    began_wall_ns: int
    ends_ns: int


class Calendar(msgspec.Struct, frozen=True, array_like=True):
    """What the time is for a policy: its windows that are open, and the periods that run."""

    windows: tuple[str, ...] = ()
    periods: tuple[Running, ...] = ()


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(Policy)
_DOMAIN: Final = b"leased policy 1\0"


def canonical(policy: Policy) -> bytes:
    """The one text of `policy`, without its generation. It is JSON, so that people can read it."""
    return _ENCODER.encode(_spelled(msgspec.structs.replace(policy, generation=0)))


@functools.cache
def _defaults(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """The fields of a kind of value, and what each is if nobody says."""
    return tuple((field.name, field.default) for field in msgspec.structs.fields(kind))


def _spelled(value: Any) -> Any:
    """A value with every field that is not at its default."""
    if isinstance(value, msgspec.Struct):
        return {
            name: _spelled(found)
            for name, default in _defaults(type(value))
            if (found := getattr(value, name)) != default
        }
    return [_spelled(one) for one in value] if isinstance(value, tuple) else value


def decode(text: bytes) -> Policy:
    """The policy whose canonical bytes are `text`. Raises ConfigError."""
    try:
        policy = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(f"not the canonical form of a policy: {error}") from error
    if canonical(policy) != text:
        raise ConfigError("not the canonical form of a policy: it would be written otherwise")
    return policy


def digest(policy: Policy) -> bytes:
    """The 32 bytes that the chain names a policy by."""
    return digest_of(canonical(policy))


def digest_of(text: bytes) -> bytes:
    """The same of its canonical text."""
    return hashlib.sha256(_DOMAIN + text).digest()
