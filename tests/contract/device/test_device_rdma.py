# SPDX-License-Identifier: Apache-2.0
"""Memory that remote peers reach, on a real device of the kernel's (soft-RoCE), with a peer that is
not ours: what they can do during the lease and cannot after it, what is proven, and what is fenced.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio

from leased.hardware import leaves, verbs
from leased.hardware.devices import Devices
from leased.hardware.rdma import owner
from leased.hardware.rdma.calls import Connection, Peer
from leased.hardware.rdma.config import RdmaConfig, Windows
from leased.hardware.rdma.protocol import MAY_READ, MAY_WRITE
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.resource import (
    Allotment,
    Health,
    Resource,
    ResourceKind,
    Shape,
    TierKind,
    shape_of,
)
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import free_hugepages, hugepages, real_devices
from tests.doubles.leases import lease
from tests.doubles.rdma_host import (
    FLUSHED,
    REMOTE_ACCESS,
    RETRIES_EXCEEDED,
    RemotePeer,
    SoftDevice,
    is_registered,
    run,
    soft_device,
)

pytestmark = pytest.mark.vm
REFUSED = (REMOTE_ACCESS, RETRIES_EXCEEDED, FLUSHED)
SIZE = 1 << 20
HUGE = 2 << 20
MS = 1_000_000
FAILURE_NS = 10 * MS
"""From the end of a registration to the last byte that a peer gets."""


NOWHERE = Allotment("mem:rdma-" + "9" * 16 + ":node0:4096", ResourceKind.MEM, None, SIZE)
"""By way of a device that is not there."""


@pytest.fixture(scope="module")
def device() -> Iterator[SoftDevice]:
    with soft_device() as made:
        yield made


@contextmanager
def hands(**rdma: object) -> Iterator[Devices]:
    """Devices with these settings of `[hardware.rdma]`. An emulated machine is slow to withdraw."""
    told = {"withdraw_budget_ns": 60_000 * MS, **rdma}
    with real_devices(rdma=RdmaConfig(**told)) as devices:  # type: ignore[arg-type]
        yield devices


@pytest.fixture
def devices() -> Iterator[Devices]:
    with hands() as made:
        yield made


def region(device: SoftDevice, size_bytes: int = SIZE, page_bytes: int = 4096) -> Allotment:
    """So much of node 0, by way of the device."""
    resource_id = f"mem:rdma-{device.guid}:node0:{page_bytes}"
    return Allotment(resource_id, ResourceKind.MEM, TierKind.REMOTE, size_bytes)


class Held:
    """A prepared lease."""

    def __init__(self, devices: Devices, of: Lease, prepared: Prepared) -> None:
        self.devices, self.lease, self.prepared = devices, of, prepared

    @property
    def guid(self) -> str:
        return self.lease.subject.allotments[0].resource_id.split(":")[1].removeprefix("rdma-")

    @property
    def room(self) -> str:
        return owner.room_of(self.prepared.cgroup, self.guid)

    @property
    def owner_pid(self) -> int:
        [pid] = owner.members(self.room)
        return pid

    async def connect(self, peer: RemotePeer, access: int = MAY_READ | MAY_WRITE) -> Connection:
        """Both ends of a connection."""
        end = peer.end
        asked = Peer(
            end["gid"].replace(":", ""), 0, end["qp_number"], end["packet_number"], 0, access
        )
        ours = await self.devices.remote.connect(self.lease, self.guid, asked)
        gid = ours.owner.gid
        spelled = ":".join(gid[at : at + 4] for at in range(0, 32, 4))
        peer.ask("connect", gid=spelled, qp_number=ours.qp_number, packet_number=ours.psn, mtu=1024)
        return ours

    def kill(self) -> tuple[int, int]:
        """What the reaper does at the deadline; (began, everybody gone), boottime ns."""
        began_ns = now_ns()
        try:
            leaf = os.open(self.prepared.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return began_ns, began_ns  # reclaimed
        try:
            verbs.deny_devices(leaf)
            verbs.freeze_cgroup(leaf)
            verbs.kill_cgroup(leaf, timeout_ms=5000)
        finally:
            os.close(leaf)
        return began_ns, now_ns()

    async def scrub(self) -> ScrubReport:
        [report] = await self.devices.scrub_many([(self.lease, self.prepared.fds)])
        assert isinstance(report, ScrubReport), report
        return report

    async def prove(self) -> ProofReport:
        [report] = await self.devices.prove_many([(self.lease, self.prepared.fds)])
        assert isinstance(report, ProofReport), report
        return report

    async def reclaim(self) -> None:
        """After the cut: clean and proven."""
        scrub = await self.scrub()
        assert scrub.clean, scrub
        assert scrub.scrubbed_bytes == sum(a.capacity for a in self.lease.subject.allotments)
        proof = await self.prove()
        assert not proof.unproven, proof

    def close(self) -> None:
        for fd in self.prepared.fds:
            os.close(fd)


@asynccontextmanager
async def holding(devices: Devices, *allotments: Allotment) -> AsyncIterator[Held]:
    """A lease of these, bound to its leaf."""
    wanted = lease(*allotments, pid=0)
    [prepared] = await devices.prepare_many([wanted])
    assert isinstance(prepared, Prepared), prepared
    held = Held(devices, wanted, prepared)
    try:
        yield held
    finally:
        held.kill()
        held.close()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def race(peer: RemotePeer, connection: Connection) -> None:
    """Let it read without a pause; returns when it does."""
    peer.tell("race", address=0, key=connection.rkeys[0])
    assert await trio.to_thread.run_sync(peer.answer) == {"racing": True}


async def remote(devices: Devices) -> list[Resource]:
    """What is offered to remote peers."""
    seen = await devices.inventory()
    print(*seen.absences, *seen.notes, sep="\n")
    return [one for one in seen.resources if shape_of(one.resource_id) is Shape.RDMA]


# ---- a lease's life ------------------------------------------------------------------------------


async def test_a_peer_writes_and_reads_until_the_lease_ends(
    device: SoftDevice, devices: Devices
) -> None:
    assert [one.resource_id for one in await remote(devices)]
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        [access] = held.prepared.access
        assert access.name == "LEASE_RDMA" and f"length={SIZE}" in access.value
        connection = await held.connect(peer)
        key = connection.rkeys[0]
        written = os.urandom(4096)
        assert peer.ask("write", address=8192, key=key, data=written.hex())["status"] == 0
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
        assert peer.ask("read", address=8192, key=key, length=8)["status"] in REFUSED
        assert held.kill()
        await held.reclaim()


async def test_the_last_byte_comes_before_the_end_of_the_registration(
    device: SoftDevice, devices: Devices
) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        steps = await devices.withdraw(held.lease)
        told = await trio.to_thread.run_sync(peer.answer)
        assert told["status"] in REFUSED and told["reads"] > 3
        registration = steps[2]
        assert told["last_ns"] <= registration.ended_ns + FAILURE_NS
        held.kill()
        await held.reclaim()


async def test_a_killed_leaf_ends_access_with_nobody_asked(
    device: SoftDevice, devices: Devices
) -> None:
    """The reaper's cut, the agent dead: the kernel ends the objects of whoever is killed."""
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        _, gone_ns = held.kill()
        told = await trio.to_thread.run_sync(peer.answer)
        assert told["status"] in REFUSED
        assert told["last_ns"] <= gone_ns + FAILURE_NS
        await held.reclaim()


