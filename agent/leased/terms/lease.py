# SPDX-License-Identifier: Apache-2.0
"""A Lease: the right of one holder to some capacity until a deadline. Immutable; a change makes a
new value.

Rule: the states and the reasons are closed sets. Why a lease left ACTIVE stays on it (`ended`,
`reason`) while the state goes on to RECLAIMED or FENCED.

Does not decide anything: which state may follow which is `lessor.lifecycle`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.terms.identity import BootId, CommandId, Hash, LeaseId, TenantId
from leased.terms.resource import Allotment


class Priority(enum.IntEnum):
    """Larger wins. Guaranteed is never preempted (it may be fenced); Scavenger yields to anyone."""

    SCAVENGER = 0
    STANDARD = 1
    GUARANTEED = 2


class Level(enum.IntEnum):
    """The five levels within the priorities. Larger wins; the numbers are on disk for ever."""

    BACKGROUND = 1
    LOW = 3
    NORMAL = 5
    HIGH = 7
    CRITICAL = 10

    @property
    def priority(self) -> Priority:
        """The priority it belongs to."""
        if self >= Level.HIGH:
            return Priority.GUARANTEED
        return Priority.STANDARD if self is Level.NORMAL else Priority.SCAVENGER


LEVEL_OF = (Level.LOW, Level.NORMAL, Level.HIGH)
"""By priority: the level of a request that names none."""


class LeaseState(enum.IntEnum):
    """Where a lease is on its way (`lessor.lifecycle`). The numbers are on disk for ever."""

    GRANTED = 0
    ACTIVE = 1
    DRAINING = 2
    REVOKING = 3
    SCRUBBING = 4
    VERIFYING = 5
    RECLAIMED = 6
    FENCED = 7


class Ending(enum.IntEnum):
    """How a lease left ACTIVE."""

    RELEASED = 0
    EXPIRED = 1
    REVOKED = 2


class RevocationReason(enum.IntEnum):
    """Why the agent took a lease back. Closed: no free text enters the chain."""

    PRIORITY_PREEMPTION = 0
    QUOTA_RECLAIM = 1
    QUOTA_CUT = 2
    BURST_EXPIRED = 3
    BUDGET_EXHAUSTED = 4
    OPERATOR_REVOKE = 5
    OPERATOR_DRAIN = 6
    MAINTENANCE = 7
    POLICY_VIOLATION = 8
    DEVICE_UNHEALTHY = 9
    HOLDER_LOST = 10
    NODE_REBOOT = 11
    GRANT_FAILED = 12
    REAPER_LOST = 13


class OverageCause(enum.IntEnum):
    """Why a holder may have more than its limit for a while. The numbers are on disk for ever."""

    SOFT = 0
    CUT = 1


class Trust(enum.IntEnum):
    """Whether the holder could undo the walls itself: ROOT means it can, and every record says
    so."""

    CONFINED = 0
    ROOT = 1


BOUND_TO_CGROUP = 0
BOUND_TO_NOTHING = -1
"""In place of a holder's pid: the lease ends when its leaf runs empty, or by its deadline alone."""


SYNTHETIC: Final = 1
"""In `AccountingTag.flags`: a probe of the operator's, which is metered and on no bill."""


class AccountingTag(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The five fields that cost is attributed by. `flags`: SYNTHETIC, or 0."""

    cost_center: str
    project: str = ""
    request_class: str = ""
    budget_group: str = ""
    flags: int = 0


def is_probe(tag: AccountingTag | None) -> bool:
    """Whether it is of a synthetic probe: metered like any lease, and nobody's work."""
    return tag is not None and bool(tag.flags & SYNTHETIC)


class Subject(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Whose lease of what: the identity that every event of a lease carries, so that each record
    stands alone.

    `cgroup` is the lease's leaf below the agent's cgroup root; `workload` the caller's name for the
    job, if any. `rate_hash` is the SHA-256 of the rate card in force at the grant. The last two
    fields are the source document's.
    """

    tenant: TenantId
    uid: int
    gid: int
    cgroup: str
    workload: str | None
    tag: AccountingTag | None
    priority: Priority
    trust: Trust
    allotments: tuple[Allotment, ...]
    rate_hash: Hash
    affected_hcl_entry: bytes | None = None
    dra_claim_id: str | None = None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """One lease as the table holds it. All times are boottime ns of `boot_id`; `ttl_ns` is the
    length last asked for.

    `deadline_ns` moves only by a renewal, which also bumps `generation` (as a notice to leave
    does), or when a notice is put off beyond it. `told_ns` is when the first notice was given.
    `pid` is the holder that the lease is bound to (or BOUND_TO_CGROUP, BOUND_TO_NOTHING). `ended`
    and `reason` stay None until the lease leaves ACTIVE. `fenced` lists what could not be proven
    clean. `activated`: it is on record that the reaper held it and its hardware was made.
    """

    lease_id: LeaseId
    command_id: CommandId
    subject: Subject
    state: LeaseState
    boot_id: BootId
    granted_ns: int
    deadline_ns: int
    ttl_ns: int
    generation: int
    pid: int
    grace_ns: int
    granted_wall_ns: int = 0
    drain_deadline_ns: int | None = None
    told_ns: int | None = None
    ended: Ending | None = None
    reason: RevocationReason | None = None
    cut_ns: int | None = None
    fenced: tuple[Allotment, ...] = ()
    granted_sequence: int = -1
    activated: bool = False
