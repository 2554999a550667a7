# SPDX-License-Identifier: Apache-2.0
"""Peering: connecting remote peers to memory that is leased to be reached by RDMA.

Rule: whoever may see the lease may connect peers to it, as long as it has not ended; what a peer
gets works until the lease does and no longer. Nothing of it is sealed or kept: a connection is the
owner's, which ends with the lease's cgroup.

Does not know devices (`hardware.rdma`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from leased.hardware.rdma.backend import guid_of
from leased.hardware.rdma.calls import Connection, Peer
from leased.hardware.rdma.devices import spelled
from leased.hardware.rdma.protocol import MAY_ATOMIC, MAY_READ, MAY_WRITE
from leased.ports import Clock, Entropy
from leased.service.api.connection import Connection as Caller
from leased.terms.command import Command
from leased.terms.errors import CallerError
from leased.terms.lease import Lease
from leased.terms.reply import Changed, Reply
from leased.terms.resource import Allotment, Shape, shape_of
from leased.wire import objects, parameters, replies
from leased.wire.answers import encode_reply
from leased.wire.calls import to_command
from leased.wire.conversation import Call

_ACCESS: Final = {
    "read": MAY_READ,
    "read_write": MAY_READ | MAY_WRITE | MAY_ATOMIC,
}


class Remote(Protocol):
    """What is needed of the device room."""

    async def connect(self, lease: Lease, guid: str, peer: Peer) -> Connection:
        """Connect a remote peer to the lease's regions on one device. Raises DeviceError."""
        ...

    async def disconnect(self, lease: Lease, guid: str, qp_number: int) -> None:
        """End a connection. Raises DeviceError."""
        ...


class Peering:
    """Connect and Disconnect."""

    def __init__(
        self,
        *,
        remote: Remote,
        ask: Callable[[Command], Awaitable[Reply]],
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._remote = remote
        self._ask = ask
        self._clock = clock
        self._entropy = entropy

    async def connect(self, caller: Caller, call: Call) -> None:
        """io.leased.Lease.Connect"""
        asked = call.parameters
        assert isinstance(asked, parameters.Connect)
        lease = await self._find(caller, call)
        if lease is None:
            return
        part = _regions(lease, asked.resource_id)
        peer = Peer(
            asked.gid.replace(":", ""),
            asked.lid or 0,
            asked.qp_number,
            asked.packet_number,
            asked.mtu or 0,
            _ACCESS[asked.access or "read_write"],
        )
        ours = await self._remote.connect(lease, guid_of(part[0]), peer)
        owner = ours.owner
        regions = [
            objects.RemoteRegion(allotment.resource_id, address, length, key)
            for allotment, (address, length), key in zip(
                part, owner.regions, ours.rkeys, strict=True
            )
        ]
        gid = spelled(owner.gid)
        reply = replies.ConnectReply(
            gid, owner.lid, ours.qp_number, ours.psn, ours.mtu_bytes, regions
        )
        caller.answer(call, replies.encode(reply))

    async def disconnect(self, caller: Caller, call: Call) -> None:
        """io.leased.Lease.Disconnect"""
        asked = call.parameters
        assert isinstance(asked, parameters.Disconnect)
        lease = await self._find(caller, call)
        if lease is None:
            return
        part = _regions(lease, asked.resource_id)
        await self._remote.disconnect(lease, guid_of(part[0]), asked.qp_number)
        caller.answer(call, replies.encode(replies.DisconnectReply()))

    async def _find(self, caller: Caller, call: Call) -> Lease | None:
        """The lease, if the caller may see it and it has not ended; None: the call has been
        answered."""
        question = to_command(call, caller.caller, self._entropy)
        assert question is not None
        reply = await self._ask(question)
        if not isinstance(reply, Changed):
            caller.answer(call, encode_reply(call, reply, self._clock.now()))
            return None
        if reply.lease.ended is not None:
            raise CallerError("the lease has ended: nobody is connected to it any more")
        return reply.lease


def _regions(lease: Lease, resource_id: str | None) -> Sequence[Allotment]:
    """The lease's regions on the device that is meant, in their order. Raises CallerError."""
    remote = [
        allotment
        for allotment in lease.subject.allotments
        if shape_of(allotment.resource_id) is Shape.RDMA
    ]
    if not remote:
        raise CallerError("the lease has no memory that remote peers reach (shape rdma)")
    meant = [a for a in remote if resource_id in (None, a.resource_id)]
    guids = {guid_of(allotment): None for allotment in meant}
    if not meant:
        raise CallerError(f"the lease has no {resource_id}")
    if len(guids) > 1:
        raise CallerError("the lease has memory on several RDMA devices: say resource_id")
    [guid] = guids
    return [allotment for allotment in remote if guid_of(allotment) == guid]