async def test_an_owner_that_is_stopped_is_cut_all_the_same(device: SoftDevice) -> None:
    with hands(withdraw_budget_ns=100 * MS) as devices:
        peer = device.peer()
        async with holding(devices, region(device)) as held:
            await race(peer, await held.connect(peer))
            os.kill(held.owner_pid, signal.SIGSTOP)
            began_ns = now_ns()
            assert await devices.withdraw(held.lease) == ()
            assert now_ns() - began_ns < 3_000 * MS, "nobody waits for it"
            held.kill()
            told = await trio.to_thread.run_sync(peer.answer)
            assert told["status"] in REFUSED
            await held.reclaim()


async def test_hugepages_come_back_and_are_counted(device: SoftDevice, devices: Devices) -> None:
    with hugepages(4):
        free = free_hugepages()
        peer = device.peer()
        async with holding(devices, region(device, 2 * HUGE, HUGE)) as held:
            connection = await held.connect(peer)
            written = b"\xa5" * 512
            key = connection.rkeys[0]
            address = 2 * HUGE - 512
            assert peer.ask("write", address=address, key=key, data=written.hex())["status"] == 0
            assert free_hugepages() == free - 2
            held.kill()
            await held.reclaim()
        assert free_hugepages() == free


async def test_several_regions_of_a_lease_have_a_key_each(
    device: SoftDevice, devices: Devices
) -> None:
    peer = device.peer()
    parts = region(device), region(device, 4 * SIZE)
    async with holding(devices, *parts) as held:
        one, other = (await held.connect(peer)).rkeys
        assert peer.ask("write", address=3 * SIZE, key=other, data="5a" * 16)["status"] == 0
        assert peer.ask("write", address=3 * SIZE, key=one, data="5a" * 16)["status"] in REFUSED
        held.kill()
        await held.reclaim()


