# SPDX-License-Identifier: Apache-2.0
"""Hugepages that a tenant gives up while it holds them (a hole punched in its memfd), and takes
again: what comes and goes so is taken for nobody else's pages, and costs no other lease."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from leased.hardware.devices import Devices
from tests.doubles.host import (
    HUGEPAGE_BYTES,
    foreign_hugepages,
    free_hugepages,
    handed,
    hugepages,
    real_devices,
)
from tests.doubles.tenant import tenant
from tests.hostile.pools import fenced_pages, grant, huge

FOREIGN = 4
KEEP_SIZE_AND_PUNCH = 0x01 | 0x02
HELD = 4
POOL_PAGES = FOREIGN + HELD + 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@pytest.fixture
def devices() -> Iterator[Devices]:
    with hugepages(POOL_PAGES), foreign_hugepages(FOREIGN), real_devices() as real:
        yield real


def punch(fd: int) -> None:
    """Give up every page."""
    assert _libc.fallocate(fd, KEEP_SIZE_AND_PUNCH, 0, HELD * HUGEPAGE_BYTES) == 0


def take_again(fd: int) -> None:
    """Have every page again."""
    with mmap.mmap(fd, HELD * HUGEPAGE_BYTES) as view:
        for at in range(HELD):
            view[at * HUGEPAGE_BYTES] = 1


async def test_a_hole_that_comes_and_goes_has_no_page_of_anybody_fenced(devices: Devices) -> None:
    """Its pages were taken for foreign ones that had come back. When it took them again, those were
    missing: whoever ended next was fenced for them, as often as one liked."""
    before = free_hugepages()
    puncher = huge(HELD)
    made = await grant(devices, puncher)
    [fd] = handed(devices, puncher, made.fds)
    fenced = []
    for _ in range(3):
        witness, victim = huge(2), huge(2)
        punch(fd)
        fenced.append(await fenced_pages(devices, witness, await grant(devices, witness)))
        take_again(fd)
        fenced.append(await fenced_pages(devices, victim, await grant(devices, victim)))
    os.close(fd)
    fenced.append(await fenced_pages(devices, puncher, made))
    assert fenced == [0] * len(fenced)
    assert free_hugepages() == before


async def test_foreign_pages_that_come_back_are_believed_beside_whole_leases() -> None:
    """Or they would hide as many that somebody keeps."""
    with hugepages(POOL_PAGES), real_devices() as devices:
        with foreign_hugepages(FOREIGN):
            beside, pinner = huge(HELD), huge(2)
            made, pinned = await grant(devices, beside), await grant(devices, pinner)
        with tenant("second:pipe_page", handed(devices, pinner, pinned.fds)) as holder:
            holder.cut()
            assert await fenced_pages(devices, pinner, pinned) == 1
        assert await fenced_pages(devices, beside, made) == 0
