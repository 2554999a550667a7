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

import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from leased.hardware.pieces import memory_pieces
from leased.ports import Clock, Entropy
from leased.service.connection import Connection
from leased.service.custody import Custodian
from leased.service.evidence import NO_COMMAND
from leased.service.questions import Questions
from leased.service.sequencer import Sequencer
from leased.service.streams import Streams
from leased.service.walls import Walls
from leased.terms.command import Acquire, GrantFailed
from leased.terms.errors import DeviceError, LeasedError
from leased.terms.lease import Lease
from leased.terms.moment import Moment
from leased.terms.reply import Changed, Granted, Reply
from leased.terms.teardown import TeardownStep
from leased.wire import objects, parameters
from leased.wire.calls import encode_error, encode_reply, to_command
from leased.wire.conversation import Call

Task = Callable[[Connection, Call], Awaitable[None]]


class Dispatcher:
    """Carries out calls. `open` gives it the nursery that its tasks live in."""

    def __init__(
        self,
        *,
        sequencer: Sequencer,
        custodian: Custodian,
        walls: Walls,
        streams: Streams,
        questions: Questions,
        clock: Clock,
        entropy: Entropy,
        ttl_ns_default: Callable[[], int],
        handout: Callable[[Lease, Sequence[int]], Sequence[tuple[str, int]]],
    ) -> None:
        self._sequencer = sequencer
        self._custodian = custodian
        self._walls = walls
        self._clock = clock
        self._entropy = entropy
        self._ttl_ns_default = ttl_ns_default
        self._handout = handout
        self._nursery: trio.Nursery | None = None
        self._moment = clock.now()
        self._tasks: dict[type, Task] = {
            parameters.Watch: streams.watch_leases,
            parameters.Wait: streams.wait,
            parameters.DeviceWatch: streams.watch_resources,
            parameters.AuditWatch: streams.watch_chain,
            parameters.TelemetryWatch: streams.watch_samples,
            parameters.Holders: questions.find_holders,
            parameters.AuditRead: questions.read_chain,
            parameters.AuditVerify: questions.verify_chain,
            parameters.Reload: questions.reload,
            parameters.AuditHead: questions.tell_head,
            parameters.TelemetryRead: questions.tell_samples,
            parameters.Status: questions.tell_status,
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
            if asked is parameters.Renew:
                self._begin_command(connection, call)
                return
            if asked in _BOUND:
                connection.prove(fds[0] if fds else None)
            task = self._tasks.get(asked)
            if task is not None:
                assert self._nursery is not None
                self._nursery.start_soon(self._attend, task, connection, call)
            elif asked is parameters.Acquire:
                self._begin_acquire(connection, call)
            elif asked is parameters.Join or asked is parameters.Adopt:
                self._begin_join(connection, call, fds)
                fds = []
            else:
                self._begin_command(connection, call)
        except LeasedError as refused:
            connection.answer(call, encode_error(refused))
        except OSError as error:  # out of descriptors: this call fails, and nobody else's
            connection.answer(call, encode_error(DeviceError("pidfd", error.errno or 0)))
        finally:
            for fd in fds:
                os.close(fd)

    def abandon(self, connection: Connection) -> None:
        """The connection is gone: give up its places in the queue."""
        for deliver, key in connection.waiting.items():
            self._sequencer.forget_waiter(key, deliver)
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
        command = to_command(
            call,
            connection.caller,
            self._entropy,
            pid=connection.proven_pid,
            ttl_ns_default=self._ttl_ns_default(),
        )
        assert command is not None, f"{call.method.name} is served by nobody"
        self._sequencer.submit(command, partial(self._answer, connection, call))

    def _answer(self, connection: Connection, call: Call, reply: Reply) -> None:
        # A renewal's answer shows no time but the deadline, so it need not read the clock.
        moment = self._moment if type(call.parameters) is parameters.Renew else self._clock.now()
        connection.answer(call, encode_reply(call, reply, moment))

    def _begin_acquire(self, connection: Connection, call: Call) -> None:
        command = to_command(
            call,
            connection.caller,
            self._entropy,
            pid=connection.proven_pid,
            ttl_ns_default=self._ttl_ns_default(),
        )
        assert isinstance(command, Acquire)
        key = command.command_id

        def deliver(reply: Reply) -> None:
            connection.waiting.pop(deliver, None)
            moment = self._clock.now()
            if not isinstance(reply, Granted):
                connection.answer(call, encode_reply(call, reply, moment))
                return
            try:
                handed = self._hand_out(reply.lease)
            except DeviceError as error:
                if not reply.attached:  # nobody has it, and nobody was told of it
                    lease_id, step = reply.lease.lease_id, TeardownStep.PREPARE
                    self._sequencer.submit_own(GrantFailed(NO_COMMAND, lease_id, step, error.errno))
                connection.answer(call, encode_error(error))
                return
            answer = encode_reply(call, reply, moment, fds=_portray_fds(handed))
            connection.answer(call, answer, [fd for _, fd in handed])

        connection.waiting[deliver] = key
        self._sequencer.submit(command, deliver)

    def _hand_out(self, lease: Lease) -> Sequence[tuple[str, int]]:
        """(resource id, descriptor) of what the holder is handed. Nothing once the lease has ended:
        the request is only repeated, and whoever is let in after the cut is never put out again."""
        if lease.ended is not None:
            return ()
        held = self._custodian.of(lease.lease_id).fds
        if len(held) != len(memory_pieces(lease)):
            raise DeviceError("handout", errno.EBADF, "the lease's descriptors are lost")
        return self._handout(lease, held)

    def _begin_join(self, connection: Connection, call: Call, fds: list[int]) -> None:
        """Ask the table whether the caller may, then move the process that the pidfd proves."""
        command = to_command(call, connection.caller, self._entropy)
        assert command is not None

        def deliver(reply: Reply) -> None:
            if isinstance(reply, Changed) and not connection.closed:
                assert self._nursery is not None
                self._nursery.start_soon(self._join, connection, call, reply.lease, fds)
                return
            for fd in fds:
                os.close(fd)
            connection.answer(call, encode_reply(call, reply, self._clock.now()))

        self._sequencer.submit(command, deliver)

    async def _join(self, connection: Connection, call: Call, lease: Lease, fds: list[int]) -> None:
        try:
            with connection.attended():
                if isinstance(call.parameters, parameters.Adopt):
                    answer = await self._walls.adopt(
                        lease, call.parameters.pid, fds, self._clock.now()
                    )
                else:
                    answer = await self._walls.join(lease, connection, self._clock.now())
                connection.answer(call, answer)
        except LeasedError as refused:
            connection.answer(call, encode_error(refused))
        except OSError as error:
            connection.answer(call, encode_error(DeviceError("join", error.errno or 0)))
        finally:
            for fd in fds:
                os.close(fd)

    def note_moment(self, moment: Moment) -> None:
        """The moment of the last batch, for answers that show none."""
        self._moment = moment


_BOUND = frozenset({parameters.Acquire, parameters.Join})
"""Methods that act on the calling process, which a pidfd must therefore prove."""


def _portray_fds(handed: Sequence[tuple[str, int]]) -> list[objects.LeaseFd]:
    """Say what each descriptor is."""
    return [
        objects.LeaseFd(
            resource_id=resource_id,
            index=index,
            purpose="block" if resource_id.startswith("block:") else "memory",
        )
        for index, (resource_id, _) in enumerate(handed)
    ]
