# SPDX-License-Identifier: Apache-2.0
"""Soft-RoCE devices: two at the ends of a cable, where the lease is at one end and its remote peers
(`tests/vm/guest/rdma_peer.py`) at the other; and single ones that a test may take away.

Rule: only in the machine of tests/vm, whose network is nobody's. Devices are made for a test and
removed after it, and what was on them before is on them afterwards.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trio

from leased.hardware.rdma.nldev import Nldev, Object
from leased.terms.errors import DeviceError
from tests.doubles.host import not_proven
from tests.vm.guest.remote_peer import RemotePeer

CABLE = Path(__file__).resolve().parents[1] / "vm/guest/soft-rdma"
NEAR, FAR = "rxe0", "rxe1"
ADDRESS = "10.77.0.1"


def run(*command: str) -> str:
    """A command's output; its failure is the test's."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class SoftDevice:
    """One rxe device, and the one that peers come from."""

    def __init__(self, name: str, link: str, far: str) -> None:
        self.name, self.link, self.far = name, link, far
        directory = Path("/sys/class/infiniband") / name
        self.guid = (directory / "node_guid").read_text().strip().replace(":", "")
        self._peers: list[RemotePeer] = []

    def objects(self) -> list[Object]:
        """Everything on it, by the kernel's list."""
        with Nldev() as nldev:
            [found] = [link for link in nldev.links() if link.name == self.name]
            return nldev.objects(found.number)

    def counts(self) -> dict[str, int]:
        """How many objects of each kind that programs made."""
        rows = [row for row in self.objects() if not row.kernel]
        return {kind: sum(row.kind == kind for row in rows) for kind in {row.kind for row in rows}}

    def peer(self, *, here: bool = False, fds: tuple[int, ...] = ()) -> RemotePeer:
        """A program on another machine, as far as it can tell; or `here`, on this one."""
        peer = RemotePeer(self.name if here else self.far, fds)
        self._peers.append(peer)
        return peer

    def part(self) -> None:
        """Every peer goes."""
        while self._peers:
            self._peers.pop().close()


def need_machine() -> None:
    """Skip anywhere else: what follows changes the host's network."""
    vendor = Path("/sys/class/dmi/id/sys_vendor")
    if not vendor.exists() or vendor.read_text().strip() != "QEMU":
        not_proven("anything of RDMA on a device", "needs the machine of tests/vm")


@contextlib.contextmanager
def cabled() -> Iterator[SoftDevice]:
    """The near end of the cable."""
    need_machine()
    run(str(CABLE), "up")
    try:
        device = SoftDevice(NEAR, "cable0", FAR)
        before = device.counts()
        try:
            yield device
        finally:
            device.part()
        assert device.counts() == before, "something is left on the device"
    finally:
        run(str(CABLE), "down")


@contextlib.contextmanager
def soft_device(name: str) -> Iterator[SoftDevice]:
    """A device of its own, without a cable."""
    need_machine()
    link = f"{name}l"
    run("modprobe", "rdma_rxe")
    run("ip", "link", "add", link, "type", "dummy")
    try:
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        run("rdma", "link", "add", name, "type", "rxe", "netdev", link)
        try:
            yield SoftDevice(name, link, name)
        finally:
            with contextlib.suppress(AssertionError):  # gone already, where that is the test
                run("rdma", "link", "delete", name)
    finally:
        run("ip", "link", "delete", link)


async def a_moment() -> None:
    """Before looking again at what the kernel tells nobody of."""
    await trio.to_thread.run_sync(select.select, [], [], [], 0.05)


def is_registered(name: str) -> bool:
    """Whether the kernel lists the device."""
    try:
        with Nldev() as nldev:
            return any(link.name == name for link in nldev.links())
    except DeviceError:
        return False
