# SPDX-License-Identifier: Apache-2.0
"""Leaves with rooms of ours and of a holder who is root: directories are all it takes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from leased.hardware import leaves


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    made = tmp_path / "leaf"
    made.mkdir()
    return made


def test_rooms_in_rooms_go_with_the_leaf(leaf: Path) -> None:
    (leaf / "below" / "lower" / "lowest").mkdir(parents=True)
    (leaf / "below" / "beside").mkdir()
    leaves.make_room(str(leaf), "rdma-0")
    leaves.remove(str(leaf))
    assert not leaf.exists()


def test_a_room_with_somebody_in_it_stays(leaf: Path) -> None:
    (leaf / "below" / "lower").mkdir(parents=True)
    (leaf / "below" / "lower" / "somebody").touch()
    with pytest.raises(OSError, match="not empty"):
        leaves.remove(str(leaf))
    assert (leaf / "below" / "lower").exists()


def test_who_makes_rooms_without_end_costs_a_bounded_time(leaf: Path) -> None:
    deep = leaf
    for _ in range(leaves.ROOMS_MAX + 1):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(OSError, match="rooms") as refused:
        leaves.remove(str(leaf))
    assert refused.value.errno == errno.EBUSY and deep.exists()


def test_a_room_is_ours_by_its_name(leaf: Path) -> None:
    room = leaves.make_room(str(leaf), "rdma-0")
    (leaf / "below").mkdir()
    (leaf / "cgroup.procs").touch()
    assert leaves.owners(str(leaf)) == [room]
    assert leaves.inside(str(leaf)) == f"{leaf}/{leaves.INSIDE}"
