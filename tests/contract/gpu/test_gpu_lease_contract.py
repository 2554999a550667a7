# SPDX-License-Identifier: Apache-2.0
"""Every promise about a GPU's lease, kept over the mock driver with real nodes, leaves and filters:
who gets in, who gets out, what is found and what is proven."""

from __future__ import annotations

import errno
import os
import pwd
import sys
from pathlib import Path

import msgspec
import pytest

from leased.hardware.config import EscapeePolicy
from leased.hardware.devices import Devices
from leased.terms.errors import DeviceError
from leased.terms.lease import RevocationReason
from leased.terms.resource import Evidence, Health, Inventory, Resource, ResourceKind
from leased.terms.teardown import TeardownStep
from tests.doubles.gpu_host import (
    Holder,
    cut,
    failures,
    gpu_devices,
    gpu_lease,
    grant,
    reclaim,
    start,
    step_of,
)
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.quiet

GIB = 1 << 30
CLOSED, OPEN = "2", "0"


def gpus_of(inventory: Inventory) -> dict[str, Resource]:
    return {r.resource_id: r for r in inventory.resources if r.kind is ResourceKind.GPU}


def mode(machine: Machine, gpu: int = 0) -> str:
    return machine.show(gpu)["compute_mode"]


# ---- inventory -----------------------------------------------------------------------------------


async def test_every_gpu_is_offered_by_uuid_and_says_that_it_is_emulated(
    machine: Machine, devices: Devices
) -> None:
    found = gpus_of(await devices.inventory())
    assert set(found) == {f"gpu:{machine.uuid(0)}", f"gpu:{machine.uuid(1)}"}
    for one in found.values():
        assert one.evidence is Evidence.EMULATED and one.health is Health.OK
        assert one.capacity == one.granule == 1000
    told = dict(found[f"gpu:{machine.uuid(0)}"].attributes)
    assert told["model"].startswith("NVIDIA H100") and told["pci"] == "0000:1a:00.0"
    assert told["nvlink"] == machine.uuid(1)


async def test_a_link_that_leads_to_nobody_we_know_is_no_fault(
    machine: Machine, devices: Devices
) -> None:
    machine.command("link 0 0 2 -1")
    found = gpus_of(await devices.inventory())[f"gpu:{machine.uuid(0)}"]
    assert found.health is Health.OK and dict(found.attributes)["nvlink"] == machine.uuid(1)


async def test_the_same_look_twice_is_the_same_inventory(devices: Devices) -> None:
    await start(devices)
    assert await devices.inventory() == await devices.inventory()


