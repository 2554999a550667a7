# SPDX-License-Identifier: Apache-2.0
"""MIG devices as leases, over the mock driver: two tenants of one GPU, apart by capabilities."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import msgspec
import pytest

from leased.hardware.devices import Devices
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind
from leased.terms.teardown import TeardownStep
from tests.doubles.gpu_host import (
    Holder,
    cut,
    failures,
    gpu_devices,
    grant,
    make_instances,
    mock_machine,
    reclaim,
    start,
)
from tests.doubles.leases import lease
from tests.mocks.nvml.control import Machine

GIB = 1 << 30
ONE_SLICE, TWO_SLICES = 0, 1


@pytest.fixture
def machine() -> Iterator[Machine]:
    with mock_machine(["H100"], mig={0: True}) as one:
        yield one


@pytest.fixture
def devices(machine: Machine) -> Iterator[Devices]:
    with gpu_devices(machine) as real:
        yield real


def mig_lease(uuid: str, share: int) -> Lease:
    return lease(Allotment(f"gpu:{uuid}", ResourceKind.GPU, None, share), pid=0)


async def test_instances_are_offered_by_their_share_and_their_gpu_is_not(
    machine: Machine, devices: Devices
) -> None:
    found = await devices.inventory()
    assert not [r for r in found.resources if r.kind is ResourceKind.GPU]
    assert any("no MIG device" in note for note in found.notes)
    uuids = make_instances(0, ONE_SLICE, TWO_SLICES)
    offered = {
        r.resource_id: (r.capacity, dict(r.attributes)["mig"])
        for r in (await devices.inventory()).resources
        if r.kind is ResourceKind.GPU
    }
    assert set(offered) == {f"gpu:{uuid}" for uuid in uuids}
    assert sorted(offered.values()) == [(142, "1g.10gb"), (285, "2g.20gb")]


async def test_two_tenants_of_one_gpu_have_each_their_own_part(
    machine: Machine, devices: Devices
) -> None:
    first, second = make_instances(0, ONE_SLICE, ONE_SLICE)
    await start(devices)
    one, other = mig_lease(first, 142), mig_lease(second, 142)
    made, also = await grant(devices, one), await grant(devices, other)
    with Holder("hold", GIB, made=made) as a, Holder("hold", GIB, made=also) as b:
        a.ready()
        b.ready()
        caps = machine.root / "dev/nvidia-caps"
        said = {
            name: (a.ask(str(caps / name)), b.ask(str(caps / name))) for name in os.listdir(caps)
        }
        # Read-only capabilities refuse read-write to their owners, too: what each may read differs.
        assert all("opened" not in pair for pair in said.values())
        cut(made)
        assert a.gone()
        _, proof = await reclaim(devices, one)
        assert proof.unproven == (), failures(proof)
        assert b.ask() == "1", "the neighbour has not noticed"
        cut(also)
    _, proof = await reclaim(devices, other)
    assert proof.unproven == () and machine.dirty(0) == 0


async def test_the_wrong_instance_is_not_even_seen(machine: Machine, devices: Devices) -> None:
    first, second = make_instances(0, ONE_SLICE, ONE_SLICE)
    await start(devices)
    made = await grant(devices, mig_lease(first, 142))
    stolen = tuple(
        msgspec.structs.replace(a, value=second) if a.name == "CUDA_VISIBLE_DEVICES" else a
        for a in made.access
    )
    with Holder("hold", GIB, made=msgspec.structs.replace(made, access=stolen)) as thief:
        assert thief.line() == "", "it made a context on its neighbour's part"


async def test_an_instance_that_is_gone_proves_nothing(machine: Machine, devices: Devices) -> None:
    [uuid] = make_instances(0, ONE_SLICE)
    await start(devices)
    one = mig_lease(uuid, 142)
    cut(await grant(devices, one))
    machine.lose(0)
    _, proof = await reclaim(devices, one)
    assert proof.unproven == one.subject.allotments
    assert failures(proof) == {(TeardownStep.RELEASE, errno.ENODEV)}
