# SPDX-License-Identifier: Apache-2.0
"""The reaper's packets in Python: the same fixed structs as native/reaper_protocol.h.

Rule: a request is a header and `count` entries of one size, little-endian, times in boottime ns.
What the reaper sends is checked before it is believed: a packet that does not add up is a
ProtocolError, and the link starts anew.

Does not touch a socket.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

from leased.ports import ObjectKind, Revocable
from leased.terms.errors import InvalidParameter, ProtocolError
from leased.terms.identity import LeaseId
from leased.terms.teardown import CutReport, StepReport, TeardownStep

MAGIC: Final = 0x3152504C
VERSION: Final = 3
PACKET_BYTES_MAX: Final = 65536
FDS_MAX: Final = 250
CGROUP_BYTES: Final = 280
MEMFDS_MAX: Final = 16
OBJECTS_MAX: Final = 16
OBJECT_BYTES: Final = 8
STEPS_MAX: Final = 8

PING, ARM, RENEW, REVOKE, DISARM, LIST, BOARD = 1, 2, 3, 4, 5, 6, 7
CUT, ERROR, REPLY = 0x40, 0x7F, 0x80

SPARE_HOLDER: Final = 1
CLEAN, BY_REAPER, BACKSTOP = 1, 2, 4
HAS_FILTER, HAS_LOCKED_MEMORY, HAS_FD_STORE = 1, 2, 4
PHASE_ENDED: Final = 3

HEADER: Final = struct.Struct("<IHHIIiIQ")
ARM_ENTRY: Final = struct.Struct(f"<16sQQBBB5x{CGROUP_BYTES}s{OBJECTS_MAX * OBJECT_BYTES}s")
OBJECT: Final = struct.Struct("<HHI")
RENEW_ENTRY: Final = struct.Struct("<16sQQ")
REVOKE_ENTRY: Final = struct.Struct("<16sI4x")
LIST_ENTRY: Final = struct.Struct("<II")
STEP: Final = struct.Struct("<IiQQQ")
REPORT_HEAD: Final = struct.Struct("<16sQII")
REPORT_BYTES: Final = REPORT_HEAD.size + STEPS_MAX * STEP.size
LISTED_HEAD: Final = struct.Struct(f"<16sQQIIiBBBB{CGROUP_BYTES}s{OBJECTS_MAX * OBJECT_BYTES}s")
LISTED_BYTES: Final = LISTED_HEAD.size + REPORT_BYTES
PONG: Final = struct.Struct("<16sQQIIIIII")

ENTRY_BYTES: Final = {
    ARM: ARM_ENTRY.size,
    RENEW: RENEW_ENTRY.size,
    REVOKE: REVOKE_ENTRY.size,
    DISARM: 16,
    LIST: LIST_ENTRY.size,
}
ENTRIES_MAX: Final = {
    kind: (PACKET_BYTES_MAX - HEADER.size) // size for kind, size in ENTRY_BYTES.items()
}


class Packet(NamedTuple):
    """A packet from the reaper, checked as far as its header goes."""

    kind: int
    serial: int
    entries: int
    status: int
    boot_ns: int
    body: memoryview


class Listed(NamedTuple):
    """One lease as the reaper holds it; `fds` says how many descriptors came along: a pidfd first,
    then memfds."""

    lease_id: LeaseId
    generation: int
    deadline_ns: int
    slot: int
    pid: int
    ended: bool
    has_pidfd: bool
    memfds: int
    memfds_missing: int
    cgroup: str
    objects: tuple[Revocable, ...]
    cut: CutReport | None


class Pong(NamedTuple):
    """What the reaper says of itself."""

    boot_id: bytes
    started_ns: int
    horizon_ns: int
    pid: int
    slots: int
    slots_used: int
    slots_corrupt: int
    flags: int


def encode(kind: int, serial: int, count: int, body: bytes) -> bytes:
    """One request packet."""
    return HEADER.pack(MAGIC, VERSION, kind, serial, count, 0, 0, 0) + body


def encode_arm(
    *,
    lease_id: LeaseId,
    generation: int,
    deadline_ns: int,
    cgroup: str,
    has_pidfd: bool,
    memfds: int,
    objects: Sequence[Revocable] = (),
) -> bytes:
    """One ARM entry. Raises InvalidParameter when the lease does not fit into one."""
    path = cgroup.encode()
    if len(path) >= CGROUP_BYTES:
        raise InvalidParameter("cgroup", f"a path is at most {CGROUP_BYTES - 1} bytes")
    if memfds > MEMFDS_MAX:
        raise InvalidParameter("fds", f"a lease has at most {MEMFDS_MAX} memfds")
    if len(objects) > OBJECTS_MAX:
        raise InvalidParameter("objects", f"a lease has at most {OBJECTS_MAX} objects")
    packed = b"".join([OBJECT.pack(kind, number, 0) for kind, number in objects])
    counts = (has_pidfd, memfds, len(objects))
    return ARM_ENTRY.pack(lease_id, generation, deadline_ns, *counts, path, packed)


def encode_renewals(moves: Sequence[tuple[LeaseId, int, int]]) -> bytes:
    """RENEW entries: (lease, generation, deadline_ns)."""
    pack = RENEW_ENTRY.pack
    return b"".join(
        [pack(lease_id, generation, deadline) for lease_id, generation, deadline in moves]
    )


def encode_revoke(lease_id: LeaseId, *, spare_holder: bool) -> bytes:
    """One REVOKE entry."""
    return REVOKE_ENTRY.pack(lease_id, SPARE_HOLDER if spare_holder else 0)


class OtherVersion(ProtocolError):
    """A reaper, of another release than this agent."""


def decode(data: memoryview) -> Packet:
    """Check a packet's header. The body still has to be decoded by kind."""
    if len(data) < HEADER.size:
        raise ProtocolError("reaper: a packet without a header")
    magic, version, kind, serial, count, status, _, boot_ns = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"reaper: magic {magic:#x}")
    if version != VERSION:
        raise OtherVersion(
            f"the reaper that runs speaks version {version}, this agent {VERSION}: it is of another"
            " release, and has to be replaced (leased-reaper(8))"
        )
    return Packet(kind, serial, count, status, boot_ns, data[HEADER.size :])


