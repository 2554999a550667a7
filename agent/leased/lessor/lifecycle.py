# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a lease: one total table of (state, trigger) -> cell. Nothing else decides what
may follow.

Rule: every pair has a cell, written down; a refusal, a "nothing happens" and an "only our own
mistake leads here" are cells too. A MOVE names the state it leads to, the events that say so, in
order, and the effects that follow. Triggers that time brings (`DEADLINE`, `DRAIN_DONE`) are derived
from the lease by the lessor, so they are IMPOSSIBLE where no deadline runs. A report of the reaper
can overtake the agent's own tick: then the lease ends by time first (TIME_FIRST) and the same
trigger is asked again.

Does not build events (`lessor.draft`), keep leases (`lessor.table`) or know the time.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.terms.effect import Forget, MoveDeadline, Notify, Teardown
from leased.terms.event import (
    AccessCut,
    Activated,
    DrainNotified,
    Expired,
    Fenced,
    LeaseEvent,
    Preempted,
    Reclaimed,
    Released,
    Renewed,
    Revoked,
    Scrubbed,
    TeardownBegun,
    Unfenced,
)
from leased.terms.lease import LeaseState
from leased.terms.reply import RefusalReason


class Trigger(enum.IntEnum):
    """What can happen to a lease.

    RENEW_LATE is a renewal that came at or after the end of the lease; UNFENCE_HELD an unfencing
    before anybody has seen the end of the tenant's access.
    """

    ACTIVATE = 0
    GRANT_FAILED = 1
    RENEW = 2
    RENEW_LATE = 3
    RELEASE = 4
    DEADLINE = 5
    REVOKE = 6
    DRAIN = 7
    PREEMPT = 8
    HOLDER_GONE = 9
    DEVICE_LOST = 10
    DRAIN_DONE = 11
    CUT_CLEAN = 12
    CUT_FAILED = 13
    SCRUB_CLEAN = 14
    SCRUB_FAILED = 15
    PROOF_CLEAN = 16
    PROOF_FAILED = 17
    UNFENCE = 18
    BOOT_KEPT = 19
    BOOT_LOST = 20
    UNFENCE_HELD = 21
    EXTEND = 22


class Answer(enum.Enum):
    """What a cell says."""

    MOVE = "move"
    NOTHING = "nothing"
    DENY = "deny"
    TIME_FIRST = "time first"
    IMPOSSIBLE = "impossible"


class Cell(msgspec.Struct, frozen=True):
    """One answer. `to` and `emits` belong to a MOVE (which may lead back to its own state),
    `reason` to a DENY; either may have effects.
    """

    answer: Answer
    to: LeaseState | None = None
    emits: tuple[type[LeaseEvent], ...] = ()
    does: tuple[type[msgspec.Struct], ...] = ()
    reason: RefusalReason | None = None


_GRANTED, _ACTIVE, _DRAINING = LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING
_REVOKING, _SCRUBBING, _VERIFYING = LeaseState.REVOKING, LeaseState.SCRUBBING, LeaseState.VERIFYING
_RECLAIMED, _FENCED = LeaseState.RECLAIMED, LeaseState.FENCED


def _move(
    to: LeaseState, *emits: type[LeaseEvent], does: tuple[type[msgspec.Struct], ...] = ()
) -> Cell:
    return Cell(Answer.MOVE, to, emits, does)


def _deny(reason: RefusalReason) -> Cell:
    return Cell(Answer.DENY, reason=reason)


_NOTHING = Cell(Answer.NOTHING)
_IMPOSSIBLE = Cell(Answer.IMPOSSIBLE)
_TIME_FIRST = Cell(Answer.TIME_FIRST)
_LATE = _deny(RefusalReason.DEADLINE_PASSED)
_NOT_RENEWABLE = _deny(RefusalReason.NOT_RENEWABLE)
_NOT_FENCED = _deny(RefusalReason.NOT_FENCED)
_NOT_NOTIFIED = _deny(RefusalReason.NOT_NOTIFIED)

