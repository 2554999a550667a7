# SPDX-License-Identifier: Apache-2.0
"""Requests: from an Acquire to its one answer, at once or after a wait.

Rule: the same (uid, command id) never gets a second lease: it is attached to the first, or goes on
waiting. A refusal is the last word and is sealed (`Refused`), unless the journal has no room for
it. Whoever waits is served in the order of the queue whenever something may have become free.

Does not judge (`lessor.admission`) and does not order the queue (`lessor.queue`).
"""

from __future__ import annotations

from leased.lessor.admission import Admission, Verdict
from leased.lessor.draft import Draft, Proposal
from leased.lessor.questions import Questions
from leased.lessor.queue import Bars, Waiting, WaitQueue, key_of, places_of
from leased.lessor.table import LeaseTable
from leased.terms import event as events
from leased.terms.command import Acquire, CancelWait, Command
from leased.terms.effect import Prepare
from leased.terms.identity import CommandId, LeaseId
from leased.terms.lease import RevocationReason, Subject
from leased.terms.reply import Done, Granted, Refusal, RefusalReason, Reply
from leased.terms.resource import Allotment


def answered(command: Command, reply: Reply) -> Proposal:
    """A proposal that changes nothing."""
    return Proposal((), ((command.command_id, reply),))


class Requests:
    """What wants a lease and has none yet."""

    __slots__ = ("_admission", "_questions", "_queue", "_table", "admitting", "stopping")

    def __init__(
        self, table: LeaseTable, queue: WaitQueue, admission: Admission, questions: Questions
    ) -> None:
        self._table = table
        self._queue = queue
        self._admission = admission
        self._questions = questions
        self.admitting = True
        self.stopping = False

    def known(self, acquire: Acquire) -> Proposal | None:
        """The answer to a request that was made before, or that cannot be taken now at all."""
        key = (acquire.caller.uid, acquire.command_id)
        lease_id = self._table.requests.get(key)
        if lease_id is not None:
            return self._attach(acquire, lease_id)
        waiting = self._queue.find(acquire.command_id)
        if waiting is not None:
            if key_of(waiting.acquire) == key:
                return Proposal()
            # Answers find their way by command id, so two callers may not wait under one.
            return answered(acquire, Refusal(RefusalReason.BUSY, "command_id", requested=1))
        if self.stopping:
            return answered(acquire, Refusal(RefusalReason.STOPPING, "node", requested=1))
        if not self.admitting:
            return answered(
                acquire, Refusal(RefusalReason.AUDIT_UNAVAILABLE, "journal", requested=1)
            )
        return None

    def decide(self, draft: Draft, acquire: Acquire) -> None:
        """Grant, queue or refuse a new request."""
        verdict = self._admission.judge(acquire, self._queue.bars)
        if isinstance(verdict, tuple):
            self._grant(draft, acquire, verdict)
        elif verdict.waitable and acquire.wait_ns > 0:
            self._enqueue(draft, acquire, verdict)
        else:
            self._refuse(draft, acquire, verdict.refusal)

    def serve(self, draft: Draft, command_id: CommandId) -> None:
        """Look through the queue from its head: grant what fits, drop what never will.

        A request that waits under the very id of the command being answered is passed over until
        the next time, so that its lease cannot be taken for the answer to somebody else's command.
        """
        queue = self._queue
        if not queue or not self.admitting:
            return
        bars = Bars()
        for waiting in queue:
            acquire = waiting.acquire
            if acquire.command_id == command_id:
                bars.add(acquire, waiting.reason, self._table.pools)
                continue
            if waiting.until_ns <= draft.now_ns:
                self.end_wait(draft, waiting)
                continue
            if bars.places and places_of(acquire) in bars.places:
                continue
            verdict = self._admission.judge(acquire, bars)
            if isinstance(verdict, tuple):
                queue.remove(waiting)
                self._grant(draft, acquire, verdict)
            elif verdict.waitable:
                waiting.reason = verdict.refusal.reason
                bars.add(acquire, waiting.reason, self._table.pools)
            else:
                queue.remove(waiting)
                self._refuse(draft, acquire, verdict.refusal)
        if queue:
            queue.bars = bars

    def end_wait(self, draft: Draft, waiting: Waiting) -> None:
        """A wait is over without a lease: say so, with what it would have needed."""
        self._queue.remove(waiting)
        acquire = waiting.acquire
        verdict = self._admission.judge(acquire, None)
        if isinstance(verdict, Verdict):
            short = verdict.refusal
            refusal = Refusal(
                RefusalReason.WAIT_EXPIRED, short.what, short.limit, short.usage, short.requested
            )
        else:
            refusal = Refusal(RefusalReason.WAIT_EXPIRED, "waiting", requested=1)
        self._refuse(draft, acquire, refusal)

    def cancel(self, draft: Draft, command: CancelWait) -> None:
        """The one who waited has gone."""
        draft.answer(command.command_id, Done())
        waiting = self._queue.find(command.waiting_id)
        if waiting is not None:
            self._queue.remove(waiting)

    def stop(self, draft: Draft) -> None:
        """Take nothing more, and let nobody wait for what will not come."""
        self.stopping = True
        for waiting in self._queue:
            self._queue.remove(waiting)
            draft.answer(
                waiting.acquire.command_id, Refusal(RefusalReason.STOPPING, "node", requested=1)
            )

    def _attach(self, acquire: Acquire, lease_id: LeaseId) -> Proposal:
        lease = self._table.find(lease_id)
        assert lease is not None
        if lease.reason is RevocationReason.GRANT_FAILED:
            return answered(acquire, Refusal(RefusalReason.DEVICE_FAILED, "prepare", requested=1))
        return answered(acquire, Granted(lease, lease.granted_sequence, attached=True))

    def _grant(self, draft: Draft, acquire: Acquire, allotments: tuple[Allotment, ...]) -> None:
        caller, policy, now_ns = acquire.caller, self._admission.policy, draft.now_ns
        lease_id = LeaseId(draft.ids())
        subject = Subject(
            caller.tenant,
            caller.uid,
            caller.gid,
            lease_id.hex(),
            acquire.workload,
            acquire.tag,
            acquire.priority,
            caller.trust,
            allotments,
            self._table.rate_hash,
        )
        grace_ns = acquire.grace_ns
        if grace_ns is None:
            grace_ns = policy.grace_ns_preempt
        elif not 0 <= grace_ns <= policy.grace_ns_max:
            grace_ns = 0 if grace_ns < 0 else policy.grace_ns_max
        draft.emit(
            events.Allocated(
                draft.event_id(),
                lease_id,
                subject,
                0,
                now_ns,
                acquire.command_id,
                acquire.ttl_ns,
                now_ns + acquire.ttl_ns,
                acquire.bind_pid,
                grace_ns,
            )
        )
        lease = self._table.leases[lease_id]
        draft.answers.append((acquire.command_id, Granted(lease)))
        draft.effects.append(Prepare(lease))

    def _enqueue(self, draft: Draft, acquire: Acquire, verdict: Verdict) -> None:
        queue, tenant = self._queue, acquire.caller.tenant
        full = self._admission.judge_wait(
            acquire, waiting=len(queue), of_tenant=queue.count_of(tenant)
        )
        if full is not None:
            self._refuse(draft, acquire, full.refusal)
            return
        until_ns = draft.now_ns + min(acquire.wait_ns, self._admission.policy.wait_ns_max)
        queue.append(Waiting(acquire, until_ns, verdict.refusal.reason))
        if queue.bars is None:
            queue.bars = Bars()
        queue.bars.add(acquire, verdict.refusal.reason, self._table.pools)

    def _refuse(self, draft: Draft, acquire: Acquire, refusal: Refusal) -> None:
        caller = acquire.caller
        if self.admitting:
            draft.emit(
                events.Refused(
                    draft.event_id(),
                    caller.tenant,
                    caller.uid,
                    acquire.command_id,
                    int(refusal.reason),
                    refusal.limit,
                    refusal.usage,
                    refusal.requested,
                )
            )
        draft.answer(acquire.command_id, self._questions.dated(acquire, refusal, draft.now_ns))
