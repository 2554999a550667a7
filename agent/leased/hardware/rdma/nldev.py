# SPDX-License-Identifier: Apache-2.0
"""nldev: what the kernel itself says of RDMA devices and of every object on them, over netlink.

It is the witness: the kernel lists contexts, domains, regions, queues and windows' owners whoever
made them, through no library and no descriptor of ours. An object whose maker is dead is listed
without a pid; one that the kernel made for itself, with a name.

Rule: a dump that the kernel says was interrupted by a change is asked again; half an answer is
none. Numbers and attributes are those of <rdma/rdma_netlink.h> (a test compares them).

Does not judge whose an object is (`ledger`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from leased.terms.errors import DeviceError

NETLINK_RDMA: Final = 20
CLIENT_NLDEV: Final = 5
GET, PORT_GET, GET_CHARDEV = 1, 5, 15
RES_QP_GET, RES_CQ_GET, RES_MR_GET, RES_PD_GET, RES_CTX_GET, RES_SRQ_GET = 10, 12, 13, 14, 22, 23

DEV_INDEX, DEV_NAME, PORT_INDEX, FW_VERSION, NODE_GUID = 1, 2, 3, 5, 6
PORT_STATE, PORT_PHYS_STATE, NDEV_NAME, DEV_PROTOCOL = 12, 13, 51, 67
CHARDEV_TYPE, CHARDEV, UVERBS_DRIVER_ID = 69, 72, 73
RES_PID, RES_KERN_NAME, RES_MRLEN = 28, 29, 45
RES_LQPN, RES_PDN, RES_CQN, RES_MRN, RES_CTXN, RES_SRQN = 21, 60, 61, 62, 64, 90

_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF
_BUFFER_BYTES: Final = 1 << 18
_AGAIN_MAX: Final = 5
_WAIT_S: Final = 2.0


class Listing(NamedTuple):
    """How one kind of object is listed: the command, the table's and entry's attributes, and which
    attribute numbers it."""

    command: int
    table: int
    entry: int
    number: int


KINDS: Final[dict[str, Listing]] = {
    "context": Listing(RES_CTX_GET, 86, 87, RES_CTXN),
    "domain": Listing(RES_PD_GET, 46, 47, RES_PDN),
    "region": Listing(RES_MR_GET, 40, 41, RES_MRN),
    "queue": Listing(RES_QP_GET, 19, 20, RES_LQPN),
    "completions": Listing(RES_CQ_GET, 35, 36, RES_CQN),
    "receives": Listing(RES_SRQ_GET, 88, 89, RES_SRQN),
}


class Object(NamedTuple):
    """One object. `pid` 0: its maker is dead. `kernel` names an object that the kernel made for
    itself. `context` and `domain` are what it belongs to, -1 where the kernel does not say."""

    kind: str
    number: int
    pid: int
    kernel: str
    context: int
    domain: int
    bytes: int


class Link(NamedTuple):
    """One registered device."""

    number: int
    name: str
    guid: str
    firmware: str
    protocol: str
    ports: int


class PortState(NamedTuple):
    """One port: the states are the InfiniBand numbers (4 is active, 5 physically up)."""

    number: int
    state: int
    physical: int
    netdev: str


# ---- bytes -------------------------------------------------------------------------------------


def request(
    command: int, serial: int, attributes: Sequence[tuple[int, bytes]], flags: int
) -> bytes:
    """One request."""
    body = b"".join(_pad(_ATTRIBUTE.pack(4 + len(v), kind) + v) for kind, v in attributes)
    kind = CLIENT_NLDEV << 10 | command
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, serial, 0) + body


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def messages(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, serial, payload) of each message. Raises DeviceError."""
    at = 0
    while at + _HEADER.size <= len(raw):
        length, kind, flags, serial, _ = _HEADER.unpack_from(raw, at)
        if length < _HEADER.size or at + length > len(raw):
            raise DeviceError("nldev", errno.EBADMSG, "a message is longer than what came")
        yield kind, flags, serial, raw[at + _HEADER.size : at + length]
        at += length + -length % 4


def attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute; a nested one's value holds attributes again. Raises
    DeviceError."""
    at = 0
    while at + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, at)
        if length < _ATTRIBUTE.size or at + length > len(payload):
            raise DeviceError("nldev", errno.EBADMSG, "an attribute is longer than its message")
        yield kind & _TYPE_MASK, payload[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


def rows(kind: str, payload: bytes) -> Iterator[Object]:
    """The objects in one message of that kind's dump."""
    listing = KINDS[kind]
    for table, entries in attributes(payload):
        if table != listing.table:
            continue
        for entry, value in attributes(entries):
            if entry == listing.entry:
                yield _row(kind, listing, dict(attributes(value)))


