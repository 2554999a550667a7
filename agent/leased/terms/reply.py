# SPDX-License-Identifier: Apache-2.0
"""Replies: what a command is answered with.

Rule: a denial is a value (`Refusal`) that names a typed reason, the limit, the usage and the
earliest moment at which the same request could succeed (boottime ns; None: not by waiting).

Does not carry file descriptors: the service adds those to a `Granted` on its way out.
"""

from __future__ import annotations

import enum

import msgspec

from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import Lease, Level, RevocationReason
from leased.terms.resource import Allotment, Inventory, ResourceKind
from leased.terms.teardown import TeardownStep


class RefusalReason(enum.IntEnum):
    """Closed. The numbers are on disk for ever (`event.Refused.reason`)."""

    BUSY = 0
    NO_CAPACITY = 1
    NO_SUCH_RESOURCE = 2
    TENANT_LEASES = 3
    TENANT_CAPACITY = 4
    NODE_LEASES = 5
    QUEUE_FULL = 6
    WAIT_EXPIRED = 7
    TTL_TOO_SHORT = 8
    TTL_TOO_LONG = 9
    CAPACITY_GRANULE = 10
    CORDONED = 11
    UNHEALTHY = 12
    DEADLINE_PASSED = 13
    NOT_RENEWABLE = 14
    STILL_HELD = 15
    NOT_FENCED = 16
    DRAINING = 17
    DEVICE_FAILED = 18
    AUDIT_UNAVAILABLE = 19
    STOPPING = 20
    LEVEL = 21
    DURATION = 22
    BUDGET = 23
    SUBMIT_RATE = 24
    API_RATE = 25
    THROTTLED = 26
    BURST_ENDED = 27
    SHARE = 28
    RESERVED = 29
    BACKFILL_ENDED = 30
    STALE_POLICY = 31
    NOT_PREEMPTED = 32
    NOT_NOTIFIED = 33
    NOTICE_LIMIT = 34
    NOTICE_FINAL = 35
    COMMAND_ID_USED = 36


class Refusal(msgspec.Struct, frozen=True, tag="refusal", gc=False):
    """No, and why. `limit`, `usage` and `requested` are in the unit of `what` (a kind's raw unit,
    "leases", "ns"). `rule` is the key of the policy that says so, where one does."""

    reason: RefusalReason
    what: str = ""
    limit: int = 0
    usage: int = 0
    requested: int = 0
    retry_at_ns: int | None = None
    rule: str = ""


class Granted(msgspec.Struct, frozen=True, tag="granted", gc=False):
    """The lease, and the record that says so: (log id, sequence, record hash) is its receipt."""

    lease: Lease
    sequence: int = -1
    record_hash: bytes = b""
    attached: bool = False
    log_id: bytes = b""


class Changed(msgspec.Struct, frozen=True, tag="changed", gc=False):
    """The lease as it is after the command (renew, release, revoke, unfence, describe)."""

    lease: Lease


class Listed(msgspec.Struct, frozen=True, tag="listed", gc=False):
    """Several leases, oldest first; and requests that wait: (command id, position from 1,
    reason)."""

    leases: tuple[Lease, ...]
    waiting: tuple[tuple[CommandId, int, RefusalReason], ...] = ()


class ResourceUse(msgspec.Struct, frozen=True, gc=False):
    """One resource's capacity, split without remainder: free + leased + teardown + fenced =
    capacity."""

    resource_id: str
    kind: ResourceKind
    free: int
    leased: int
    teardown: int
    fenced: int
    cordoned: bool


class Inventoried(msgspec.Struct, frozen=True, tag="inventoried", gc=False):
    """What the node has, how it is used, and how long its holders are told before they have to
    leave: on release, on preemption, at most."""

    inventory: Inventory
    use: tuple[ResourceUse, ...]
    graces_ns: tuple[int, int, int] = (0, 0, 0)


class Removal(msgspec.Struct, frozen=True, gc=False):
    """A lease that would have to make way: why, and by when it would be gone at the latest. Whose,
    and which, only its own tenant and operators are told.
    """

    lease_id: LeaseId | None
    tenant: TenantId | None
    level: Level
    reason: RevocationReason
    until_ns: int
    allotments: tuple[Allotment, ...]


