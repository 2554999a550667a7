# SPDX-License-Identifier: Apache-2.0
"""The crew: worker processes as the agent sees them, each with its own socket and deadline.

Rule: one batch is under way per worker; whoever comes meanwhile waits in line, so the answers come
in the order of the calls. A worker that does not answer by the batch's deadline is killed and
abandoned (in D state even SIGKILL waits), its callers get DeviceError, and the next batch starts a
fresh one. Waiting costs no thread.

Does not know what the calls mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from leased.hardware.calls import Answer, Batch, Call, Failed, Result, Scrub, Task
from leased.hardware.config import EscapeePolicy, HardwareConfig
from leased.hardware.occupants import read_by
from leased.hardware.procfs import start_time
from leased.hardware.scrubbing import PASS_BUDGET_NS, PASSES_MAX
from leased.hardware.starting import STARTING_NS, Child, Starter
from leased.hardware.worker import MESSAGE_BYTES_MAX, receive_answers, result_of, send, task
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S

CALLS_MAX = 64
"""Calls of one batch: below the 253 descriptors of a message, and a few ms of small work."""

DEFERRED_NICE = 15
"""Within the agent's own cgroup: a thirtieth of what a teardown beside it gets, never nothing."""

ENDING_NS = 1_000_000_000
"""A driver takes 205 ms to let go of a process that was killed in the middle (an H200)."""

T = TypeVar("T")

_ENDING_STEP_S = 0.002


class Link:
    """One worker, started when first needed and replaced when lost."""

    def __init__(self, name: str, starter: Starter, nice: int = 0) -> None:
        self.name = name
        self._starter = starter
        self._nice = nice
        self._turn = trio.StrictFIFOLock()
        self._sock: socket.socket | None = None
        self._child: Child | None = None
        self._dismissed = False
        self._abandoned: list[Child] = []
        self._buffer = bytearray()
        self._number = 0

    @property
    def pids(self) -> tuple[tuple[int, int], ...]:
        """(pid, start time) of the worker and of those abandoned that have not ended."""
        for child in [child for child in self._abandoned if child.ended]:
            self._abandoned.remove(child)
            child.close()
        alive = (self._child, *self._abandoned)
        return tuple((child.pid, child.started) for child in alive if child is not None)

    async def ask(
        self, batch: Batch, fds: Sequence[int], *, budget_ns: int
    ) -> tuple[tuple[Answer, ...], list[int]]:
        """The answers, and the descriptors that came with them (the caller's from here on).
        The budget begins when it is this batch's turn: a worker that is started for it is within
        (see `stand_ready`). Raises DeviceError.
        """
        self._number += 1
        numbered = msgspec.structs.replace(batch, number=self._number)
        return await self._in_turn(lambda: self._exchange(numbered, fds), budget_ns)

    async def stand_ready(self, backend: str) -> None:
        """Be there, started if need be, in the time that this may take. Raises DeviceError."""

        async def start() -> None:
            if self._sock is None:
                await self._start(backend)

        await self._in_turn(start, STARTING_NS)

    async def _in_turn(self, talk: Callable[[], Awaitable[T]], budget_ns: int) -> T:
        try:
            # Taken without a trip through the scheduler where nobody is in line.
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            return await self._within(talk, budget_ns)
        finally:
            self._turn.release()

    async def _within(self, talk: Callable[[], Awaitable[T]], budget_ns: int) -> T:
        try:
            with trio.CancelScope(deadline=trio.current_time() + budget_ns / NS_PER_S):
                return await talk()
        except (OSError, EOFError, trio.ClosedResourceError) as error:  # the last: dismissed
            self.abandon()
            number = getattr(error, "errno", None) or errno.EPIPE
            raise DeviceError("worker_answer", number, f"worker {self.name} ended") from error
        except (trio.Cancelled, DeviceError):
            # Its answer would be taken for the next batch's, and its descriptors leak.
            self.abandon()
            raise
        detail = f"worker {self.name} did not answer in {budget_ns // 1_000_000} ms"
        if self._child is not None and (file := read_by(self._child.pid)):
            detail += f": it read {file}"
            os.write(2, f"{detail}\n".encode())  # the steps that come of it have no words
        self.abandon()
        raise DeviceError("worker_answer", errno.ETIMEDOUT, detail)

    async def _exchange(
        self, batch: Batch, fds: Sequence[int]
    ) -> tuple[tuple[Answer, ...], list[int]]:
        fresh = self._sock is None
        first = batch.calls[0] if batch.calls else None
        backend = first.backend if isinstance(first, Task) else ""
        sock = self._sock or await self._start(backend)
        while True:
            try:
                send(sock, batch, fds)
                break
            except (BrokenPipeError, ConnectionResetError):
                if fresh:
                    raise
                # Somebody ended it while it was idle: it has seen nothing of this batch.
                self.abandon()
                fresh, sock = True, await self._start(backend)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
        await trio.lowlevel.wait_readable(sock)
        answers, received = receive_answers(sock, self._buffer)
        assert answers.number == batch.number
        return answers.answers, received

    async def _start(self, backend: str) -> socket.socket:
        sock, child = await self._starter.start(backend)
        if self._dismissed:  # nobody would end it
            sock.close()
            child.kill()
            child.close()
            raise EOFError
        self._sock, self._child = sock, child
        if self._nice:
            nice = os.getpriority(os.PRIO_PROCESS, 0) + self._nice
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._child.pid, nice)
        self._buffer = self._buffer or bytearray(MESSAGE_BYTES_MAX)
        return self._sock

    def dismiss(self) -> None:
        """Kill the worker, also one that is being started, and have no other."""
        self._dismissed = True
        self.abandon()

    def abandon(self) -> None:
        """Kill the worker and wait for nothing."""
        if self._sock is not None:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self._sock = None
        if self._child is not None:
            self._child.kill()
            if self._child.ended:  # it was dead before, and keeps no descriptor of ours
                self._child.close()
            else:
                self._abandoned.append(self._child)
            self._child = None

    async def see_off(self) -> None:
        """Return when whoever was abandoned has ended, or will not soon."""
        with trio.move_on_after(ENDING_NS / NS_PER_S):
            while any(not child.ended for child in self._abandoned):
                await trio.sleep(_ENDING_STEP_S)

    @property
    def stuck(self) -> bool:
        """Whether a worker that was killed a while ago has not ended: the next one would hang,
        too."""
        return any(child.is_stuck() for child in self._abandoned)

    def close(self) -> None:
        """End the worker; one that hangs is left to the kernel. Idempotent."""
        self.abandon()
        for child in self._abandoned:
            child.wait(1.0)
            child.close()
        self._abandoned = []