_END_RELEASED = _move(_REVOKING, Released, TeardownBegun, does=(Teardown,))
_END_EXPIRED = _move(_REVOKING, Expired, TeardownBegun, does=(Teardown,))
_END_REVOKED = _move(_REVOKING, Revoked, TeardownBegun, does=(Teardown,))
# The reaper is told, too: the end of the notice holds with the agent dead.
_TELL = _move(_DRAINING, DrainNotified, does=(MoveDeadline, Notify))
_TELL_PREEMPTED = _move(_DRAINING, Preempted, DrainNotified, does=(MoveDeadline, Notify))
_FENCE = _move(_FENCED, Fenced, does=(Forget,))
# Nobody saw access end: the reaper keeps the lease, and with it the chance to end it after all.
_FENCE_UNCUT = _move(_FENCED, Fenced)
_UNFENCE = _move(_RECLAIMED, Unfenced, does=(Forget,))

# What no live lease answers to: the later steps of a teardown that has not begun.
_LIVE_COMMON: Final[dict[Trigger, Cell]] = {
    Trigger.RENEW_LATE: _LATE,
    Trigger.EXTEND: _NOT_NOTIFIED,
    Trigger.RELEASE: _END_RELEASED,
    Trigger.DEADLINE: _END_EXPIRED,
    Trigger.REVOKE: _END_REVOKED,
    Trigger.DRAIN: _TELL,
    Trigger.PREEMPT: _TELL_PREEMPTED,
    Trigger.HOLDER_GONE: _END_REVOKED,
    Trigger.DEVICE_LOST: _END_REVOKED,
    Trigger.CUT_CLEAN: _TIME_FIRST,
    Trigger.CUT_FAILED: _TIME_FIRST,
    Trigger.SCRUB_CLEAN: _NOTHING,
    Trigger.SCRUB_FAILED: _NOTHING,
    Trigger.PROOF_CLEAN: _NOTHING,
    Trigger.PROOF_FAILED: _NOTHING,
    Trigger.UNFENCE: _NOT_FENCED,
    Trigger.UNFENCE_HELD: _NOT_FENCED,
    Trigger.BOOT_LOST: _END_REVOKED,
}

# What every lease that has ended answers the same way: asking again for an end changes nothing.
_ENDED_COMMON: Final[dict[Trigger, Cell]] = {
    Trigger.ACTIVATE: _LATE,
    Trigger.GRANT_FAILED: _NOTHING,
    Trigger.RENEW: _NOT_RENEWABLE,
    Trigger.RENEW_LATE: _LATE,
    Trigger.EXTEND: _LATE,
    Trigger.RELEASE: _NOTHING,
    Trigger.DEADLINE: _IMPOSSIBLE,
    Trigger.REVOKE: _NOTHING,
    Trigger.DRAIN: _NOTHING,
    Trigger.PREEMPT: _NOTHING,
    Trigger.HOLDER_GONE: _NOTHING,
    Trigger.DEVICE_LOST: _NOTHING,
    Trigger.DRAIN_DONE: _IMPOSSIBLE,
    Trigger.UNFENCE: _NOT_FENCED,
    Trigger.UNFENCE_HELD: _NOT_FENCED,
}


def _again(state: LeaseState) -> dict[Trigger, Cell]:
    """A teardown that a restart interrupted is begun again, whatever the boot: its steps may be
    repeated.
    """
    cell = _move(state, does=(Teardown,))
    return {Trigger.BOOT_KEPT: cell, Trigger.BOOT_LOST: cell}


_CLOSED: Final[dict[Trigger, Cell]] = {
    **_ENDED_COMMON,
    Trigger.CUT_CLEAN: _NOTHING,
    Trigger.CUT_FAILED: _NOTHING,
    Trigger.SCRUB_CLEAN: _NOTHING,
    Trigger.SCRUB_FAILED: _NOTHING,
    Trigger.PROOF_CLEAN: _NOTHING,
    Trigger.PROOF_FAILED: _NOTHING,
    Trigger.BOOT_KEPT: _NOTHING,
    Trigger.BOOT_LOST: _NOTHING,
}

