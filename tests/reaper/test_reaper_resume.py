# SPDX-License-Identifier: Apache-2.0
"""The reaper's own death: what the next one knows, gets back, and does about the rest."""

from __future__ import annotations

import binascii
import mmap
import os
import random
import secrets
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.ports import Arming
from leased.service.reaper import protocol
from leased.service.reaper.process import find_reaper
from leased.terms.errors import EX_CONFIG, EX_TEMPFAIL
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_MS
from leased.terms.teardown import TeardownStep
from tests.doubles.reaper_host import ReaperHost, boot_ns, lease_of, usable
from tests.doubles.single_link import linked, linked_reaper

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
LATER_MS = 60_000
SEED = 20261121
STATE_HEADER_BYTES = 64
STATE_VERSION_AT, STATE_BOOT_AT = 4, 16


async def _armed(
    host: ReaperHost, fd: int | None, ttl_ms: int, *, leaf: bool = True, disarm: bool = False
) -> LeaseId:
    """An agent that arms one lease and is gone."""
    lease = lease_of(ttl_ms=ttl_ms)
    async with linked(host.socket_path) as link:
        holder = host.pidfd(host.sleeper())
        fds = () if fd is None else (fd,)
        await link.arm(lease, host.leaf(lease) if leaf else "", fds, holder)
        if disarm:
            await link.disarm(lease.lease_id)
    return lease.lease_id


async def test_a_deadline_survives_the_reaper() -> None:
    with ReaperHost() as host:
        lease = lease_of(ttl_ms=600)
        async with linked(host.socket_path) as link:
            leaf = host.leaf(lease)
            inside, holder = host.sleeper(leaf), host.sleeper()
            await link.arm(lease, leaf, (), host.pidfd(holder))
        host.kill()
        host.start()
        await BootClock().sleep_until(lease.deadline_ns - 100 * NS_PER_MS)
        assert inside.poll() is None and holder.poll() is None
        assert await trio.to_thread.run_sync(inside.wait, 5) == -signal.SIGKILL
        assert await trio.to_thread.run_sync(holder.wait, 5) == -signal.SIGKILL
        assert boot_ns() >= lease.deadline_ns


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-"])
async def test_a_log_that_is_closed_is_not_the_state_file(tmp_path: Path, closed: str) -> None:
    """Whoever is started without standard error has the next file that it opens there."""
    mute = tmp_path / "mute"
    mute.write_text(f'#!/bin/sh\nexec {find_reaper()} "$@" {closed}\n', "ascii")
    mute.chmod(0o755)
    with ReaperHost(binary=mute) as host:
        lease_id = await _armed(host, None, LATER_MS)
        host.kill()
        host.start()
        async with linked(host.socket_path) as link:
            assert [entry.lease_id for entry in await link.roster()] == [lease_id]
            assert (await link.ping()).slots_corrupt == 0
            assert (await link.revoke(lease_id)).clean


async def test_a_deadline_that_passed_without_a_reaper_is_cut_at_once() -> None:
    with ReaperHost() as host:
        lease = lease_of(ttl_ms=150)
        async with linked(host.socket_path) as link:
            leaf = host.leaf(lease)
            inside = host.sleeper(leaf)
            await link.arm(lease, leaf, (), None)
        host.kill()
        await BootClock().sleep_until(lease.deadline_ns + 50 * NS_PER_MS)
        assert inside.poll() is None
        host.start()
        assert await trio.to_thread.run_sync(inside.wait, 5) == -signal.SIGKILL


async def test_memory_comes_back_from_systemd_by_name_and_is_still_taken() -> None:
    with ReaperHost("--rearm-ms=50", "--backstop-ms=50", supervise=True) as host:
        fds = [host.closing(verbs.create_memory(f"m{n}", size_bytes=8192)) for n in range(3)]
        lease = lease_of(ttl_ms=700)
        async with linked(host.socket_path) as link:
            await link.arm(lease, "", fds, None)
        host.take_notices()
        assert sorted(name for name, _ in host.stored) == [
            f"{lease.lease_id.hex()}.{number}" for number in range(3)
        ]
        host.kill()
        host.start()
        await BootClock().sleep_until(lease.deadline_ns - 200 * NS_PER_MS)
        assert [verbs.memory_blocks(fd) for fd in fds] == [16, 16, 16]
        with trio.fail_after(5):
            while any(verbs.memory_blocks(fd) for fd in fds):
                await trio.lowlevel.checkpoint()
        assert boot_ns() >= lease.deadline_ns


