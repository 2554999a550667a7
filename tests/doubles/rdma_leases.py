# SPDX-License-Identifier: Apache-2.0
"""Leases that remote peers reach, on the real device room: prepared, connected, cut as the reaper
cuts, taken back.

Does not judge: what is left is the test's to look at.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from leased._native import ffi, lib
from leased.hardware import verbs
from leased.hardware.devices import Devices
from leased.hardware.rdma import owner
from leased.hardware.rdma.backend import guid_of
from leased.hardware.rdma.calls import Connection, Peer
from leased.hardware.rdma.config import RdmaConfig
from leased.hardware.rdma.devices import spelled
from leased.hardware.rdma.protocol import MAY_READ, MAY_WRITE
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, ResourceKind, TierKind
from leased.terms.teardown import ProofReport, ScrubReport, StepReport, TeardownStep
from tests.doubles.host import real_devices
from tests.doubles.leases import lease
from tests.doubles.rdma_host import SoftDevice
from tests.vm.guest.remote_peer import RemotePeer

SIZE = 1 << 20
HUGE = 2 << 20
MS = 1_000_000
NOWHERE = Allotment("mem:rdma-" + "9" * 16 + ":node0:4096", ResourceKind.MEM, None, SIZE)
"""By way of a device that is not there."""

_roots = itertools.count()


@contextmanager
def hands(**rdma: object) -> Iterator[Devices]:
    """Devices with these settings of `[hardware.rdma]`. An emulated machine is slow to withdraw."""
    told = {"withdraw_budget_ns": 60_000 * MS, **rdma}
    config = RdmaConfig(**told)  # type: ignore[arg-type]
    root = f"leased-test-{os.getpid()}-rdma{next(_roots)}"
    with real_devices(rdma=config, cgroup_root=root) as devices:
        yield devices


@contextmanager
def restarted(devices: Devices) -> Iterator[Devices]:
    """The next run of the agent: it has seen nothing."""
    devices.close()
    again = Devices(devices._config)
    try:
        yield again
    finally:
        again.close()


def region(device: SoftDevice, size_bytes: int = SIZE, page_bytes: int = 4096) -> Allotment:
    """So much of node 0, by way of the device."""
    resource_id = f"mem:rdma-{device.guid}:node0:{page_bytes}"
    return Allotment(resource_id, ResourceKind.MEM, TierKind.REMOTE, size_bytes)


class Held:
    """A prepared lease."""

    def __init__(self, devices: Devices, of: Lease, prepared: Prepared) -> None:
        self.devices, self.lease, self.prepared = devices, of, prepared
        self._deny = lib.leased_filter_load(ffi.NULL, 0)
        assert self._deny >= 0, os.strerror(-self._deny)

    @property
    def guid(self) -> str:
        """The device that its first part is reached through."""
        return guid_of(self.lease.subject.allotments[0])

    @property
    def room(self) -> str:
        """Where its owner lives."""
        return owner.room_of(self.prepared.cgroup, self.guid)

    @property
    def owner_pid(self) -> int:
        """Its owner."""
        [pid] = owner.members(self.room)
        return pid

    async def connect(self, peer: RemotePeer, access: int = MAY_READ | MAY_WRITE) -> Connection:
        """Both ends of a connection."""
        end = peer.end
        theirs = end["gid"].replace(":", ""), 0, end["qp_number"], end["packet_number"]
        ours = await self.devices.remote.connect(self.lease, self.guid, Peer(*theirs, 0, access))
        gid = spelled(ours.owner.gid)
        peer.ask("connect", gid=gid, qp_number=ours.qp_number, packet_number=ours.psn, mtu=1024)
        return ours

    def steal_device(self) -> int:
        """A descriptor of the owner's device, in this process: the worst that can have happened."""
        pidfd = os.pidfd_open(self.owner_pid)
        try:
            directory = f"/proc/{self.owner_pid}/fd"
            for number in os.listdir(directory):
                if "uverbs" in os.readlink(f"{directory}/{number}"):
                    return verbs.take_descriptor(pidfd, int(number))
            raise AssertionError("the owner has no device open")
        finally:
            os.close(pidfd)

    def kill(self) -> tuple[int, int]:
        """What the reaper does at the deadline, with the filter that it has loaded long before;
        (began, everybody gone), boottime ns."""
        began_ns = now_ns()
        try:
            leaf = os.open(self.prepared.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return began_ns, began_ns  # reclaimed
        try:
            # Of a leaf that was cut before it is there already.
            assert lib.leased_filter_attach(leaf, self._deny) in (0, -errno.EINVAL)
            verbs.freeze_cgroup(leaf)
            verbs.kill_cgroup(leaf, timeout_ms=5000)
        finally:
            os.close(leaf)
        return began_ns, now_ns()

    async def scrub(self) -> ScrubReport:
        """Made clean, as far as it goes."""
        [report] = await self.devices.scrub_many([(self.lease, self.prepared.fds)])
        assert isinstance(report, ScrubReport), report
        return report

    async def prove(self) -> ProofReport:
        """Proven, as far as it goes."""
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
        """Let go of the memory."""
        for fd in (*self.prepared.fds, self._deny):
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


async def race(peer: RemotePeer, connection: Connection) -> None:
    """Let it read without a pause; returns when it does."""
    peer.tell("race", address=0, key=connection.rkeys[0])
    assert await trio.to_thread.run_sync(peer.answer) == {"racing": True}


def steps_of(report: ScrubReport | ProofReport, step: TeardownStep) -> list[StepReport]:
    """The report's steps of that kind."""
    return [one for one in report.steps if one.step is step]


def now_ns() -> int:
    """Boottime."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
