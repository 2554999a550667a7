# SPDX-License-Identifier: Apache-2.0
"""Remote peers: connecting them to memory that is leased to be reached by RDMA (shape rdma).

The program on the other machine makes a queue pair and tells its address, the pair's number and its
first packet number; whoever holds the lease hands those to `connect_peer`, and the answer back.
From then on the two devices talk to each other alone.

Does not carry the numbers between the machines, and does not speak RDMA itself.
"""

from __future__ import annotations

import msgspec

from leased.client.session import Session
from leased.wire import parameters, replies


class PeerEnd(msgspec.Struct, frozen=True):
    """A remote peer's end of a connection. `gid` in hex, as the kernel prints it; `lid` only on
    InfiniBand; `mtu` the largest that it takes (None: whatever our port does)."""

    gid: str
    qp_number: int
    packet_number: int
    lid: int | None = None
    mtu: int | None = None


async def connect_peer(
    session: Session,
    lease_id: str,
    peer: PeerEnd,
    *,
    read_only: bool = False,
    resource_id: str | None = None,
) -> replies.ConnectReply:
    """Connect a peer; our end, and a key for each region. `resource_id` says which device, where
    the lease has several."""
    asked = parameters.Connect(
        lease_id,
        peer.gid,
        peer.qp_number,
        peer.packet_number,
        resource_id=resource_id,
        lid=peer.lid,
        mtu=peer.mtu,
        access="read" if read_only else None,
    )
    return await session.ask(asked, replies.ConnectReply)


async def disconnect_peer(
    session: Session, lease_id: str, qp_number: int, *, resource_id: str | None = None
) -> None:
    """End one connection; `qp_number` is the agent's, from `connect_peer`."""
    asked = parameters.Disconnect(lease_id, qp_number, resource_id)
    await session.ask(asked, replies.DisconnectReply)
