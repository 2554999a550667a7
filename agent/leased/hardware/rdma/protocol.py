# SPDX-License-Identifier: Apache-2.0
"""The packets of leased-rdma in Python: the same fixed structs as native/rdma_protocol.h.

Rule: what comes back is checked before it is believed; an answer that does not add up is a
DeviceError(EPROTO).

Does not touch a socket (`owner`).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from leased.terms.errors import DeviceError

MAGIC: Final = 0x3144524C
VERSION: Final = 1
DEVICE_BYTES: Final = 64
REGIONS_MAX: Final = 16
PEERS_MAX: Final = 64
STEPS_MAX: Final = 8
PACKET_BYTES_MAX: Final = 8192

OPEN, CONNECT, DISCONNECT, STATE, CLOSE = 1, 2, 3, 4, 5
REACH, MEET, READ = 16, 17, 18
REPLY: Final = 0x80

MAY_READ, MAY_WRITE, MAY_ATOMIC = 1, 2, 4
WINDOWS, QUEUES, REGIONS, DEVICE = 1, 2, 3, 4
"""The steps of CLOSE."""

HEADER: Final = struct.Struct("<IHHIi")
OPEN_BODY: Final = struct.Struct(f"<{DEVICE_BYTES}sIIIIII{REGIONS_MAX}Q")
CONNECT_BODY: Final = struct.Struct("<16sIIIIII")
DISCONNECT_BODY: Final = struct.Struct("<II")
READ_BODY: Final = struct.Struct("<QIIII")
STATE_HEAD: Final = struct.Struct("<iI16sIIIIII")
REGION: Final = struct.Struct("<QQ")
PEER: Final = struct.Struct("<16sIIII")
CONNECTED: Final = struct.Struct(f"<IIII{REGIONS_MAX}I")
CLOSED_HEAD: Final = struct.Struct("<II")
STEP: Final = struct.Struct("<IiQQQ")
REACHED: Final = struct.Struct("<16sIIII")
DONE: Final = struct.Struct("<IIQ")

STATE_BYTES: Final = STATE_HEAD.size + REGIONS_MAX * REGION.size + PEERS_MAX * PEER.size
CLOSED_BYTES: Final = CLOSED_HEAD.size + STEPS_MAX * STEP.size


class Where(NamedTuple):
    """A device, and the port and address of it that are used."""

    device: str
    port: int
    gid_index: int


class PeerState(NamedTuple):
    """One remote peer of an owner. `state` is that of our queue pair (3 is connected)."""

    gid: bytes
    qp_number: int
    peer_qp_number: int
    state: int
    access: int


class State(NamedTuple):
    """An owner as it is. `regions` are (address of the first byte, bytes)."""

    pid: int
    windows: bool
    gid: bytes
    lid: int
    mtu_bytes: int
    events: int
    regions: tuple[tuple[int, int], ...]
    peers: tuple[PeerState, ...]


class Peer(NamedTuple):
    """A remote peer's end of a connection. `mtu_bytes` 0: it does not say."""

    gid: bytes
    lid: int
    qp_number: int
    psn: int
    mtu_bytes: int
    access: int


class Connection(NamedTuple):
    """Our end of a connection, and the keys that work on it, region by region."""

    qp_number: int
    psn: int
    mtu_bytes: int
    access: int
    rkeys: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Connection({self.qp_number}, ...)"


class EndStep(NamedTuple):
    """One step of CLOSE."""

    step: int
    errno: int
    began_ns: int
    ended_ns: int
    measured: int


def encode(kind: int, serial: int, body: bytes = b"") -> bytes:
    """One request."""
    return HEADER.pack(MAGIC, VERSION, kind, serial, 0) + body