# ---- who may what --------------------------------------------------------------------------------


async def test_a_peer_that_may_only_read_cannot_write(device: SoftDevice, devices: Devices) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        key = (await held.connect(peer, MAY_READ)).rkeys[0]
        assert peer.ask("read", address=0, key=key, length=8)["status"] == 0
        assert peer.ask("write", address=0, key=key, data="ff" * 8)["status"] in REFUSED
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
        assert other.ask("read", address=0, key=key, length=8)["status"] in REFUSED
        assert one.ask("read", address=0, key=key, length=8)["status"] == 0
        held.kill()
        await held.reclaim()


async def test_a_disconnected_peer_is_out_and_the_others_stay(
    device: SoftDevice, devices: Devices
) -> None:
    one, other = device.peer(), device.peer()
    async with holding(devices, region(device)) as held:
        first, second = await held.connect(one), await held.connect(other)
        await devices.remote.disconnect(held.lease, held.guid, first.qp_number)
        assert one.ask("read", address=0, key=first.rkeys[0], length=8)["status"] in REFUSED
        assert other.ask("read", address=0, key=second.rkeys[0], length=8)["status"] == 0
        held.kill()
        await held.reclaim()


async def test_without_windows_the_lease_ends_as_well(device: SoftDevice) -> None:
    with hands(windows=Windows.NEVER) as devices:
        assert all("2B" in " ".join(one.limits) for one in await remote(devices))
        peer = device.peer()
        async with holding(devices, region(device)) as held:
            connection = await held.connect(peer)
            await race(peer, connection)
            steps = await devices.withdraw(held.lease)
            assert len(steps) == 3 and not any(step.errno for step in steps)
            told = await trio.to_thread.run_sync(peer.answer)
            assert told["last_ns"] <= steps[1].ended_ns + FAILURE_NS
            held.kill()
            await held.reclaim()


async def test_the_leaf_may_make_no_more_than_its_owner_needs(
    device: SoftDevice, devices: Devices
) -> None:
    async with holding(devices, region(device)) as held:
        with open(f"{held.prepared.cgroup}/rdma.max", encoding="ascii") as file:
            assert f"{device.name} hca_handle=1 " in file.read()
        with open(f"{held.prepared.cgroup}/rdma.current", encoding="ascii") as file:
            assert f"{device.name} hca_handle=1 hca_object=" in file.read()
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


