# SPDX-License-Identifier: Apache-2.0
"""Memory that remote peers reach, on a real device of the kernel's (soft-RoCE), with peers that are
not ours at the other end of a cable: what they can do during the lease and cannot after it, and
what is offered where, and why not.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware import leaves
from leased.hardware.calls import Surveyed
from leased.hardware.devices import Devices
from leased.hardware.rdma import owner
from leased.hardware.rdma.calls import Peer
from leased.hardware.rdma.config import Windows
from leased.hardware.rdma.protocol import MAY_READ
from leased.terms.errors import DeviceError
from leased.terms.resource import Evidence, Health, Resource, TierKind
from leased.terms.teardown import TeardownStep
from tests.doubles.host import free_hugepages, hugepages
from tests.doubles.leases import lease
from tests.doubles.rdma_host import (
    SoftDevice,
    a_moment,
    cabled,
    is_registered,
    need_machine,
    run,
    soft_device,
)
from tests.doubles.rdma_leases import (
    HUGE,
    MS,
    NOWHERE,
    SIZE,
    hands,
    holding,
    now_ns,
    race,
    region,
    steps_of,
)
from tests.vm.guest.remote_peer import REFUSED

pytestmark = pytest.mark.vm
LIVES = int(os.environ.get("LEASED_RDMA_LIVES", "20"))
RACES = int(os.environ.get("LEASED_RDMA_RACES", "1"))
"""How often the same is tried: more of them make figures."""


@pytest.fixture(scope="module")
def cable() -> Iterator[SoftDevice]:
    with cabled() as made:
        yield made


@pytest.fixture
def device(cable: SoftDevice) -> Iterator[SoftDevice]:
    yield cable
    cable.part()


@pytest.fixture(scope="module")
def devices() -> Iterator[Devices]:
    need_machine()
    with hands() as made:
        yield made


async def seen_of(devices: Devices, device: SoftDevice) -> tuple[list[Resource], Surveyed]:
    """What is offered through the device, and the whole survey."""
    surveyed = await devices.remote.survey()
    print(*surveyed.absences, *surveyed.notes, sep="\n")
    name = f"mem:rdma-{device.guid}:"
    return [one for one in surveyed.resources if one.resource_id.startswith(name)], surveyed


# ---- what is offered, and why not ----------------------------------------------------------------


async def test_a_device_offers_the_memory_of_every_node_that_has_none(
    device: SoftDevice, devices: Devices
) -> None:
    found, _ = await seen_of(devices, device)
    assert {one.node for one in found} == {0, 1, 2}
    assert {one.granule for one in found} == {4096, HUGE}
    for one in found:
        told = dict(one.attributes)
        assert (one.tier, one.evidence) == (TierKind.REMOTE, Evidence.EMULATED)
        assert (told["device"], told["driver"], told["protocol"]) == (device.name, "rxe", "roce")
        assert told["gid"].endswith("ffff:0a09:0001") and told["windows"] == "2B"


async def test_a_library_that_is_not_there_is_named(device: SoftDevice, tmp_path: Path) -> None:
    """The real program, the dynamic linker's real answer: libibverbs is hidden from it alone."""
    [library] = Path("/usr/lib").glob("*/libibverbs.so.1")
    program = tmp_path / "leased-rdma"
    program.write_text(
        "#!/bin/sh\n"
        f"hide='mount --bind /dev/null {os.path.realpath(library)}'\n"
        f"""exec unshare -m sh -c "$hide"' && exec "$@"' sh {owner.find_program("")} "$@"\n"""
    )
    program.chmod(0o755)
    with hands(program=str(program)) as lacking:
        found, surveyed = await seen_of(lacking, device)
        assert not surveyed.resources
        [absence] = surveyed.absences
        assert absence.why.startswith("for remote peers (RDMA): ")
        assert "libibverbs" in absence.why and device.name in absence.why
        [failed] = await lacking.prepare_many([lease(region(device), pid=0)])
        assert isinstance(failed, DeviceError) and "libibverbs" in failed.detail


async def test_a_device_that_the_operator_did_not_name_is_named_as_left_out(
    device: SoftDevice,
) -> None:
    with hands(devices=(device.far,)) as devices:
        found, surveyed = await seen_of(devices, device)
        assert not found and surveyed.resources
        assert any(device.name in note and "not named in" in note for note in surveyed.notes)


async def test_a_port_that_goes_down_is_sick_and_recovers(devices: Devices) -> None:
    with soft_device("rxesick") as mine:
        for link, health in (("up", Health.OK), ("down", Health.SICK), ("up", Health.OK)):
            run("ip", "link", "set", mine.link, link)
            with trio.fail_after(20):
                while {one.health for one in (await seen_of(devices, mine))[0]} != {health}:
                    await a_moment()


# ---- a lease's life ------------------------------------------------------------------------------


