# SPDX-License-Identifier: Apache-2.0
"""Who uses what, put together from all that can be seen; whose lease a process is in its cgroup
says, or that a lease is bound to it, not whoever found it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from leased.hardware.calls import Pool
from leased.hardware.usage.carrying import User
from leased.ports import Holder
from leased.service.custody import Custodian
from leased.service.occupancy import Occupancy
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.backend import failed
from tests.doubles.leases import lease, memory

NODE0 = "mem:node0:4096"
HUGE = "mem:node1:2097152"
GPU = Allotment("gpu:GPU-0", ResourceKind.GPU, None, 1000)
ME = os.getpid()


class SeenEyes:
    """What a test lets be seen."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Holder, ...]] = {}
        self.users_seen: list[User] = []
        self.broken: set[str] = set()
        self.asked: list[tuple[list[str], list[Pool]]] = []

    async def users(
        self, memfds: Sequence[tuple[int, int, str]], pools: Sequence[Pool]
    ) -> tuple[User, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append(([name for _, _, name in memfds], list(pools)))
        return tuple(self.users_seen)

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        await trio.lowlevel.checkpoint()
        if allotment.resource_id in self.broken:
            raise failed("nvml")
        return self.seen.get(allotment.resource_id, ())


class Scene:
    """Leases with a leaf each, and what is seen of them."""

    def __init__(self, directory: Path) -> None:
        self.eyes = SeenEyes()
        self.custodian = Custodian()
        self.leases: list[Lease] = []
        self._directory = directory
        self.occupancy = Occupancy(
            custodian=self.custodian, live_leases=lambda: self.leases, devices=self.eyes
        )

    def add(self, one: Lease, *, inside: Sequence[int] = ()) -> Lease:
        """A live lease, with its memfds and these processes in its leaf."""
        leaf = self._directory / one.subject.cgroup
        leaf.mkdir()
        (leaf / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in inside))
        pieces = [a for a in one.subject.allotments if a.kind is ResourceKind.MEM]
        names = (f"leased-{one.lease_id.hex()}-{at}" for at in range(len(pieces)))
        fds = tuple(os.memfd_create(name) for name in names)
        self.custodian.keep(one.lease_id, fds, str(leaf), None)
        self.leases.append(one)
        return one


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def ways(found: Sequence[Holder]) -> list[tuple[str, int, str, bytes | None]]:
    return [(one.resource_id, one.pid, one.via, one.lease_id) for one in found]


async def test_a_lease_is_used_by_whoever_is_inside_bound_or_has_its_memory(scene: Scene) -> None:
    one = scene.add(lease(memory(4096), pid=ME), inside=[ME])
    name = f"leased-{one.lease_id.hex()}-0"
    thief = ME + 1
    scene.eyes.users_seen = [User(thief, 1000, "thief", memfd=name)]
    found = await scene.occupancy.scan([NODE0])
    assert ways(found) == [
        (NODE0, ME, "bound", one.lease_id),
        (NODE0, ME, "cgroup", one.lease_id),
        (NODE0, thief, "memory", one.lease_id),
    ]
    assert scene.eyes.asked == [([name], [])], "one look for everything"


async def test_what_was_not_asked_for_is_not_told(scene: Scene) -> None:
    scene.add(lease(memory(4096), pid=ME), inside=[ME])
    assert await scene.occupancy.scan(["cpu:1"]) == ()
    assert not scene.eyes.asked


async def test_memory_had_in_another_way_is_that_nodes_memory(scene: Scene) -> None:
    budget = Allotment("mem:budget:node0:4096", ResourceKind.MEM, None, 4096)
    scene.add(lease(budget, pid=0), inside=[ME])
    found = await scene.occupancy.scan([NODE0, "mem:budget:node0:4096"])
    assert [one.resource_id for one in found] == ["mem:budget:node0:4096", NODE0]


async def test_pages_of_a_pool_are_seen_without_a_lease(scene: Scene) -> None:
    scene.eyes.users_seen = [User(4242, 0, "dpdk", pool=Pool(1, 2 << 20))]
    found = await scene.occupancy.scan([HUGE])
    assert ways(found) == [(HUGE, 4242, "pages", None)]
    assert scene.eyes.asked == [([], [Pool(1, 2 << 20)])]


async def test_what_a_backend_sees_is_put_to_the_lease_whose_leaf_it_is_in(scene: Scene) -> None:
    """This process is in a cgroup of this host; a lease that has that cgroup's name is it."""
    with open("/proc/self/cgroup", encoding="ascii") as lines:
        path = next(line for line in lines if line.startswith("0::")).strip()
    part = path.rpartition("/")[2]
    mine = Holder(ME, 0, "me", "fd")
    mount = Holder(0, 0, "/mnt", "mount")
    scene.eyes.seen[GPU.resource_id] = (mine, mount)
    found = await scene.occupancy.scan([GPU.resource_id])
    assert ways(found) == [
        (GPU.resource_id, 0, "mount", None),
        (GPU.resource_id, ME, "fd", None),
    ]
    if part:
        scene.add(lease(GPU, cgroup=part))
        found = await scene.occupancy.scan([GPU.resource_id])
        assert found[1].lease_id == scene.leases[0].lease_id


async def test_a_backend_that_cannot_say_is_no_empty_answer(scene: Scene) -> None:
    scene.eyes.broken.add(GPU.resource_id)
    with pytest.raises(DeviceError):
        await scene.occupancy.scan([NODE0, GPU.resource_id])


async def test_who_a_lease_is_bound_to_has_what_it_has_by_that_lease(scene: Scene) -> None:
    """A namespace's descriptor is handed to a process that need not be in the leaf."""
    other = Allotment("gpu:GPU-1", ResourceKind.GPU, None, 1000)
    one = scene.add(lease(GPU, pid=ME))
    scene.eyes.seen[GPU.resource_id] = (Holder(ME, 0, "me", "fd"), Holder(ME + 1, 0, "it", "fd"))
    scene.eyes.seen[other.resource_id] = (Holder(ME, 0, "me", "fd"),)
    found = await scene.occupancy.scan([GPU.resource_id, other.resource_id])
    assert ways(found) == [
        (GPU.resource_id, ME, "bound", one.lease_id),
        (GPU.resource_id, ME, "fd", one.lease_id),
        (GPU.resource_id, ME + 1, "fd", None),
        (other.resource_id, ME, "fd", None),
    ]