# ---- hostile, unlucky ----------------------------------------------------------------------------


def steal_device(held: Held) -> int:
    """A descriptor of the owner's device, in this process: the worst that can have happened."""
    pidfd = os.pidfd_open(held.owner_pid)
    try:
        directory = f"/proc/{held.owner_pid}/fd"
        for number in os.listdir(directory):
            if "uverbs" in os.readlink(f"{directory}/{number}"):
                return verbs.take_descriptor(pidfd, int(number))
        raise AssertionError("the owner has no device open")
    finally:
        os.close(pidfd)


async def test_whoever_holds_the_device_beyond_the_cut_has_it_fenced(
    device: SoftDevice, devices: Devices
) -> None:
    async with holding(devices, region(device)) as held:
        peer = device.peer()
        key = (await held.connect(peer)).rkeys[0]
        stolen = steal_device(held)
        held.kill()
        assert peer.ask("read", address=0, key=key, length=8)["status"] == 0, "nothing ended it"
        scrub = await held.scrub()
        [release] = [step for step in scrub.steps if step.step is TeardownStep.RELEASE]
        assert not scrub.clean and release.errno == errno.EBUSY and release.measured > 0
        proof = await held.prove()
        [witness] = [step for step in proof.steps if step.step is TeardownStep.WITNESS]
        assert witness.errno == errno.EBUSY and witness.measured >= 5
        assert proof.unproven == held.lease.subject.allotments
        os.close(stolen)
    # What was left is nobody else's.
    async with holding(devices, region(device)) as next_held:
        next_held.kill()
        await next_held.reclaim()


async def test_an_agent_that_saw_nothing_blames_whom_it_proves(device: SoftDevice) -> None:
    """The agent was restarted after the cut: whose the orphans are nobody knows any more."""
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            stolen = steal_device(held)
            held.kill()
            devices.close()
            again = Devices(devices._config)
            await again.adopt([held.lease])
            held.devices = again
            proof = await held.prove()
            assert proof.unproven == held.lease.subject.allotments
            os.close(stolen)
            assert not (await held.prove()).unproven
            again.close()


async def test_an_owner_outlives_the_agent_and_speaks_to_the_next(device: SoftDevice) -> None:
    peer, later = device.peer(), device.peer()
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            key = (await held.connect(peer)).rkeys[0]
            devices.close()
            assert peer.ask("read", address=0, key=key, length=8)["status"] == 0
            again = Devices(devices._config)
            await again.adopt([held.lease])
            [access] = await again.access(held.lease)
            assert access == held.prepared.access[0]
            held.devices = again
            await held.connect(later)
            assert await again.withdraw(held.lease)
            assert later.ask("read", address=0, key=1, length=8)["status"] in REFUSED
            held.kill()
            await held.reclaim()
            again.close()


async def test_an_owner_of_nobody_is_ended_at_the_start(device: SoftDevice) -> None:
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            pid = held.owner_pid
            devices.close()
            again = Devices(devices._config)
            await again.adopt([])
            assert not owner.members(held.room), pid
            again.close()
            held.devices = again
            leaves.remove(held.prepared.cgroup)


async def test_a_grant_that_fails_leaves_nothing(device: SoftDevice, devices: Devices) -> None:
    before = device.counts()
    wanted = lease(region(device), NOWHERE, pid=0)
    [failed] = await devices.prepare_many([wanted])
    assert isinstance(failed, DeviceError) and failed.errno == errno.ENODEV
    assert device.counts() == before
    with hands(program="/nowhere/leased-rdma") as lacking:
        [failed] = await lacking.prepare_many([lease(region(device), pid=0)])
        assert isinstance(failed, DeviceError) and failed.errno == errno.ENOENT