def decode_statuses(packet: Packet, expected: int) -> list[int]:
    """One int32 per entry: 0 (of ARM: the slot on the board) or -errno."""
    if packet.entries != expected or len(packet.body) != 4 * expected:
        raise ProtocolError(f"reaper: {packet.entries} statuses for {expected} entries")
    statuses = array("i")
    statuses.frombytes(packet.body)
    return statuses.tolist()


def decode_reports(packet: Packet) -> list[CutReport]:
    """The reports of a CUT packet."""
    if len(packet.body) != packet.entries * REPORT_BYTES:
        raise ProtocolError("reaper: a CUT packet of a wrong size")
    return [_report(packet.body, at * REPORT_BYTES) for at in range(packet.entries)]


def decode_listed(packet: Packet) -> list[Listed]:
    """The leases of one page of LIST."""
    if len(packet.body) != packet.entries * LISTED_BYTES:
        raise ProtocolError("reaper: a LIST page of a wrong size")
    return [_listed(packet.body, at * LISTED_BYTES) for at in range(packet.entries)]


def decode_pong(packet: Packet) -> Pong:
    """What PING is answered with."""
    if len(packet.body) != PONG.size:
        raise ProtocolError("reaper: a pong of a wrong size")
    return Pong(*PONG.unpack(packet.body)[:8])


def _report(body: memoryview, at: int) -> CutReport:
    lease_id, cut_ns, flags, count = REPORT_HEAD.unpack_from(body, at)
    if count > STEPS_MAX:
        raise ProtocolError(f"reaper: a report of {count} steps")
    steps = []
    for number in range(count):
        step, errno, began, ended, measured = STEP.unpack_from(
            body, at + REPORT_HEAD.size + number * STEP.size
        )
        steps.append(StepReport(TeardownStep(step), errno, began, ended, measured))
    return CutReport(
        lease_id=LeaseId(lease_id),
        cut_ns=cut_ns,
        by_reaper=bool(flags & BY_REAPER),
        clean=bool(flags & CLEAN),
        steps=tuple(steps),
    )


def _listed(body: memoryview, at: int) -> Listed:
    fields = LISTED_HEAD.unpack_from(body, at)
    lease_id, generation, deadline_ns, slot, objects, pid, phase, *rest = fields
    has_pidfd, memfds, missing, cgroup, packed = rest
    if objects > OBJECTS_MAX:
        raise ProtocolError(f"reaper: a lease of {objects} objects")
    ended = phase == PHASE_ENDED
    return Listed(
        lease_id=LeaseId(lease_id),
        generation=generation,
        deadline_ns=deadline_ns,
        slot=slot,
        pid=pid,
        ended=ended,
        has_pidfd=bool(has_pidfd),
        memfds=memfds,
        memfds_missing=missing,
        cgroup=cgroup.split(b"\0", 1)[0].decode(),
        objects=tuple(
            Revocable(ObjectKind(kind), number)
            for kind, number, _ in OBJECT.iter_unpack(packed[: objects * OBJECT_BYTES])
        ),
        cut=_report(body, at + LISTED_HEAD.size) if ended else None,
    )