async def test_a_peer_writes_and_reads_until_the_lease_ends(
    device: SoftDevice, devices: Devices
) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        [access] = held.prepared.access
        assert access.name == "LEASE_RDMA"
        told = dict(part.split("=") for part in access.value.split(";")[1:])
        assert (told["device"], told["address"], told["length"]) == (device.name, "0", str(SIZE))
        connection = await held.connect(peer)
        key = connection.rkeys[0]
        written = os.urandom(4096)
        assert peer.write(key, written, 8192) == 0
        read = peer.ask("read", address=8192, key=key, length=4096)
        assert (read["status"], read["data"]) == (0, written.hex())
        with mmap.mmap(held.prepared.fds[0], SIZE, prot=mmap.PROT_READ) as seen:
            assert seen[8192 : 8192 + 4096] == written, "it is the lease's memory"
        steps = await devices.withdraw(held.lease)
        assert [step.step for step in steps] == [
            *[TeardownStep.OBJECT_REVOKE] * 3,
            TeardownStep.RELEASE,
        ]
        assert not any(step.errno for step in steps)
        assert steps[0].measured == 1, "one window, invalidated by its own completion"
        assert steps[1].measured == SIZE and steps[2].measured == 1, "the memory, a queue pair"
        assert peer.read(key, 8192) in REFUSED
        held.kill()
        scrub = await held.scrub()
        assert scrub.clean and scrub.scrubbed_bytes == SIZE
        proof = await held.prove()
        assert not proof.unproven
        [witness] = steps_of(proof, TeardownStep.WITNESS)
        assert (witness.errno, witness.measured) == (0, 0), "the kernel lists nothing of it"
        assert not os.path.exists(held.prepared.cgroup)


@pytest.mark.parametrize("windows", [Windows.AUTO, Windows.NEVER])
async def test_no_read_goes_through_that_is_posted_after_the_first_step(
    device: SoftDevice, windows: Windows
) -> None:
    """Windows invalidated, or queue pairs stopped: the steps that follow find nobody remote."""
    with hands(windows=windows) as devices:
        found, _ = await seen_of(devices, device)
        open_keys = ["2B" in " ".join(one.limits) for one in found]
        assert all(open_keys) if windows is Windows.NEVER else not any(open_keys)
        for _ in range(RACES):
            peer = device.peer()
            async with holding(devices, region(device)) as held:
                await race(peer, await held.connect(peer))
                began_ns = now_ns()
                steps = await devices.withdraw(held.lease)
                told = await trio.to_thread.run_sync(peer.answer)
                assert not any(step.errno for step in steps)
                assert len(steps) == (4 if windows is Windows.AUTO else 3)
                assert told["status"] in REFUSED and told["reads"] >= 3
                assert told["posted_ns"] <= steps[0].ended_ns
                end_ns = steps[-2].ended_ns
                print(
                    f"{windows}: asked->deregistered {(end_ns - began_ns) / MS:.2f} ms,"
                    f" steps {[(s.ended_ns - s.began_ns) / MS for s in steps]} ms,"
                    f" last byte {(told['last_ns'] - steps[0].began_ns) / MS:+.2f} ms,"
                    f" failure {(told['failed_ns'] - steps[0].began_ns) / MS:+.2f} ms"
                    f" after the first step began, {(told['failed_ns'] - end_ns) / MS:+.2f} ms"
                    f" after the registration's end; status {told['status']}"
                )
                held.kill()
                await held.reclaim()


async def test_a_killed_leaf_ends_access_with_nobody_asked(
    device: SoftDevice, devices: Devices
) -> None:
    """The reaper's cut, the agent dead: the kernel ends the objects of whoever is killed."""
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        began_ns, gone_ns = held.kill()
        told = await trio.to_thread.run_sync(peer.answer)
        assert told["status"] in REFUSED
        assert told["posted_ns"] <= gone_ns
        print(
            f"killed in {(gone_ns - began_ns) / MS:.2f} ms; last byte"
            f" {(told['last_ns'] - began_ns) / MS:+.2f} ms after it began"
        )
        await held.reclaim()


async def test_hugepages_come_back_and_are_counted(device: SoftDevice, devices: Devices) -> None:
    with hugepages(4):
        free = free_hugepages()
        peer = device.peer()
        async with holding(devices, region(device, 2 * HUGE, HUGE)) as held:
            key = (await held.connect(peer)).rkeys[0]
            assert peer.write(key, b"\xa5" * 512, 2 * HUGE - 512) == 0
            assert free_hugepages() == free - 2
            held.kill()
            await held.reclaim()
        assert free_hugepages() == free


async def test_several_regions_of_a_lease_have_a_key_each(
    device: SoftDevice, devices: Devices
) -> None:
    peer = device.peer()
    async with holding(devices, region(device), region(device, 4 * SIZE)) as held:
        one, other = (await held.connect(peer)).rkeys
        assert peer.write(other, b"\x5a" * 16, 3 * SIZE) == 0
        assert peer.write(one, b"\x5a" * 16, 3 * SIZE) in REFUSED
        held.kill()
        await held.reclaim()


# ---- who may what --------------------------------------------------------------------------------