class Crew:
    """Every worker, by name; and who of us is never an escapee."""

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        self._links: dict[str, Link] = {}
        self._starter = Starter()
        self._leaving: list[Link] = []
        self._deferred: set[str] = set()
        self._exempt: dict[int, int] = {os.getpid(): start_time(os.getpid()) or 0}

    def exempt(self, pid: int) -> None:
        """This process holds leases' descriptors by right."""
        self._exempt[pid] = start_time(pid) or 0

    def defer(self, name: str) -> None:
        """What the worker `name` does is nobody's hurry: a look at the host does not take the
        processor from a teardown."""
        self._deferred.add(name)

    async def ask(
        self,
        name: str,
        calls: Sequence[Call],
        fds: Sequence[int] = (),
        touched_bytes: int = 0,
        extra_ns: int = 0,
    ) -> tuple[tuple[Answer, ...], list[int]]:
        """One batch to one worker; answers in order, and the descriptors they own. `extra_ns`:
        how much longer than a call's usual budget it may take."""
        config = self._config
        exempt: tuple[tuple[int, int], ...] = ()
        if calls and isinstance(calls[0], Scrub):
            exempt = self.ours()
        kills = config.escapees is EscapeePolicy.KILL
        budget_ns = config.call_budget_ns + extra_ns
        budget_ns += touched_bytes * NS_PER_S // config.touch_bytes_per_s
        if exempt:
            budget_ns += PASSES_MAX * (config.kill_budget_ns + PASS_BUDGET_NS)
        batch = Batch(0, tuple(calls), exempt, kills, config.kill_budget_ns, config.reaper_path)
        return await self._link(name).ask(batch, fds, budget_ns=budget_ns)

    async def stand_ready(self, name: str, backend: str) -> None:
        """Have the worker `name` there, with what the backend needs read, so that its start is not
        taken for hardware that hangs. Raises DeviceError."""
        await self._link(name).stand_ready(backend)

    def _link(self, name: str) -> Link:
        link = self._links.get(name)
        if link is None:
            nice = DEFERRED_NICE if name in self._deferred else 0
            link = self._links[name] = Link(name, self._starter, nice)
        return link

    async def ask_again(
        self,
        name: str,
        calls: Sequence[Call],
        fds: Sequence[int] = (),
        touched_bytes: int = 0,
        killed: Callable[[], None] = lambda: None,
    ) -> tuple[Answer, ...]:
        """As `ask`, for calls that may be repeated and own no descriptors; `fds` none or one each.
        A worker that is killed in the middle says nothing of the hardware (the kernel kills workers
        first when memory is short), so its calls are asked once more, each by itself: one of them
        may have been what killed it. `killed` hears of it before anything else is asked of it."""
        try:
            return (await self.ask(name, calls, fds, touched_bytes))[0]
        except DeviceError as error:
            if not was_killed(error):
                raise
        killed()
        alone: list[Answer] = []
        for at, call in enumerate(calls):
            try:
                answered, _ = await self.ask(name, (call,), fds[at : at + 1], touched_bytes)
                alone.extend(answered)
            except DeviceError as error:
                alone.append(Failed(error.verb, error.errno, error.detail))
        return tuple(alone)

    async def one(
        self, name: str, call: Call, fds: Sequence[int] = (), extra_ns: int = 0
    ) -> Answer:
        """One call; what failed is raised."""
        (answer,), _ = await self.ask(name, (call,), fds, extra_ns=extra_ns)
        if isinstance(answer, Failed):
            raise failure(answer)
        return answer

    async def task(
        self,
        name: str,
        backend: str,
        verb: str,
        argument: msgspec.Struct,
        returns: type[T],
        *,
        fds: Sequence[int] = (),
        extra_ns: int = 0,
    ) -> T:
        """One verb of a backend, on the worker `name`; what it returned. Raises DeviceError."""
        call = task(backend, verb, argument, len(fds))
        (answer,), _ = await self.ask(name, (call,), fds, extra_ns=extra_ns)
        if not isinstance(answer, Result):
            raise failure(answer)
        return result_of(answer, returns)

    async def task_again(
        self,
        name: str,
        backend: str,
        verb: str,
        argument: msgspec.Struct,
        returns: type[T],
        *,
        extra_ns: int = 0,
    ) -> T:
        """As `task`, for a verb that may be repeated; see `ask_again`. Raises DeviceError."""
        try:
            return await self.task(name, backend, verb, argument, returns, extra_ns=extra_ns)
        except DeviceError as error:
            if not was_killed(error):
                raise
        await self.see_off(name)
        return await self.task(name, backend, verb, argument, returns, extra_ns=extra_ns)

    async def see_off(self, name: str) -> None:
        """Before a worker that was killed is asked once more: what it had of a device the driver
        has let go when it has ended, and not when its socket closed. Waits a second at most."""
        link = self._links.get(name)
        if link is not None:
            await link.see_off()

    def dismiss(self, name: str) -> None:
        """End a worker that is not needed any more, and wait for nothing. Idempotent."""
        self.ours()  # lets go of those dismissed before who have ended
        link = self._links.pop(name, None)
        if link is not None:
            link.dismiss()
            self._leaving.append(link)

    def is_stuck(self, name: str) -> bool:
        """Whether a worker of that name hangs in the kernel and does not even die."""
        links = (*self._links.values(), *self._leaving)
        return any(link.name == name and link.stuck for link in links)

    def ours(self) -> tuple[tuple[int, int], ...]:
        """(pid, start time) of everybody who holds by right what leases are made of."""
        self._leaving = [link for link in self._leaving if link.pids]
        links = (*self._links.values(), *self._leaving)
        return (*self._exempt.items(), *(pair for link in links for pair in link.pids))

    def close(self) -> None:
        """End every worker. Idempotent."""
        for name in tuple(self._links):
            self.dismiss(name)
        for link in self._leaving:
            link.close()
        self._leaving = []
        self._starter.close()


