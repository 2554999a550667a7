# SPDX-License-Identifier: Apache-2.0
"""Laws of the canaries: the same for whoever asks again, spread, and each unlike any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leased.hardware.block.canaries import BLOCK_BYTES, content, places
from leased.hardware.block.contents import LOOK_BYTES
from leased.hardware.block.erasing import inner_places

SEEDS = st.binary(min_size=17, max_size=48)
SIZES = st.integers(1, 1 << 45).map(lambda blocks: blocks * 512)
COUNTS = st.integers(2, 300)


@given(SEEDS, SIZES, COUNTS)
def test_places_are_whole_blocks_of_the_device_ascending_and_the_same_again(
    seed: bytes, size_bytes: int, count: int
) -> None:
    found = places(seed, size_bytes, count)
    assert found == places(seed, size_bytes, count)
    assert list(found) == sorted(set(found)) and len(found) <= count
    assert all(at % BLOCK_BYTES == 0 and at + BLOCK_BYTES <= size_bytes for at in found)


@given(SEEDS, st.integers(1 << 20, 1 << 45), COUNTS)
def test_every_part_of_the_device_has_one(seed: bytes, size_bytes: int, count: int) -> None:
    blocks = size_bytes // BLOCK_BYTES
    found = [at // BLOCK_BYTES for at in places(seed, size_bytes, count)]
    if blocks <= count:
        assert found == list(range(blocks))
        return
    assert found[0] == 0 and found[-1] == blocks - 1
    for part in range(count - 2):
        begin, end = blocks * part // (count - 2), blocks * (part + 1) // (count - 2)
        assert any(begin <= at < end for at in found)


@given(SEEDS, st.integers(1, 1 << 30), COUNTS)
def test_inner_places_stay_away_from_the_edges(seed: bytes, size_bytes: int, count: int) -> None:
    size_bytes *= BLOCK_BYTES
    for at in inner_places(seed, size_bytes, count):
        assert at >= LOOK_BYTES and at + BLOCK_BYTES <= size_bytes - LOOK_BYTES


@given(SEEDS, SEEDS, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_contents_differ_by_lease_and_by_place(a: bytes, b: bytes, here: int, there: int) -> None:
    block = content(a, here)
    assert len(block) == BLOCK_BYTES and block == content(a, here)
    assert (block == content(b, there)) == ((a, here) == (b, there))
    assert len(set(block)) > 128, "nothing that a drive could squeeze"
