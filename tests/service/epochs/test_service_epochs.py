# SPDX-License-Identifier: Apache-2.0
"""Epochs in time, with a real ratchet and a clock that jumps."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import trio

from leased.chain.epochs import EpochKey, Ratchet
from leased.service.log.epochs import Epochs
from leased.terms.command import Command, Heartbeat
from leased.terms.moment import NS_PER_S
from tests.doubles.clock import FakeClock

pytestmark = pytest.mark.autojump

MINUTE = 60 * NS_PER_S


class Bench:
    """The task, and a commit that seals when a batch comes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ratchet = Ratchet(b"l" * 16, None, EpochKey(0, b"k" * 32), MINUTE)
        assert not self.ratchet.due(self.clock.now())
        self.submitted: list[Command] = []
        self.forgotten: list[int] = []
        self.published: list[str] = []
        self.said: list[str] = []
        self.fault: OSError | None = None
        self.full: OSError | None = None
        self.epochs = Epochs(
            ratchet=self.ratchet,
            clock=self.clock,
            submit=self._submit,
            forget=self._forget,
            sign=lambda: f"head of epoch {self.ratchet.key.epoch}",
            publish=self._publish,
            say=self.said.append,
            aside=_at_once,
        )

    def _submit(self, command: Command) -> None:
        self.submitted.append(command)
        moment = self.clock.now()
        if self.ratchet.due(moment):
            self.ratchet.seal(b"e" * 16, 1, b"r" * 32, moment)
            self.epochs.end()

    def _forget(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.forgotten.append(self.ratchet.key.epoch)

    def _publish(self, note: str) -> None:
        if self.full is not None:
            raise self.full
        self.published.append(note)


async def _at_once(call: Callable[..., None], *arguments: object) -> None:
    await trio.lowlevel.checkpoint()
    call(*arguments)


async def test_every_epoch_is_sealed_though_nothing_happens() -> None:
    bench = Bench()
    with trio.move_on_after(60 * 3.5):
        await bench.epochs.run()
    assert [type(command) for command in bench.submitted] == [Heartbeat] * 3
    assert bench.forgotten == [1, 2, 3]
    assert bench.published == [f"head of epoch {epoch}" for epoch in (1, 2, 3)]


async def test_a_key_that_cannot_be_forgotten_ends_the_agent() -> None:
    bench = Bench()
    bench.fault = OSError(errno.EIO, "the disk says no")
    with pytest.raises(ExceptionGroup) as ended:
        await bench.epochs.run()
    assert ended.group_contains(OSError, match="the disk says no")


async def test_a_full_disk_keeps_the_note_away_and_nothing_else() -> None:
    bench = Bench()
    bench.full = OSError(errno.ENOSPC, "no space")
    with trio.move_on_after(60 * 2.5):
        await bench.epochs.run()
    assert bench.forgotten == [1, 2] and not bench.published
    assert len(bench.said) == 2 and "no space" in bench.said[0]
