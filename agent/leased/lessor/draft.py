# SPDX-License-Identifier: Apache-2.0
"""A Draft: the events, answers and effects of one command while it is being decided; a Proposal is
the finished one.

Rule: `emit` applies each event to the table at once, so that what is decided next sees it. A lease
changes state only by `move` (or `end`), which asks the lifecycle table and builds exactly the
events and effects its cell names.

Does not decide which trigger a command is (`lessor.lessor`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from leased.lessor.ledger import rows_of
from leased.lessor.lifecycle import CELLS, LIVE, Answer, Cell, Trigger
from leased.lessor.table import LeaseTable, Tenancy, end_ns
from leased.terms import event as events
from leased.terms.command import Command
from leased.terms.effect import Effect, Forget, MoveDeadline, Notify, Prepare, Teardown
from leased.terms.errors import InvariantError
from leased.terms.event import Event, LeaseEvent
from leased.terms.identity import CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, RevocationReason, Subject
from leased.terms.moment import Moment
from leased.terms.reply import Granted, Reply
from leased.terms.resource import Allotment
from leased.terms.teardown import Utilization

Entropy = Callable[[], bytes]
Answers = tuple[tuple[CommandId, Reply], ...]

NO_EVIDENCE = bytes(32)


class Proposal(msgspec.Struct, frozen=True, gc=False):
    """What a command leads to. The command's own answer, if it has one now, is the first of
    `answers`.
    """

    events: tuple[Event, ...] = ()
    answers: Answers = ()
    effects: tuple[Effect, ...] = ()

    def grants_at_once(self, command: Command) -> bool:
        """Whether one lease was granted to whoever asked, and nothing else came of it."""
        effects, answers = self.effects, self.answers
        return (
            len(effects) == len(answers) == 1
            and type(effects[0]) is Prepare
            and type(answers[0][1]) is Granted
            and answers[0][0] == command.command_id
        )

    def tells_nobody_else(self, command: Command) -> bool:
        """Whether the only answer is to the command itself."""
        answers = self.answers
        return not answers or (len(answers) == 1 and answers[0][0] == command.command_id)


class Facts(msgspec.Struct, gc=False):
    """What is known about a change beyond the lease itself. `at_ns` is when it takes effect."""

    at_ns: int
    begun_ns: int | None = None
    reason: RevocationReason | None = None
    evidence: bytes = NO_EVIDENCE
    until_ns: int = 0
    by_reaper: bool = False
    scrubbed_bytes: int = 0
    fenced: tuple[Allotment, ...] = ()
    step: int = 0
    errno: int = 0
    proof_ns: int = 0
    utilization: Utilization = Utilization()
    operator_uid: int = -1
    preemptor_lease_id: LeaseId = LeaseId(bytes(16))
    preemptor_tenant: TenantId = TenantId("")


class Draft:
    """Collects what one command leads to."""

    __slots__ = ("answers", "effects", "events", "ids", "moment", "now_ns", "table")

    def __init__(self, table: LeaseTable, ids: Entropy, moment: Moment) -> None:
        self.table = table
        self.ids = ids
        self.moment = moment
        self.now_ns = moment.boot_ns
        self.events: list[Event] = []
        self.answers: list[tuple[CommandId, Reply]] = []
        self.effects: list[Effect] = []

    def finish(self) -> Proposal:
        """The proposal."""
        return Proposal(tuple(self.events), tuple(self.answers), tuple(self.effects))

    def emit(self, event: Event) -> None:
        """Let it have happened."""
        self.table.apply(event, self.moment)
        self.events.append(event)

    def answer(self, command_id: CommandId, reply: Reply) -> None:
        """Answer a command (or one that has been waiting)."""
        self.answers.append((command_id, reply))

    def event_id(self) -> EventId:
        """A fresh id."""
        return EventId(self.ids())

    def begins(self, lease: Lease) -> tuple[EventId, LeaseId, Subject, int]:
        """What every event of a lease begins with."""
        return self.event_id(), lease.lease_id, lease.subject, lease.generation

    def move(self, lease: Lease, trigger: Trigger, facts: Facts) -> Cell:
        """Do what the lifecycle says of `trigger` in the lease's state; returns the cell."""
        cell = CELLS[lease.state][trigger]
        if cell.answer is Answer.TIME_FIRST:
            self._overtaken(lease, facts)
            return self.move(self.table.leases[lease.lease_id], trigger, facts)
        if cell.answer is Answer.IMPOSSIBLE:
            raise InvariantError(f"{trigger.name} in {lease.state.name} cannot happen")
        if cell.answer is Answer.MOVE:
            for kind in cell.emits:
                self.emit(_BUILD[kind](self, lease, facts))
        after = self.table.find(lease.lease_id)
        assert after is not None and after.state is (cell.to or lease.state)
        for effect in cell.does:
            self.effects.append(_DO[effect](after))
        if cell.to is LeaseState.RECLAIMED:
            self._note_meter(lease.subject.tenant)
        return cell

    def _note_meter(self, tenant: TenantId) -> None:
        """A lease is closed, and will not be replayed: what it used up is noted, if that counts."""
        meter = self.table.ledger.meter(tenant)
        if meter is not None:
            meter.said = rows_of(meter)
            self.emit(events.Metered(self.event_id(), tenant, meter.said))

    def end(self, lease: Lease, trigger: Trigger, facts: Facts) -> Cell:
        """As `move`, for a trigger that ends a live lease: one whose time is over has ended by
        time, at that time.
        """
        if lease.state in LIVE and self.now_ns >= end_ns(lease):
            return self.end_by_time(lease)
        return self.move(lease, trigger, facts)

    def end_by_time(self, lease: Lease) -> Cell:
        """The deadline or the end of the drain has passed: it took effect then, however late it is
        seen.
        """
        at_ns = end_ns(lease)
        cut_short = lease.state is LeaseState.DRAINING and at_ns < lease.deadline_ns
        trigger = Trigger.DRAIN_DONE if cut_short else Trigger.DEADLINE
        return self.move(lease, trigger, Facts(at_ns, reason=lease.reason))

    def _overtaken(self, lease: Lease, facts: Facts) -> None:
        """The reaper has cut before the tick: by time if the end had come, else because it could
        not hold the lease.
        """
        if facts.at_ns >= end_ns(lease):
            self.end_by_time(lease)
        else:
            self.move(
                lease, Trigger.REVOKE, Facts(facts.at_ns, reason=RevocationReason.REAPER_LOST)
            )

    def tenancy(self, lease: Lease) -> Tenancy:
        """When the tenant stopped paying and the teardown began."""
        return self.table.tenancies[lease.lease_id]


