# SPDX-License-Identifier: Apache-2.0
"""Requests: from an Acquire to its one answer, at once or after a wait.

Rule: the same (uid, command id) never gets a second lease: it is attached to the first, or goes on
waiting; asking for something else with it is refused. A refusal is the last word and is sealed
(`Refused`), unless the journal has no room for it, or the tenant asks faster than it may: then it
is not even looked at. Whoever waits is served in the order of the queue.

Does not judge (`lessor.admission`) and does not order the queue (`lessor.queue`).
"""

from __future__ import annotations

from leased.lessor.admission import Admission, Offer
from leased.lessor.backfill import Lender
from leased.lessor.bars import MEASURED, Bars
from leased.lessor.draft import Draft, Proposal
from leased.lessor.granting import grant
from leased.lessor.meaning import QUEUE, Verdict, kind_named
from leased.lessor.questions import Questions
from leased.lessor.queue import LOOK_AGAIN_NS, Waiting, WaitQueue, bar, key_of, rank_of
from leased.lessor.repeated import other_than_granted, other_than_waiting
from leased.lessor.requeues import Requeues
from leased.lessor.table import LeaseTable
from leased.lessor.throttle import Throttle
from leased.lessor.yielding import make_room, make_room_for
from leased.terms import event as events
from leased.terms.command import Acquire, CancelWait, Command
from leased.terms.identity import CommandId, LeaseId
from leased.terms.lease import RevocationReason
from leased.terms.policy import WhenOver
from leased.terms.reply import Done, Granted, Refusal, RefusalReason

JOURNAL_FULL = Refusal(RefusalReason.AUDIT_UNAVAILABLE, "journal", requested=1)
_FAILED = Refusal(RefusalReason.DEVICE_FAILED, "prepare", requested=1)
"""What is known of a grant that failed before the agent started."""

LENDS_MAX = 8
"""Requests behind others that are looked at for what could be lent to them, each time."""

JUDGES_MAX = 8
"""Requests behind others, the first ones, that are held against their limits anew each time. What
was said to those after them may be old; it is looked at again before anybody makes way for them.
"""


def answered(command: Command, reply: object) -> Proposal:
    """A proposal that changes nothing."""
    return Proposal((), ((command.command_id, reply),))  # type: ignore[arg-type]