class Assumption(enum.StrEnum):
    """What a plan takes for granted where it says when. Closed."""

    DEADLINES = "deadlines"
    QUEUE = "queue"
    GRACE = "grace"


class Planned(msgspec.Struct, frozen=True, tag="planned", gc=False):
    """What an Acquire would get now: a refusal, or None and the resources it would take.

    `victims` are the leases that would have to make room if it waited, and `within_ns` when they
    would be gone at the latest; `cost_nano` is what it would cost until its first deadline, in
    10^-9 of the rate card's currency. `assumes` is what its instants take for granted: that leases
    in the way end at their deadlines, neither renewed nor released; that those ahead in the queue
    do not want the same; that whoever is told to leave takes all of its grace, and its teardown
    all that is published.
    """

    refusal: Refusal | None
    resource_ids: tuple[str, ...] = ()
    position: int | None = None
    victims: tuple[Removal, ...] = ()
    cost_nano: int = 0
    within_ns: int | None = None
    assumes: tuple[Assumption, ...] = ()


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """One limit of a tenant or group, and what its holder has, in the unit of `what`.

    Up to `ceiling` it may be exceeded, by its `mode`. `capacity` is what the host has of it (0:
    not a thing that hosts have). Where the usage is above the limit, `until_ns` is until when that
    is borne, and `leaving` how many leases are told to leave then.
    """

    holder: str
    rule: str
    what: str
    limit: int
    ceiling: int
    usage: int
    mode: str = "hard"
    capacity: int = 0
    until_ns: int | None = None
    leaving: int = 0


class Evenness(msgspec.Struct, frozen=True, gc=False):
    """How evenly something is divided by its weights: Jain's index, in millionths."""

    rule: str
    index: int


class Allowed(msgspec.Struct, frozen=True, tag="allowed", gc=False):
    """What is allowed, now or under a policy that was tried; `why` is why that cannot be in force
    here.
    """

    allowances: tuple[Allowance, ...]
    evenness: tuple[Evenness, ...] = ()
    why: str | None = None


class Explained(msgspec.Struct, frozen=True, tag="explained", gc=False):
    """Why: the lease as it is or was, or the refusal a waiting request would get now, with its
    place in the queue.

    Of a fenced lease, `step` is the step of its teardown that failed and `errno` what the kernel or
    driver said; of one that was preempted, `preemptor` is whose request it made way for, and which,
    for those who may know; of one that was told to leave, `told_ns` is when, and `latest` until
    when its holder may put that off at most, by which key of the policy.
    """

    lease: Lease | None = None
    refusal: Refusal | None = None
    position: int | None = None
    step: TeardownStep | None = None
    errno: int = 0
    preemptor: tuple[TenantId, LeaseId] | None = None
    told_ns: int | None = None
    latest: tuple[int, str] | None = None


class Done(msgspec.Struct, frozen=True, tag="done", gc=False):
    """Carried out; nothing to show. `affected` are leases that were told to leave."""

    affected: tuple[LeaseId, ...] = ()


class InForce(msgspec.Struct, frozen=True, tag="in_force", gc=False):
    """The policy that judges from now on."""

    policy_hash: bytes
    generation: int


class Unfit(msgspec.Struct, frozen=True, tag="unfit", gc=False):
    """A policy that this host cannot keep: the key, its value and why. What was in force still
    is."""

    why: str


class Missing(msgspec.Struct, frozen=True, tag="missing", gc=False):
    """No such lease, or not the caller's (the two are not told apart)."""

    lease_id: bytes


class Forbidden(msgspec.Struct, frozen=True, tag="forbidden", gc=False):
    """The caller is not an operator."""


Reply = (
    Refusal
    | Granted
    | Changed
    | Listed
    | Inventoried
    | Planned
    | Explained
    | Allowed
    | Done
    | InForce
    | Unfit
    | Missing
    | Forbidden
)