async def test_what_is_nobodys_is_closed_and_a_reloaded_driver_does_not_open_it(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    assert [mode(machine, gpu) for gpu in (0, 1)] == [CLOSED, CLOSED]
    machine.driver_unload()
    absent = await devices.inventory()
    assert not gpus_of(absent)
    assert any(a.kind is ResourceKind.GPU for a in absent.absences)
    machine.driver_load()
    assert len(gpus_of(await devices.inventory())) == 2
    assert [mode(machine, gpu) for gpu in (0, 1)] == [CLOSED, CLOSED]


# ---- a lease -------------------------------------------------------------------------------------


async def test_a_lease_opens_its_gpu_to_its_leaf_and_to_nobody_else(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    assert (mode(machine, 0), mode(machine, 1)) == (OPEN, CLOSED)
    told = {access.name: access.value for access in made.access}
    assert told["CUDA_VISIBLE_DEVICES"] == machine.uuid(0)
    with Holder("hold", 2 * GIB, made=made) as holder:
        holder.ready()
        assert [process.pid for process in machine.processes(0)] == [holder.pid]
        assert holder.ask(str(machine.node(0))) == "opened"
        assert holder.ask(str(machine.node(1))) == os.strerror(errno.EPERM)
        tools = machine.root / "dev/nvidia-uvm-tools"
        assert holder.ask(str(tools)) == os.strerror(errno.EPERM)
        cut(made)
        assert holder.gone()
    scrub, proof = await reclaim(devices, one)
    assert proof.unproven == () and failures(proof) == set()
    assert scrub.scrubbed_bytes > 78 * GIB
    assert machine.dirty(0) == 0 and mode(machine, 0) == CLOSED
    assert not os.path.exists(made.cgroup)
    assert list((machine.root / "mps").iterdir()) == []


async def test_holders_are_named_lease_or_no_lease(machine: Machine, devices: Devices) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder("hold", GIB, made=made) as holder:
        holder.ready()
        found = await devices.census.holders(one.subject.allotments[0])
        assert {(h.pid, h.via) for h in found} == {(holder.pid, "fd"), (holder.pid, "driver")}
        assert {h.uid for h in found} == {65534}
    cut(made)
    await reclaim(devices, one)
    assert await devices.census.holders(one.subject.allotments[0]) == ()


async def test_two_gpus_of_one_lease_are_seen_in_order_and_proven_apart(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 1, 0)
    made = await grant(devices, one)
    visible = [a.value for a in made.access if a.name == "CUDA_VISIBLE_DEVICES"]
    assert visible == [machine.uuid(1), machine.uuid(0)]
    cut(made)
    machine.ghost(0, 4_000_000, GIB)
    _, proof = await reclaim(devices, one)
    assert [a.resource_id for a in proof.unproven] == [f"gpu:{machine.uuid(0)}"]
    assert (TeardownStep.WITNESS, errno.ESRCH) in failures(proof)


async def test_a_free_gpu_lets_nobody_make_a_context(machine: Machine, devices: Devices) -> None:
    await start(devices)
    with Holder("hold", GIB, uid=0) as outsider:
        assert outsider.line() == "", "it could not"


async def test_a_gpu_that_is_in_use_is_not_opened_and_its_user_lives(
    machine: Machine, devices: Devices
) -> None:
    with Holder("open", path=str(machine.node(0))) as outsider:
        outsider.ready()
        await start(devices)
        one = gpu_lease(machine, 0)
        [failed] = await devices.prepare_many([one])
        assert isinstance(failed, DeviceError) and failed.errno == errno.EBUSY
        assert str(outsider.pid) in failed.detail
        ended = msgspec.structs.replace(one, reason=RevocationReason.GRANT_FAILED)
        _, proof = await reclaim(devices, ended)
        assert proof.unproven == () and outsider.ask() == "1"
    await grant(devices, gpu_lease(machine, 0))


async def test_a_second_lease_of_the_same_gpu_finds_what_the_first_left_only_if_it_was_scrubbed(
    machine: Machine, devices: Devices
) -> None:
    machine.set(0, scrub_on_free=0)
    await start(devices)
    for _ in range(2):
        one = gpu_lease(machine, 0)
        made = await grant(devices, one)
        with Holder("hold", 4 * GIB, made=made) as holder:
            holder.ready()
            cut(made)
        scrub, proof = await reclaim(devices, one)
        assert proof.unproven == () and machine.dirty(0) == 0
        assert step_of(scrub, TeardownStep.READ_BACK).errno == 0
    [seen] = [r for r in gpus_of(await devices.inventory()).values() if r.limits]
    assert "does not clear memory" in seen.limits[0]


# ---- holders that do not want to leave -----------------------------------------------------------


@pytest.mark.parametrize("trick", ["hold", "reopen", "fork"])
async def test_who_ignores_everything_is_cut_and_proven(
    machine: Machine, devices: Devices, trick: str
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder(trick, 8 * GIB, made=made) as holder:
        holder.ready()
        cut(made)
        assert holder.gone()
    _, proof = await reclaim(devices, one)
    assert proof.unproven == () and machine.processes(0) == []


@pytest.mark.parametrize(("policy", "fenced"), [("kill", False), ("fence", True)])
async def test_a_descriptor_passed_out_of_the_lease(
    machine: Machine, policy: str, fenced: bool
) -> None:
    with gpu_devices(machine, escapees=EscapeePolicy(policy)) as devices:
        await start(devices)
        one = gpu_lease(machine, 0)
        made = await grant(devices, one)
        door = str(machine.root / "door")
        with Holder("receive", path=door) as friend:
            assert friend.line() == "listening"
            with Holder("pass", GIB, door, made=made) as holder:
                holder.ready()
                friend.ready()
                cut(made)
            _, proof = await reclaim(devices, one)
            assert bool(proof.unproven) is fenced
            assert friend.gone(0 if fenced else 10) is not fenced
            if fenced:
                assert (TeardownStep.ESCAPEE_SCAN, errno.EBUSY) in failures(proof)
                # The driver lists a process that is dead as long as its context lives.
                assert (TeardownStep.WITNESS, errno.ESRCH) in failures(proof)
                assert mode(machine) == CLOSED


@pytest.mark.parametrize("trick", ["open", "ring"])
async def test_whoever_has_the_node_outside_of_every_lease_is_found_and_ended(
    machine: Machine, devices: Devices, trick: str
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder(trick, path=str(machine.node(0))) as stranger:
        stranger.ready()
        via = "fd" if trick == "open" else "ring"
        found = await devices.census.holders(one.subject.allotments[0])
        assert [(h.pid, h.via) for h in found] == [(stranger.pid, via)]
        cut(made)
        scrub, proof = await reclaim(devices, one)
        assert stranger.gone() and proof.unproven == ()
        assert step_of(scrub, TeardownStep.ESCAPEE_SCAN).measured == 1


async def test_an_operator_with_the_gpu_open_is_not_killed_but_the_gpu_is_fenced(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder("open", path=str(machine.node(0)), uid=0) as operator:
        operator.ready()
        cut(made)
        _, proof = await reclaim(devices, one)
        assert proof.unproven == one.subject.allotments
        assert failures(proof) == {(TeardownStep.ESCAPEE_SCAN, errno.EBUSY)}
        assert operator.ask() == "1"


async def test_the_daemon_that_keeps_the_driver_is_neither_in_the_way_nor_ended(
    machine: Machine,
) -> None:
    """Its packages run it as a user of its own, with every GPU open."""
    name = Path(sys.executable).name
    with gpu_devices(machine, gpu_guests=(f"{name}@nobody",)) as devices:
        await start(devices)
        one = gpu_lease(machine, 0)
        with (
            Holder("open", path=str(machine.node(0)), uid=pwd.getpwnam("nobody").pw_uid) as daemon,
            Holder("open", path=str(machine.node(0)), uid=pwd.getpwnam("daemon").pw_uid) as other,
        ):
            daemon.ready()
            other.ready()
            [refused] = await devices.prepare_many([one])
            assert isinstance(refused, DeviceError) and str(other.pid) in refused.detail
            assert str(daemon.pid) not in refused.detail
            other.process.kill()
            other.process.wait()
            made = await grant(devices, one)
            cut(made)
            _, proof = await reclaim(devices, one)
            assert proof.unproven == () and daemon.ask() == "1"


# ---- adoption, and the driver let go -------------------------------------------------------------


async def test_work_that_runs_already_comes_under_a_lease_of_its_gpu(
    machine: Machine, devices: Devices
) -> None:
    """A stranger on the GPU keeps everybody out; adopted, it is the one who may be there, and ends
    with its lease."""
    await start(devices)
    machine.set(0, compute_mode=int(OPEN))
    with Holder("hold", GIB) as work:
        work.ready()
        resource = gpus_of(await devices.inventory())[f"gpu:{machine.uuid(0)}"]
        assert resource.health is Health.BUSY
        stranger = gpu_lease(machine)
        [refused] = await devices.prepare_many([stranger])
        assert isinstance(refused, DeviceError) and refused.errno == errno.EBUSY
        one = gpu_lease(machine)
        pidfd = os.pidfd_open(work.pid)
        devices.adoptions.want((one.subject.uid, one.command_id), work.pid, pidfd)
        made = await grant(devices, one)
        devices.adoptions.settle((one.subject.uid, one.command_id), one.lease_id)
        os.close(pidfd)
        assert not work.gone(0), "it goes on"
        cut(made)
        assert work.gone()
    _, proof = await reclaim(devices, one)
    assert not failures(proof) and proof.unproven == ()


async def test_a_driver_that_is_let_go_has_nobody_of_ours_in_it(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    machine.set(0, compute_mode=int(OPEN))
    with Holder("hold", GIB) as stranger:
        stranger.ready()
        held = await devices.let_go(ResourceKind.GPU)
        assert [one.pid for one in held] == [stranger.pid]
    assert await devices.let_go(ResourceKind.GPU) == ()
    before = gpus_of(await devices.inventory())
    assert len(before) == 2, "what it last said"
    assert await devices.let_go(ResourceKind.GPU) == (), "and no look opened anything"
    await devices.take_up(ResourceKind.GPU)
    assert len(gpus_of(await devices.inventory())) == 2
