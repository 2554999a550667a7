# SPDX-License-Identifier: Apache-2.0
"""Tickets: callers that wait for answers of the reaper, and the parts of packets that their
questions travel in.

Rule: a ticket costs one park of one task however many answers it waits for. An answer that stays
None did not come in time; it is never taken for one of the reaper's.

Does not know a socket.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from leased.terms.errors import DeviceError


class Ticket:
    """One caller that waits for `remaining` answers. An answer that stays None did not come in
    time."""

    __slots__ = ("answers", "expires", "remaining", "task")

    def __init__(self, size: int, expires: float) -> None:
        self.answers: list[object] = [None] * size
        self.remaining = size
        self.expires = expires
        self.task: trio.lowlevel.Task | None = None

    @property
    def open(self) -> bool:
        """Whether somebody still waits."""
        return self.remaining > 0

    def answer(self, at: int, answers: Sequence[object]) -> None:
        """Put answers in their places; wakes the caller when they are complete."""
        if self.remaining > 0:
            self.answers[at : at + len(answers)] = answers
            self.remaining -= len(answers)
            if self.remaining == 0:
                self.settle()

    def close(self, error: DeviceError | None) -> None:
        """Wake the caller with what there is; `error` stands where an answer is missing."""
        if self.remaining > 0:
            self.answers = [error if answer is None else answer for answer in self.answers]
            self.remaining = 0
            self.settle()

    def settle(self) -> None:
        """Everything is answered."""
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return when everything is answered."""
        if self.remaining == 0:
            await trio.lowlevel.checkpoint()
            return
        self.task = trio.lowlevel.current_task()

        def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.task = None
            self.remaining = 0
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)


class Repeat(Ticket):
    """Nobody waits: something that the link itself asks after a reconnection. `then` is told the
    statuses."""

    __slots__ = ("then",)

    def __init__(self, size: int, then: Callable[[list[object]], None]) -> None:
        super().__init__(size, float("inf"))
        self.then = then

    def settle(self) -> None:
        """Everything is answered."""
        self.then(self.answers)


class Chunk(NamedTuple):
    """Part of a call that goes into one packet: `entries` whose answers belong at `at`."""

    kind: int
    body: bytes
    entries: int
    ticket: Ticket
    at: int = 0
    fds: tuple[int, ...] = ()


def as_error(verb: str, answer: object) -> DeviceError:
    """What an answer other than success is."""
    if isinstance(answer, DeviceError):
        return answer
    if isinstance(answer, int):
        return DeviceError(verb, -answer, os.strerror(-answer))
    return DeviceError(verb, errno.ETIMEDOUT, "the reaper did not answer")