def was_killed(error: DeviceError) -> bool:
    """Whether the worker ended in the middle, and not for being late."""
    return error.verb == "worker_answer" and error.errno != errno.ETIMEDOUT


async def spread(
    work: Mapping[str, Sequence[T]], carry_out: Callable[[str, Sequence[T]], Awaitable[None]]
) -> None:
    """Give each worker its part in batches; different workers at the same time."""

    async def one(name: str, part: Sequence[T]) -> None:
        for begin in range(0, len(part), CALLS_MAX):
            await carry_out(name, part[begin : begin + CALLS_MAX])

    if len(work) == 1:
        # The common case needs no task of its own.
        [(name, part)] = work.items()
        await one(name, part)
        return
    async with trio.open_nursery() as nursery:
        for name, part in work.items():
            nursery.start_soon(one, name, part)


async def each(cases: Sequence[T], carry_out: Callable[[T], Awaitable[None]]) -> None:
    """Every case by itself, all at the same time."""
    if cases:
        async with trio.open_nursery() as nursery:
            for case in cases:
                nursery.start_soon(carry_out, case)


def failure(answer: Answer) -> DeviceError:
    """What a call that failed says, as an error."""
    assert isinstance(answer, Failed), answer
    return DeviceError(answer.verb, answer.errno, answer.detail)
