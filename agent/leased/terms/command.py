# SPDX-License-Identifier: Apache-2.0
"""Commands: everything that may ask for a change, whoever asks.

Rule: a command is a value; it carries who asks as the kernel told it (`Caller`), never as JSON
claimed it. Every command of a client has a client-chosen `command_id`, and proposing it twice
changes nothing the second time.

Does not say what will come of it: that is `lessor`.
"""

from __future__ import annotations

import msgspec

from leased.terms.event import KeyChange
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, Level, Priority, RevocationReason, Trust
from leased.terms.policy import Calendar, Policy, Price
from leased.terms.reply import Refusal
from leased.terms.resource import Ask, Health, Inventory
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, TeardownStep, Utilization


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks, by SO_PEERCRED and SO_PEERPIDFD: `tenant` from the configured mapping, `operator`
    on the admin socket."""

    uid: int
    gid: int
    pid: int
    tenant: TenantId
    operator: bool = False
    trust: Trust = Trust.CONFINED


class Command(msgspec.Struct, frozen=True, gc=False):
    """Anything on the sequencer's channel."""

    command_id: CommandId


# ---- what clients ask ----------------------------------------------------------------------------


class Acquire(Command, frozen=True):
    """A lease over all of `asks`, or nothing. `wait_ns` > 0 takes a place in the queue for that
    long.

    `bind_pid` binds the lease to the caller's own process (or BOUND_TO_CGROUP, as
    `run` does, or BOUND_TO_NOTHING). `level` says more than its priority does. `requeue_of` is a
    lease of the tenant's that was preempted: a request for no more than that waits at the head of
    its level.
    """

    caller: Caller
    asks: tuple[Ask, ...]
    ttl_ns: int
    priority: Priority = Priority.STANDARD
    wait_ns: int = 0
    grace_ns: int | None = None
    workload: str | None = None
    tag: AccountingTag | None = None
    bind_pid: int = 0
    level: Level | None = None
    requeue_of: LeaseId | None = None


class Renew(Command, frozen=True):
    """Move the deadline to now + `ttl_ns` (None: the length last asked for). A late renewal
    loses."""

    caller: Caller
    lease_id: LeaseId
    ttl_ns: int | None = None


class Release(Command, frozen=True):
    """Give the lease back now. While DRAINING this is the holder's *done*."""

    caller: Caller
    lease_id: LeaseId


class Extend(Command, frozen=True):
    """While DRAINING: let the notice end at now + `needed_ns`, so that what is not saved yet can
    be. What the notice gives anyway changes nothing."""

    caller: Caller
    lease_id: LeaseId
    needed_ns: int


class CancelWait(Command, frozen=True):
    """The connection that waited for `waiting_id` is gone: give up its place."""

    waiting_id: CommandId


# ---- what operators ask --------------------------------------------------------------------------


class Revoke(Command, frozen=True):
    """Take a lease back after `grace_ns` of notice (0: at once)."""

    caller: Caller
    lease_id: LeaseId
    reason: RevocationReason = RevocationReason.OPERATOR_REVOKE
    grace_ns: int = 0


class Drain(Command, frozen=True):
    """Grant no more of `resource_id` ("" = the node, "gpu:" = all of a kind) and notify every
    holder; `grace_ns` None: leases run to their end."""

    caller: Caller
    resource_id: str
    grace_ns: int | None = None
    reason: RevocationReason = RevocationReason.OPERATOR_DRAIN


class Resume(Command, frozen=True):
    """Undo a drain."""

    caller: Caller
    resource_id: str


class Fence(Command, frozen=True):
    """Take free capacity out of use."""

    caller: Caller
    resource_id: str
    capacity: int


class Unfence(Command, frozen=True):
    """Put fenced capacity back: of a FENCED lease (`lease_id`), or what an operator fenced
    (`resource_id`)."""

    caller: Caller
    lease_id: LeaseId | None
    resource_id: str = ""


class SetPolicy(Command, frozen=True):
    """Put a validated policy document in force."""

    caller: Caller
    policy: Policy
    policy_hash: bytes
    rate_hash: bytes
    prices: tuple[Price, ...] = ()
    calendar: Calendar = Calendar()


class TryPolicy(Command, frozen=True):
    """What would a policy mean for the leases that there are? Changes nothing."""

    caller: Caller
    policy: Policy
    calendar: Calendar = Calendar()


# ---- what the agent's own tasks report -----------------------------------------------------------


class Activate(Command, frozen=True):
    """The hardware is prepared and the reaper holds the lease. `sequence` is that of its Allocated
    record."""

    lease_id: LeaseId
    evidence: bytes