# ---- one builder per event: (draft, lease before, facts) -> event --------------------------------


def _activated(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Activated(*draft.begins(lease), facts.at_ns, facts.evidence)


def _drain_notified(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    assert facts.reason is not None
    return events.DrainNotified(
        draft.event_id(),
        lease.lease_id,
        lease.subject,
        lease.generation + 1,  # so that the reaper takes the earlier end for news
        draft.now_ns,
        facts.reason,
        facts.until_ns,
    )


def _preempted(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Preempted(
        *draft.begins(lease), draft.now_ns, facts.preemptor_lease_id, facts.preemptor_tenant
    )


def _released(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Released(*draft.begins(lease), facts.at_ns)


def _expired(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Expired(*draft.begins(lease), facts.at_ns)


def _revoked(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    assert facts.reason is not None
    return events.Revoked(*draft.begins(lease), facts.at_ns, facts.reason)


def _teardown_begun(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    begun_ns = facts.at_ns if facts.begun_ns is None else facts.begun_ns
    return events.TeardownBegun(*draft.begins(lease), begun_ns)


def _access_cut(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.AccessCut(*draft.begins(lease), facts.at_ns, facts.by_reaper, facts.evidence)


def _scrubbed(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Scrubbed(*draft.begins(lease), facts.at_ns, facts.scrubbed_bytes, facts.evidence)


def _held_capacity_ns(lease: Lease, tenancy: Tenancy) -> tuple[int, ...]:
    held_ns = max(0, tenancy.ended_ns - lease.granted_ns)
    return tuple(allotment.capacity * held_ns for allotment in lease.subject.allotments)


def _cut_lag_ns(draft: Draft, lease: Lease) -> int:
    """From the end of the tenancy to the cut; 0 where no cut was seen or a reboot lies between."""
    tenancy = draft.tenancy(lease)
    if lease.cut_ns is None or tenancy.begun_ns is None or tenancy.begun_boot != tenancy.cut_boot:
        return 0
    return max(0, lease.cut_ns - tenancy.begun_ns)


def _proof_lag_ns(draft: Draft, lease: Lease, proof_ns: int) -> int:
    """From the cut to the end of the proof; 0 where a reboot lies between."""
    if lease.cut_ns is None or draft.tenancy(lease).cut_boot != draft.moment.boot_id:
        return 0
    return max(0, proof_ns - lease.cut_ns)


def _reclaimed(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    seen = facts.utilization
    return events.Reclaimed(
        *draft.begins(lease),
        draft.now_ns,
        _held_capacity_ns(lease, draft.tenancy(lease)),
        _cut_lag_ns(draft, lease),
        _proof_lag_ns(draft, lease, facts.proof_ns),
        seen.mean_pm,
        seen.max_pm,
        seen.active_share_pm,
        seen.sample_count,
        seen.coverage_pm,
        facts.evidence,
    )


def _fenced(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Fenced(
        *draft.begins(lease),
        draft.now_ns,
        facts.fenced or lease.subject.allotments,
        facts.step,
        facts.errno,
        _held_capacity_ns(lease, draft.tenancy(lease)),
        _cut_lag_ns(draft, lease),
        facts.evidence,
    )


def _unfenced(draft: Draft, lease: Lease, facts: Facts) -> LeaseEvent:
    return events.Unfenced(*draft.begins(lease), draft.now_ns, facts.operator_uid, facts.evidence)


_BUILD: Final[dict[type[LeaseEvent], Callable[[Draft, Lease, Facts], LeaseEvent]]] = {
    events.Activated: _activated,
    events.DrainNotified: _drain_notified,
    events.Preempted: _preempted,
    events.Released: _released,
    events.Expired: _expired,
    events.Revoked: _revoked,
    events.TeardownBegun: _teardown_begun,
    events.AccessCut: _access_cut,
    events.Scrubbed: _scrubbed,
    events.Reclaimed: _reclaimed,
    events.Fenced: _fenced,
    events.Unfenced: _unfenced,
}


def _notify(lease: Lease) -> Effect:
    assert lease.reason is not None
    return Notify(lease, lease.reason, end_ns(lease))


_DO: Final[dict[type[msgspec.Struct], Callable[[Lease], Effect]]] = {
    MoveDeadline: lambda lease: MoveDeadline(lease.lease_id, lease.generation, end_ns(lease)),
    Notify: _notify,
    Teardown: Teardown,
    Forget: lambda lease: Forget(lease.lease_id),
}
