# SPDX-License-Identifier: Apache-2.0
"""The counter of a running agent: advanced once a period, never before both slots say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from leased.durable.binding import Binding
from leased.ports import AnchorSlot
from leased.service.log.counting import AGAIN_NS, Counting
from leased.terms.errors import StateError
from leased.terms.identity import LogId
from leased.terms.moment import NS_PER_S
from tests.doubles.clock import FakeClock
from tests.doubles.counter import MemoryCounter

pytestmark = pytest.mark.autojump

HOUR = 3600 * NS_PER_S


class Bench:
    """The task, and a log that is sealed once a minute."""

    def __init__(self, counter: MemoryCounter) -> None:
        self.clock = FakeClock()
        self.counter = counter
        self.slots = [self._slot(10, counter.value or 0)] * 2
        self.staged = counter.value or 0
        self.said: list[str] = []
        self.counting = Counting(
            binding=Binding(counter),
            stage=self._stage,
            anchored=lambda: self.slots[-1],
            clock=self.clock,
            period_ns=HOUR,
            say=self.said.append,
            aside=self._aside,
        )

    @staticmethod
    def _slot(generation: int, counter: int) -> AnchorSlot:
        return AnchorSlot(generation, LogId(bytes(16)), 0, 0, 0, bytes(32), tpm_counter=counter)

    def _stage(self) -> int:
        self.staged = self.slots[-1].tpm_counter + 1
        return self.staged

    def seal(self) -> None:
        """A batch: a slot over the older one."""
        self.slots = [self.slots[1], self._slot(self.slots[1].generation + 1, self.staged)]

    async def _aside(self, call: Callable[..., None], *arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        before = self.counter.value
        try:
            call(*arguments)
        finally:
            if self.counter.value != before:
                assert {slot.tpm_counter for slot in self.slots} == {self.counter.value}

    async def run(self, hours: float, *, sealing: bool = True) -> None:
        with trio.move_on_after(hours * 3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.counting.run)
                while True:
                    await trio.sleep(60)
                    if sealing:
                        self.seal()


async def test_once_a_period() -> None:
    bench = Bench(MemoryCounter(5))
    await bench.run(5.5)
    assert (bench.counter.advances, bench.counter.value) == (5, 10)
    assert not bench.said


async def test_not_while_nothing_is_sealed() -> None:
    bench = Bench(MemoryCounter(5))
    await bench.run(5.5, sealing=False)
    assert bench.counter.advances == 0


@pytest.mark.parametrize("how", ["before", "after"])
async def test_one_that_did_not_answer_is_asked_again(how: str) -> None:
    bench = Bench(MemoryCounter(5))
    bench.counter.fail = how
    await bench.run(2.5)
    assert (bench.counter.value, len(bench.said)) == (7, 1)


async def test_one_that_is_gone_ends_the_agent() -> None:
    bench = Bench(MemoryCounter(5))
    bench.counter.gone = True
    with pytest.raises(ExceptionGroup) as ended:
        await bench.run(3)
    assert ended.group_contains(StateError, match="does not answer")
    assert len(bench.said) == len(AGAIN_NS)


async def test_somebody_elses_count_ends_the_agent() -> None:
    bench = Bench(MemoryCounter(5))
    bench.counter.value = 8
    with pytest.raises(ExceptionGroup) as ended:
        await bench.run(3)
    assert ended.group_contains(StateError, match="somebody else counts")
