# SPDX-License-Identifier: Apache-2.0
"""MIG devices as leases, over the mock driver: two tenants of one GPU, apart by capabilities."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from leased.hardware.devices import Devices
from leased.hardware.gpu.backend import GpuBackend
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease, Priority
from leased.terms.resource import Allotment, Resource, ResourceKind
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

pytestmark = pytest.mark.quiet

GIB = 1 << 30
ONE_SLICE, TWO_SLICES = 0, 1


@pytest.fixture
def machine() -> Iterator[Machine]:
    with mock_machine(["H100"], mig={0: True}) as one:
        yield one


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


# ---- instances made for each lease ---------------------------------------------------------------

LAYOUT = ("3g.40gb@4", "1g.10gb@0", "1g.10gb@1", "2g.20gb@0", "9g.90gb@0")


@pytest.fixture
def makers(machine: Machine) -> Iterator[Devices]:
    with gpu_devices(machine, gpu_mig_layout=LAYOUT, gpu_mig_budget_ns=1_000_000_000) as real:
        yield real


def place(machine: Machine, name: str) -> str:
    return f"MIG-{machine.uuid(0)}/{name}"


async def test_places_that_the_gpu_can_have_together_are_offered(
    machine: Machine, makers: Devices
) -> None:
    found = await makers.inventory()
    offered = {r.resource_id: r.capacity for r in found.resources if r.kind is ResourceKind.GPU}
    assert offered == {
        f"gpu:{place(machine, '3g.40gb@4')}": 428,
        f"gpu:{place(machine, '1g.10gb@0')}": 142,
        f"gpu:{place(machine, '1g.10gb@1')}": 142,
    }
    assert any("overlaps 1g.10gb@0" in note for note in found.notes)
    assert any("has no such place" in note for note in found.notes)


async def test_an_instance_is_made_for_its_lease_and_is_gone_with_it(
    machine: Machine, makers: Devices
) -> None:
    await start(makers)
    assert make_instances(0) == []
    one = mig_lease(place(machine, "3g.40gb@4"), 428)
    made = await grant(makers, one)
    [uuid] = make_instances(0)
    told = {access.name: access.value for access in made.access}
    assert told["CUDA_VISIBLE_DEVICES"] == uuid
    with Holder("hold", 4 * GIB, made=made) as holder:
        holder.ready()
        cut(made)
    _, proof = await reclaim(makers, one)
    assert proof.unproven == () and failures(proof) == set()
    assert make_instances(0) == [] and machine.dirty(0) == 0
    # The same end again finds nothing, and says so.
    _, proof = await reclaim(makers, one)
    assert proof.unproven == ()


async def test_a_place_is_proven_clean_beside_a_neighbour_who_computes_on(
    machine: Machine, makers: Devices
) -> None:
    """Of a GPU with instances the driver does not say whether rows of its memory wait for a reset;
    before the first one is made, it does."""
    await start(makers)
    limits = [one.limits for one in (await makers.inventory()).resources]
    first = mig_lease(place(machine, "1g.10gb@0"), 142)
    second = mig_lease(place(machine, "3g.40gb@4"), 428)
    made, other = await grant(makers, first), await grant(makers, second)
    with (
        Holder("hold", GIB, made=made) as ending,
        Holder("hold", GIB, made=other) as neighbour,
    ):
        ending.ready()
        neighbour.ready()
        cut(made)
        _, proof = await reclaim(makers, first)
        assert failures(proof) == set() and proof.unproven == ()
        assert neighbour.ask() == "1"
        assert [one.limits for one in (await makers.inventory()).resources] == limits
        cut(other)
    _, proof = await reclaim(makers, second)
    assert failures(proof) == set() and proof.unproven == ()


async def test_an_instance_in_use_is_tried_again_and_then_fences_its_place_alone(
    machine: Machine, makers: Devices
) -> None:
    await start(makers)
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    cut(await grant(makers, one))
    machine.mig_in_use(0, 3)
    _, proof = await reclaim(makers, one)
    assert proof.unproven == (), "it was let go within the budget"
    again = mig_lease(place(machine, "1g.10gb@0"), 142)
    cut(await grant(makers, again))
    machine.mig_in_use(0, 1000)
    _, proof = await reclaim(makers, again)
    assert proof.unproven == again.subject.allotments
    assert failures(proof) == {(TeardownStep.OBJECT_REVOKE, errno.EBUSY)}
    machine.mig_in_use(0, 0)
    other = mig_lease(place(machine, "1g.10gb@1"), 142)
    cut(await grant(makers, other))
    assert (await reclaim(makers, other))[1].unproven == ()


async def test_what_an_agent_left_is_taken_away_by_the_next(machine: Machine) -> None:
    one = mig_lease(place(machine, "1g.10gb@1"), 142)
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as first:
        await start(first)
        cut(await grant(first, one))
        assert len(make_instances(0)) == 1
        os.rmdir(f"{(await first.facts()).path}/{one.subject.cgroup}")
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as second:
        await second.inventory()
        await second.adopt((one,))
        assert len(make_instances(0)) == 1, "a lease that goes on keeps its own"
        assert (await reclaim(second, one))[1].unproven == ()
        assert make_instances(0) == []
        cut(await grant(second, mig_lease(place(machine, "1g.10gb@0"), 142)))
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as third:
        await start(third)
        assert make_instances(0) == [], "nobody's"


HALF_MADE = """
import ctypes, sys
import pynvml as n
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
told = n.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0)
where = n.c_nvmlGpuInstancePlacement_t(0, 1)
n.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, told.id, ctypes.byref(where))
"""
COUNTED = """
import ctypes, pynvml as n
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
told, count = n.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0), ctypes.c_uint(0)
found = (n.c_nvmlGpuInstance_t * told.instanceCount)()
n.nvmlDeviceGetGpuInstances(gpu, told.id, found, ctypes.byref(count))
print(count.value)
"""


async def test_an_instance_that_was_half_made_is_taken_away(machine: Machine) -> None:
    """Killed between its two parts, an agent leaves a GPU instance that no MIG device is of. The
    end of its lease saw it, and did nothing about it, however often it was asked."""

    def instances() -> int:
        return int(subprocess.check_output([sys.executable, "-c", COUNTED]))

    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    subprocess.run([sys.executable, "-c", HALF_MADE], check=True)
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as second:
        await second.inventory()
        await second.adopt((one,))
        assert make_instances(0) == [] and instances() == 1
        _, proof = await reclaim(second, one)
        assert proof.unproven == (), failures(proof)
        assert instances() == 0


async def test_a_device_that_was_not_seen_is_not_taken_for_half_of_one(
    machine: Machine, makers: Devices
) -> None:
    """Nothing of it was released or overwritten: that is no end of a lease."""
    await start(makers)
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    cut(await grant(makers, one))
    [backend] = [each for each in makers._backends if isinstance(each, GpuBackend)]
    backend._fleet.place(one.subject.allotments[0].resource_id, None)
    _, proof = await reclaim(makers, one)
    assert failures(proof) == {(TeardownStep.OBJECT_REVOKE, errno.EBUSY)}
    await makers.inventory()
    assert make_instances(0) == [], "it is nobody's now"
    assert (await reclaim(makers, one))[1].unproven == ()


async def test_a_place_whose_lease_ends_for_later_is_granted(machine: Machine) -> None:
    """With `scrub_later` the GPU was to be overwritten before the first grant of a place, which
    nobody can who has no instance: there was no grant, ever."""
    later = {"gpu_scrub_later": (Priority.STANDARD,)}
    with gpu_devices(machine, gpu_mig_layout=LAYOUT, **later) as makers:
        await start(makers)
        one = mig_lease(place(machine, "1g.10gb@0"), 142)
        cut(await grant(makers, one))
        assert (await reclaim(makers, one))[1].unproven == ()
        marked = [r.resource_id for r in (await makers.inventory()).resources if is_later(r)]
        assert marked and one.subject.allotments[0].resource_id not in marked


# ---- what no log knows to be clean ---------------------------------------------------------------

LEFT = 4 << 20


def is_later(resource: Resource) -> bool:
    """Whether it says that it is overwritten at its next grant."""
    return ("scrub", "later") in resource.attributes


async def test_what_is_left_where_a_place_is_made_is_overwritten_before_anybody_has_it(
    machine: Machine, makers: Devices
) -> None:
    """A log that was replaced while a tenant had the memory, under whatever layout: the next tenant
    of the place read it."""
    assert machine.residue(0, 0, LEFT) == LEFT
    await start(makers)
    places = [r for r in (await makers.inventory()).resources if r.kind is ResourceKind.GPU]
    assert all(map(is_later, places))
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    made = await grant(makers, one)
    assert machine.dirty(0) == 0
    with Holder("hold", 4 * GIB, made=made) as holder:
        holder.ready()
        cut(made)
    assert (await reclaim(makers, one))[1].unproven == ()
    clean = [r for r in (await makers.inventory()).resources if not is_later(r)]
    named = [r.resource_id for r in clean if r.kind is ResourceKind.GPU]
    assert named == [one.subject.allotments[0].resource_id]
    # What this run has overwritten it does not overwrite again.
    machine.residue(0, 0, LEFT)
    await grant(makers, mig_lease(place(machine, "1g.10gb@0"), 142))
    assert machine.dirty(0) == LEFT


async def test_the_next_run_overwrites_a_place_whatever_the_log_says(machine: Machine) -> None:
    """An agent that was killed when it had destroyed the instance, and before it said so, leaves an
    end to the next that finds nothing there and overwrites nothing."""
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as first:
        await start(first)
        cut(await grant(first, one))
        assert (await reclaim(first, one))[1].unproven == ()
        sealed = await first.inventory()
    machine.residue(0, 0, LEFT)
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as second:
        second.recall((one,), sealed)
        await second.inventory()
        await second.adopt((one,))
        assert (await reclaim(second, one))[1].unproven == () and machine.dirty(0) == LEFT
        sealed = await second.inventory()
    with gpu_devices(machine, gpu_mig_layout=LAYOUT) as third:
        third.recall((), sealed)
        await start(third)
        await grant(third, mig_lease(place(machine, "1g.10gb@0"), 142))
        assert machine.dirty(0) == 0


async def test_a_place_is_overwritten_after_an_end_that_failed(
    machine: Machine, makers: Devices
) -> None:
    """Its instance stayed in use, and was taken away when that was over: whoever used it may have
    written there after the scrub."""
    await start(makers)
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    cut(await grant(makers, one))
    machine.mig_in_use(0, 1000)
    _, proof = await reclaim(makers, one)
    assert proof.unproven == one.subject.allotments
    machine.residue(0, 0, LEFT)
    machine.mig_in_use(0, 0)
    await makers.inventory()
    assert make_instances(0) == []
    assert (await reclaim(makers, one))[1].unproven == (), "the same end again, by an operator"
    await grant(makers, mig_lease(place(machine, "1g.10gb@0"), 142))
    assert machine.dirty(0) == 0


async def test_work_that_is_adopted_finds_nothing_in_its_place(
    machine: Machine, makers: Devices
) -> None:
    """What an earlier tenant left on a whole GPU it may have seen already; a place it never had."""
    await start(makers)
    machine.residue(0, 0, LEFT)
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as work:
        pidfd = os.pidfd_open(work.pid)
        makers.adoptions.want((one.subject.uid, one.command_id), work.pid, pidfd)
        made = await grant(makers, one)
        makers.adoptions.settle((one.subject.uid, one.command_id), one.lease_id)
        os.close(pidfd)
        assert machine.dirty(0) == 0
        cut(made)
    assert (await reclaim(makers, one))[1].unproven == ()


async def test_a_place_that_cannot_be_overwritten_is_no_grant(
    machine: Machine, makers: Devices
) -> None:
    await start(makers)
    machine.fault("cuMemsetD32_v2", "return:999")
    [failed] = await makers.prepare_many([mig_lease(place(machine, "1g.10gb@0"), 142)])
    assert isinstance(failed, DeviceError)
    assert make_instances(0) == []
    machine.clear()
    await grant(makers, mig_lease(place(machine, "1g.10gb@0"), 142))


async def test_a_grant_that_fails_leaves_no_instance(machine: Machine, makers: Devices) -> None:
    await start(makers)
    machine.fault("nvmlDeviceGetMemoryInfo_v2", "return:999")
    one = mig_lease(place(machine, "1g.10gb@0"), 142)
    [failed] = await makers.prepare_many([one])
    assert isinstance(failed, DeviceError)
    assert make_instances(0) == []
