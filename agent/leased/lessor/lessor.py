# SPDX-License-Identifier: Apache-2.0
"""The Lessor: the one place that decides. `propose(command, moment)` -> events, answers, effects.

Rule: pure but for its table: the same commands at the same moments with the same ids lead to the
same proposals. A proposal is in the table as soon as it is made; its answers may leave only when
its events are durable and anchored. Every command is answered exactly once: now, as the first of
`answers`, or (an Acquire that waits) by a later command. An Acquire proposed twice changes nothing
the second time.

Does not read clocks, make randomness, touch hardware or keep anything on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.budget import Prices
from leased.lessor.cuts import end_bearing, end_overages, mark_cuts
from leased.lessor.draft import Draft, Entropy, Facts, Proposal
from leased.lessor.extension import extend
from leased.lessor.fitting import misfit
from leased.lessor.invariants import check
from leased.lessor.lifecycle import CELLS, Answer, Trigger
from leased.lessor.operations import OBSERVATIONS, ORDERS, end_lost, forbidden
from leased.lessor.periods import begin_periods, meter_tenants
from leased.lessor.questions import ANSWERS, RECALLED, Questions, visible
from leased.lessor.queue import WaitQueue
from leased.lessor.renewal import renewed_until_ns
from leased.lessor.reports import REPORTS
from leased.lessor.requests import JOURNAL_FULL, Requests, answered
from leased.lessor.startup import start
from leased.lessor.table import LeaseTable, end_ns
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Command
from leased.terms.effect import MoveDeadline
from leased.terms.event import Event
from leased.terms.identity import EventId, LeaseId
from leased.terms.lease import LeaseState, RevocationReason
from leased.terms.moment import Moment
from leased.terms.policy import Calendar, Policy, Price
from leased.terms.policy_turn import turned
from leased.terms.reply import (
    Changed,
    Done,
    Forbidden,
    InForce,
    Missing,
    Refusal,
    RefusalReason,
    Unfit,
)

EXPIRIES_MAX = 512
"""Most leases, and most waits, that one Tick ends: their records fill a batch. The rest is still
due.
"""

_DONE = Done()
_RENEW, _RENEW_LATE = Trigger.RENEW, Trigger.RENEW_LATE
_GRANTED = LeaseState.GRANTED
_MOVE = Answer.MOVE


class Lessor:
    """Decides about one node. `ids` returns 16 random bytes, never the same twice."""

    def __init__(self, ids: Entropy, policy: Policy, *, expiries_max: int = EXPIRIES_MAX) -> None:
        self.table = LeaseTable(policy.closed_leases_kept)
        self.queue = WaitQueue()
        self.admission = Admission(self.table, policy)
        self.questions = Questions(self.table, self.queue, self.admission)
        self.requests = Requests(self.table, self.queue, self.admission, self.questions)
        self._document, self._host = policy, ""
        self._ids = ids
        self._expiries_max = expiries_max
        self._propose: dict[type[Command], Callable[[Any, Moment], Proposal]] = {
            commands.Acquire: self._acquire,
            commands.Renew: self._renew,
            commands.Release: self._release,
            commands.Extend: self._extend,
            commands.CancelWait: self._cancel_wait,
            commands.Tick: self._tick,
            commands.SetPolicy: self._set_policy,
            commands.Turn: self._turn,
            commands.Start: self._start,
            commands.Stop: self._stop,
            commands.Heartbeat: self._heartbeat,
            commands.TryPolicy: self._try_policy,
        }
        for question in ANSWERS:
            self._propose[question] = self._asked
        for order in ORDERS:
            self._propose[order] = self._ordered
        for report in (*REPORTS, *OBSERVATIONS):
            self._propose[report] = self._reported
        self._propose[commands.Activate] = self._activate

    # ---- the doors -------------------------------------------------------------------------------

    def propose(self, command: Command, moment: Moment) -> Proposal:
        """Decide `command` at `moment`; its events are in the table when this returns."""
        return self._propose[type(command)](command, moment)

    def replay(self, event: Event, moment: Moment, sequence: int = -1) -> None:
        """Let an event sealed in the past have happened. `Start` is proposed after the last one."""
        self.table.apply(event, moment)
        if type(event) in RECALLED:
            self.questions.recall(event, sequence)
        if sequence >= 0 and type(event) is events.Allocated:
            self.number(event.lease_id, sequence)

    def witness(self, moment: Moment) -> None:
        """The last record of the log is of `moment`: to be told before `Start` if replay was not
        shown all records.
        """
        self.table.last = moment

    def number(self, lease_id: LeaseId, sequence: int) -> None:
        """Note which record granted a lease. A label for receipts: nothing is decided by it."""
        lease = self.table.leases.get(lease_id)
        if lease is not None:
            self.table.leases[lease_id] = msgspec.structs.replace(lease, granted_sequence=sequence)

    def next_deadline_ns(self, late_ns: int = 0) -> int | None:
        """When the next Tick is due: when the first wait or overage ends, or `late_ns` after the
        first lease or drain does."""
        first = self.table.deadlines.next_ns()
        ends = [] if first is None else [first + late_ns]
        if self.queue or self.table.overages:
            others = (self.queue.next_ns(), self.table.overages.ends.next_ns())
            ends += [at_ns for at_ns in others if at_ns is not None]
        return min(ends, default=None)

    @property
    def policy(self) -> Policy:
        """The policy in force, as the document says it."""
        return self._document

    @property
    def admitting(self) -> bool:
        """Whether new leases are granted; the sequencer says no while the journal lacks its
        reserve.
        """
        return self.requests.admitting

    @admitting.setter
    def admitting(self, admitting: bool) -> None:
        self.requests.admitting = admitting

    def _draft(self, moment: Moment) -> Draft:
        return Draft(self.table, self._ids, moment)

    def _finish(self, draft: Draft, command: Command) -> Proposal:
        """Note who is within its limits again, and serve whoever waits for what this command may
        have freed.
        """
        if self.table.overages:
            end_overages(draft, self.admission.book)
        if self.queue:
            self.requests.serve(draft, command.command_id)
        return draft.finish()

    # ---- what clients ask ------------------------------------------------------------------------

    def _acquire(self, command: commands.Acquire, moment: Moment) -> Proposal:
        if (known := self.requests.known(command)) is not None:
            return known
        slow_down = self.requests.throttle.refusal(command, moment.boot_ns)
        tenant = command.caller.tenant
        if slow_down and not self.requests.throttle.is_news(tenant, moment.boot_ns):
            return answered(command, slow_down)
        draft = Draft(self.table, self._ids, moment)
        self.requests.decide(draft, command, slow_down)
        return draft.finish()

    def _renew(self, command: commands.Renew, moment: Moment) -> Proposal:
        lease = self.table.leases.get(command.lease_id)
        if lease is None or not visible(lease, command.caller):
            return self._renew_closed(command)
        now_ns = moment.boot_ns
        cell = CELLS[lease.state][_RENEW if now_ns < end_ns(lease) else _RENEW_LATE]
        if cell.answer is not _MOVE:
            assert cell.reason is not None
            return answered(
                command, Refusal(cell.reason, "ns", limit=lease.deadline_ns, usage=now_ns)
            )
        if not self.requests.admitting:  # what the journal has left is for the ends of leases
            return answered(command, JOURNAL_FULL)
        ttl_ns = lease.ttl_ns if command.ttl_ns is None else command.ttl_ns
        deadline_ns = renewed_until_ns(
            self.table, self.admission, lease, ttl_ns, now_ns, crowded=bool(self.queue)
        )
        if isinstance(deadline_ns, Refusal):
            return answered(command, deadline_ns)
        generation = lease.generation + 1
        # The cell's one event and one effect, spelled out: this is the path that runs most.
        event = events.Renewed(
            EventId(self._ids()),
            lease.lease_id,
            lease.subject,
            generation,
            now_ns,
            ttl_ns,
            deadline_ns,
        )
        self.table.apply(event, moment)
        return Proposal(
            (event,),
            ((command.command_id, Changed(self.table.leases[lease.lease_id])),),
            (MoveDeadline(lease.lease_id, generation, deadline_ns),),
        )

    def _renew_closed(self, command: commands.Renew) -> Proposal:
        lease = self.table.closed.get(command.lease_id)
        if lease is None or not visible(lease, command.caller):
            return answered(command, Missing(command.lease_id))
        return answered(
            command, Refusal(RefusalReason.NOT_RENEWABLE, "ns", limit=lease.deadline_ns)
        )

    def _release(self, command: commands.Release, moment: Moment) -> Proposal:
        lease = self.table.find(command.lease_id)
        if lease is None or not visible(lease, command.caller):
            return answered(command, Missing(command.lease_id))
        draft = self._draft(moment)
        if lease.subject.tenant == command.caller.tenant:
            draft.end(lease, Trigger.RELEASE, Facts(moment.boot_ns))
        else:  # an operator gives back what is not theirs: the record says who ended it
            facts = Facts(moment.boot_ns, reason=RevocationReason.OPERATOR_REVOKE)
            draft.end(lease, Trigger.REVOKE, facts)
        after = self.table.find(command.lease_id)
        assert after is not None
        draft.answer(command.command_id, Changed(after))
        return self._finish(draft, command)

    def _extend(self, command: commands.Extend, moment: Moment) -> Proposal:
        lease = self.table.find(command.lease_id)
        if lease is None or not visible(lease, command.caller):
            return answered(command, Missing(command.lease_id))
        if not self.requests.admitting:
            return answered(command, JOURNAL_FULL)
        draft = self._draft(moment)
        extend(draft, self.admission, lease, command)
        return draft.finish()

    def _cancel_wait(self, command: commands.CancelWait, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        self.requests.cancel(draft, command)
        return self._finish(draft, command)

    # ---- what operators order --------------------------------------------------------------------

    def _ordered(self, command: Any, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        if not command.caller.operator:
            forbidden(draft, command)
            return draft.finish()
        ORDERS[type(command)](draft, command, self.policy)
        return self._finish(draft, command)

    def _set_policy(self, command: commands.SetPolicy, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        if not command.caller.operator:
            forbidden(draft, command)
            return draft.finish()
        given, current = command.policy.generation, self.table.policy_generation
        if given and given <= current:
            stale = Refusal(RefusalReason.STALE_POLICY, "generation", current, current, given)
            draft.answer(command.command_id, stale)
            return draft.finish()
        why = misfit(command.policy, self.table.pools)
        if why is not None:
            draft.answer(command.command_id, Unfit(why))
            return draft.finish()
        event = events.PolicyChanged(
            draft.event_id(),
            command.policy_hash,
            given or current + 1,
            command.rate_hash,
            command.caller.uid,
        )
        draft.emit(event)
        self._document = command.policy
        self._put_in_force(moment, command.calendar, command.prices)
        draft.answer(command.command_id, InForce(command.policy_hash, given or current + 1))
        self._take_effect(draft)
        return self._finish(draft, command)

    def _turn(self, command: commands.Turn, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        draft.answer(command.command_id, _DONE)
        before = self.admission.calendar.windows
        self._put_in_force(moment, command.calendar, command.prices)
        if command.calendar.windows != before:
            policy_hash, windows = self.table.policy_hash, command.calendar.windows
            draft.emit(events.PolicyTurned(draft.event_id(), policy_hash, windows))
        self._take_effect(draft)
        return self._finish(draft, command)

    def _put_in_force(self, moment: Moment, calendar: Calendar, prices: tuple[Price, ...]) -> None:
        """Judge by the document, as it is at this moment, from here on. A calendar or prices that
        are not told stay as they were.
        """
        calendar = calendar if calendar.periods else self.admission.calendar
        policy = turned(
            self._document, wall_ns=moment.wall_ns, windows=calendar.windows, host=self._host
        )
        admission = self.admission
        admission.set_policy(policy)
        admission.calendar = calendar
        if prices:
            admission.prices = Prices(prices)
        self.table.keep_closed(policy.closed_leases_kept)
        self.table.accounts.regroup(admission.book.group_of, self.table.deadlines.current)

    def _take_effect(self, draft: Draft) -> None:
        """Seal what follows from a policy for those who have leases."""
        begin_periods(draft, self.admission)
        meter_tenants(draft, self.admission.book)
        mark_cuts(draft, self.admission.book)
        self.table.releases += 1

    # ---- what the agent's own tasks say ----------------------------------------------------------

    def _activate(self, command: commands.Activate, moment: Moment) -> Proposal:
        lease = self.table.leases.get(command.lease_id)
        if lease is None or lease.state is not _GRANTED or moment.boot_ns >= lease.deadline_ns:
            return self._reported(command, moment)
        # As for a renewal: the cell's one event, spelled out.
        event = events.Activated(
            EventId(self._ids()),
            lease.lease_id,
            lease.subject,
            lease.generation,
            moment.boot_ns,
            command.evidence,
        )
        self.table.apply(event, moment)
        return Proposal(
            (event,), ((command.command_id, Changed(self.table.leases[lease.lease_id])),)
        )

    def _reported(self, command: Command, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        if type(command) is commands.GrantFailed:
            self.questions.remember_failed(command)
        (REPORTS.get(type(command)) or OBSERVATIONS[type(command)])(draft, command)
        return self._finish(draft, command)

    def _tick(self, command: commands.Tick, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        draft.answer(command.command_id, _DONE)
        table, leases = self.table, self.table.leases
        for lease_id in table.deadlines.due(moment.boot_ns, self._expiries_max):
            draft.end_by_time(leases[lease_id])
        if table.overages:
            for key in table.overages.ends.due(moment.boot_ns, self._expiries_max):
                end_bearing(draft, self.admission.book, self.admission.policy, key)
        for waiting in self.queue.due(moment.boot_ns, self._expiries_max):
            self.requests.end_wait(draft, waiting)
        return self._finish(draft, command)

    def _start(self, command: commands.Start, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        self._document, self._host = command.policy, command.node_id.hex()
        self._put_in_force(moment, command.calendar, command.prices)
        start(draft, command)
        end_lost(draft)
        self._take_effect(draft)
        check(self.table)
        return draft.finish()

    def _stop(self, command: commands.Stop, moment: Moment) -> Proposal:
        draft = self._draft(moment)
        draft.answer(command.command_id, _DONE)
        self.requests.stop(draft)
        draft.emit(events.NodeStopped(draft.event_id(), self.table.live))
        return draft.finish()

    def _heartbeat(self, command: commands.Heartbeat, moment: Moment) -> Proposal:
        return answered(command, _DONE)

    # ---- questions -------------------------------------------------------------------------------

    def _asked(self, command: Command, moment: Moment) -> Proposal:
        return answered(command, ANSWERS[type(command)](self.questions, command, moment.boot_ns))

    def _try_policy(self, command: commands.TryPolicy, moment: Moment) -> Proposal:
        if not command.caller.operator:
            return answered(command, Forbidden())
        windows = command.calendar.windows
        policy = turned(command.policy, wall_ns=moment.wall_ns, windows=windows, host=self._host)
        return answered(command, self.questions.tried(policy, moment.boot_ns))