LIFECYCLE: Final[dict[LeaseState, dict[Trigger, Cell]]] = {
    _GRANTED: {
        **_LIVE_COMMON,
        Trigger.ACTIVATE: _move(_ACTIVE, Activated),
        Trigger.GRANT_FAILED: _END_REVOKED,
        # The holder has not been told yet, and the reaper is being armed with the first deadline.
        Trigger.RENEW: _NOT_RENEWABLE,
        Trigger.DRAIN_DONE: _IMPOSSIBLE,
        # The reaper holds it, so it was prepared and armed: only the record of that was lost.
        Trigger.BOOT_KEPT: _move(_ACTIVE, Activated, does=(MoveDeadline,)),
    },
    _ACTIVE: {
        **_LIVE_COMMON,
        Trigger.ACTIVATE: _NOTHING,
        Trigger.GRANT_FAILED: _END_REVOKED,
        Trigger.RENEW: _move(_ACTIVE, Renewed, does=(MoveDeadline,)),
        Trigger.DRAIN_DONE: _IMPOSSIBLE,
        # The reaper may not have heard of the last sealed renewal.
        Trigger.BOOT_KEPT: _move(_ACTIVE, does=(MoveDeadline,)),
    },
    _DRAINING: {
        **_LIVE_COMMON,
        # Told to leave between the grant and its activation.
        Trigger.ACTIVATE: _move(_DRAINING, Activated),
        Trigger.GRANT_FAILED: _END_REVOKED,
        Trigger.RENEW: _deny(RefusalReason.DRAINING),
        Trigger.EXTEND: _TELL,
        Trigger.DRAIN_DONE: _END_REVOKED,
        Trigger.BOOT_KEPT: _move(_DRAINING, does=(MoveDeadline, Notify)),
    },
    _REVOKING: {
        **_ENDED_COMMON,
        Trigger.CUT_CLEAN: _move(_SCRUBBING, AccessCut),
        Trigger.CUT_FAILED: _FENCE_UNCUT,
        Trigger.SCRUB_CLEAN: _NOTHING,
        Trigger.SCRUB_FAILED: _FENCE_UNCUT,
        Trigger.PROOF_CLEAN: _NOTHING,
        Trigger.PROOF_FAILED: _FENCE_UNCUT,
        **_again(_REVOKING),
    },
    _SCRUBBING: {
        **_ENDED_COMMON,
        Trigger.CUT_CLEAN: _NOTHING,
        Trigger.CUT_FAILED: _FENCE,
        Trigger.SCRUB_CLEAN: _move(_VERIFYING, Scrubbed),
        Trigger.SCRUB_FAILED: _FENCE,
        Trigger.PROOF_CLEAN: _NOTHING,
        Trigger.PROOF_FAILED: _FENCE,
        **_again(_SCRUBBING),
    },
    _VERIFYING: {
        **_ENDED_COMMON,
        Trigger.CUT_CLEAN: _NOTHING,
        Trigger.CUT_FAILED: _FENCE,
        Trigger.SCRUB_CLEAN: _NOTHING,
        Trigger.SCRUB_FAILED: _FENCE,
        Trigger.PROOF_CLEAN: _move(_RECLAIMED, Reclaimed, does=(Forget,)),
        Trigger.PROOF_FAILED: _FENCE,
        **_again(_VERIFYING),
    },
    _RECLAIMED: _CLOSED,
    _FENCED: {
        **_CLOSED,
        Trigger.UNFENCE: _UNFENCE,
        # Not while the tenant may still have access: the teardown is tried once more instead, and
        # its proof opens the fence.
        Trigger.UNFENCE_HELD: Cell(Answer.DENY, does=(Teardown,), reason=RefusalReason.STILL_HELD),
        Trigger.PROOF_CLEAN: _UNFENCE,
    },
}

LIVE: Final[tuple[LeaseState, ...]] = (_GRANTED, _ACTIVE, _DRAINING)
TEARDOWN: Final[tuple[LeaseState, ...]] = (_REVOKING, _SCRUBBING, _VERIFYING)

CELLS: Final[tuple[tuple[Cell, ...], ...]] = tuple(
    tuple(LIFECYCLE[state][trigger] for trigger in Trigger) for state in LeaseState
)
"""The same table as nested tuples, for `CELLS[state][trigger]`. Building it fails if a pair is
missing.
"""


def render() -> str:
    """The table as a mermaid state diagram: one edge per pair of states, labelled with its
    triggers.
    """
    edges: dict[tuple[LeaseState, LeaseState], list[str]] = {}
    for state in LeaseState:
        for trigger in Trigger:
            cell = CELLS[state][trigger]
            if cell.answer is Answer.MOVE and cell.to is not None and cell.to is not state:
                edges.setdefault((state, cell.to), []).append(trigger.name.lower())
    lines = ["stateDiagram-v2", "    [*] --> GRANTED: acquire"]
    for (origin, to), triggers in edges.items():
        lines.append(f"    {origin.name} --> {to.name}: {', '.join(triggers)}")
    lines.append("    RECLAIMED --> [*]")
    return "\n".join(lines) + "\n"
