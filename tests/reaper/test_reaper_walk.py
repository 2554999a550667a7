# SPDX-License-Identifier: Apache-2.0
"""A long random walk over real leases, with the reaper under AddressSanitizer: several agents that
come, leave answers unread and go, scribble on the board and die with the reaper. Whatever they did,
nobody is inside after the last deadline, nobody else is touched, and nothing is kept.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from leased.hardware import verbs
from leased.service.reaper import protocol
from tests.doubles.reaper_host import NS_PER_MS, ReaperHost, boot_ns, open_fds, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
SEEDS = (20261128, 7)
STEPS = 1000
LEASES = 10
SOCKETS = 3
FAR_NS = 600_000 * NS_PER_MS
SOON_NS = 500 * NS_PER_MS
WAIT_S = 10
WAIT_NS = WAIT_S * 1_000 * NS_PER_MS
BOARD_HEAD_BYTES = 64


class Known(msgspec.Struct):
    """What the walk did to a lease."""

    lease_id: bytes
    leaf: str
    inside: subprocess.Popen[bytes]
    holder: subprocess.Popen[bytes]
    memory: int
    until_ns: int = 0  # no deadline that was asked for is later
    held_leaf: bool = False  # the reaper has said so
    held_holder: bool = False
    ended: bool = False  # by request, or by a deadline that was not far away
    spared: bool = False
    slot: int | None = None


class Walk:
    """One walk."""

    def __init__(self, host: ReaperHost, seed: int) -> None:
        self.host = host
        self.chance = random.Random(seed)
        self.socks = [host.connect() for _ in range(SOCKETS)]
        self.serial = 0
        self.everybody: list[Known] = []
        self.leases = [self._new() for _ in range(LEASES)]

    def _new(self) -> Known:
        lease_id = secrets.token_bytes(16)
        path = self.host.cgroup / lease_id.hex()
        path.mkdir()
        words = ("sleep", "600")
        inside, holder = (subprocess.Popen(words) for _ in range(2))
        (path / "cgroup.procs").write_text(str(inside.pid), "ascii")
        memory = verbs.create_memory("walk", size_bytes=8192)
        known = Known(lease_id, str(path), inside, holder, memory)
        self.everybody.append(known)
        return known

    # -- what is asked ----------------------------------------------------------------------------

    def step(self) -> None:
        one = self.chance.choice(self.leases)
        what = self.chance.choices(
            (self._arm, self._renew, self._revoke, self._disarm, self._list, self._scribble,
             self._damaged, self._leave, self._die, self._fresh),
            (30, 20, 6, 3, 6, 8, 8, 4, 1, 6),
        )[0]  # fmt: skip
        what(one)

    def _deadline(self, one: Known) -> int:
        ahead_ms = self.chance.choice((-1, 5, 40, 300, None, None, None))
        now = boot_ns()
        deadline = now + (FAR_NS if ahead_ms is None else ahead_ms * NS_PER_MS)
        one.ended = one.ended or ahead_ms is not None
        one.until_ns = max(one.until_ns, deadline)
        return deadline

    def _arm(self, one: Known) -> None:
        with_leaf, with_pidfd, memfds = (self.chance.random() < 0.7 for _ in range(3))
        pidfd = os.pidfd_open(one.holder.pid) if with_pidfd else None
        fds = ([] if pidfd is None else [pidfd]) + ([one.memory] if memfds else [])
        entry = protocol.encode_arm(
            lease_id=one.lease_id,
            generation=self.chance.randrange(1, 50),
            deadline_ns=self._deadline(one),
            cgroup=one.leaf if with_leaf else "",
            has_pidfd=pidfd is not None,
            memfds=int(memfds),
        )
        answer = self._ask(protocol.ARM, 1, entry, fds)
        if answer is not None and answer.kind == protocol.ARM | protocol.REPLY:
            status = protocol.decode_statuses(answer, 1)[0]
            if status >= 0:
                one.slot = status
                one.held_leaf = one.held_leaf or with_leaf
                one.held_holder = one.held_holder or with_pidfd
        if pidfd is not None:
            os.close(pidfd)

    def _renew(self, one: Known) -> None:
        move = (one.lease_id, self.chance.randrange(1, 60), self._deadline(one))
        self._ask(protocol.RENEW, 1, protocol.encode_renewals([move]))

    def _revoke(self, one: Known) -> None:
        spare = self.chance.random() < 0.5
        one.spared = one.spared or spare
        one.ended = True
        entry = protocol.encode_revoke(one.lease_id, spare_holder=spare)
        self._ask(protocol.REVOKE, 1, entry)

    def _disarm(self, one: Known) -> None:
        # Its slot is the next lease's, and nobody scribbles on that in the name of this one. It is
        # waited for: it must not come after an ARM that is sent on another socket.
        one.ended, one.slot = True, None
        sock = self.chance.choice(self.socks)
        self.serial += 1
        if self._send(sock, protocol.encode(protocol.DISARM, self.serial, 1, one.lease_id), []):
            self._hear(sock, self.serial)

    def _list(self, _: Known) -> None:
        self._ask(protocol.LIST, 1, protocol.LIST_ENTRY.pack(self.chance.choice((0, 3, 900)), 1))

    def _scribble(self, one: Known) -> None:
        """As an agent that renews, or one that writes anything there."""
        if one.slot is None:
            return
        one.ended, one.until_ns = True, max(one.until_ns, boot_ns() + FAR_NS)
        with open(self.host.directory / "reaper.board", "r+b") as file:
            board = mmap.mmap(file.fileno(), 0)
        value = self.chance.choice(
            (0, 1, 2**64 - 1, 2**63, boot_ns() + 50 * NS_PER_MS, boot_ns() + FAR_NS)
        )
        struct.pack_into("<Q", board, BOARD_HEAD_BYTES + 16 * one.slot, value)
        board.close()

    def _damaged(self, one: Known) -> None:
        body = bytearray(self.chance.randbytes(self.chance.choice((0, 24, 448, 4096))))
        kind = self.chance.choice((1, 2, 3, 5, 6, 7, 0x40, 0x7F, 999))
        packet = bytearray(protocol.encode(kind, 1, self.chance.randrange(4), bytes(body)))
        packet[self.chance.randrange(len(packet))] ^= 1 << self.chance.randrange(8)
        fds = [one.memory] * self.chance.choice((0, 1, 3))
        self._send(self.chance.choice(self.socks), bytes(packet), fds)

    def _leave(self, _: Known) -> None:
        at = self.chance.randrange(SOCKETS)
        self.socks[at].close()
        self.socks[at] = self.host.connect()

    def _die(self, _: Known) -> None:
        self.host.kill()
        self.host.start()
        for sock in self.socks:
            sock.close()
        self.socks = [self.host.connect() for _ in range(SOCKETS)]
        for one in self.everybody:
            one.slot = None

    def _fresh(self, one: Known) -> None:
        self.leases[self.leases.index(one)] = self._new()

    # -- how ---------------------------------------------------------------------------------------

    def _send(self, sock: socket.socket, packet: bytes, fds: list[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            sock.sendmsg([packet], rights, socket.MSG_DONTWAIT)
        except (OSError, BrokenPipeError):
            at = self.socks.index(sock)
            sock.close()
            self.socks[at] = self.host.connect()
            return False
        return True

    def _ask(
        self, kind: int, count: int, body: bytes, fds: list[int] | None = None
    ) -> protocol.Packet | None:
        """The answer, if it is waited for at all."""
        sock = self.chance.choice(self.socks)
        self.serial += 1
        packet = protocol.encode(kind, self.serial, count, body)
        if not self._send(sock, packet, fds or []) or self.chance.random() < 0.2:
            return None
        return self._hear(sock, self.serial)

    def _hear(self, sock: socket.socket, serial: int) -> protocol.Packet | None:
        while True:
            try:
                data, received, _, _ = socket.recv_fds(sock, 65536, 253)
            except ConnectionResetError:
                return None
            for fd in received:
                os.close(fd)
            if not data:
                return None
            answer = protocol.decode(memoryview(data))
            if answer.serial == serial and answer.kind != protocol.CUT:
                return answer

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Whose last deadline has come is gone, and whose has not is there; then all are."""
        for one in self.everybody:
            if not one.ended:
                assert one.inside.poll() is None and one.holder.poll() is None, one
            elif one.until_ns < boot_ns() + SOON_NS:
                self._gone(one)
        for sock in self.socks:
            sock.close()
        sock = self.host.connect()
        for one in self.everybody:
            sock.send(protocol.encode(protocol.DISARM, 1, 1, one.lease_id))
            assert self._hear(sock, 1) is not None
            self._gone(one)
        until = boot_ns() + WAIT_NS
        while (left := self._listed(sock)) != 0:
            assert boot_ns() < until, (left, self.host.log())
        sock.close()

    def _gone(self, one: Known) -> None:
        if one.held_leaf:
            assert one.inside.wait(WAIT_S) == -signal.SIGKILL
        if one.held_holder and not one.spared:
            assert one.holder.wait(WAIT_S) == -signal.SIGKILL

    def _listed(self, sock: socket.socket) -> int:
        sock.send(protocol.encode(protocol.LIST, 2, 1, protocol.LIST_ENTRY.pack(0, 0)))
        answer = self._hear(sock, 2)
        assert answer is not None
        return answer.entries

    def close(self) -> None:
        for one in self.everybody:
            for process in (one.inside, one.holder):
                process.kill()
                process.wait(WAIT_S)
            os.close(one.memory)


@contextlib.contextmanager
def walking(host: ReaperHost, seed: int) -> Iterator[Walk]:
    walk = Walk(host, seed)
    try:
        yield walk
    finally:
        walk.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_agents_do_the_leases_end_and_nothing_is_kept(
    checked_reaper: Path, seed: int
) -> None:
    options = ("--rearm-ms=600000", "--backstop-ms=20", "--kill-ms=3000")
    with ReaperHost(*options, binary=checked_reaper, slots=64) as host:
        before = open_fds(host.process.pid)
        with walking(host, seed) as walk:
            for _ in range(STEPS):
                walk.step()
                host.take_notices()
            walk.finish()
            until = boot_ns() + WAIT_NS
            while open_fds(host.process.pid) > before:
                assert boot_ns() < until, os.listdir(f"/proc/{host.process.pid}/fd")
            assert host.process.poll() is None, host.log()
            host.process.terminate()
            assert host.process.wait(WAIT_S) == 0, host.log()
        assert "ERROR" not in host.log() and "runtime error" not in host.log(), host.log()
