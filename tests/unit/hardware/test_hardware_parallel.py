# SPDX-License-Identifier: Apache-2.0
"""A large overwrite is shared by cores: the parts cover everything once; one failure is told."""

from __future__ import annotations

import errno
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.hardware.parallel import PART_BYTES_MIN, share, split
from leased.hardware.verbs import Scrubbed
from leased.terms.errors import DeviceError

PAGE = 4096
ALIGNS = st.sampled_from([2 << 20, 1 << 30])


@settings(derandomize=True)
@given(st.integers(1, 40 << 20), ALIGNS, st.integers(1, 16))
def test_the_parts_cover_everything_once_and_begin_with_pages(
    pages: int, align_bytes: int, threads: int
) -> None:
    size = pages * PAGE
    parts = split(size, align_bytes, threads)
    assert 1 <= len(parts) <= threads
    assert all(at % align_bytes == 0 and length > 0 for at, length in parts)
    ends = [at + length for at, length in parts]
    assert [0, *ends[:-1]] == [at for at, _ in parts] and ends[-1] == size


def test_little_is_one_part() -> None:
    assert split(PAGE, 2 << 20, 8) == [(0, PAGE)]
    assert len(split(2 * PART_BYTES_MIN, 2 << 20, 8)) == 2


def test_what_the_parts_did_adds_up() -> None:
    def verb(at: int, length: int) -> Scrubbed:
        return Scrubbed(length, 8 if at == 0 else 0)

    size = 3 * PART_BYTES_MIN + PAGE
    assert share(verb, size, 2 << 20) == Scrubbed(size, 8)


def test_one_part_that_fails_fails_all_after_all_have_ended() -> None:
    ended: list[int] = []

    def verb(at: int, length: int) -> Scrubbed:
        ended.append(at)
        if at == 0:
            raise DeviceError("mem_scrub", errno.EIO)
        return Scrubbed(length, 0)

    size = 4 * PART_BYTES_MIN
    with pytest.raises(DeviceError) as caught:
        share(verb, size, 2 << 20)
    assert caught.value.errno == errno.EIO
    assert sum(1 for _ in ended) >= 1


def test_where_no_thread_is_to_be_had_it_is_done_by_one() -> None:
    """The unit's limit of tasks, or no memory for a stack."""
    done: list[tuple[int, int]] = []

    def verb(at: int, length: int) -> Scrubbed:
        done.append((at, length))
        return Scrubbed(length, 0)

    size = 4 * PART_BYTES_MIN
    before = threading.stack_size(1 << 46)
    try:
        assert share(verb, size, 2 << 20) == Scrubbed(size, 0)
    finally:
        threading.stack_size(before)
    assert sum(length for _, length in done) == size
