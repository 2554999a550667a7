# SPDX-License-Identifier: Apache-2.0
"""Events: everything that has happened, as one closed set of positional arrays.

Rule: the field order of a class is its body on disk (format version 1, schema 1): fields are only
ever added in a new schema, and numbers in `KIND` are never reused. No free text: reasons are enums,
details are hashes of evidence. Every event of a lease begins (event_id, lease_id, subject,
generation, effective_ns), so a reader finds the lease without decoding the rest. `effective_ns`
(boottime) is when it took effect, which can be before it was sealed: an expiry takes effect at the
deadline, however late the agent learns of it.

Does not encode (`chain.canonical`) and does not apply (`lessor.table`).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from leased.terms.identity import ID, BootId, CommandId, EventId, Hash, LeaseId, TenantId
from leased.terms.lease import RevocationReason, Subject
from leased.terms.resource import Allotment, Inventory, ResourceKind

Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Wide = Annotated[bytes, ID]
"""An integer that may need more than 64 bits, big-endian."""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Anything sealed. `event_id` is uniformly random, so an inclusion proof tells nothing of its
    neighbours."""

    event_id: Annotated[EventId, ID]


class LeaseEvent(Event, frozen=True, array_like=True):
    """Anything that happened to one lease."""

    lease_id: Annotated[LeaseId, ID]
    subject: Subject
    generation: int
    effective_ns: int


class Allocated(LeaseEvent, frozen=True, array_like=True):
    """The right exists from here on. `ttl_ns` asked, `deadline_ns` promised, `pid` bound to (0:
    none)."""

    command_id: Annotated[CommandId, ID]
    ttl_ns: int
    deadline_ns: int
    pid: int
    grace_ns: int


class Activated(LeaseEvent, frozen=True, array_like=True):
    """The hardware was prepared and the reaper holds the lease: access began. `evidence` is a
    SHA-256."""

    evidence: bytes


class Renewed(LeaseEvent, frozen=True, array_like=True):
    """The deadline moved; `generation` is the new one."""

    ttl_ns: int
    deadline_ns: int


class DrainNotified(LeaseEvent, frozen=True, array_like=True):
    """The holder was told to leave, and until when it may stay. A renewal no longer helps.
    `generation` is a new one: the reaper takes the other end for a renewal. Said again while
    draining, it moves that end: to an earlier one by somebody's order, to a later one (and the
    deadline with it, if that comes first) because the holder asked for time."""

    reason: RevocationReason
    drain_deadline_ns: int


class Released(LeaseEvent, frozen=True, array_like=True):
    """The holder gave it back, or said *done* while draining."""


class Expired(LeaseEvent, frozen=True, array_like=True):
    """Ended by time: `effective_ns` is the deadline itself."""


class Revoked(LeaseEvent, frozen=True, array_like=True):
    """Ended by operator, policy or the loss of its holder."""

    reason: RevocationReason


class Preempted(LeaseEvent, frozen=True, array_like=True):
    """A higher priority took it: names the preemptor. The lease is the victim."""

    preemptor_lease_id: Annotated[LeaseId, ID]
    preemptor_tenant: TenantId


class Admitted(LeaseEvent, frozen=True, array_like=True):
    """On what terms a lease was granted, or goes on, where they are not the usual ones of its
    priority: its level; until when a burst of its tenant lasts, or the room between those who wait
    (0: no such end), beyond which no renewal goes; how much of each kind is borrowed from others.
    """

    level: int
    burst_until_ns: int
    backfill_until_ns: int
    borrowed: tuple[tuple[ResourceKind, int], ...]


class TeardownBegun(LeaseEvent, frozen=True, array_like=True):
    """The tenant stopped paying at `effective_ns`; from here to the proof the teardown pool
    pays."""


class AccessCut(LeaseEvent, frozen=True, array_like=True):
    """No process of the tenant can reach the hardware any more. `by_reaper`: the deadline did it,
    not the agent."""

    by_reaper: bool
    evidence: bytes


class Scrubbed(LeaseEvent, frozen=True, array_like=True):
    """The hardware was overwritten. `scrubbed_bytes` over all allotments."""

    scrubbed_bytes: int
    evidence: bytes


class Reclaimed(LeaseEvent, frozen=True, array_like=True):
    """Proven clean and free again: the closing record, with its usage summary.

    `held_capacity_ns` is the tenant's capacity x ns per allotment, in order. Utilization is in per
    mille with its sample count and coverage in per mille; all None where nothing was sampled.
    """

    held_capacity_ns: tuple[int, ...]
    cut_lag_ns: int
    proof_lag_ns: int
    utilization_mean_pm: int | None
    utilization_max_pm: int | None
    active_share_pm: int | None
    sample_count: int
    coverage_pm: int
    evidence: bytes