async def test_a_peer_that_may_only_read_cannot_write(device: SoftDevice, devices: Devices) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        key = (await held.connect(peer, MAY_READ)).rkeys[0]
        assert peer.read(key) == 0
        assert peer.write(key, b"\xff" * 8) in REFUSED
        with mmap.mmap(held.prepared.fds[0], SIZE, prot=mmap.PROT_READ) as seen:
            assert seen[:8] == bytes(8)
        held.kill()
        await held.reclaim()


async def test_a_key_is_worth_nothing_on_another_connection(
    device: SoftDevice, devices: Devices
) -> None:
    one, other = device.peer(), device.peer()
    async with holding(devices, region(device)) as held:
        key = (await held.connect(one)).rkeys[0]
        await held.connect(other)
        assert other.read(key) in REFUSED
        assert one.read(key) == 0
        held.kill()
        await held.reclaim()


async def test_a_disconnected_peer_is_out_and_the_others_stay(
    device: SoftDevice, devices: Devices
) -> None:
    one, other = device.peer(), device.peer()
    async with holding(devices, region(device)) as held:
        first, second = await held.connect(one), await held.connect(other)
        await devices.remote.disconnect(held.lease, held.guid, first.qp_number)
        assert one.read(first.rkeys[0]) in REFUSED
        assert other.read(second.rkeys[0]) == 0
        held.kill()
        await held.reclaim()


async def test_the_leaf_may_make_no_more_than_its_owner_needs(
    device: SoftDevice, devices: Devices
) -> None:
    async with holding(devices, region(device)) as held:
        leaf = Path(held.prepared.cgroup)
        assert f"{device.name} hca_handle=1 " in (leaf / "rdma.max").read_text()
        assert f"{device.name} hca_handle=1 " in (leaf / "rdma.current").read_text()
        inside = f"{leaves.inside(held.prepared.cgroup)}/cgroup.procs"
        done = subprocess.run(
            ["sh", "-c", f"echo $$ >{inside}; exec ibv_rc_pingpong -d {device.name} -g 1"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode != 0, "a second context was opened in the lease's leaf"
        held.kill()
        await held.reclaim()


async def test_everybody_who_uses_a_device_is_named(device: SoftDevice, devices: Devices) -> None:
    here = device.peer(here=True)
    async with holding(devices, region(device)) as held:
        found = await devices.remote.holders(region(device))
        assert {one.pid for one in found} == {held.owner_pid, here.process.pid}
        assert {(one.pid, one.via) for one in found} >= {
            (held.owner_pid, "driver"),
            (held.owner_pid, "fd"),
        }
        assert all(one.name for one in found)
        held.kill()
        await held.reclaim()


# ---- what fails, and what is lost on the way: nothing --------------------------------------------


async def test_a_grant_that_fails_leaves_nothing(device: SoftDevice, devices: Devices) -> None:
    before = device.counts()
    wanted = lease(region(device), NOWHERE, pid=0)
    [failed] = await devices.prepare_many([wanted])
    assert isinstance(failed, DeviceError), failed
    assert "no RDMA device 9999" in failed.detail, "the second part's failure, not the first's"
    assert device.counts() == before
    root = (await devices.facts()).path
    assert not os.path.exists(f"{root}/{wanted.subject.cgroup}")


async def test_a_device_that_is_removed_under_a_lease_is_gone_when_its_owner_is(
    devices: Devices,
) -> None:
    with soft_device("rxegone") as mine:
        async with holding(devices, region(mine)) as held:
            removal = subprocess.Popen(["rdma", "link", "delete", mine.name])
            with trio.fail_after(20):
                while is_registered(mine.name):
                    await a_moment()
            assert not (await seen_of(devices, mine))[0]
            asked = await devices.remote.prove(held.lease, held.lease.subject.allotments)
            assert asked.unproven, "it is on its way out, and somebody holds it"
            held.kill()
            assert removal.wait(20) == 0, "it waited for the owner"
            await held.reclaim()


async def test_random_lives_leave_every_count_as_it_was(
    device: SoftDevice, devices: Devices
) -> None:
    """A thousand of them are the long form."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    await devices.warm()
    async with holding(devices, region(device)) as first:
        first.kill()
        await first.reclaim()
    objects, fds = device.counts(), len(os.listdir("/proc/self/fd"))
    root = (await devices.facts()).path
    for _ in range(LIVES):
        parts = [region(device, 4096 * dice.randint(1, 8)) for _ in range(dice.randint(1, 3))]
        if dice.random() < 0.3:
            [failed] = await devices.prepare_many([lease(*parts, NOWHERE, pid=0)])
            assert isinstance(failed, DeviceError)
            continue
        async with holding(devices, *parts) as held:
            for number in range(dice.randint(0, 3)):
                peer = Peer("0" * 20 + "ffff0a090002", 0, 4000 + number, 1, 0, MAY_READ)
                await devices.remote.connect(held.lease, held.guid, peer)
            if dice.random() < 0.5:
                await devices.withdraw(held.lease)
            held.kill()
            await held.reclaim()
    assert device.counts() == objects
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not [entry for entry in os.scandir(root) if entry.is_dir()], "leaves are left"
