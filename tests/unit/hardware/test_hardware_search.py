# SPDX-License-Identifier: Apache-2.0
"""The search for those who still have a lease's memory, on a host that is short of processor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence

import pytest

from leased.hardware import verbs
from leased.hardware.calls import Batch, Scrub
from leased.hardware.occupants import Inode, Occupant, Sought
from leased.hardware.scrubbing import scrub_batch
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S
from leased.terms.teardown import TeardownStep


@pytest.fixture
def memory() -> Iterator[int]:
    fd = verbs.create_memory("leased-search", size_bytes=4096)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("pass_s", "failed"),
    [(0.1, 0), (2.5, 0), (4.9, 0), (5.1, errno.ETIMEDOUT), (11, errno.ETIMEDOUT)],
)
def test_the_passes_of_a_search_share_its_time(pass_s: float, failed: int, memory: int) -> None:
    """Nobody has it. Two passes must say so, in ten seconds together."""
    now_ns = 0

    def scan(
        sought: Sequence[Sought], *, exempt: Mapping[int, int], deadline_ns: int
    ) -> dict[Inode, list[Occupant]]:
        nonlocal now_ns
        now_ns += int(pass_s * NS_PER_S)
        if now_ns > deadline_ns:
            raise DeviceError("occupant_scan", errno.ETIMEDOUT)
        return {}

    call = Scrub("leased-search", 4096, None, False)
    [cleaned] = scrub_batch(
        Batch(1, (call,)), [call], [memory], opens_counted=True, scan=scan, clock=lambda: now_ns
    )
    [search] = [step for step in cleaned.steps if step.step is TeardownStep.ESCAPEE_SCAN]
    assert search.errno == failed
    assert cleaned.clean == (failed == 0)