async def test_memory_that_does_not_come_back_ends_the_lease() -> None:
    with ReaperHost("--rearm-ms=200") as host:
        fd = host.closing(verbs.create_memory("lost", size_bytes=8192))
        lease_id = await _armed(host, fd, LATER_MS, leaf=False)
        host.kill()
        host.start()
        restarted_ns = boot_ns()
        async with linked(host.socket_path) as link:
            with trio.fail_after(5):
                while (entry := (await link.roster())[0]).cut is None:
                    await trio.lowlevel.checkpoint()
                    os.close(entry.pidfd or -1)
            assert entry.memfds_missing == 1
            report = await link.revoke(lease_id)
            assert report.clean and report.by_reaper
            assert 0 <= report.cut_ns - restarted_ns + 200 * NS_PER_MS < 1000 * NS_PER_MS


async def test_an_agent_that_lives_gives_the_memory_back_in_time() -> None:
    with ReaperHost("--rearm-ms=500") as host:
        fd = host.closing(verbs.create_memory("kept", size_bytes=8192))
        lease = lease_of(ttl_ms=LATER_MS)
        async with linked(host.socket_path) as link:
            await link.arm(lease, "", (fd,), None)
            host.kill()
            host.start()
            deadline = lease.deadline_ns + NS_PER_MS
            assert await link.renew(lease.lease_id, 2, deadline)
            await BootClock().sleep_until(boot_ns() + 800 * NS_PER_MS)
            [entry] = await link.roster()
            assert (entry.generation, entry.deadline_ns) == (2, deadline)
            assert entry.cut is None and entry.memfds_missing == 0
            os.close(entry.fds[0])


async def test_the_report_of_a_cut_survives_and_a_released_holder_is_spared_for_ever() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        holder = host.sleeper()
        await link.arm(lease, "", (), host.pidfd(holder))
        report = await link.revoke(lease.lease_id, spare_holder=True)
        host.kill()
        host.start()
        assert await link.revoke(lease.lease_id) == report
        assert holder.poll() is None


async def test_another_boot_has_no_leases() -> None:
    with ReaperHost() as host:
        await _armed(host, None, LATER_MS)
        host.kill()
        with open(host.state_path, "r+b") as state:
            header = bytearray(state.read(STATE_HEADER_BYTES))
            header[STATE_BOOT_AT : STATE_BOOT_AT + 16] = secrets.token_bytes(16)
            _seal(header)
            state.seek(0)
            state.write(header)
        host.start()
        async with linked(host.socket_path) as link:
            assert await link.roster() == []


async def test_a_state_file_of_another_version_is_refused_not_guessed_at() -> None:
    """And whoever installs it can ask before the one that can read it is replaced: a reaper that
    refuses cuts nobody."""
    with ReaperHost() as host:
        words = (find_reaper(), "--check", "--runtime-dir", host.state_path.parent)
        assert subprocess.run(words).returncode == 0
        with open(host.state_path, "r+b") as state:
            header = bytearray(state.read(STATE_HEADER_BYTES))
            struct.pack_into("<I", header, STATE_VERSION_AT, 999)
            _seal(header)
            state.seek(0)
            state.write(header)
        assert subprocess.run(words).returncode == EX_CONFIG
        assert host.process.poll() is None
        host.kill()
        host.start(expect=EX_CONFIG)
        assert "another version" in host.log()


async def test_one_runtime_directory_has_one_reaper() -> None:
    with ReaperHost() as host:
        first = host.process
        host.start(expect=EX_TEMPFAIL)
        host.process = first
        assert first.poll() is None