def _row(kind: str, listing: Listing, found: dict[int, bytes]) -> Object:
    return Object(
        kind,
        _number(found, listing.number),
        max(_number(found, RES_PID), 0),
        _text(found, RES_KERN_NAME),
        _number(found, RES_CTXN),
        _number(found, RES_PDN),
        max(_number(found, RES_MRLEN), 0),
    )


def link(payload: bytes) -> Link:
    """The device that one message of the dump of devices tells of."""
    found = dict(attributes(payload))
    return Link(
        _number(found, DEV_INDEX),
        _text(found, DEV_NAME),
        f"{max(_number(found, NODE_GUID), 0):016x}",
        _text(found, FW_VERSION),
        _text(found, DEV_PROTOCOL),
        max(_number(found, PORT_INDEX), 0),
    )


def port(payload: bytes) -> PortState:
    """The port that one message of the dump of ports tells of."""
    found = dict(attributes(payload))
    return PortState(
        _number(found, PORT_INDEX),
        _number(found, PORT_STATE),
        _number(found, PORT_PHYS_STATE),
        _text(found, NDEV_NAME),
    )


def _number(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind)
    return -1 if value is None else int.from_bytes(value, "little")


def _text(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")


# ---- the socket --------------------------------------------------------------------------------


class Nldev:
    """One conversation with the kernel. Raises DeviceError when it has no RDMA."""

    def __init__(self) -> None:
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_RDMA)
        except OSError as error:
            number = error.errno or errno.EIO
            raise DeviceError("nldev", number, "this kernel has no RDMA (ib_core)") from error
        self._sock.settimeout(_WAIT_S)
        self._serial = 0

    def __enter__(self) -> Nldev:
        return self

    def __exit__(self, *error: object) -> None:
        self._sock.close()

    def links(self) -> list[Link]:
        """Every registered device."""
        return [link(payload) for payload in self._dump(GET, ())]

    def ports(self, index: int) -> list[PortState]:
        """A device's ports."""
        return [port(payload) for payload in self._dump(PORT_GET, (_index(index),))]

    def verbs_device(self, index: int) -> tuple[int, int]:
        """The number of a device's driver in the kernel's list of verbs drivers, and the device
        number of the node that programs open."""
        asked = (_index(index), (CHARDEV_TYPE, b"uverbs\0"))
        for payload in self._ask(GET_CHARDEV, asked, 0):
            found = dict(attributes(payload))
            return _number(found, UVERBS_DRIVER_ID), _number(found, CHARDEV)
        raise DeviceError("nldev", errno.EBADMSG, "no answer about the verbs device")

    def objects(self, index: int) -> list[Object]:
        """Every object on a device, whoever made it."""
        found: list[Object] = []
        for kind, listing in KINDS.items():
            for payload in self._dump(listing.command, (_index(index),)):
                found.extend(rows(kind, payload))
        return found

    def _dump(self, command: int, asked: Sequence[tuple[int, bytes]]) -> list[bytes]:
        for _ in range(_AGAIN_MAX):
            try:
                return self._ask(command, asked, _DUMP)
            except InterruptedError:
                continue
        raise DeviceError("nldev", errno.EAGAIN, "the list changed each time it was read")

    def _ask(self, command: int, asked: Sequence[tuple[int, bytes]], flags: int) -> list[bytes]:
        self._serial += 1
        try:
            self._sock.send(request(command, self._serial, asked, flags))
            return list(self._answers(bool(flags)))
        except TimeoutError as error:
            raise DeviceError("nldev", errno.ETIMEDOUT, "the kernel did not answer") from error
        except InterruptedError:
            raise
        except OSError as error:
            raise DeviceError("nldev", error.errno or errno.EIO, f"command {command}") from error

    def _answers(self, dump: bool) -> Iterator[bytes]:
        interrupted = False
        while True:
            for kind, flags, serial, payload in messages(self._sock.recv(_BUFFER_BYTES)):
                if serial != self._serial:
                    continue
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    code = int.from_bytes(payload[:4], "little", signed=True)
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    if interrupted:
                        raise InterruptedError
                    return
                yield payload
                if not dump:
                    return


def _index(index: int) -> tuple[int, bytes]:
    return DEV_INDEX, index.to_bytes(4, "little")
