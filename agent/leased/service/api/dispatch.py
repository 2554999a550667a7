# SPDX-License-Identifier: Apache-2.0
"""The dispatcher: what each method of the local API does.

Rule: whatever changes something, or asks the table, becomes a command on the sequencer's channel,
and its answer leaves when the sequencer gives it. Only what must wait or read (streams, Wait,
Holders, the log on disk) runs as a task of its own, in the scope of its connection, and ends with
it. Whether a caller may is decided by the lessor (leases), or here by which socket it came through
(`caller.operator`).

Does not touch sockets (`listener`) and does not encode terms (`wire.calls`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from leased.ports import Access, Clock, Entropy
from leased.service.adoption import Adoption
from leased.service.api.call_pace import CallPace
from leased.service.api.connection import Connection
from leased.service.api.handover import Handover, portray_access, portray_fds
from leased.service.api.questions import Questions, portray_holder
from leased.service.api.streams import Streams
from leased.service.detachment import Detachment
from leased.service.evidence import NO_COMMAND
from leased.service.grantor import refusal_of
from leased.service.peering import Peering
from leased.service.policy.calls import PolicyCalls
from leased.service.sequencer import Sequencer
from leased.service.walls import Walls
from leased.terms.command import Command, GrantFailed, ObserveHaste
from leased.terms.errors import DeviceError, LeasedError
from leased.terms.lease import Lease
from leased.terms.moment import Moment
from leased.terms.reply import Changed, Done, Granted, Refusal, Reply
from leased.terms.resource import ResourceKind
from leased.wire import parameters, replies
from leased.wire.answers import encode_error, encode_reply
from leased.wire.calls import to_command
from leased.wire.conversation import Call
from leased.wire.portrayal import environment_of, portray_lease

Task = Callable[[Connection, Call], Awaitable[None]]


class Dispatcher:
    """Carries out calls. `open` gives it the nursery that its tasks live in."""

    def __init__(
        self,
        *,
        sequencer: Sequencer,
        walls: Walls,
        streams: Streams,
        questions: Questions,
        peering: Peering,
        clock: Clock,
        entropy: Entropy,
        ttl_ns_default: Callable[[], int],
        handover: Handover,
        adoption: Adoption,
        detachment: Detachment,
        policy_calls: PolicyCalls,
    ) -> None:
        self._sequencer = sequencer
        self._handover = handover
        self._adoption = adoption
        self._detachment = detachment
        self._walls = walls
        self._clock = clock
        self._entropy = entropy
        self._ttl_ns_default = ttl_ns_default
        self._nursery: trio.Nursery | None = None
        self._moment = clock.now()
        self._pace = CallPace(clock.boot_ns)
        self._tasks: dict[type, Task] = {
            parameters.Watch: streams.watch_leases,
            parameters.Wait: streams.wait,
            parameters.DeviceWatch: streams.watch_resources,
            parameters.AuditWatch: streams.watch_chain,
            parameters.TelemetryWatch: streams.watch_samples,
            parameters.Why: questions.explain,
            parameters.Holders: questions.find_holders,
            parameters.AuditRead: questions.read_chain,
            parameters.AuditVerify: questions.verify_chain,
            parameters.Reload: questions.reload,
            parameters.RotateKey: questions.rotate_key,
            parameters.SetPolicy: policy_calls.set_policy,
            parameters.GetPolicy: policy_calls.get_policy,
            parameters.CheckPolicy: policy_calls.check_policy,
            parameters.LetGo: self._let_go,
            parameters.AuditHead: questions.tell_head,
            parameters.AuditProve: questions.prove,
            parameters.TelemetryRead: questions.tell_samples,
            parameters.Status: questions.tell_status,
            parameters.Connect: peering.connect,
            parameters.Disconnect: peering.disconnect,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the nursery of the long calls open until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    # -- the listener's side -----------------------------------------------------------------------

    def begin(self, connection: Connection, call: Call, fds: list[int]) -> None:
        """Carry out one call."""
        asked = type(call.parameters)
        try:
            if self._is_paced(connection, call):
                return
            if asked is parameters.Renew:
                self._begin_command(connection, call)
                return
            if asked in _BOUND and not connection.enrolled:
                connection.enrol()
            task = self._tasks.get(asked)
            if task is not None:
                assert self._nursery is not None
                self._nursery.start_soon(self._attend, task, connection, call)
            elif asked is parameters.Acquire:
                self._begin_acquire(connection, call)
            elif asked is parameters.Join:
                self._begin_join(connection, call)
            elif asked is parameters.Adopt:
                # Not of the connection's scope: what is begun is brought to its end, and on record.
                assert self._nursery is not None
                self._nursery.start_soon(self._adopt, connection, call, fds)
                fds = []
            elif asked is parameters.Describe:
                self._begin_describe(connection, call)
            elif asked is parameters.Resume:
                self._begin_resume(connection, call)
            else:
                self._begin_command(connection, call)
        except LeasedError as refused:
            connection.answer(call, encode_error(refused))
        except OSError as error:  # out of descriptors: this call fails, and nobody else's
            connection.answer(call, encode_error(DeviceError("pidfd", error.errno or 0)))
        finally:
            if fds:
                connection.dispose(fds)

    def _is_paced(self, connection: Connection, call: Call) -> bool:
        """Whether the caller calls too often; it has been told."""
        book = self._sequencer.lessor.admission.book
        if not book.paces_calls:
            return False
        refusal = self._pace.refusal(book, connection.caller, type(call.parameters))
        if refusal is None:
            return False
        connection.answer(call, encode_reply(call, refusal, self._clock.now()))
        requests, tenant = self._sequencer.lessor.requests, connection.caller.tenant
        if requests.admitting and requests.throttle.is_news(tenant, self._clock.boot_ns()):
            haste = ObserveHaste(NO_COMMAND, connection.caller, refusal.limit)
            self._sequencer.submit(haste, _nobody)
        return True

    def abandon(self, connection: Connection) -> None:
        """The connection is gone: give up its places in the queue."""
        for command_id, deliver in connection.waiting.values():
            self._sequencer.forget_waiter(command_id, deliver)
        connection.waiting.clear()

    async def _attend(self, task: Task, connection: Connection, call: Call) -> None:
        with connection.attended():
            try:
                await task(connection, call)
            except LeasedError as refused:
                if not call.answered:
                    connection.answer(call, encode_error(refused))
            except OSError as error:  # the disk or procfs: this call fails, and nobody else's
                if not call.answered:
                    failed = DeviceError(call.method.name, error.errno or 0, str(error))
                    connection.answer(call, encode_error(failed))
            except trio.EndOfChannel:  # the agent stops, and with it every stream
                connection.hang_up()

    # -- commands ----------------------------------------------------------------------------------

    def _begin_command(self, connection: Connection, call: Call) -> None:
        self._sequencer.submit(
            self._command(connection, call), partial(self._answer, connection, call)
        )

    def _command(self, connection: Connection, call: Call) -> Command:
        if type(call.parameters) is parameters.Renew:  # of a lease that is bound, and has a length
            command = to_command(call, connection.caller, self._entropy)
        else:
            command = to_command(
                call,
                connection.caller,
                self._entropy,
                pid=connection.proven_pid,
                ttl_ns_default=self._ttl_ns_default(),
            )
        assert command is not None, f"{call.method.name} is served by nobody"
        return command

    def _answer(self, connection: Connection, call: Call, reply: Reply) -> None:
        # A renewal's answer shows no time but the deadline, so it need not read the clock.
        moment = self._moment if type(call.parameters) is parameters.Renew else self._clock.now()
        connection.answer(call, encode_reply(call, reply, moment))

    def _begin_acquire(self, connection: Connection, call: Call) -> None:
        if connection.gone:
            # It gave up before we had our turn: a lease would be nobody's until its deadline.
            connection.hang_up()
            return
        command = self._command(connection, call)
        # No closure that names itself: every request would leave a cycle behind to be collected.
        deliver = partial(self._answer_acquire, connection, call)
        connection.waiting[call] = (command.command_id, deliver)
        self._sequencer.submit(command, deliver)

    def _answer_acquire(self, connection: Connection, call: Call, reply: Reply) -> None:
        connection.waiting.pop(call, None)
        if not isinstance(reply, Granted):
            connection.answer(call, encode_reply(call, reply, self._clock.now()))
            return
        access = self._handover.known(reply.lease)
        if access is not None:
            self._hand_over(connection, call, reply, access)
        else:
            tell = partial(self._hand_over, connection, call, reply)
            self._with_access(connection, call, reply.lease, tell)

    def _hand_over(
        self, connection: Connection, call: Call, granted: Granted, access: Sequence[Access]
    ) -> None:
        try:
            handed = self._handover.descriptors(granted.lease)
        except DeviceError as error:
            if not granted.attached:  # nobody has it, and nobody was told of it
                failed = GrantFailed(NO_COMMAND, granted.lease.lease_id, refusal_of(error))
                self._sequencer.submit_own(failed)
            connection.answer(call, encode_error(error))
            return
        answer = encode_reply(
            call,
            granted,
            self._clock.now(),
            fds=portray_fds(handed),
            access=portray_access(access),
        )
        connection.answer(call, answer, [fd for _, fd in handed])

    def _begin_describe(self, connection: Connection, call: Call) -> None:
        def tell(changed: Changed, access: Sequence[Access]) -> None:
            shown = portray_access(access)
            answer = encode_reply(call, changed, self._clock.now(), access=shown)
            connection.answer(call, answer)

        def deliver(reply: Reply) -> None:
            if isinstance(reply, Changed):
                self._with_access(connection, call, reply.lease, partial(tell, reply))
            else:
                self._answer(connection, call, reply)

        self._sequencer.submit(self._command(connection, call), deliver)

    def _begin_resume(self, connection: Connection, call: Call) -> None:
        """Grants are resumed by the table; then the drivers may be used again."""
        asked = call.parameters
        assert isinstance(asked, parameters.Resume)

        def deliver(reply: Reply) -> None:
            async def take_up(_: Connection, __: Call) -> None:
                await self._detachment.take_up(asked.resource_id or "")
                self._answer(connection, call, reply)

            if isinstance(reply, Done):
                assert self._nursery is not None
                self._nursery.start_soon(self._attend, take_up, connection, call)
            else:
                self._answer(connection, call, reply)

        self._sequencer.submit(self._command(connection, call), deliver)

    async def _let_go(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.LetGo"""
        asked = call.parameters
        assert isinstance(asked, parameters.LetGo)
        outcome = await self._detachment.let_go(ResourceKind[asked.kind.upper()])
        if isinstance(outcome, Refusal):
            self._answer(connection, call, outcome)
        else:
            told = [portray_holder(holder) for holder in outcome]
            connection.answer(call, replies.encode(replies.LetGoReply(told)))

    def _with_access(
        self,
        connection: Connection,
        call: Call,
        lease: Lease,
        tell: Callable[[Sequence[Access]], None],
    ) -> None:
        """Tell at once what is known; only after a restart somebody has to be asked first."""
        known = self._handover.known(lease)
        if known is not None:
            tell(known)
            return

        async def ask(_: Connection, __: Call) -> None:
            tell(await self._handover.access(lease))

        if not connection.closed:
            assert self._nursery is not None
            self._nursery.start_soon(self._attend, ask, connection, call)

    def _begin_join(self, connection: Connection, call: Call) -> None:
        """Ask the table whether the caller may, then move the process that the pidfd proves."""
        command = self._command(connection, call)

        def deliver(reply: Reply) -> None:
            if isinstance(reply, Changed) and not connection.closed:
                assert self._nursery is not None
                join = partial(self._let_in, lease=reply.lease)
                self._nursery.start_soon(self._attend, join, connection, call)
            else:
                self._answer(connection, call, reply)

        self._sequencer.submit(command, deliver)

    async def _adopt(self, connection: Connection, call: Call, fds: list[int]) -> None:
        try:
            reply = await self._adoption.adopt(connection, call, fds)
            self._answer(connection, call, reply)
        except LeasedError as refused:
            connection.answer(call, encode_error(refused))
        except OSError as error:
            connection.answer(call, encode_error(DeviceError("adopt", error.errno or 0)))
        finally:
            connection.dispose(fds)

    async def _let_in(self, connection: Connection, call: Call, lease: Lease) -> None:
        """Move the caller in, and give it what the lease comes with."""
        access = portray_access(await self._handover.access(lease))
        seen = await self._walls.join(lease, connection)
        handed = self._handover.descriptors(lease)
        reply = replies.JoinReply(
            lease=portray_lease(lease, self._clock.now()),
            environment={**environment_of(access), **seen},
            fds=portray_fds(handed),
            access=access,
        )
        connection.answer(call, replies.encode(reply), [fd for _, fd in handed])

    def note_moment(self, moment: Moment) -> None:
        """The moment of the last batch, for answers that show none."""
        self._moment = moment


_BOUND = frozenset({parameters.Acquire, parameters.Join})
"""Methods that act on the calling process, which a pidfd must therefore prove."""


def _nobody(reply: Reply) -> None:
    """Who hears of what the agent notes by itself."""
