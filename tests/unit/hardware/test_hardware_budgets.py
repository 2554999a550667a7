# SPDX-License-Identifier: Apache-2.0
"""A budget of memory: what its leaf is limited to, and what it takes for it to be proven back.

The leaf is a directory with the kernel's files in it; the real one is in the VM tier.
"""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from leased.hardware import cgroup
from leased.hardware.calls import CloseLeaf, MakeLeaf
from leased.hardware.pieces import is_handed_out, leaf_call, memory_pieces, needs_leaf
from leased.terms.errors import DeviceError
from leased.terms.resource import Allotment, ResourceKind, TierKind
from tests.doubles.leases import core, lease, memory

MIB = 1 << 20


def budget(capacity: int, node: int = 0) -> Allotment:
    return Allotment(f"mem:budget:node{node}:4096", ResourceKind.MEM, TierKind.DRAM, capacity)


def leaf(root: Path, *, populated: int = 0, anon: int = 0, file: int = 0) -> Path:
    """A leaf as cgroup v2 shows it to the agent."""
    path = root / "leaf"
    path.mkdir(exist_ok=True)
    (path / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    (path / "memory.stat").write_text(f"anon {anon}\nfile {file}\nkernel 94208\nshmem {file}\n")
    for name in ("memory.max", "memory.swap.max", "memory.zswap.max", "cpuset.mems"):
        (path / name).write_text("")
    return path


def test_a_budget_is_a_limit_on_one_node_and_nothing_in_swap(tmp_path: Path) -> None:
    path = leaf(tmp_path)
    one = lease(budget(64 * MIB, node=1), core(2, 500), pid=1)
    assert needs_leaf(one) and not memory_pieces(one)
    assert not any(map(is_handed_out, one.subject.allotments))
    call = leaf_call(one, str(path), 100)
    assert call == MakeLeaf(str(path), 100, "2", 500, 64 * MIB, "1")
    cgroup.make_leaf(msgspec.structs.replace(call, cpus=""))
    told = {name: (path / name).read_text().strip() for name in ("memory.max", "cpuset.mems")}
    assert told == {"memory.max": str(64 * MIB), "cpuset.mems": "1"}
    for name in ("memory.swap.max", "memory.zswap.max"):
        assert (path / name).read_text()[0] == "0"


def test_two_budgets_of_one_node_add_up_and_of_two_nodes_are_refused() -> None:
    one = lease(budget(MIB), budget(2 * MIB))
    assert leaf_call(one, "/leaf", 100).memory_bytes == 3 * MIB
    with pytest.raises(DeviceError, match="on one node"):
        leaf_call(lease(budget(MIB), budget(MIB, node=1)), "/leaf", 100)


def test_a_leaf_that_is_charged_for_leased_memory_stays(tmp_path: Path) -> None:
    path = leaf(tmp_path, anon=8192, file=4096)
    assert cgroup.close_leaf(str(path), budget=True) == (12288, 0, errno.ENOTEMPTY)
    assert (path / "memory.max").read_text()[0] == "0"
    assert path.is_dir()


def test_nothing_is_taken_back_from_somebody_who_still_lives(tmp_path: Path) -> None:
    path = leaf(tmp_path, populated=1, anon=8192)
    charged, _, removed = cgroup.close_leaf(str(path), budget=True, patience_ns=0)
    assert charged == 8192 and removed
    assert (path / "memory.max").read_text() == ""


def test_a_leaf_that_is_gone_owes_nothing(tmp_path: Path) -> None:
    assert cgroup.close_leaf(str(tmp_path / "none"), budget=True) == (0, 0, 0)
    assert CloseLeaf("x") == CloseLeaf("x", False)


def test_identical_allotments_are_told_apart() -> None:
    one = lease(budget(MIB), memory(MIB), memory(MIB), core(1))
    assert [(piece.index, piece.place_in_lease) for piece in memory_pieces(one)] == [(0, 1), (1, 2)]
