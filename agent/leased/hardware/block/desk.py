# SPDX-License-Identifier: Apache-2.0
"""The desk: which worker is asked about a namespace, and who has it exclusively.

Rule: a drive has a worker as far as they go round, and keeps it whatever comes and goes beside it,
so that a healthy one does not wait in the line of one that hangs. What is done to several drives is
done at the same time, what is done to one in turn: a drive erases one thing after the other.

Does not know what is asked.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
import trio

from leased.hardware.block.names import identity_in
from leased.hardware.block.namespaces import Namespace
from leased.hardware.crew import Crew
from leased.hardware.starting import STARTING_NS
from leased.terms.errors import DeviceError
from leased.terms.resource import Allotment

SURVEYOR: Final = "block survey"
EXAMINING: Final = "examining "
ARRANGING: Final = "arranging "
CLEANING: Final = "cleaning "
PROOF: Final = "proof "
WORKERS_MAX: Final = 4
_T = TypeVar("_T")


class Desk:
    """The block backend's workers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._drives: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._turns: dict[str, trio.Lock] = {}
        for name in (SURVEYOR, *(f"block {EXAMINING}{n}" for n in range(WORKERS_MAX))):
            crew.defer(name)

    def learn(self, namespaces: Iterable[Namespace]) -> None:
        """Which drive each is on."""
        self._drives |= {one.identity: one.nqn for one in namespaces}

    def turn(self, identity: str) -> trio.Lock:
        """Whoever has a namespace exclusively, if only to look at it, is in the others' way."""
        return self._turns.setdefault(identity, trio.Lock())

    def worker(self, identity: str, what: str = "") -> str:
        """The worker of the namespace's drive."""
        drive = self._drive(identity)
        number = self._numbers.setdefault(drive, len(self._numbers) % WORKERS_MAX)
        return f"block {what}{number}"

    async def ask(
        self, worker: str, verb: str, asked: msgspec.Struct, returns: type[_T], extra_ns: int = 0
    ) -> _T:
        """One verb by one worker. Raises DeviceError."""
        return await self._crew.task(worker, "block", verb, asked, returns, extra_ns=extra_ns)

    async def stand_ready(self, allotments: Iterable[Allotment]) -> None:
        """Have the workers of their teardown there: at the end of a lease nobody is to wait for one
        to start."""
        for allotment in allotments:
            for what in (CLEANING, PROOF):
                worker = self.worker(identity_in(allotment.resource_id), what)
                with suppress(DeviceError):  # it is started when it is asked
                    await self._crew.stand_ready(worker, "block")

    async def look(
        self, worker: str, verb: str, asked: msgspec.Struct, returns: type[_T]
    ) -> _T:
        """As `ask`, with time to start. Where the worker before still hangs in the kernel nobody is
        sent after it: each look would leave one more there."""
        if self._crew.is_stuck(worker):
            raise DeviceError(f"block_{verb}", errno.ETIMEDOUT, "an earlier look still hangs")
        return await self.ask(worker, verb, asked, returns, STARTING_NS)

    async def apart(
        self, verb: str, asked: Mapping[str, msgspec.Struct], returns: type[_T]
    ) -> tuple[list[_T], list[str]]:
        """One look at each drive, by NQN, at the same time and by workers that go with it, so that
        one that hangs keeps nothing else: the answers, and why others gave none."""
        answers: list[_T] = []
        silent: list[str] = []

        async def one(drive: str) -> None:
            worker = f"block {ARRANGING}{drive}"
            self._crew.defer(worker)
            try:
                answers.append(await self.look(worker, verb, asked[drive], returns))
            except DeviceError as error:
                silent.append(f"{drive}: {error}")
            finally:
                self._crew.dismiss(worker)

        async with trio.open_nursery() as nursery:
            for drive in asked:
                nursery.start_soon(one, drive)
        return answers, silent

    def lines(self, allotments: Iterable[Allotment]) -> list[list[Allotment]]:
        """Those of one worker wait for one another, and with them those of one drive."""
        return _parted(allotments, lambda one: self.worker(identity_in(one.resource_id)))

    async def each(
        self, allotments: Iterable[Allotment], carry_out: Callable[[Allotment], Awaitable[None]]
    ) -> None:
        """Every allotment; drives at the same time."""
        parts = _parted(allotments, lambda one: self._drive(identity_in(one.resource_id)))

        async def in_turn(part: Iterable[Allotment]) -> None:
            for allotment in part:
                await carry_out(allotment)

        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(in_turn, part)

    def _drive(self, identity: str) -> str:
        return self._drives.get(identity, identity)


def _parted(
    allotments: Iterable[Allotment], by: Callable[[Allotment], str]
) -> list[list[Allotment]]:
    parts: dict[str, list[Allotment]] = {}
    for allotment in allotments:
        parts.setdefault(by(allotment), []).append(allotment)
    return list(parts.values())
