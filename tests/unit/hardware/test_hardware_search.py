# SPDX-License-Identifier: Apache-2.0
"""The search for those who still have a lease's memory, on a host that is short of processor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from leased.hardware import occupants, scrubbing, verbs
from leased.hardware.calls import Batch, Scrub
from leased.hardware.occupants import Inode, Occupant
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
def test_the_passes_of_a_search_share_its_time(
    pass_s: float, failed: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it. Two passes must say so, in ten seconds together."""
    now_ns = [0]

    def scan(*_: object, deadline_ns: int, **__: object) -> dict[Inode, list[Occupant]]:
        now_ns[0] += int(pass_s * NS_PER_S)
        if now_ns[0] > deadline_ns:
            raise DeviceError("occupant_scan", errno.ETIMEDOUT)
        return {}

    monkeypatch.setattr(scrubbing, "_now_ns", lambda: now_ns[0])
    monkeypatch.setattr(occupants, "scan", scan)
    call = Scrub("leased-search", 4096, None, False)
    [cleaned] = scrubbing.scrub_batch(Batch(1, (call,)), [call], [memory], opens_counted=True)
    [search] = [step for step in cleaned.steps if step.step is TeardownStep.ESCAPEE_SCAN]
    assert search.errno == failed
    assert cleaned.clean == (failed == 0)
