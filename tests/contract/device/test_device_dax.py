# SPDX-License-Identifier: Apache-2.0
"""Device-dax leases on the real kernel: granted clean, reached by node and descriptor, taken back
for good, proven by another worker."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware.dax.config import DaxConfig
from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, Resource, Shape, TierKind, shape_of
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import dax_range, handed, real_devices
from tests.doubles.leases import lease

pytestmark = pytest.mark.vm
NOBODY = 65534
OFFER = DaxConfig(offer=True, persistent=True)


@pytest.fixture
def node() -> Iterator[Path]:
    with dax_range() as path:
        yield path


@pytest.fixture
def devices(node: Path) -> Iterator[Devices]:
    with real_devices(dax=OFFER) as real:
        yield real


async def offered(devices: Devices) -> Resource:
    inventory = await devices.inventory()
    [one] = [r for r in inventory.resources if shape_of(r.resource_id) is Shape.DAX]
    return one


def whole(resource: Resource) -> Lease:
    allotment = Allotment(resource.resource_id, resource.kind, resource.tier, resource.capacity)
    return lease(allotment)


async def grant(devices: Devices, one: Lease) -> Prepared:
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    return made


async def reclaim(devices: Devices, one: Lease) -> tuple[ScrubReport, ProofReport]:
    [scrub] = await devices.scrub_many([(one, ())])
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport), (scrub, proof)
    return scrub, proof


def write(path: Path, text: bytes, at: int = 0) -> None:
    """Through a mapping, as anybody must."""
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 2 << 20, offset=at) as view:
            view[: len(text)] = text
    finally:
        os.close(fd)


def read(path: Path, count: int, at: int = 0) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 2 << 20, offset=at, prot=mmap.PROT_READ) as view:
            return view[:count]
    finally:
        os.close(fd)


async def test_a_range_is_offered_whole(devices: Devices, node: Path) -> None:
    one = await offered(devices)
    assert one.tier is TierKind.PMEM and one.capacity == one.granule > 48 << 20
    assert dict(one.attributes)["device"] == node.name
    inventory = await devices.inventory()
    normal = [r for r in inventory.resources if r.resource_id == f"mem:node{one.node}:4096"]
    assert normal and normal[0].tier is not TierKind.PMEM, "the node's own memory is another's"


async def test_a_lease_begins_clean_and_ends_clean(devices: Devices, node: Path) -> None:
    resource = await offered(devices)
    last = resource.capacity - (2 << 20)
    write(node, b"of the host")
    write(node, b"of the host", last)
    one = whole(resource)
    made = await grant(devices, one)
    assert made.fds == () and made.cgroup
    path = Path(next(a.value for a in made.access if a.name == "LEASE_DAX_0"))
    assert read(path, 11) == read(path, 11, last) == bytes(11)
    status = path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o600)
    [fd] = handed(devices, one, ())
    with mmap.mmap(fd, 2 << 20, offset=last) as view:
        view[:6] = b"secret"
    os.close(fd)
    scrub, proof = await reclaim(devices, one)
    assert scrub.clean and scrub.scrubbed_bytes == resource.capacity
    assert proof.unproven == () and all(step.errno == 0 for step in proof.steps), proof
    assert {s.step for s in proof.steps} >= {TeardownStep.RELEASE, TeardownStep.WITNESS}
    assert read(node, 6, last) == bytes(6) and node.stat().st_uid == 0
    assert not os.path.exists(made.cgroup)

    # The next lease is granted without overwriting again, to the same range.
    two = whole(resource)
    again = await grant(devices, two)
    assert [a.name for a in again.access if a.resource_id == resource.resource_id]
    _, proof = await reclaim(devices, two)
    assert proof.unproven == ()


async def test_a_range_that_somebody_uses_is_not_granted(devices: Devices, node: Path) -> None:
    resource = await offered(devices)
    pid = os.fork()
    if pid == 0:
        fd = os.open(node, os.O_RDWR)
        mmap.mmap(fd, 2 << 20)
        os.kill(os.getpid(), 19)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        [refused] = await devices.prepare_many([whole(resource)])
        assert isinstance(refused, DeviceError) and str(pid) in refused.detail, refused
        holders = await devices.census.holders(whole(resource).subject.allotments[0])
        assert pid in [one.pid for one in holders]
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    one = whole(resource)
    await grant(devices, one)
    _, proof = await reclaim(devices, one)
    assert proof.unproven == ()


async def test_a_lease_of_an_earlier_run_is_taken_back(devices: Devices, node: Path) -> None:
    resource = await offered(devices)
    one = whole(resource)
    await grant(devices, one)
    write(node, b"secret")
    with real_devices(dax=OFFER, cgroup_root=f"leased-test-{os.getpid()}-next") as restarted:
        await restarted.adopt([one])
        assert [a.name for a in await restarted.access(one)] == ["LEASE_DAX_0"]
        scrub, proof = await reclaim(restarted, one)
    assert scrub.scrubbed_bytes == resource.capacity and proof.unproven == ()


async def test_a_proof_without_a_scrub_proves_nothing(devices: Devices, node: Path) -> None:
    one = whole(await offered(devices))
    await grant(devices, one)
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(proof, ProofReport) and proof.unproven == one.subject.allotments
    _, proof = await reclaim(devices, one)
    assert proof.unproven == ()


async def test_where_it_is_not_offered_nothing_is_looked_at(node: Path) -> None:
    with real_devices() as devices:
        inventory = await devices.inventory()
        assert not any(shape_of(r.resource_id) is Shape.DAX for r in inventory.resources)
        assert any("offer = false" in absence.why for absence in inventory.absences)