def test_a_child_of_the_last_reaper_that_has_its_lock_for_a_moment_is_waited_for() -> None:
    """Forked, and not yet at work when its reaper was killed."""
    hold = (
        "import fcntl, select, sys\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(flush=True)\nselect.select([], [], [], 0.15)"
    )
    with ReaperHost() as host:
        host.kill()
        words = (sys.executable, "-S", "-c", hold, str(host.state_path))
        with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"\n"
            host.start()


async def test_flipped_bits_cut_or_change_nothing_but_never_lengthen_a_lease() -> None:
    """Whatever bytes of a used slot are damaged, the lease is still there as armed, or cut, or (if
    nobody can tell whose it was) named as lost."""
    print("seed", SEED)
    chance = random.Random(SEED)
    for _ in range(12):
        with ReaperHost(slots=16) as host:
            await _armed(host, None, LATER_MS, disarm=True)
            lease_id = await _armed(host, None, LATER_MS)
            host.kill()
            with open(host.state_path, "r+b") as state, mmap.mmap(state.fileno(), 0) as memory:
                slot_bytes = struct.unpack_from("<I", memory, 8)[0]
                for _ in range(chance.choice((1, 3, 400))):
                    at = STATE_HEADER_BYTES + chance.randrange(slot_bytes)
                    memory[at] ^= 1 << chance.randrange(8)
            host.start()
            async with linked(host.socket_path) as link:
                roster = await link.roster()
                corrupt = (await link.ping()).slots_corrupt
            for entry in roster:
                assert entry.lease_id == lease_id
                if entry.pidfd is not None:
                    os.close(entry.pidfd)
                assert (
                    entry.cut is not None or entry.deadline_ns <= boot_ns() + LATER_MS * NS_PER_MS
                )
            assert roster or corrupt, host.log()


async def test_no_acknowledged_renewal_is_lost_whenever_it_dies() -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    with ReaperHost() as host:
        leases = [lease_of(ttl_ms=LATER_MS) for _ in range(32)]
        acknowledged: dict[LeaseId, int] = {}
        async with linked(host.socket_path) as link:
            await link.arm_many([Arming(lease) for lease in leases])
        generation = 1
        for _ in range(10):
            sock = host.connect()
            packets = chance.randrange(1, 60)
            for _ in range(packets):
                generation += 1
                moves = [(one.lease_id, generation, one.deadline_ns + generation) for one in leases]
                body = protocol.encode_renewals(moves)
                sock.send(protocol.encode(protocol.RENEW, generation, len(moves), body))
                packet = protocol.decode(memoryview(sock.recv(65536)))
                assert protocol.decode_statuses(packet, len(moves)) == [0] * len(moves)
                acknowledged.update((one.lease_id, generation) for one in leases)
            sock.send(protocol.encode(protocol.RENEW, 1, len(moves), body))
            host.kill()
            host.start()
            async with linked(host.socket_path) as link:
                roster = {entry.lease_id: entry for entry in await link.roster()}
            for lease_id, known in acknowledged.items():
                assert roster[lease_id].generation >= known
                assert roster[lease_id].cut is None


async def test_the_cut_of_an_earlier_reaper_is_finished_by_the_next() -> None:
    with ReaperHost("--backstop-ms=100", supervise=True) as host:
        fd = host.closing(verbs.create_memory("half", size_bytes=8192))
        lease = lease_of(ttl_ms=100)
        async with linked(host.socket_path) as link:
            await link.arm(lease, "", (fd,), None)
        await BootClock().sleep_until(lease.deadline_ns + 20 * NS_PER_MS)
        host.take_notices()
        host.kill()
        host.start()
        with trio.fail_after(5):
            while verbs.memory_blocks(fd) != 0:
                await trio.lowlevel.checkpoint()
        async with linked(host.socket_path) as link:
            with trio.fail_after(5):
                while len((report := await link.revoke(lease.lease_id)).steps) < 4:
                    await trio.lowlevel.checkpoint()
            assert report.steps[-1].step is TeardownStep.TRUNCATE


def _seal(header: bytearray) -> None:
    """Give a header its CRC again (it is the last field, before the padding)."""
    struct.pack_into("<I", header, 32, binascii.crc32(header[:32]))