class Fenced(LeaseEvent, frozen=True, array_like=True):
    """Could not be proven clean: `fenced` stays out of use until an operator acts; the rest of the
    lease is free again.

    `step` and `errno` say what failed (`terms.teardown.TeardownStep`), `evidence` is the SHA-256 of
    the report.
    """

    fenced: tuple[Allotment, ...]
    step: int
    errno: int
    held_capacity_ns: tuple[int, ...]
    cut_lag_ns: int
    evidence: bytes


class Unfenced(LeaseEvent, frozen=True, array_like=True):
    """An operator, or a re-verification that passed, put fenced capacity back. `operator_uid` -1:
    the agent itself."""

    operator_uid: int
    evidence: bytes


class Refused(Event, frozen=True, array_like=True):
    """An admission that was denied and matters to audit. `reason` is `reply.RefusalReason`;
    `resource_kind` is what the numbers are of, if of a kind (schema 2: earlier releases did not
    say)."""

    tenant: TenantId
    uid: int
    command_id: Annotated[CommandId, ID]
    reason: int
    limit: int
    usage: int
    requested: int
    resource_kind: ResourceKind | None = None


class PolicyChanged(Event, frozen=True, array_like=True):
    """A policy document took force: its SHA-256, its generation and that of the rate card."""

    policy_hash: Hash
    policy_generation: int
    rate_hash: Hash
    operator_uid: int


class PolicyTurned(Event, frozen=True, array_like=True):
    """What a policy document says changed with time: which of its windows are open now."""

    policy_hash: Hash
    windows: tuple[str, ...]


class OverageBegan(Event, frozen=True, array_like=True):
    """A holder (a tenant, or "@" and a group) has more than `limit` of what `rule` counts, and may
    until `until_ns` (boottime). `cause` is `lease.OverageCause`."""

    holder: str
    rule: str
    cause: int
    limit: int
    usage: int
    until_ns: int


class OverageEnded(Event, frozen=True, array_like=True):
    """A holder has no more than it may again."""

    holder: str
    rule: str
    usage: int


class PeriodBegan(Event, frozen=True, array_like=True):
    """Budgets of a period (`policy.Period`) begin anew: the period that began at `began_wall_ns`.
    From `effective_ns` (boottime) on, what leases may still use up counts for it."""

    period: str
    began_wall_ns: int
    effective_ns: int


class Metered(Event, frozen=True, array_like=True):
    """What a tenant with a budget has used up, or may still by its leases, in the periods that run:
    (period, kind, tier or -1, priority, capacity x ns as 16 bytes big-endian). Without rows, it has
    no budget any more."""

    tenant: TenantId
    rows: tuple[tuple[str, int, int, int, Wide], ...]


class InventoryChanged(Event, frozen=True, array_like=True):
    """The whole inventory as it is from here on."""

    inventory: Inventory


class HealthChanged(Event, frozen=True, array_like=True):
    """One resource's health; `cause` is a number of the backend's own closed set (an XID, an
    errno)."""

    resource_id: str
    health: str
    cause: int


class ResourceFenced(Event, frozen=True, array_like=True):
    """An operator fenced (or, with `fenced` false, released) free capacity that no lease holds."""

    allotment: Allotment
    fenced: bool
    operator_uid: int


class CordonChanged(Event, frozen=True, array_like=True):
    """Grants on a resource (empty: on the node) were stopped or resumed."""

    resource_id: str
    cordoned: bool
    operator_uid: int


class StrayEnded(Event, frozen=True, array_like=True):
    """A lease's cgroup that no lease knew was found at a start, with so many processes in it, which
    were killed. `errno` is 0, or why the cgroup is still there."""

    cgroup: str
    processes: int
    errno: int


class NodeStarted(Event, frozen=True, array_like=True):
    """The agent serves. Another `boot_id` than before ends every lease of the old boot. `epoch`
    counts starts."""

    boot_id: Annotated[BootId, ID]
    node_id: bytes
    epoch: int
    version: str
    filesystem: str
    durability: str


class NodeStopped(Event, frozen=True, array_like=True):
    """A clean stop of the agent; leases go on."""

    live_leases: int


class ClockStepped(Event, frozen=True, array_like=True):
    """The wall clock jumped against the boot clock by `delta_ns`."""

    delta_ns: int


class KeyRotated(Event, frozen=True, array_like=True):
    """The node's signing key was replaced; signed by the old key and the new."""

    public_key: Hash
    signature_old: Signature
    signature_new: Signature


