# SPDX-License-Identifier: Apache-2.0
"""A batch of memfds searched for, overwritten and given up, on a host that is short of a thing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Mapping, Sequence

import pytest

from leased.hardware import exclusion, verbs
from leased.hardware.calls import Batch, Pool, Scrub
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


def test_memory_is_given_up_by_a_worker_that_can_open_nothing(memory: int) -> None:
    """The truncation happens whatever went before, and the neighbour in the batch is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    neighbour = verbs.create_memory("leased-neighbour", size_bytes=4096)
    # Somebody has it, as far as the kernel tells: a child overwrites it.
    others = [exclusion.reopen(fd) for fd in (memory, neighbour)]

    def scan(
        sought: Sequence[Sought], *, exempt: Mapping[int, int], deadline_ns: int
    ) -> dict[Inode, list[Occupant]]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        return {}

    calls = [Scrub(name, 4096, None, False) for name in ("leased-search", "leased-neighbour")]
    try:
        done = scrub_batch(
            Batch(1, tuple(calls)), calls, [memory, neighbour], opens_counted=False, scan=scan
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd, cleaned in zip((memory, neighbour), done, strict=True):
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (0, 0)
        [scrub] = [step for step in cleaned.steps if step.step is TeardownStep.SCRUB]
        assert scrub.errno == errno.EMFILE and not cleaned.clean
    for fd in (neighbour, *others):
        os.close(fd)


def test_memory_is_given_up_whose_pool_cannot_be_counted(memory: int) -> None:
    """The proof asks for the counters itself."""
    nowhere = Pool(4095, 2 << 20)
    call = Scrub("leased-search", 4096, nowhere, False)
    [cleaned] = scrub_batch(
        Batch(1, (call,)), [call], [memory], opens_counted=True, scan=lambda *_, **__: {}
    )
    assert os.fstat(memory).st_size == 0 and cleaned.clean
    assert (cleaned.before, cleaned.short_pages) == (None, 0)
