# SPDX-License-Identifier: Apache-2.0
"""A disk that fills under a real log: collectors, metrics and the journal are told, and told again
when there is room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leased.durable.log import OpenedLog
from leased.service.log.room import DRAIN, HEALTHY, Room, state_of
from leased.service.telling.narration import CRITICAL, NOTICE
from tests.doubles.clock import FakeClock
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import open_on

MANY = 1_000


class Host:
    """A log on a disk, so many leases, and what was said."""

    def __init__(self, opened: OpenedLog) -> None:
        self.opened, self.live = opened, 0
        self.said: list[tuple[int, str, str]] = []
        self.room = Room(
            lambda: state_of(opened, self.live), clock=FakeClock(), say=self._say
        )

    def _say(self, line: str, *, priority: int, LEASED_LOG_STATE: str) -> None:
        self.said.append((priority, LEASED_LOG_STATE, line))

    def look(self, times: int) -> list[tuple[int, str]]:
        for _ in range(times):
            self.room.look()
        told, self.said[:] = [(one, state) for one, state, _ in self.said], []
        return told


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def host(disk: MemoryDisk) -> Iterator[Host]:
    opened = open_on(disk)
    state_of(opened, 0)  # as admission asks: as many spares are wanted
    opened.journal.spares.try_fill()
    yield Host(opened)
    opened.journal.close()


def test_a_full_disk_is_told_once_and_room_again_too(host: Host, disk: MemoryDisk) -> None:
    spares = host.opened.journal.spares
    assert host.look(3) == [] and state_of(host.opened, 0) == (HEALTHY, "")
    disk.capacity, host.live = 0, MANY
    state_of(host.opened, host.live)
    spares.try_fill()
    state, why = state_of(host.opened, host.live)
    assert state == DRAIN and f"ends of {MANY} leases" in why and "no space left" in why.lower()
    assert f"free 1 MiB where {host.opened.directory} lies" in why, "and what to do"
    assert host.look(1) == [], "one look is not enough"
    assert host.look(3) == [(CRITICAL, DRAIN)]
    disk.capacity = None
    spares.try_fill()
    assert host.look(1) == []
    assert host.look(3) == [(NOTICE, HEALTHY)]


def test_what_lasts_no_longer_than_a_spare_is_made_is_not_told(host: Host) -> None:
    for _ in range(3):
        host.live += MANY
        assert host.look(1) == []
        host.opened.journal.spares.try_fill()
        assert host.look(1) == []