class GrantFailed(Command, frozen=True):
    """Preparing or arming failed after the grant was sealed; the lease must be torn down. `refusal`
    is what the caller is told."""

    lease_id: LeaseId
    refusal: Refusal


class NoteAdoption(Command, frozen=True):
    """Running work has been brought into a lease's leaf, on an operator's word."""

    lease_id: LeaseId
    operator_uid: int
    pid: int
    processes: int


class NoteStray(Command, frozen=True):
    """A lease's cgroup that no lease knows has been ended."""

    cgroup: str
    processes: int
    errno: int


class NotePruned(Command, frozen=True):
    """Old segments are to go: the log is to begin with record `min_seq`, after the hash `head`. The
    rest is what a start says of the node."""

    min_seq: int
    head: bytes
    segments: int
    acked_size: int
    key_changes: tuple[KeyChange, ...]
    node_id: bytes
    version: str
    filesystem: str
    durability: str


class NoteCountersigned(Command, frozen=True):
    """A collector has cosigned the tree of the first `size` records (checked)."""

    size: int
    root: bytes
    key_id: int
    time_s: int
    signature: bytes


class NoteRotated(Command, frozen=True):
    """From this record on the node signs by `public_key`; both keys have signed that."""

    public_key: bytes
    signature_old: bytes
    signature_new: bytes


class Tick(Command, frozen=True):
    """Time has passed: expire, end drains, end waits."""


class HolderGone(Command, frozen=True):
    """The process a lease is bound to has exited; `left`: the last process has left its leaf, which
    is how a `run` gives its lease back when nobody is there to say so."""

    lease_id: LeaseId
    left: bool = False


class CutEnded(Command, frozen=True):
    """Access was cut, or could not be (`report.clean` false)."""

    report: CutReport
    evidence: bytes


class ScrubEnded(Command, frozen=True):
    """The scrub ended."""

    report: ScrubReport
    evidence: bytes


class ProofEnded(Command, frozen=True):
    """The proof ended; what `report.unproven` names is fenced."""

    report: ProofReport
    evidence: bytes
    utilization: Utilization = Utilization()


class TeardownFailed(Command, frozen=True):
    """A teardown step failed or timed out: fence the whole lease."""

    lease_id: LeaseId
    step: TeardownStep
    errno: int
    evidence: bytes


class Turn(Command, frozen=True):
    """The calendar as it is now: windows of the policy have opened or closed, changes have expired,
    periods have begun. `prices` are those of the rate card, if they are told again."""

    calendar: Calendar
    prices: tuple[Price, ...] = ()


class Observe(Command, frozen=True):
    """The inventory as it is now."""

    inventory: Inventory


class ObserveHealth(Command, frozen=True):
    """One resource's health as it is now."""

    resource_id: str
    health: Health
    cause: int


class ObserveClockStep(Command, frozen=True):
    """The wall clock jumped."""

    delta_ns: int


class ObserveHaste(Command, frozen=True):
    """A tenant calls more often than its `api_rate`, so many times in its period."""

    caller: Caller
    limit: int


class Start(Command, frozen=True):
    """First command of a run. `known_to_reaper`: leases of this boot that the reaper still
    holds."""

    node_id: bytes
    version: str
    filesystem: str
    durability: str
    inventory: Inventory
    policy: Policy
    policy_hash: bytes
    rate_hash: bytes
    known_to_reaper: frozenset[LeaseId]
    prices: tuple[Price, ...] = ()
    calendar: Calendar = Calendar()


class Stop(Command, frozen=True):
    """Last command of a clean run."""


class Heartbeat(Command, frozen=True):
    """Goes through the sequencer and back: the watchdog's proof of progress."""


# ---- questions (answered from the table, in order with everything else) --------------------------


class Describe(Command, frozen=True):
    """One lease."""

    caller: Caller
    lease_id: LeaseId


class ListLeases(Command, frozen=True):
    """The caller's leases (all of them for an operator). `closed` includes the recently ended."""

    caller: Caller
    closed: bool = False


class ListResources(Command, frozen=True):
    """The inventory with what is free, leased, in teardown and fenced."""

    caller: Caller


class Plan(Command, frozen=True):
    """What would happen to `acquire`, changing nothing."""

    acquire: Acquire


class Why(Command, frozen=True):
    """Why a lease ended, or why a waiting request (`lease_id` = its command id) still waits."""

    caller: Caller
    lease_id: LeaseId


class Quotas(Command, frozen=True):
    """What `tenant` may have and has (None: the caller; for an operator, everybody)."""

    caller: Caller
    tenant: TenantId | None = None
