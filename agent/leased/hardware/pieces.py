# SPDX-License-Identifier: Apache-2.0
"""Pieces: a lease's allotments as work for the workers.

Rule: one memory allotment is one memfd, in the order of the lease's allotments; all cpu allotments
of a lease are one leaf. The name of a memfd carries half of the lease's id, so that an operator who
sees it in /proc knows whose it is; no more, because of a file that is registered with an io_uring
older kernels (6.1) tell only a name that is shorter than 32 bytes.

Does not do the work.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

import msgspec

from leased.hardware.calls import Create, MakeLeaf, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.sysfs import format_list
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind, Shape, capacity_id, shape_of

NORMAL_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_HANDED_OUT = Shape.MEMFD
_MEMFDS = (Shape.MEMFD, Shape.RDMA)


class Piece(msgspec.Struct, frozen=True, gc=False):
    """One memory allotment: its place among the lease's memfds and among its allotments, where it
    lives and how large."""

    index: int
    place_in_lease: int
    name: str
    allotment: Allotment
    place: Pool

    @property
    def pool(self) -> Pool | None:
        """The hugepage pool it comes from, None for normal pages."""
        return None if self.place.page_bytes == NORMAL_PAGE_BYTES else self.place

    @property
    def pages(self) -> int:
        """How many pages it is."""
        return self.allotment.capacity // self.place.page_bytes

    def create(self) -> Create:
        """The call that makes it."""
        place, allotment = self.place, self.allotment
        page_bytes = 0 if place.page_bytes == NORMAL_PAGE_BYTES else place.page_bytes
        handed = is_handed_out(allotment)
        return Create(self.name, allotment.capacity, page_bytes, place.node, handed)


@lru_cache(maxsize=1024)
def place_of(resource_id: str) -> Pool:
    """Node and page size of `mem:node<N>:<page bytes>`, or of another way to the same memory.
    Raises DeviceError."""
    head, _, rest = capacity_id(resource_id).partition(":node")
    node, _, page_bytes = rest.partition(":")
    if head != "mem" or not node.isdecimal() or not page_bytes.isdecimal():
        raise DeviceError("place", errno.EINVAL, resource_id)
    return Pool(int(node), int(page_bytes))


def is_memfd(allotment: Allotment) -> bool:
    """Whether the allotment is a memfd; a device-dax range and a budget are memory without."""
    return shape_of(allotment.resource_id) in _MEMFDS


def is_budget(allotment: Allotment) -> bool:
    """Whether the allotment is what a leaf may use of a node's memory as its own."""
    return shape_of(allotment.resource_id) is Shape.BUDGET


def is_handed_out(allotment: Allotment) -> bool:
    """Whether the holder gets the memfd. What remote peers reach is mapped by nobody here."""
    return shape_of(allotment.resource_id) is _HANDED_OUT


def memory_allotments(lease: Lease) -> list[Allotment]:
    """What of the lease is a memfd, in the order of its memfds."""
    return [one for one in lease.subject.allotments if shape_of(one.resource_id) in _MEMFDS]


def memory_pieces(lease: Lease) -> list[Piece]:
    """The lease's memory, in the order of its memfds."""
    name = f"leased-{lease.lease_id.hex()[:16]}"
    pieces: list[Piece] = []
    for in_lease, allotment in enumerate(lease.subject.allotments):
        if is_memfd(allotment):
            at, place = len(pieces), place_of(allotment.resource_id)
            pieces.append(Piece(at, in_lease, f"{name}{at:x}", allotment, place))
    return pieces


def needs_leaf(lease: Lease) -> bool:
    """Whether the leaf is made with the grant: nobody is bound, or what is leased is enforced by
    it (a cpu share, a budget, the device nodes that may be opened)."""
    return lease.pid <= 0 or not all(map(is_handed_out, lease.subject.allotments))


def leaf_call(lease: Lease, path: str, pids_max: int) -> MakeLeaf:
    """The call that makes the lease's leaf. Raises DeviceError."""
    cores = [a for a in lease.subject.allotments if a.kind is ResourceKind.CPU]
    numbers = tuple(sorted(int(a.resource_id.removeprefix("cpu:")) for a in cores))
    budgets = [a for a in lease.subject.allotments if is_budget(a)]
    nodes = sorted({place_of(a.resource_id).node for a in budgets})
    if len(nodes) > 1:
        # memory.max is one number for all nodes: neither share could be held to.
        detail = f"one lease has its budget on one node, not on {len(nodes)}"
        raise DeviceError("budget", errno.EINVAL, detail)
    return MakeLeaf(
        path,
        pids_max,
        format_list(numbers),
        sum(a.capacity for a in cores),
        sum(a.capacity for a in budgets),
        format_list(tuple(nodes)),
    )


def pool_worker(pool: Pool) -> str:
    """The name of the one worker that a pool's calls go through."""
    return f"pool {pool.node}:{pool.page_bytes}"


def worker_for(piece: Piece, small: str, config: HardwareConfig) -> str:
    """The name of the worker that a piece goes to; `small` where it is a small normal one."""
    if piece.pool is not None:
        return pool_worker(piece.pool)
    if piece.allotment.capacity <= config.bulk_bytes:
        return small
    # The least busy would need a census; the lease's id spreads well enough over a few workers.
    return f"bulk {sum(piece.name.encode('ascii')) % config.bulk_workers}"
