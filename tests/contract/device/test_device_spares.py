# SPDX-License-Identifier: Apache-2.0
"""Spares: workers that wait are given away once, replaced, and gone with the crew."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from leased.hardware.block.calls import Nothing
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.spares import Spares
from leased.terms.errors import DeviceError

ENDS_S = 20


@pytest.fixture
def spares() -> Iterator[Spares]:
    one = Spares()
    yield one
    one.close()


def test_a_spare_is_given_once_and_followed_by_the_next(spares: Spares) -> None:
    spares.keep("block", 2)
    first, second = spares.pids
    taken = [spares.take("block") for _ in range(3)]
    assert [one.process.pid for one in taken[:2]] == [first, second]
    assert len({one.process.pid for one in taken}) == 3
    assert len(spares.pids) == 2 and not set(spares.pids) & {one.process.pid for one in taken}
    for one in taken:
        one.sock.close()
        assert one.process.wait(ENDS_S) == 0


def test_a_spare_that_has_ended_is_not_given(spares: Spares) -> None:
    spares.keep("block", 1)
    [killed] = spares.pids
    pidfd = os.pidfd_open(killed)
    os.kill(killed, signal.SIGKILL)
    assert select.select([pidfd], [], [], ENDS_S)[0]
    os.close(pidfd)
    taken = spares.take("block")
    assert taken.process.pid != killed and taken.process.poll() is None
    taken.sock.close()
    taken.process.wait(ENDS_S)


def test_what_nobody_keeps_is_started_when_it_is_asked_for(spares: Spares) -> None:
    taken = spares.take("")
    assert spares.pids == ()
    taken.sock.close()
    assert taken.process.wait(ENDS_S) == 0


async def test_a_crew_gives_its_spares_to_who_asks_first_and_ends_them() -> None:
    crew = Crew(HardwareConfig())
    crew.keep_spares("block", 1)
    try:
        [waiting] = crew.spare_pids
        await crew.task("somebody", "block", "stand ready", Nothing(), Nothing)
        assert waiting in [pid for pid, _ in crew.ours()]
        [left] = crew.spare_pids
        with pytest.raises(DeviceError, match="nothing of the kind"):
            await crew.task("another", "nothing of the kind", "", Nothing(), Nothing)
        assert crew.spare_pids == (left,)
    finally:
        crew.close()
    assert not os.path.exists(f"/proc/{left}")
