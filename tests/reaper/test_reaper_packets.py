# SPDX-License-Identifier: Apache-2.0
"""Bytes that are not the protocol: the reaper under AddressSanitizer answers with an error or hangs
up, keeps no descriptor it did not ask for, and goes on cutting.
"""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import verbs
from leased.service.reaper import protocol
from tests.doubles.reaper_host import ReaperHost, boot_ns, lease_of, open_fds, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
NATIVE = Path(__file__).resolve().parents[2] / "native"
SEED = 20261121
ROUNDS = 3000
CLIENTS_MAX = 16


@pytest.fixture
def host(checked_reaper: Path) -> Iterator[ReaperHost]:
    """A running one; it must have found nothing wrong when it is stopped."""
    with ReaperHost(binary=checked_reaper) as host:
        yield host
        assert host.process.poll() is None, host.log()
        host.process.terminate()
        assert host.process.wait(10) == 0, host.log()
        assert "ERROR" not in host.log() and "runtime error" not in host.log(), host.log()


def _exchange(
    sock: socket.socket, packet: bytes, fds: tuple[int, ...] = ()
) -> protocol.Packet | None:
    """Send; the answer, or None when the reaper hung up."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    try:
        sock.sendmsg([packet], rights)
        answer = sock.recv(65536)
    except (ConnectionResetError, BrokenPipeError):
        return None
    return protocol.decode(memoryview(answer)) if answer else None


def _arm_entry(
    *, memfds: int = 0, has_pidfd: int = 0, objects: int = 0, cgroup: bytes = b""
) -> bytes:
    lease = lease_of(ttl_ms=60_000)
    counts = (has_pidfd, memfds, objects)
    return protocol.ARM_ENTRY.pack(lease.lease_id, 1, lease.deadline_ns, *counts, cgroup, b"")


def test_a_packet_without_our_magic_ends_the_connection(host: ReaperHost) -> None:
    for packet in (b"x", b"\0" * 31, b"\xff" * 32, b"GET / HTTP/1.0\r\n\r\n" * 4, b"\0" * 65536):
        assert _exchange(host.connect(), packet) is None


def test_another_version_is_told_ours(host: ReaperHost) -> None:
    packet = protocol.HEADER.pack(
        protocol.MAGIC, protocol.VERSION + 1, protocol.PING, 5, 0, 0, 0, 0
    )
    answer = _exchange(host.connect(), packet)
    assert answer is not None
    assert (answer.kind, answer.serial, answer.status) == (
        protocol.ERROR,
        5,
        -errno.EPROTONOSUPPORT,
    )


@pytest.mark.parametrize(
    ("kind", "count", "body"),
    [
        (0, 0, b""),
        (99, 1, b"\0" * 16),
        (protocol.PING, 1, b""),
        (protocol.PING, 0, b"x"),
        (protocol.RENEW, 0, b""),
        (protocol.RENEW, 2, b"\0" * 32),
        (protocol.RENEW, 0xFFFFFFFF, b"\0" * 32),
        (protocol.RENEW, 0x08000001, b"\0" * 32),
        (protocol.LIST, 2, b"\0" * 16),
        (protocol.DISARM, 1, b"\0" * 15),
        (protocol.ARM, 1, _arm_entry(memfds=1)),
        (protocol.ARM, 1, _arm_entry(memfds=17)),
        (protocol.ARM, 1, _arm_entry(has_pidfd=2)),
        (protocol.ARM, 1, _arm_entry(objects=17)),
        (protocol.CUT, 1, b"\0" * protocol.REPORT_BYTES),
    ],
)
def test_a_request_that_does_not_add_up_changes_nothing(
    host: ReaperHost, kind: int, count: int, body: bytes
) -> None:
    sock = host.connect()
    answer = _exchange(sock, protocol.encode(kind, 9, count, body))
    assert answer is not None
    assert (answer.kind, answer.serial, answer.status) == (protocol.ERROR, 9, -errno.EBADMSG)
    pong = _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    assert pong is not None and protocol.decode_pong(pong).slots_used == 0


def test_descriptors_of_bad_packets_are_closed(host: ReaperHost) -> None:
    sock = host.connect()
    _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    before = open_fds(host.process.pid)
    plain = host.closing(os.open("/dev/null", os.O_RDONLY))
    memory = host.closing(verbs.create_memory("sent", size_bytes=4096))
    for packet, fds in (
        (protocol.encode(protocol.PING, 1, 0, b""), (plain,) * 5),
        (protocol.encode(protocol.RENEW, 1, 1, b"\0" * 32), (plain,)),
        (protocol.encode(protocol.ARM, 1, 1, _arm_entry(memfds=1)), (plain,)),
        (protocol.encode(protocol.ARM, 1, 1, _arm_entry(memfds=2)), (memory, plain)),
        (protocol.encode(protocol.ARM, 1, 1, _arm_entry(memfds=3)), (memory,) * 253),
        (protocol.encode(protocol.ARM, 1, 1, _arm_entry(has_pidfd=1)), (memory,)),
    ):
        assert _exchange(sock, packet, fds) is not None
    assert _exchange(host.connect(), b"nonsense" * 8, (plain, memory)) is None
    _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    assert open_fds(host.process.pid) == before


def test_the_same_memory_twice_is_held_once(host: ReaperHost) -> None:
    sock = host.connect()
    memory = host.closing(verbs.create_memory("twice", size_bytes=4096))
    _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    before = open_fds(host.process.pid)
    answer = _exchange(
        sock, protocol.encode(protocol.ARM, 1, 1, _arm_entry(memfds=3)), (memory,) * 3
    )
    assert answer is not None and protocol.decode_statuses(answer, 1) == [0]
    _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    assert open_fds(host.process.pid) == before + 1


def test_a_path_without_an_end_is_refused(host: ReaperHost) -> None:
    entry = _arm_entry(cgroup=b"/" * protocol.CGROUP_BYTES)
    answer = _exchange(host.connect(), protocol.encode(protocol.ARM, 1, 1, entry))
    assert answer is not None and protocol.decode_statuses(answer, 1) == [-errno.EINVAL]


def test_a_peer_that_never_reads_is_given_up_and_delays_nobody(host: ReaperHost) -> None:
    deaf, sock = host.connect(), host.connect()
    deaf.setblocking(False)
    asked = protocol.encode(protocol.LIST, 1, 1, protocol.LIST_ENTRY.pack(0, 0))
    with pytest.raises(OSError):
        for _ in range(1_000_000):
            try:
                deaf.send(asked)
            except BlockingIOError:
                _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
    assert _exchange(sock, protocol.encode(protocol.PING, 1, 0, b"")) is not None


def test_one_connection_too_many_is_closed_and_that_is_told(host: ReaperHost) -> None:
    ping = protocol.encode(protocol.PING, 1, 0, b"")
    for _ in range(CLIENTS_MAX):
        assert _exchange(host.connect(), ping) is not None
    assert _exchange(host.connect(), ping) is None
    assert f"event=no_room_for_clients errno={errno.EUSERS}" in host.log()


def test_a_stranger_is_not_let_in(host: ReaperHost) -> None:
    os.chmod(host.directory, 0o755)
    os.chmod(host.socket_path, 0o666)
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(host.socket_path))
        answer = _exchange(sock, protocol.encode(protocol.PING, 1, 0, b""))
        os.write(done, b"in" if answer else b"out")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(ready, 8) == b"out"
    os.close(ready)
    os.close(done)
    assert "event=peer_refused uid=65534" in host.log()


def test_random_packets_never_harm_it(host: ReaperHost) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    memory = host.closing(verbs.create_memory("fuzz", size_bytes=4096))
    pipe = os.pipe()
    for fd in pipe:
        host.closing(fd)
    known = [lease_of(ttl_ms=60_000).lease_id for _ in range(20)]
    sock = host.connect()
    for _ in range(ROUNDS):
        packet, fds = _any_packet(chance, known, (memory, *pipe))
        if _exchange(sock, packet, fds) is None:
            sock.close()
            sock = host.connect()
    pong = _exchange(host.connect(), protocol.encode(protocol.PING, 1, 0, b""))
    assert pong is not None and pong.kind == protocol.PING | protocol.REPLY


def _any_packet(
    chance: random.Random, known: list[bytes], fds: tuple[int, ...]
) -> tuple[bytes, tuple[int, ...]]:
    """Mostly well-formed requests about few leases, some of them damaged."""
    kind = chance.choice((1, 2, 2, 2, 3, 3, 5, 6, 6, chance.randrange(256)))
    sent: tuple[int, ...] = ()
    count = chance.choice((0, 1, 1, 2, 30))
    body = b""
    for _ in range(count):
        lease_id = chance.choice(known)
        deadline = boot_ns() + chance.choice((-1, 1_000_000, 50_000_000, 10**12, 2**63))
        if kind == protocol.ARM:
            brought = tuple(chance.choice(fds) for _ in range(chance.choice((0, 0, 1, 3))))
            sent += brought
            counts = (0, len(brought), chance.choice((0, 0, 1, 16)))
            objects = chance.choice((b"", protocol.OBJECT.pack(1, 0, 0), os.urandom(128)))
            entry = (lease_id, chance.randrange(9), deadline % 2**64, *counts, b"", objects)
            body += protocol.ARM_ENTRY.pack(*entry)
        elif kind == protocol.RENEW:
            body += protocol.RENEW_ENTRY.pack(lease_id, chance.randrange(9), deadline % 2**64)
        elif kind == protocol.LIST:
            body += protocol.LIST_ENTRY.pack(chance.choice((0, 1, 250, 2**32 - 1)), 1)
        else:
            body += lease_id
    packet = bytearray(protocol.encode(kind % 65536, chance.randrange(100), count, body))
    if chance.random() < 0.2:
        for _ in range(chance.randrange(1, 6)):
            packet[chance.randrange(4, len(packet))] = chance.randrange(256)
    if chance.random() < 0.1:
        del packet[chance.randrange(len(packet)) :]
    return bytes(packet) or b"\0", sent[:250]


def test_the_two_sides_agree_on_every_struct() -> None:
    text = (NATIVE / "reaper_protocol.h").read_text("utf-8")
    for name, size in (
        ("header", protocol.HEADER.size),
        ("object", protocol.OBJECT.size),
        ("arm", protocol.ARM_ENTRY.size),
        ("renew", protocol.RENEW_ENTRY.size),
        ("revoke", protocol.REVOKE_ENTRY.size),
        ("list", protocol.LIST_ENTRY.size),
        ("step_report", protocol.STEP.size),
        ("report", protocol.REPORT_BYTES),
        ("listed", protocol.LISTED_BYTES),
        ("pong", protocol.PONG.size),
    ):
        assert f"sizeof(struct leased_reaper_{name}) == {size}," in text
    for name, value in (
        ("PACKET_BYTES_MAX", protocol.PACKET_BYTES_MAX),
        ("FDS_MAX", protocol.FDS_MAX),
        ("CGROUP_BYTES", protocol.CGROUP_BYTES),
        ("MEMFDS_MAX", protocol.MEMFDS_MAX),
        ("OBJECTS_MAX", protocol.OBJECTS_MAX),
        ("STEPS_MAX", protocol.STEPS_MAX),
        ("VERSION", protocol.VERSION),
    ):
        assert re.search(rf"^#define LEASED_REAPER_{name}\s+{value}$", text, re.MULTILINE)
    assert f"0x{protocol.MAGIC:08x}" in text
    assert struct.calcsize("<16sQQ") == 32
