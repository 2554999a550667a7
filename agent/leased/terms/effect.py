# SPDX-License-Identifier: Apache-2.0
"""Effects: work to do in the world after a commit. Derived from events; lost ones are derived again
at boot.

Rule: an effect is started only when the events it follows from are durable and anchored; carrying
one out reports back by a command. Repeating an effect is harmless.

Does not do the work: `service.grantor` prepares and arms, `service.reclaimer` tears down,
`service.notifier` tells.
"""

from __future__ import annotations

import msgspec

from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, RevocationReason


class Prepare(msgspec.Struct, frozen=True, tag="prepare", gc=False):
    """Make the hardware ready, arm the reaper, then `Activate` (or `GrantFailed`); only then is the
    caller answered."""

    lease: Lease


class MoveDeadline(msgspec.Struct, frozen=True, tag="move_deadline", gc=False):
    """Tell the reaper the new deadline and generation, before the renewal is answered."""

    lease_id: LeaseId
    generation: int
    deadline_ns: int


class Notify(msgspec.Struct, frozen=True, tag="notify", gc=False):
    """Tell the holder to leave by `deadline_ns`."""

    lease: Lease
    reason: RevocationReason
    deadline_ns: int


class Teardown(msgspec.Struct, frozen=True, tag="teardown", gc=False):
    """Cut (unless the reaper already did), scrub, prove; report each step by a command."""

    lease: Lease


class Forget(msgspec.Struct, frozen=True, tag="forget", gc=False):
    """The lease is closed: disarm the reaper and close what is still held for it."""

    lease_id: LeaseId


Effect = Prepare | MoveDeadline | Notify | Teardown | Forget