async def test_a_device_that_is_removed_under_a_lease_is_gone_when_its_owner_is(
    devices: Devices,
) -> None:
    with soft_device("rxegone") as mine:
        async with holding(devices, region(mine)) as held:
            removal = subprocess.Popen(["rdma", "link", "delete", mine.name])
            with trio.fail_after(20):
                while is_registered(mine.name):
                    await trio.sleep(0.05)
            assert not [one for one in await remote(devices) if mine.guid in one.resource_id]
            asked = await held.devices.remote.prove(held.lease, held.lease.subject.allotments)
            assert asked.unproven, "it is on its way out, and somebody holds it"
            held.kill()
            assert removal.wait(20) == 0, "it waited for the owner"
            await held.reclaim()
        run("rdma", "link", "add", mine.name, "type", "rxe", "netdev", mine.link)


async def test_a_port_that_goes_down_is_sick_and_recovers(devices: Devices) -> None:
    with soft_device("rxesick") as mine:

        async def health() -> set[Health]:
            found = await remote(devices)
            return {one.health for one in found if mine.guid in one.resource_id}

        assert await health() == {Health.OK}
        run("ip", "link", "set", mine.link, "down")
        with trio.fail_after(20):
            while await health() != {Health.SICK}:
                await trio.sleep(0.1)
        run("ip", "link", "set", mine.link, "up")
        with trio.fail_after(20):
            while await health() != {Health.OK}:
                await trio.sleep(0.1)


async def test_a_prober_reads_at_the_grant_and_not_after_the_cut(device: SoftDevice) -> None:
    with hands(prober=device.name) as devices:
        for orderly in (True, False):
            async with holding(devices, region(device)) as held:
                if orderly:
                    assert await devices.withdraw(held.lease)
                held.kill()
                await held.scrub()
                proof = await held.prove()
                seen, probed = [s for s in proof.steps if s.step is TeardownStep.WITNESS]
                assert not proof.unproven and seen.errno == probed.errno == 0
                assert probed.measured in REFUSED, "the prober's own completion"
        async with holding(devices, region(device)) as held:
            stolen = steal_device(held)
            held.kill()
            proof = await held.prove()
            seen, probed = [s for s in proof.steps if s.step is TeardownStep.WITNESS]
            assert seen.errno == probed.errno == errno.EBUSY and probed.measured == 0
            os.close(stolen)


async def test_everybody_who_uses_a_device_is_named(device: SoftDevice, devices: Devices) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        found = await devices.remote.holders(region(device))
        assert {one.pid for one in found} == {held.owner_pid, peer.process.pid}
        assert {(one.pid, one.via) for one in found} >= {
            (held.owner_pid, "driver"),
            (held.owner_pid, "fd"),
        }
        assert all(one.name for one in found)
        held.kill()
        await held.reclaim()


# ---- nothing is lost on the way ------------------------------------------------------------------


async def test_a_hundred_random_lives_leave_every_count_as_it_was(device: SoftDevice) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with hands() as devices:
        await devices.warm()
        async with holding(devices, region(device)) as first:
            first.kill()
            await first.reclaim()
        objects, fds = device.counts(), len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            parts = [region(device, 4096 * dice.randint(1, 8)) for _ in range(dice.randint(1, 3))]
            if dice.random() < 0.3:
                [failed] = await devices.prepare_many([lease(*parts, NOWHERE, pid=0)])
                assert isinstance(failed, DeviceError)
                continue
            async with holding(devices, *parts) as held:
                end: dict[str, Any] = {"gid": "0" * 20 + "ffff" + "0a4d0001", "psn": 1}
                for number in range(dice.randint(0, 3)):
                    peer = Peer(end["gid"], 0, 4000 + number, 1, 0, MAY_READ)
                    await devices.remote.connect(held.lease, held.guid, peer)
                if dice.random() < 0.5:
                    await devices.withdraw(held.lease)
                held.kill()
                await held.reclaim()
        assert device.counts() == objects
        assert len(os.listdir("/proc/self/fd")) == fds
