# SPDX-License-Identifier: Apache-2.0
"""The link itself: batching, a reaper that is mute, gone, new or lying, and starting one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from leased.hardware import verbs
from leased.hardware.config import HardwareConfig
from leased.ports import Arming
from leased.service.config import Config, Paths
from leased.service.reaper import protocol
from leased.service.reaper.process import ReaperStarter, find_reaper, spawn_reaper
from leased.terms.errors import EX_OSERR, DeviceError
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_MS
from leased.terms.teardown import CutReport
from tests.doubles.host import not_proven
from tests.doubles.reaper_host import ReaperHost, lease_of, open_fds, usable
from tests.doubles.scarcity import descriptors_left
from tests.doubles.single_link import SingleLink, linked, linked_reaper

needs_root = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
LATER_MS = 60_000
Answer = Callable[[protocol.Packet], bytes | None]


class Peer:
    """Something that listens where a reaper should, and answers as it is told to."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self.listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._path = path
        self.packets: list[tuple[int, int]] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve one connection after another."""
        with self.listener as listener:
            await listener.bind(str(self._path))
            listener.listen()
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                with connection:
                    await self._converse(connection)

    async def _converse(self, connection: trio.socket.SocketType) -> None:
        while data := await _receive(connection):
            packet = protocol.decode(memoryview(data))
            if packet.kind not in (protocol.PING, protocol.BOARD):
                self.packets.append((packet.kind, packet.entries))
            answer = self._answer(packet)
            if answer is not None:
                # A link that was lied to has hung up by now.
                with contextlib.suppress(BrokenPipeError):
                    await connection.send(answer)


async def _receive(connection: trio.socket.SocketType) -> bytes:
    """The next packet, or nothing when the link has hung up, as it does on a lie."""
    try:
        return await connection.recv(65536)
    except ConnectionResetError:
        return b""


def _yes(packet: protocol.Packet) -> bytes | None:
    if packet.kind == protocol.PING:
        body = protocol.PONG.pack(bytes(16), 0, 0, 1, 0, 0, 0, 0, 0)
    else:
        body = bytes(4 * packet.entries)
    kind = packet.kind | protocol.REPLY
    header = (protocol.MAGIC, protocol.VERSION, kind, packet.serial, packet.entries, 0, 0, 0)
    return protocol.HEADER.pack(*header) + body


@asynccontextmanager
async def _linked(
    path: Path, answer: Answer, **knobs: float
) -> AsyncIterator[tuple[SingleLink, Peer]]:
    async with trio.open_nursery() as nursery:
        peer = Peer(path, answer)
        await nursery.start(peer.run)
        link = SingleLink(path, **knobs)
        await nursery.start(link.run)
        yield link, peer
        nursery.cancel_scope.cancel()


def _move() -> tuple[LeaseId, int, int]:
    return LeaseId(secrets.token_bytes(16)), 2, 10**18


async def test_calls_of_one_turn_travel_together(tmp_path: Path) -> None:
    async with _linked(tmp_path / "s", _yes) as (link, peer):
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as callers:
            for _ in range(50):
                callers.start_soon(link.renew, *_move())
        assert peer.packets == [(protocol.RENEW, 50)]


async def test_a_batch_larger_than_a_packet_is_split_and_put_together(tmp_path: Path) -> None:
    async with _linked(tmp_path / "s", _yes) as (link, peer):
        assert await link.renew_many([_move() for _ in range(5000)]) == [True] * 5000
        assert sum(entries for _, entries in peer.packets) == 5000
        assert all(kind == protocol.RENEW for kind, _ in peer.packets)


async def test_no_more_descriptors_than_fit_go_into_one_packet(tmp_path: Path) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    async with _linked(tmp_path / "s", _yes) as (link, peer):
        leases = [Arming(lease_of(ttl_ms=LATER_MS), "", (null,) * 16) for _ in range(40)]
        assert await link.arm_many(leases) == [None] * 40
        assert [entries for _, entries in peer.packets] == [15, 15, 10]
    os.close(null)


async def test_a_mute_reaper_is_a_device_error_and_nobody_waits(tmp_path: Path) -> None:
    async with _linked(tmp_path / "s", lambda _: None, answer_s=0.3, cut_s=0.4) as (link, _):
        with trio.fail_after(3):
            [arm] = await link.arm_many([Arming(lease_of(ttl_ms=LATER_MS))])
            assert arm is not None and arm.errno == errno.ETIMEDOUT
            with pytest.raises(DeviceError):
                await link.renew_many([_move()])
            [cut] = await link.revoke_many([_move()[0]])
            assert isinstance(cut, DeviceError) and cut.errno == errno.ETIMEDOUT
            with pytest.raises(DeviceError):
                await link.roster()
            await link.disarm(_move()[0])


async def test_a_reaper_of_another_release_is_told_from_a_mute_one(tmp_path: Path) -> None:
    def refused(packet: protocol.Packet) -> bytes | None:
        status = -errno.EPROTONOSUPPORT
        header = (protocol.MAGIC, protocol.VERSION - 1, protocol.ERROR, packet.serial, 0)
        return protocol.HEADER.pack(*header, status, 0, 0)

    async with _linked(tmp_path / "s", refused, answer_s=0.3) as (link, _):
        with trio.fail_after(3):
            with pytest.raises(DeviceError, match=r"of another release.*leased-reaper\(8\)"):
                await link.ping()
            [arm] = await link.arm_many([Arming(lease_of(ttl_ms=LATER_MS))])
            assert arm is not None and arm.errno == errno.EPROTONOSUPPORT


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"nonsense",
        protocol.HEADER.pack(1, 1, protocol.RENEW | protocol.REPLY, 1, 1, 0, 0, 0) + bytes(4),
        protocol.HEADER.pack(protocol.MAGIC, protocol.VERSION, protocol.CUT, 0, 9, 0, 0, 0),
        protocol.HEADER.pack(protocol.MAGIC, protocol.VERSION, protocol.CUT, 0, 1, 0, 0, 0)
        + struct.pack("<16sQII", b"", 0, 0, 99).ljust(protocol.REPORT_BYTES, b"\0"),
        protocol.HEADER.pack(
            protocol.MAGIC, protocol.VERSION, protocol.RENEW | protocol.REPLY, 999, 1, 0, 0, 0
        ),
    ],
)
async def test_a_lie_starts_the_connection_anew_and_the_call_is_repeated(
    tmp_path: Path, lie: bytes
) -> None:
    told: list[bytes] = []

    def answer(packet: protocol.Packet) -> bytes | None:
        if packet.kind == protocol.RENEW and not told:
            told.append(lie)
            return lie or b"\0"
        return _yes(packet)

    async with _linked(tmp_path / "s", answer) as (link, peer):
        assert await link.renew(*_move())
        assert peer.packets == [(protocol.RENEW, 1)] * 2


async def test_a_caller_that_gives_up_leaves_nothing_behind(tmp_path: Path) -> None:
    silent = True

    def answer(packet: protocol.Packet) -> bytes | None:
        return None if silent and packet.kind == protocol.RENEW else _yes(packet)

    async with _linked(tmp_path / "s", answer, answer_s=0.2) as (link, peer):
        with trio.move_on_after(0.05):
            await link.renew(*_move())
        silent = False
        assert await link.renew(*_move())
        assert len(peer.packets) == 2


@needs_root
async def test_what_the_agent_holds_is_armed_again_when_the_reaper_forgot_everything() -> None:
    lost: list[tuple[LeaseId, int]] = []
    with ReaperHost() as host:
        async with linked(host.socket_path, lost=lambda *what: lost.append(what)) as link:
            fd = host.closing(verbs.create_memory("held", size_bytes=4096))
            leases = [lease_of(ttl_ms=LATER_MS) for _ in range(3)]
            holder = host.sleeper()
            await link.arm(leases[0], "", (fd,), host.pidfd(holder))
            await link.arm(leases[1], host.leaf(leases[1]), (), None)
            await link.arm(leases[2], host.leaf(leases[2]), (), None)
            later = leases[0].deadline_ns + NS_PER_MS
            assert await link.renew(leases[0].lease_id, 2, later)
            await link.disarm(leases[2].lease_id)
            host.kill()
            host.state_path.unlink()
            (host.cgroup / leases[1].lease_id.hex()).rmdir()
            host.start()
            await link.ping()
            [entry] = await link.roster()
            assert (entry.lease_id, entry.generation, entry.deadline_ns) == (
                leases[0].lease_id,
                2,
                later,
            )
            assert len(entry.fds) == 1 and entry.pid == holder.pid
            for inherited in (*entry.fds, entry.pidfd or -1):
                os.close(inherited)
            assert lost == [(leases[1].lease_id, errno.ENOENT)]


@needs_root
async def test_holders_that_come_in_one_packet_are_told_apart() -> None:
    async with linked_reaper() as (host, link):
        one, other, gone = host.sleeper(), host.sleeper(), host.sleeper()
        pidfd_of = {process: host.pidfd(process) for process in (one, other, gone)}
        gone.kill()
        gone.wait()
        holders = [one, one, gone, other, one, gone]
        asked = [(lease_of(ttl_ms=LATER_MS), holder) for holder in holders]
        armed = [Arming(lease, "", (), pidfd_of[holder], ()) for lease, holder in asked]
        assert await link.arm_many(armed) == [None] * len(asked)
        found = {entry.lease_id: entry for entry in await link.roster()}
        for lease, holder in asked:
            entry = found[lease.lease_id]
            assert entry.pid == (0 if holder is gone else holder.pid)
            if entry.pidfd is not None:
                os.close(entry.pidfd)


@needs_root
async def test_a_cut_asked_for_is_reported_through_a_restart() -> None:
    async with linked_reaper("--kill-ms=5000") as (host, link):
        leases = [lease_of(ttl_ms=LATER_MS) for _ in range(20)]
        await link.arm_many([Arming(lease, host.leaf(lease)) for lease in leases])
        os.kill(host.process.pid, signal.SIGSTOP)
        reports: list[CutReport | DeviceError] = []

        async def ask() -> None:
            reports.extend(await link.revoke_many([lease.lease_id for lease in leases]))

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            host.kill()
            host.start()
        assert all(isinstance(report, CutReport) for report in reports)
        assert len(reports) == len(leases)


@needs_root
async def test_the_roster_hands_over_many_leases_in_pages() -> None:
    async with linked_reaper(slots=512) as (host, link):
        fd = host.closing(verbs.create_memory("shared", size_bytes=4096))
        leases = [lease_of(ttl_ms=LATER_MS) for _ in range(400)]
        outcomes = await link.arm_many([Arming(lease, "", (fd,)) for lease in leases])
        assert outcomes == [None] * 400
        roster = await link.roster()
        assert {entry.lease_id for entry in roster} == {lease.lease_id for lease in leases}
        inode = os.fstat(fd).st_ino
        for entry in roster:
            assert [os.fstat(one).st_ino for one in entry.fds] == [inode]
            os.close(entry.fds[0])
        cut = await link.revoke_many([lease.lease_id for lease in leases])
        assert all(isinstance(report, CutReport) and report.clean for report in cut)
        await link.disarm_many([lease.lease_id for lease in leases])
        assert await link.roster() == []


@needs_root
@pytest.mark.parametrize("left", [0, 1, 2, 3, 5])
async def test_a_roster_for_which_there_is_no_room_is_an_error_and_not_a_part(left: int) -> None:
    async with linked_reaper() as (host, link):
        own = [host.closing(verbs.create_memory("own", size_bytes=4096)) for _ in range(4)]
        holder = host.pidfd(host.sleeper())
        await link.arm_many(
            [Arming(lease_of(ttl_ms=LATER_MS), "", (own[at], own[at + 1]), holder)
            for at in (0, 2)]
        )
        before = open_fds(os.getpid())
        with descriptors_left(left), pytest.raises(DeviceError) as failed:
            await link.roster()
        assert failed.value.errno == errno.EMFILE
        assert open_fds(os.getpid()) == before
        for entry in await link.roster():
            assert len(entry.fds) == 2 and entry.pidfd is not None
            for fd in (entry.pidfd, *entry.fds):
                os.close(fd)


@needs_root
async def test_a_reaper_is_started_once_detached_and_started_again_when_it_dies(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "run"
    binary = find_reaper()
    assert await spawn_reaper(binary, directory, options=("--slots=16",))
    assert not await spawn_reaper(binary, directory, options=("--slots=16",))
    starts: list[bool] = []

    async def restart() -> None:
        starts.append(await spawn_reaper(binary, directory, options=("--slots=16",)))

    async with linked(directory / "reaper.sock", restart=restart) as link:
        first = (await link.ping()).pid
        assert os.getsid(first) == first and first not in (os.getpid(), os.getppid())
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(10):
            while (second := (await link.ping()).pid) == first:
                await trio.lowlevel.checkpoint()
        assert starts == [True]
        os.kill(second, signal.SIGTERM)


@needs_root
async def test_nobody_waits_for_ever_for_a_detached_reaper_to_be_ready(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        not_proven("how long a reaper may take to start", "there is no strace")
    directory, log = tmp_path / "run", tmp_path / "log"
    command = (find_reaper(), "--detach", "--slots=16", "--runtime-dir", directory)
    calls = "poll,ppoll"  # what poll(3) is: aarch64 has only the second
    inject = f"inject={calls}:retval=0:when=1"
    tracer = ("strace", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject)
    with log.open("w") as stderr:
        done = await trio.run_process([*tracer, *command], stderr=stderr, check=False)
    assert done.returncode == EX_OSERR
    assert f"event=start_failed errno={errno.ETIMEDOUT}" in log.read_text("utf-8")

    async def restart() -> None:
        assert not await spawn_reaper(find_reaper(), directory, options=("--slots=16",))

    async with linked(directory / "reaper.sock", restart=restart) as link:
        os.kill((await link.ping()).pid, signal.SIGTERM)


async def test_a_reaper_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        await spawn_reaper(tmp_path / "absent", tmp_path)
    with pytest.raises(DeviceError, match="exit status 64"):
        await spawn_reaper(find_reaper(), tmp_path, options=("--nonsense",))


async def test_why_no_reaper_starts_is_told_once(tmp_path: Path) -> None:
    """To an operator: whoever asks for a lease is only told that nobody answers."""
    said: list[str] = []
    hardware = HardwareConfig(reaper_path=str(tmp_path / "absent"))
    paths = Paths(runtime_dir=tmp_path / "run")
    start = ReaperStarter(Config(paths=paths, hardware=hardware), said.append)
    for _ in range(2):
        with pytest.raises(DeviceError):
            await start()
    [line] = said
    assert str(tmp_path / "absent") in line
    assert str(tmp_path / "absent") in start.trouble


@needs_root
async def test_a_link_without_a_descriptor_for_its_connection_tries_again() -> None:
    with ReaperHost() as host:
        async with trio.open_nursery() as nursery:
            link = SingleLink(host.socket_path)
            with descriptors_left(0):
                nursery.start_soon(link.run)
                await trio.testing.wait_all_tasks_blocked()
            await link.ping()
            nursery.cancel_scope.cancel()