def encode_open(
    where: Where, *, peers_max: int = 1, windows: bool = False, sizes: Sequence[int] = ()
) -> bytes:
    """The body of OPEN and of REACH."""
    name = where.device.encode("utf-8")
    if len(name) >= DEVICE_BYTES or len(sizes) > REGIONS_MAX:
        raise DeviceError("rdma_open", errno.E2BIG, where.device)
    padded = (*sizes, *[0] * (REGIONS_MAX - len(sizes)))
    return OPEN_BODY.pack(
        name, where.port, where.gid_index, peers_max, int(windows), len(sizes), 0, *padded
    )


def encode_peer(peer: Peer) -> bytes:
    """The body of CONNECT and of MEET."""
    return CONNECT_BODY.pack(*peer, 0)


def encode_read(address: int, rkey: int, size_bytes: int, timeout_ms: int) -> bytes:
    """The body of READ."""
    return READ_BODY.pack(address, rkey, size_bytes, timeout_ms, 0)


def open_answer(raw: bytes, kind: int, serial: int) -> bytes | None:
    """The body of the answer to that request, None if it is the answer to another. Raises
    DeviceError with what failed."""
    if len(raw) < HEADER.size:
        raise DeviceError("rdma_answer", errno.EPROTO, f"{len(raw)} bytes")
    magic, version, answered, number, failure = HEADER.unpack_from(raw)
    if magic != MAGIC or version != VERSION:
        raise DeviceError("rdma_answer", errno.EPROTO, f"version {version}, not {VERSION}")
    if number != serial or answered != kind | REPLY:
        return None
    body = raw[HEADER.size :]
    if failure:
        raise DeviceError("rdma", failure, body.decode("utf-8", "replace"))
    return body


def decode_state(body: bytes) -> State:
    """The answer to OPEN and STATE. Raises DeviceError."""
    _check(body, STATE_BYTES)
    pid, windows, gid, lid, mtu, regions, peers, events, _ = STATE_HEAD.unpack_from(body)
    if regions > REGIONS_MAX or peers > PEERS_MAX:
        raise DeviceError("rdma_answer", errno.EPROTO, f"{regions} regions, {peers} peers")
    at = STATE_HEAD.size
    listed = tuple(REGION.unpack_from(body, at + i * REGION.size) for i in range(regions))
    at += REGIONS_MAX * REGION.size
    connected = tuple(
        PeerState._make(PEER.unpack_from(body, at + i * PEER.size)) for i in range(peers)
    )
    return State(pid, bool(windows), gid, lid, mtu, events, listed, connected)


def decode_connection(body: bytes, regions: int) -> Connection:
    """The answer to CONNECT. Raises DeviceError."""
    _check(body, CONNECTED.size)
    qp_number, psn, mtu, access, *rkeys = CONNECTED.unpack(body)
    return Connection(qp_number, psn, mtu, access, tuple(rkeys[:regions]))


def decode_closed(body: bytes) -> tuple[EndStep, ...]:
    """The answer to CLOSE. Raises DeviceError."""
    _check(body, CLOSED_BYTES)
    steps, _ = CLOSED_HEAD.unpack_from(body)
    if steps > STEPS_MAX:
        raise DeviceError("rdma_answer", errno.EPROTO, f"{steps} steps")
    return tuple(
        EndStep._make(STEP.unpack_from(body, CLOSED_HEAD.size + i * STEP.size))
        for i in range(steps)
    )


def decode_reached(body: bytes) -> Peer:
    """The answer to REACH: the prober as a peer that may read. Raises DeviceError."""
    _check(body, REACHED.size)
    gid, lid, qp_number, psn, mtu = REACHED.unpack(body)
    return Peer(gid, lid, qp_number, psn, mtu, MAY_READ)


def decode_done(body: bytes) -> tuple[int, int]:
    """The answer to READ: (status of the completion, ns it took). Raises DeviceError."""
    _check(body, DONE.size)
    status, _, took_ns = DONE.unpack(body)
    return status, took_ns


def _check(body: bytes, size_bytes: int) -> None:
    if len(body) != size_bytes:
        raise DeviceError("rdma_answer", errno.EPROTO, f"{len(body)} bytes, not {size_bytes}")