class KeyChange(msgspec.Struct, frozen=True, array_like=True):
    """What a KeyRotated said, said anew by a record after it: the key, and both signatures."""

    public_key: Hash
    signature_old: Signature
    signature_new: Signature


class HeadCountersigned(Event, frozen=True, array_like=True):
    """A collector cosigned the tree of `size`."""

    size: int
    root: Hash
    key_id: int
    time_s: int
    signature: Signature


class Adopted(LeaseEvent, frozen=True, array_like=True):
    """An operator brought running work under the lease: `pid` and everybody below it, `processes`
    in all."""

    operator_uid: int
    pid: int
    processes: int


class Recovered(Event, frozen=True, array_like=True):
    """Boot repaired the tail: records rolled forward, torn bytes put in quarantine."""

    kept_records: int
    torn_bytes: int
    torn_hash: Hash


class Voided(Event, frozen=True, array_like=True):
    """The grant in `sequence` was sealed but never took effect."""

    sequence: int


class EpochSealed(Event, frozen=True, array_like=True):
    """Epoch `epoch` is over and its key is forgotten: `tag` is a MAC by that key over all the other
    fields. It covers the records `first_seq` to `size` - 1, whose tree has `root`, and the time
    from `begin_ns` to `end_ns` on the boot clock (of `boot_id`); `skipped` epochs in which nobody
    ran are sealed with it. The wall times are labels."""

    epoch: int
    skipped: int
    boot_id: Annotated[BootId, ID]
    begin_ns: int
    end_ns: int
    begin_wall_ns: int
    end_wall_ns: int
    first_seq: int
    size: int
    root: Hash
    tag: Hash


class Pruned(Event, frozen=True, array_like=True):
    """Segments were removed: the log begins with record `min_seq` now, and `head` is the hash of
    the record before it. Every collector that had to had cosigned `acked_size` records. By
    `key_changes` the log had come from its first key to the one in force there (schema 2; none:
    schema 1)."""

    min_seq: int
    head: Hash
    segments: int
    acked_size: int
    key_changes: tuple[KeyChange, ...] = ()


class HeadCosigned(Event, frozen=True, array_like=True):
    """In a collector's own log: it cosigned the tree of `size` records of another log."""

    log_id: Annotated[bytes, ID]
    origin: str
    size: int
    root: Hash
    time_s: int
    signature: Signature


class VerdictReached(Event, frozen=True, array_like=True):
    """In a collector's own log: what it found another log, held up to `head` of `size` records, to
    be. `evidence` is the SHA-256 of the bundle that shows it."""

    log_id: Annotated[bytes, ID]
    origin: str
    verdict: str
    size: int
    head: Hash
    evidence: Hash


class VerdictResolved(Event, frozen=True, array_like=True):
    """In a collector's own log: an operator's signed note that resolves a verdict."""

    log_id: Annotated[bytes, ID]
    verdict: str
    note: str


class SegmentEnd(Event, frozen=True, array_like=True):
    """The last record of a segment."""

    segment_no: int


class CheckpointSigned(Event, frozen=True, array_like=True):
    """The node's Ed25519 signature over the C2SP checkpoint of the tree of `size` records before
    this one."""

    size: int
    root: Hash
    signature: Signature


KIND: Final[dict[type[Event], int]] = {
    NodeStarted: 1,
    NodeStopped: 2,
    InventoryChanged: 3,
    PolicyChanged: 4,
    HealthChanged: 5,
    ClockStepped: 6,
    KeyRotated: 7,
    HeadCountersigned: 8,
    CordonChanged: 9,
    ResourceFenced: 10,
    Refused: 11,
    StrayEnded: 12,
    PolicyTurned: 13,
    OverageBegan: 14,
    OverageEnded: 15,
    PeriodBegan: 32,
    Metered: 33,
    Allocated: 16,
    Activated: 17,
    Renewed: 18,
    Released: 19,
    Expired: 20,
    Revoked: 21,
    DrainNotified: 22,
    TeardownBegun: 23,
    AccessCut: 24,
    Scrubbed: 25,
    Reclaimed: 26,
    Fenced: 27,
    Unfenced: 28,
    Preempted: 29,
    Adopted: 30,
    Admitted: 31,
    Recovered: 64,
    Voided: 65,
    EpochSealed: 66,
    SegmentEnd: 68,
    CheckpointSigned: 69,
    Pruned: 70,
    HeadCosigned: 80,
    VerdictReached: 81,
    VerdictResolved: 82,
}
LEASE_KINDS: Final[range] = range(16, 32)
TERMINAL_KINDS: Final[frozenset[int]] = frozenset({KIND[Reclaimed], KIND[Unfenced]})