class Requests:
    """What wants a lease and has none yet."""

    __slots__ = (
        "_admission",
        "_judges",
        "_lender",
        "_questions",
        "_queue",
        "_ranked_by",
        "_ranked_ns",
        "_requeues",
        "_seen",
        "_table",
        "admitting",
        "stopping",
        "throttle",
    )

    def __init__(
        self, table: LeaseTable, queue: WaitQueue, admission: Admission, questions: Questions
    ) -> None:
        self._table = table
        self._queue = queue
        self._admission = admission
        self._questions = questions
        self._judges = 0
        self._lender = Lender(table, admission)
        self.throttle = Throttle(admission)
        self._requeues = Requeues(table, queue)
        self._ranked_ns = 0
        self._ranked_by = admission.policies
        self._seen: tuple[int, int] | None = None
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
                other = other_than_waiting(acquire, waiting.acquire, self._admission.policy)
                return Proposal() if other is None else answered(acquire, other)
            # Answers find their way by command id, so two callers may not wait under one.
            return answered(acquire, Refusal(RefusalReason.BUSY, "command_id", requested=1))
        if self.stopping:
            return answered(acquire, Refusal(RefusalReason.STOPPING, "node", requested=1))
        if not self.admitting:
            return answered(acquire, JOURNAL_FULL)
        return None

    def decide(self, draft: Draft, acquire: Acquire, slow_down: Refusal | None = None) -> None:
        """Grant, queue or refuse a new request; one that came too fast, for that alone."""
        requeued = slow_down or (acquire.requeue_of is not None and self._requeues.judge(acquire))
        if isinstance(requeued, Refusal):
            self._refuse(draft, acquire, requeued)
            return
        share, ahead = 0, None
        if self._queue:
            self._move(draft.now_ns)
            share = self._admission.share_of(acquire, draft.now_ns)
            ahead = self._queue.ahead_of(rank_of(acquire, requeued=requeued, share=share))
        verdict = self._admission.judge(acquire, ahead, draft.now_ns)
        if ahead is not None and isinstance(verdict, Verdict):
            verdict = self._lender.lend(acquire, ahead, verdict, draft.now_ns)
        if isinstance(verdict, Offer):
            self._grant(draft, acquire, verdict)
        elif verdict.waitable and (
            acquire.wait_ns > 0 or verdict.when_over is WhenOver.QUEUE or requeued
        ):
            if not self._queue:
                share = self._admission.share_of(acquire, draft.now_ns)
            self._enqueue(draft, acquire, verdict, requeued=requeued, share=share)
        else:
            if verdict.when_over is WhenOver.THROTTLE:
                self.throttle.slow(acquire.caller.tenant, draft.now_ns)
            self._refuse(draft, acquire, verdict.refusal)

    def serve(self, draft: Draft, command_id: CommandId) -> None:
        """Look through the queue from its head: grant what fits, drop what never will.

        A request that waits under the very id of the command being answered is passed over until
        the next time, so that its lease cannot be taken for the answer to somebody else's command.
        """
        queue, table = self._queue, self._table
        if not queue or not self.admitting:
            return
        seen = (table.releases, queue.removals)
        due_ns = queue.next_ns()
        timed = due_ns is not None and draft.now_ns >= due_ns
        if timed or seen != self._seen:
            self._look_through(draft, command_id, timed=timed)

    def _look_through(
        self, draft: Draft, command_id: CommandId | None, *, timed: bool = False
    ) -> None:
        """`serve`, whatever happened or did not. `timed`: what only time changes may be new."""
        queue, table = self._queue, self._table
        self._judges = JUDGES_MAX
        self._rerank(draft.now_ns)
        whole, passed_over, lends, removals = Bars(), False, LENDS_MAX, queue.removals
        for waiting in queue.in_turn():
            acquire = waiting.acquire
            if acquire.command_id == command_id:
                passed_over = True
            elif waiting.until_ns <= draft.now_ns:
                self.end_wait(draft, waiting)
                continue
            else:
                stands = self._stands(waiting, whole, timed=timed)
                if not stands and not self._judge(draft, waiting, whole):
                    continue
                if lends and waiting.places in whole.places:
                    lends -= 1
                    if self._lend(draft, waiting, whole):
                        continue
            bar(whole, waiting, table.pools)
        if not passed_over:
            queue.unsure.clear()
        queue.bars = whole
        queue.look_ns = None
        if queue and (whole.holder_kinds or queue.removals != removals):
            self._look_again(draft.now_ns)
        if queue and make_room(draft, queue, self._admission):
            self._look_again(draft.now_ns)
        self._seen = None if passed_over else (table.releases, queue.removals)

    def _judge(self, draft: Draft, waiting: Waiting, whole: Bars) -> bool:
        """Judge a request anew, and grant or refuse it if that is what it comes to. Whether it
        still waits.
        """
        acquire, admission = waiting.acquire, self._admission
        verdict = admission.judge(acquire, whole.ahead_of(waiting.rank), draft.now_ns)
        if isinstance(verdict, Offer):
            self._queue.remove(waiting)
            self._grant(draft, acquire, verdict, waiting.lease_id)
            return False
        if not verdict.waitable:
            self._queue.remove(waiting)
            self._refuse(draft, acquire, verdict.refusal)
            return False
        waiting.verdict = verdict
        waiting.judged = admission.since(verdict)
        waiting.within = admission.is_within_its_own(acquire)
        return True

    def _grant(
        self, draft: Draft, acquire: Acquire, offer: Offer, lease_id: LeaseId | None = None
    ) -> None:
        """Grant, and note whose other requests may be beyond a limit by that."""
        grant(draft, self._admission, acquire, offer, lease_id=lease_id)
        self._questions.forget(acquire.command_id)
        if acquire.requeue_of is not None:
            self._requeues.make_good(acquire.requeue_of)
        if self._queue:
            self._move(draft.now_ns)
            self._queue.stale = True
            # It may have got what another was to have, or what lets another have what it waits for.
            self._look_again(draft.now_ns)
            for limits in self._admission.book.limits(acquire.caller.tenant).chain():
                self._queue.unsure[limits.holder] = None

    def _lend(self, draft: Draft, waiting: Waiting, whole: Bars) -> bool:
        """Grant a request that waits behind others what they cannot need before it ends. Whether
        it was granted.
        """
        acquire, now_ns = waiting.acquire, draft.now_ns
        ahead = whole.ahead_of(waiting.rank)
        offer = self._lender.lend(acquire, ahead, waiting.verdict, now_ns)
        if not isinstance(offer, Offer):
            return False
        self._queue.remove(waiting)
        self._grant(draft, acquire, offer, waiting.lease_id)
        return True

    def _stands(self, waiting: Waiting, whole: Bars, *, timed: bool) -> bool:
        """Whether nothing happened that could change what was said to a request. `whole` is what
        those before it wait for, `timed`: what only time changes may be new.
        """
        verdict = waiting.verdict
        no_room = verdict.refusal.reason is RefusalReason.NO_CAPACITY
        if waiting.places in whole.places:
            # Room is for the first that waits for the same: here, only limits matter.
            if no_room and waiting.within and not self._is_unsure(waiting.acquire):
                return True
            self._judges -= 1
            return self._judges < 0
        if timed or no_room:
            return no_room and waiting.outlook == (self._table.pools.changes, True)
        if verdict.behind:
            acquire, shares = waiting.acquire, self._admission.shares
            limits = self._admission.book.limits(acquire.caller.tenant)
            behind = whole.ahead_of(waiting.rank).hold_back(acquire, limits, shares)
            return behind is not None and behind[:2] == (verdict.refusal.reason, verdict.holder)
        judged = waiting.judged
        return judged is not None and judged == self._admission.since(verdict)

    def _is_unsure(self, acquire: Acquire) -> bool:
        """Whether a holder of its limits got more since that was last looked at."""
        unsure = self._queue.unsure
        if not unsure:
            return False
        limits = self._admission.book.limits(acquire.caller.tenant)
        return any(one.holder in unsure for one in limits.chain())

    def _rerank(self, now_ns: int) -> None:
        """Order those who wait by what their tenants have used by now, once in a while and by every
        policy.
        """
        admission = self._admission
        again = bool(admission.shares.fair()) and now_ns - self._ranked_ns >= LOOK_AGAIN_NS
        if self._ranked_by != admission.policies:
            self._ranked_by, again = admission.policies, True
            self._judges = len(self._queue)
            for waiting in self._queue:
                waiting.within = False
        if again:
            self._ranked_ns = now_ns
            admission.shares.changed()
            self._queue.rerank(lambda acquire: admission.share_of(acquire, now_ns))
        else:
            self._move(now_ns)

    def _move(self, now_ns: int) -> None:
        """Those who have more or less than they had are first no longer, or by now."""
        admission = self._admission
        for tenant in admission.shares.changed():
            self._queue.move(tenant, lambda acquire: admission.share_of(acquire, now_ns))

    def _look_again(self, now_ns: int) -> None:
        """Something that only time changes may let somebody have their lease."""
        if self._queue.look_ns is None:
            self._queue.look_ns = now_ns + LOOK_AGAIN_NS

    def end_wait(self, draft: Draft, waiting: Waiting) -> None:
        """A wait is over without a lease: say so, with what it would have needed."""
        self._queue.remove(waiting)
        acquire = waiting.acquire
        verdict = self._admission.judge(acquire, None, draft.now_ns)
        if isinstance(verdict, Verdict):
            short = verdict.refusal
            refusal = Refusal(
                RefusalReason.WAIT_EXPIRED,
                short.what,
                short.limit,
                short.usage,
                short.requested,
                rule=short.rule,
            )
        else:
            refusal = Refusal(RefusalReason.WAIT_EXPIRED, "waiting", requested=1, rule=QUEUE)
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
        other = other_than_granted(acquire, lease, self._table, self._admission.policy)
        if other is not None:
            return answered(acquire, other)
        if lease.reason is RevocationReason.GRANT_FAILED:
            return answered(acquire, self._questions.refused(acquire) or _FAILED)
        return answered(acquire, Granted(lease, lease.granted_sequence, attached=True))

    def _enqueue(
        self, draft: Draft, acquire: Acquire, verdict: Verdict, *, requeued: bool, share: int
    ) -> None:
        queue, tenant = self._queue, acquire.caller.tenant
        full = self._admission.judge_wait(
            acquire, waiting=len(queue), of_tenant=queue.count_of(tenant)
        )
        if full is not None:
            self._refuse(draft, acquire, full.refusal)
            return
        most_ns = self._admission.policy.wait_ns_max
        wait_ns = min(acquire.wait_ns, most_ns) if acquire.wait_ns > 0 else most_ns
        until_ns = draft.now_ns + wait_ns
        waiting = Waiting(acquire, draft.now_ns, until_ns, verdict, requeued=requeued, share=share)
        queue.append(waiting, self._table.pools)
        if verdict.holder:
            queue.unsure[verdict.holder] = None
        if verdict.refusal.reason in MEASURED:
            self._look_again(draft.now_ns)
            return
        attempt = make_room_for(draft, queue, self._admission, waiting)
        if attempt.held_back:
            self._look_through(draft, None)
            draft.answers.sort(key=lambda answer: answer[0] != acquire.command_id)
        elif attempt.again:
            self._look_again(draft.now_ns)

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
                    kind_named(refusal.what),
                )
            )
        dated = self._questions.dated(acquire, refusal, draft.now_ns)
        self._questions.remember(acquire, dated)
        draft.answer(acquire.command_id, dated)
