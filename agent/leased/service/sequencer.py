# SPDX-License-Identifier: Apache-2.0
"""The spine: one task through which every change passes, in seven steps.

Rule: propose -> seal -> append -> anchor -> tell -> reply -> begin. Nobody else touches the lessor
or the sealer, so there is no lock. `propose` applies its events to the table at once: from there on
the only way back is the end of the process, which is what an error in sealing or committing is (it
leaves `run` as an exception, and recovery decides). Questions travel the same channel and are
answered after the commit of their batch, so nobody sees an uncommitted table. Everything that waits
when a batch begins goes into it, up to `batch_commands_max`, and one plan; there is no artificial
delay.

Does not read sockets, call drivers or sleep: answers and effects are handed to callbacks that must
not block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from leased.chain.sealer import SealedBatch, Sealer
from leased.lessor.lessor import Lessor
from leased.ports import Clock, Journal
from leased.service.api.outbox import Outbox
from leased.service.batch import Batch, Deliver, Held, Told
from leased.service.evidence import NO_COMMAND
from leased.service.unbroken import Unbroken
from leased.terms.command import CancelWait, Command, Extend, Plan, Renew
from leased.terms.effect import Effect, MoveDeadline, Prepare
from leased.terms.event import Allocated, Event
from leased.terms.identity import CommandId, LeaseId
from leased.terms.lease import LeaseState
from leased.terms.moment import Moment
from leased.terms.reply import Done, Granted, Refusal, RefusalReason, Reply

_DONE = Done()
_MOVES = (Renew, Extend)
"""Commands that are answered when the reaper has the new deadline."""
_PERHAPS_PREPARED = (LeaseState.GRANTED, LeaseState.DRAINING)
"""Whoever asks again for such a lease is answered when the reaper holds it."""

PLANS_MAX = 64
"""Plans that may wait. One may go through all leases there are, so one is made with each batch: who
asks for many of them holds up nobody but who plans."""

FEW = 4
"""Commands that are committed on the spot: with more, a turn of the event loop is shared by enough
of them to be cheaper than what it saves."""


class CommitAtOnce(Protocol):
    """`FileJournal.commit_at_once`."""

    def __call__(self, frames: bytes, count: int, head: bytes, moment: Moment) -> bool:
        """False: nothing was done."""
        ...


class Sequencer:
    """Owns the lessor, the sealer and the journal. `hold` gets grants and renewals, `start` every
    other effect; `end_epoch` is told of each seal that is anchored.

    Whoever reads requests brackets a turn by `begin_turn` and `end_turn`: a few requests that find
    the sequencer idle are committed within `end_turn`, by `commit_at_once`. `outbox` gathers the
    answers of a batch; connections are to send by it. `unbroken` ends with `run`."""

    def __init__(
        self,
        *,
        lessor: Lessor,
        sealer: Sealer,
        journal: Journal,
        clock: Clock,
        hold: Callable[[Sequence[Held]], None],
        start: Callable[[Sequence[Effect]], None],
        tell: Callable[[Told], None],
        commands_max: int,
        batch_commands_max: int,
        commit_at_once: CommitAtOnce | None = None,
        end_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self.lessor = lessor
        self._sealer = sealer
        self._journal = journal
        self._clock = clock
        self._hold = hold
        self._start = start
        self._tell = tell
        self._commands_max = commands_max
        self._batch_commands_max = batch_commands_max
        self._commit_at_once = commit_at_once
        self._end_epoch = end_epoch
        self.outbox = Outbox()
        self.unbroken = Unbroken()
        self._committing = False
        self._in_turn = False
        self._sealed: Batch | None = None
        self._channel: deque[tuple[Command, Deliver | None, int]] = deque()
        self._asked = 0  # of them, by clients: the third of each is 1
        self._plans: deque[tuple[Plan, Deliver]] = deque()
        self._pending: dict[CommandId, list[Deliver]] = {}
        self._gone: set[Deliver | None] = set()
        self._arrived = trio.Event()
        self._stopping = False
        self.batches = 0

    # -- the channel -------------------------------------------------------------------------------

    def submit(self, command: Command, deliver: Deliver) -> None:
        """Queue a client's command. Too many of them, or an agent that stops, refuses it."""
        if self._stopping or self._asked >= self._commands_max:
            deliver(self._refuse("commands", self._asked, self._commands_max))
            return
        if type(command) is Plan:
            if len(self._plans) >= PLANS_MAX:
                deliver(self._refuse("plans", PLANS_MAX, PLANS_MAX))
                return
            self._plans.append((command, deliver))
        else:
            self._channel.append((command, deliver, 1))
            self._asked += 1
        if not self._in_turn:
            self._arrived.set()

    def submit_own(self, command: Command, deliver: Deliver | None = None) -> None:
        """Queue a command of the agent itself: never refused, there is one per lease and step."""
        self._channel.append((command, deliver, 0))
        self._arrived.set()

    def begin_turn(self) -> None:
        """Requests are being read: they are committed, or the sequencer is woken, at
        `end_turn`."""
        self._in_turn = True

    def end_turn(self) -> bool:
        """Commit what was read if it is little and nothing else is under way; whether that was
        done. Raises what a commit raises: then the process must end."""
        self._in_turn = False
        if self._plans:
            self._arrived.set()
        if not self._channel:
            return False
        if self._commit_at_once is None or self._committing or len(self._channel) > FEW:
            self._arrived.set()
            return False
        self._committing = True
        batch = self._draw()
        sealed = batch.sealed
        if sealed is None or self._commit_at_once(
            sealed.frames, sealed.count, sealed.head, batch.moment
        ):
            self._committing = False
            self._finish(batch)
            return True
        # Sealed, so it comes before anything else: the sequencer's own task goes on with it.
        self._sealed = batch
        self._arrived.set()
        return False

    async def ask_own(self, command: Command) -> Reply:
        """Put a command of the agent itself through all seven steps and return its answer."""
        answered = trio.Event()
        replies: list[Reply] = []

        def deliver(reply: Reply) -> None:
            replies.append(reply)
            answered.set()

        self.submit_own(command, deliver)
        await answered.wait()
        return replies[0]

    def forget_waiter(self, command_id: CommandId, deliver: Deliver) -> None:
        """Nobody is behind `deliver` any more: its place in the queue is given up, unless a retry
        waits there, too. If its request is still on the channel, nothing comes of it."""
        self._gone.add(deliver)
        self.submit_own(CancelWait(NO_COMMAND, command_id), deliver)

    def _leave(self, command_id: CommandId, deliver: Deliver | None) -> bool:
        """Take a waiter off; whether it was the last one of its request."""
        self._gone.discard(deliver)
        waiting = self._pending.get(command_id)
        if waiting is None or deliver not in waiting:
            return False
        waiting.remove(deliver)
        if waiting:
            return False
        del self._pending[command_id]
        return True

    def refuse_new(self) -> None:
        """Stop taking clients' commands; what is queued is still carried out."""
        self._stopping = True
        self._channel += [(*plan, 0) for plan in self._plans]
        self._plans.clear()

    def _refuse(self, what: str, waiting: int, most: int) -> Refusal:
        if self._stopping:
            return Refusal(RefusalReason.STOPPING, what="agent")
        now_ns = self._clock.now().boot_ns
        return Refusal(RefusalReason.BUSY, what, most, waiting, 1, now_ns)

    # -- the seven steps ---------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches until cancelled. Any exception that leaves here must end the process."""
        task_status.started()
        try:
            while True:
                while not (self._channel or self._plans or self._sealed):
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                # Once propose has run the batch must reach its end: a cancellation in between would
                # leave a table that the journal does not know.
                with trio.CancelScope(shield=True):
                    await self._commit_batch()
                if self._plans:
                    await trio.lowlevel.checkpoint()  # the others' turn comes between two of them
                else:
                    await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self.unbroken.end()

    async def commit_now(self, command: Command) -> list[Reply]:
        """Carry one command through all seven steps before `run` has begun (boot)."""
        replies: list[Reply] = []
        self._channel.append((command, replies.append, 0))
        await self._commit_batch()
        return replies

    async def _commit_batch(self) -> None:
        batch, self._sealed = self._sealed, None
        if batch is None:
            batch = self._draw(plans=1)
        self._committing = True
        sealed = batch.sealed
        if sealed is not None:
            await self._journal.commit(sealed.frames, sealed.count, sealed.head, batch.moment)
        self._committing = False
        self._finish(batch)

    def _draw(self, *, plans: int = 0) -> Batch:
        """Propose what waits, and so many plans, and seal what came of it."""
        batch = Batch(self._clock.now())
        self.lessor.admitting = self._journal.reserve_ok(self.lessor.table.live)
        for _ in range(min(len(self._channel), self._batch_commands_max)):
            command, deliver, asked = self._channel.popleft()
            self._asked -= asked
            self._propose(command, deliver, batch)
        for _ in range(min(len(self._plans), plans)):
            self._propose(*self._plans.popleft(), batch)
        if batch.items or self._sealer.epoch_due(batch.moment):
            batch.sealed = self._sealer.seal(batch.items, moment=batch.moment)
        return batch

    def _finish(self, batch: Batch) -> None:
        """The batch counts: tell, reply, begin its effects."""
        held, sealed = batch.held, batch.sealed
        if sealed is not None:
            held = self._receipted(held, batch.items, sealed)
            if sealed.ends_epoch:
                self._end_epoch()
            if batch.items:
                events = tuple([event for event, _ in batch.items])
                self._tell(Told(batch.moment, events, sealed.sequences, sealed.hashes))
        self.batches += 1
        with self.outbox:
            for reply, deliver in batch.answers:
                deliver(reply)
        if held:
            self._hold(held)
        if batch.effects:
            self._start(batch.effects)

    def _propose(self, command: Command, deliver: Deliver | None, batch: Batch) -> None:
        held = batch.held
        if self._gone and deliver in self._gone:
            if type(command) is not CancelWait or not self._leave(command.waiting_id, deliver):
                return
            deliver = None
        proposal = self.lessor.propose(command, batch.moment)
        moment = batch.moment
        batch.items += [(event, moment) for event in proposal.events]
        if deliver is None and not proposal.effects and proposal.tells_nobody_else(command):
            return
        if proposal.grants_at_once(command):
            [effect], [(_, reply)] = proposal.effects, proposal.answers
            assert isinstance(effect, Prepare)
            held.append(Held(effect, reply, () if deliver is None else (deliver,)))
            return
        prepares: dict[LeaseId, Prepare] = {}
        moves: list[Held] = []
        for effect in proposal.effects:
            if isinstance(effect, MoveDeadline):
                if type(command) not in _MOVES:  # a start, a notice: nobody waits
                    moves.append(Held(effect, _DONE, ()))
                    continue
                [(_, reply)] = proposal.answers
                held.append(Held(effect, reply, () if deliver is None else (deliver,)))
                batch.effects.extend(one for one in proposal.effects if one is not effect)
                return
            if isinstance(effect, Prepare):
                prepares[effect.lease.lease_id] = effect
            else:
                batch.effects.append(effect)
        unanswered = deliver is not None
        for place, (command_id, reply) in enumerate(proposal.answers):
            # A command's own answer comes first and is its own caller's: somebody else may wait
            # under the same id.
            if place == 0 and command_id == command.command_id:
                waiting = [] if deliver is None else [deliver]
                unanswered = False
            else:
                waiting = self._pending.pop(command_id, [])
            self._route(reply, waiting, prepares, batch)
        if unanswered and deliver is not None:
            self._pending.setdefault(command.command_id, []).append(deliver)
        # A grant whose caller has gone is prepared all the same: the lease exists and its story
        # must be whole.
        held.extend(Held(prepare, Granted(prepare.lease), ()) for prepare in prepares.values())
        held.extend(moves)  # some may be of what is only being granted

    @staticmethod
    def _route(
        reply: Reply,
        waiting: list[Deliver],
        prepares: dict[LeaseId, Prepare],
        batch: Batch,
    ) -> None:
        """Send an answer on its way: at once, or held until its hardware is ready."""
        if isinstance(reply, Granted):
            prepare = prepares.pop(reply.lease.lease_id, None)
            if prepare is not None or reply.lease.state in _PERHAPS_PREPARED:
                batch.held.append(Held(prepare, reply, tuple(waiting)))
                return
        batch.answers.extend((reply, one) for one in waiting)

    def _receipted(
        self, held: list[Held], items: list[tuple[Event, Moment]], sealed: SealedBatch
    ) -> list[Held]:
        """Give every fresh grant its place in the chain: (sequence, record hash) is the start of a
        receipt."""
        place = {
            event.lease_id: index
            for index, (event, _) in enumerate(items)
            if type(event) is Allocated
        }
        if not place:
            return held
        sequences, hashes, log_id = sealed.sequences, sealed.hashes, self._sealer.log_id
        receipted = []
        for one in held:
            reply = one.reply
            if type(reply) is Granted and (index := place.get(reply.lease.lease_id)) is not None:
                lease, sequence = reply.lease, sequences[index]
                self.lessor.number(lease.lease_id, sequence)
                reply = Granted(lease, sequence, hashes[index], reply.attached, log_id)
                one = Held(one.effect, reply, one.delivers)
            receipted.append(one)
        return receipted
