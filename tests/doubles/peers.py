# SPDX-License-Identifier: Apache-2.0
"""A fake owner of RDMA objects that argues back: who is connected to which lease, and whether it
was told to end in time.

Rule: connecting to a lease that nobody prepared, that has been withdrawn or scrubbed, is our bug.
`fault(verb)` may return a DeviceError for "connect", "disconnect"; `takes_s` is how long a
withdrawal takes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import trio

from leased.hardware.rdma.backend import guid_of
from leased.hardware.rdma.calls import Connection, Owner, Peer
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Shape, shape_of
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.devices import FakeDevices

PEERS_MAX = 3
GID = "fe80" + "0" * 24 + "0007"


class FakePeers:
    """`service.peering.Remote` and `service.reclaimer.Withdrawal`."""

    def __init__(self, devices: FakeDevices) -> None:
        self._devices = devices
        self.fault: Callable[[str], DeviceError | None] = lambda verb: None
        self.takes_s = 0.0
        self.connected: dict[LeaseId, dict[int, Peer]] = {}
        self.withdrawn: list[LeaseId] = []
        self.forgotten: list[LeaseId] = []
        self._numbers = 100

    async def connect(self, lease: Lease, guid: str, peer: Peer) -> Connection:
        """A connection, with one key per region of that device."""
        self._enter("connect", lease)
        await trio.lowlevel.checkpoint()
        remote = [a for a in lease.subject.allotments if shape_of(a.resource_id) is Shape.RDMA]
        regions = [a for a in remote if guid_of(a) == guid]
        assert regions, "a device that the lease has nothing on"
        places = self.connected.setdefault(lease.lease_id, {})
        if len(places) == PEERS_MAX:
            raise DeviceError("rdma", errno.EUSERS, "connect so many peers")
        self._numbers += 1
        places[self._numbers] = peer
        owner = Owner(
            guid=guid,
            device="fake0",
            pid=1,
            windows=True,
            gid=GID,
            lid=0,
            mtu_bytes=1024,
            regions=tuple((0, a.capacity) for a in regions),
            contexts=(1,),
        )
        keys = tuple(self._numbers * 256 + at for at in range(len(regions)))
        mtu_bytes = min(peer.mtu_bytes or 1024, 1024)
        return Connection(owner, self._numbers, 7, mtu_bytes, peer.access, keys)

    async def disconnect(self, lease: Lease, guid: str, qp_number: int) -> None:
        """End it, if there is one."""
        self._enter("disconnect", lease)
        await trio.lowlevel.checkpoint()
        if self.connected.get(lease.lease_id, {}).pop(qp_number, None) is None:
            raise DeviceError("rdma", errno.ENOENT, "find the connection")

    def _enter(self, verb: str, lease: Lease) -> None:
        assert lease.lease_id in self._devices.held, f"{verb} on a lease that was never prepared"
        assert lease.lease_id not in self.withdrawn, f"{verb} after the end"
        fault = self.fault(verb)
        if fault is not None:
            raise fault

    def forget(self, lease_ids: Sequence[LeaseId]) -> None:
        """Only noted."""
        self.forgotten.extend(lease_ids)

    def withdraws(self, lease: Lease) -> bool:
        """Whether it is reached by peers."""
        return any(shape_of(a.resource_id) is Shape.RDMA for a in lease.subject.allotments)

    async def withdraw(self, lease: Lease) -> tuple[StepReport, ...]:
        """End every connection."""
        assert self._devices.in_use(lease.lease_id), "withdrawn after the cut"
        await trio.sleep(self.takes_s)
        self.withdrawn.append(lease.lease_id)
        peers = self.connected.pop(lease.lease_id, {})
        return (StepReport(TeardownStep.OBJECT_REVOKE, 0, 0, 0, len(peers)),)
