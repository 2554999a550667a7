# SPDX-License-Identifier: Apache-2.0
"""Pools of hugepages that become larger or smaller without a notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from leased.hardware.calls import Counted, Pool
from leased.hardware.instant import now_ns
from leased.hardware.resizing import EVERY_NS, LOOK_NS, POOLS, Resizing
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, Resource, ResourceKind, TierKind

PAGE_BYTES = 2 << 20
POOL = Pool(0, PAGE_BYTES)
SEEN = Resource("mem:node0:2097152", ResourceKind.MEM, TierKind.DRAM, 8 * PAGE_BYTES, PAGE_BYTES)


def make_pool(root: Path, *, pages: int, surplus: int = 0) -> None:
    place = root / POOLS / "hugepages-2048kB"
    place.mkdir(parents=True, exist_ok=True)
    (place / "nr_hugepages").write_text(f"{pages}\n")
    (place / "surplus_hugepages").write_text(f"{surplus}\n")


@pytest.mark.autojump
async def test_a_pool_of_another_size_is_a_reason_to_look_and_surplus_pages_are_none(
    tmp_path: Path,
) -> None:
    looks: list[float] = []
    make_pool(tmp_path, pages=8)
    async with trio.open_nursery() as nursery:
        resizing = Resizing({}, tmp_path)
        nursery.start_soon(resizing.watch, lambda: looks.append(trio.current_time()))
        await trio.sleep(0.1)
        make_pool(tmp_path, pages=11, surplus=3)
        await trio.sleep(10 * EVERY_NS / NS_PER_S)
        assert not looks
        for pages in (6, 30, 0):
            make_pool(tmp_path, pages=pages)
            await trio.sleep(10 * EVERY_NS / NS_PER_S)
        assert len(looks) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
@pytest.mark.parametrize("shape", ["mem:node0:2097152", "mem:rdma-0001:node0:2097152"])
async def test_what_a_pool_could_not_give_is_told_and_looked_at_if_it_is_another_size(
    shape: str, tmp_path: Path
) -> None:
    looks: list[float] = []
    asked = Allotment(shape, ResourceKind.MEM, TierKind.DRAM, 4 * PAGE_BYTES)
    async with trio.open_nursery() as nursery:
        resizing = Resizing({SEEN.resource_id: SEEN}, tmp_path)
        nursery.start_soon(resizing.watch, lambda: looks.append(trio.current_time()))
        await trio.sleep(0.1)
        assert resizing.explain(asked, POOL, Counted(8, 4)) is None, "there are enough"
        taken = resizing.explain(asked, POOL, Counted(8, 1))
        assert taken is not None and taken.again_ns is None and not looks, "others have them"
        smaller = resizing.explain(asked, POOL, Counted(6, 1))
        assert smaller is not None and len(looks) == 1
        numbers = (smaller.resource_id, smaller.limit, smaller.usage, smaller.requested)
        assert numbers == (shape, 6 * PAGE_BYTES, 5 * PAGE_BYTES, 4 * PAGE_BYTES)
        assert smaller.again_ns is not None and 0 < smaller.again_ns - now_ns() <= LOOK_NS
        nursery.cancel_scope.cancel()
