# SPDX-License-Identifier: Apache-2.0
"""Renewals on the board, with the real reaper: they hold, they lose when they are late, they
outlive the reaper, and what cannot be a deadline is not believed.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import socket
import struct

import msgspec
import pytest
import trio
import trio.testing

from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.service.reaper import protocol
from leased.service.reaper.exchange import ARMS_PER_PACKET
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.teardown import CutReport
from tests.doubles.reaper_host import ReaperHost, boot_ns, lease_of, usable
from tests.doubles.single_link import SingleLink, linked, linked_reaper

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
HEADER_BYTES, DIAL_BYTES = 64, 16
LATER_MS = 60_000


def _renewed(lease: Lease, *, ms: int) -> Lease:
    later = lease.deadline_ns + ms * NS_PER_MS
    return msgspec.structs.replace(lease, generation=lease.generation + 1, deadline_ns=later)


def _move(link: SingleLink, lease: Lease) -> list[bool] | None:
    return link.renew_at_once([(lease.lease_id, lease.generation, lease.deadline_ns)])


async def test_a_renewal_on_the_board_is_what_the_reaper_cuts_by() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=1_500)
        leaf = host.leaf(lease)
        inside = host.sleeper(leaf)
        await link.arm(lease, leaf, (), None)
        armed_until_ns = lease.deadline_ns
        for _ in range(5):
            lease = _renewed(lease, ms=400)
            assert _move(link, lease) == [True]
        await BootClock().sleep_until(armed_until_ns + 50 * NS_PER_MS)
        assert inside.poll() is None, "the deadline it was armed with has passed"
        [entry] = await link.roster()
        assert (entry.generation, entry.deadline_ns) == (lease.generation, lease.deadline_ns)
        await BootClock().sleep_until(lease.deadline_ns)
        [report] = await link.revoke_many([lease.lease_id])
        assert isinstance(report, CutReport) and report.clean and report.by_reaper
        assert lease.deadline_ns <= report.cut_ns < lease.deadline_ns + NS_PER_S
        assert inside.wait(5) == -signal.SIGKILL


async def test_after_the_cut_has_begun_a_renewal_on_the_board_is_late() -> None:
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        await link.revoke(lease.lease_id)
        assert _move(link, _renewed(lease, ms=10)) == [False]
        assert not await link.renew(lease.lease_id, 2, lease.deadline_ns + NS_PER_S)


async def test_a_renewal_that_another_overtook_on_the_board_is_not_late() -> None:
    """It went by a packet; the cut that follows a late one would end a lease that lives."""
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        first = _renewed(lease, ms=1_000)
        second = _renewed(first, ms=1_000)
        assert _move(link, second) == [True]
        assert await link.renew(first.lease_id, first.generation, first.deadline_ns)
        [entry] = await link.roster()
        assert (entry.generation, entry.deadline_ns) == (second.generation, second.deadline_ns)
        third = _renewed(second, ms=1_000)
        assert _move(link, third) == [True], "the link knows what stands on the board"


async def test_a_renewal_and_an_earlier_end_that_are_told_together_are_both_in_time() -> None:
    """Told ahead, the end is there before the renewal is asked after: that was overtaken by us."""
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        later = _renewed(lease, ms=1_000)
        sooner = _renewed(later, ms=-LATER_MS // 2)
        moves = [(one.lease_id, one.generation, one.deadline_ns) for one in (later, sooner)]
        assert link.renew_at_once(moves) is None
        link.renew_ahead(moves)
        assert await link.renew_many(moves) == [True, True]
        [entry] = await link.roster()
        assert (entry.generation, entry.deadline_ns) == (sooner.generation, sooner.deadline_ns)
        again = _renewed(sooner, ms=1_000)
        assert _move(link, again) == [True], "the link knows where it was left"


async def test_more_moves_than_a_packet_takes_go_ahead() -> None:
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        sooner = _renewed(lease, ms=-LATER_MS // 2)
        others = [lease_of(ttl_ms=LATER_MS) for _ in range(protocol.ENTRIES_MAX[protocol.RENEW])]
        moves = [(one.lease_id, one.generation, one.deadline_ns) for one in (*others, sooner)]
        link.renew_ahead(moves)
        [entry] = await link.roster()
        assert (entry.generation, entry.deadline_ns) == (sooner.generation, sooner.deadline_ns)


async def test_nothing_is_late_by_a_deadline_that_a_packet_under_way_moves() -> None:
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=40)
        await link.arm(lease, "", (), None)
        later = _renewed(lease, ms=LATER_MS)
        link.renew_ahead([(later.lease_id, later.generation, later.deadline_ns)])
        await BootClock().sleep_until(lease.deadline_ns)
        moves = [(one.lease_id, one.generation, one.deadline_ns) for one in (later,)]
        assert _move(link, _renewed(later, ms=1_000)) is None, "the reaper is to be asked"
        assert await link.renew_many(moves) == [True]


async def test_a_deadline_that_has_passed_is_late_whoever_was_quicker() -> None:
    async with linked_reaper() as (_, link):
        lease = lease_of(ttl_ms=30)
        await link.arm(lease, "", (), None)
        await BootClock().sleep_until(lease.deadline_ns)
        assert _move(link, _renewed(lease, ms=1_000)) == [False]


async def test_an_earlier_deadline_goes_to_the_reaper_itself() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        inside = host.sleeper(leaf)
        await link.arm(lease, leaf, (), None)
        sooner = _renewed(lease, ms=1_500 - LATER_MS)
        assert _move(link, sooner) is None
        assert await link.renew(lease.lease_id, sooner.generation, sooner.deadline_ns)
        assert inside.wait(5) == -signal.SIGKILL


async def test_a_renewal_that_the_reaper_never_saw_outlives_it() -> None:
    with ReaperHost() as host:
        lease = lease_of(ttl_ms=LATER_MS)
        later = _renewed(lease, ms=5_000)
        async with linked(host.socket_path) as link:
            await link.arm(lease, "", (), None)
            os.kill(_reaper_pid(host), signal.SIGSTOP)
            assert _move(link, later) == [True]
            host.kill()
            host.start()
            while not link.connected:
                await trio.lowlevel.checkpoint()
            [entry] = await link.roster()
            assert (entry.generation, entry.deadline_ns) == (later.generation, later.deadline_ns)
            again = _renewed(later, ms=1_000)
            assert _move(link, again) == [True], "armed again, it has a place on the board again"


async def test_a_lease_whose_reaper_knew_more_has_its_place_again_after_one_packet() -> None:
    """It held a later renewal than the link, and would not arm what it was told anew."""
    with ReaperHost() as host:
        lease = lease_of(ttl_ms=LATER_MS)
        unheard = _renewed(lease, ms=1_000)
        async with linked(host.socket_path) as link:
            await link.arm(lease, "", (), None)
            asked = protocol.encode_renewals(
                [(unheard.lease_id, unheard.generation, unheard.deadline_ns)]
            )
            sock = host.connect()
            sock.send(protocol.encode(protocol.RENEW, 1, 1, asked))
            sock.recv(protocol.PACKET_BYTES_MAX)
            host.kill()
            host.start()
            while not link.connected:
                await trio.lowlevel.checkpoint()
            later = _renewed(unheard, ms=1_000)
            assert _move(link, later) is None, "its place is not known"
            assert await link.renew(later.lease_id, later.generation, later.deadline_ns)
            await link.ping()
            assert _move(link, _renewed(later, ms=1_000)) == [True]


@pytest.mark.parametrize("nonsense", ["far", "early"])
async def test_what_cannot_be_a_deadline_is_not_believed(nonsense: str) -> None:
    async with linked_reaper("--horizon-s=3600") as (host, link):
        lease = lease_of(ttl_ms=1_500)
        leaf = host.leaf(lease)
        inside = host.sleeper(leaf)
        await link.arm(lease, leaf, (), None)
        with _board(host) as board:
            value = boot_ns() + 7200 * NS_PER_S if nonsense == "far" else 1
            _set_dial(board, lease, value)
        await BootClock().sleep_until(lease.deadline_ns)
        assert inside.wait(5) == -signal.SIGKILL
        [report] = await link.revoke_many([lease.lease_id])
        assert isinstance(report, CutReport) and report.cut_ns >= lease.deadline_ns
        assert "event=board_corrupt" in host.log()


async def test_a_renewal_beyond_the_horizon_is_refused_by_the_reaper() -> None:
    async with linked_reaper("--horizon-s=3600") as (_, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        far = _renewed(lease, ms=7_200_000)
        assert _move(link, far) is None
        assert not await link.renew(lease.lease_id, far.generation, far.deadline_ns)


async def test_a_place_that_another_lease_has_now_is_not_touched() -> None:
    with ReaperHost() as host:
        async with linked(host.socket_path) as link, linked(host.socket_path) as other:
            ours, theirs = lease_of(ttl_ms=LATER_MS), lease_of(ttl_ms=2 * LATER_MS)
            await link.arm(ours, "", (), None)
            await other.revoke(ours.lease_id)
            await other.disarm(ours.lease_id)
            await other.arm(theirs, "", (), None)
            assert _move(link, _renewed(ours, ms=1_000)) is None
            [entry] = await other.roster()
            assert entry.deadline_ns == theirs.deadline_ns


async def test_at_the_deadline_either_the_renewal_or_the_cut_wins_and_both_know() -> None:
    # The two race for the same word on two cores; the seed is in the failure's name. A busy host
    # lets nobody near the deadline in time: then the leases get longer, and there are more rounds.
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    ttl_ms = 4
    won = lost = 0
    with ReaperHost() as host, trio.fail_after(120):
        async with linked(host.socket_path) as link:
            while won + lost < 150 or not (won and lost):
                lease = lease_of(ttl_ms=ttl_ms)
                await link.arm(lease, "", (), None)
                if boot_ns() >= lease.deadline_ns:
                    ttl_ms = min(2 * ttl_ms, 1_000)
                until_ns = lease.deadline_ns - draw.randrange(-30_000, 60_000)
                while boot_ns() < until_ns:
                    pass
                later = _renewed(lease, ms=60_000)
                [in_time] = _move(link, later) or [None]
                await BootClock().sleep_until(lease.deadline_ns)
                # What is due is done between two answers: at the second it has looked.
                await link.roster()
                [entry] = await link.roster()
                assert (entry.cut is None) == in_time, f"seed {seed}"
                won, lost = won + bool(in_time), lost + (not in_time)
                await link.revoke_many([lease.lease_id])
                await link.disarm(lease.lease_id)


async def test_a_renewal_on_the_board_outlives_whatever_else_is_asked_of_the_lease() -> None:
    """The reaper is at a packet about the lease when the renewal comes: neither takes the other
    back."""
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    with ReaperHost() as host, trio.fail_after(120):
        # Not closed by `with`: what a failing round holds of it would hide why it failed.
        mapped = _board(host)
        board, sock, lease = verbs.map_board(mapped), host.connect(), lease_of(ttl_ms=LATER_MS)
        [slot] = _armed(sock, lease, 1)
        at = HEADER_BYTES + slot * DIAL_BYTES
        rounds = met = 0
        while rounds < 300 or not met:
            until_ns = boot_ns() + draw.randrange(400_000)
            _ask_to_arm(sock, lease, ARMS_PER_PACKET)
            while boot_ns() < until_ns:
                pass
            later = _renewed(lease, ms=1)
            moved = verbs.renew_on_board(
                board,
                slot,
                known_ns=lease.deadline_ns,
                deadline_ns=later.deadline_ns,
                generation=later.generation,
            )
            statuses = set(_answers(sock, ARMS_PER_PACKET))
            assert moved == 0 and statuses <= {slot, -errno.ESTALE}, f"seed {seed}"
            [dial] = struct.unpack_from("<Q", mapped, at)
            assert dial == later.deadline_ns, f"seed {seed}: round {rounds}: it was taken back"
            lease, rounds, met = later, rounds + 1, met + (len(statuses) == 2)


async def test_a_renewal_is_seen_before_its_generation_and_then_with_it() -> None:
    with ReaperHost() as host:
        sock, lease = host.connect(), lease_of(ttl_ms=LATER_MS)
        [slot] = _armed(sock, lease, 1)
        later = _renewed(lease, ms=1_000)
        with _board(host) as board:
            _set_dial(board, lease, later.deadline_ns)
            assert _armed(sock, lease, 1) == [-errno.ESTALE], "it was overtaken, and is not wrong"
            [entry] = _listed(sock)
            assert (entry.generation, entry.deadline_ns) == (lease.generation, later.deadline_ns)
            at = HEADER_BYTES + slot * DIAL_BYTES + DIAL_BYTES // 2
            struct.pack_into("<Q", board, at, later.generation)
            [entry] = _listed(sock)
            assert (entry.generation, entry.deadline_ns) == (later.generation, later.deadline_ns)


async def test_what_is_added_to_a_lease_does_not_forget_its_renewal() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf, later = host.leaf(lease), _renewed(lease, ms=1_000)
        await link.arm(lease, "", (), None)
        pid, beside = _reaper_pid(host), host.connect()
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.arm, lease, leaf, (), None)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGCONT)
            # The lease has been armed when somebody is told so; the link has not heard it yet.
            while not _listed(beside)[0].cgroup:
                pass
            assert _move(link, later) == [True]
        assert _move(link, _renewed(later, ms=1_000)) == [True], "known where it was left"


def _ask_to_arm(sock: socket.socket, lease: Lease, times: int) -> None:
    entry = protocol.encode_arm(
        lease_id=lease.lease_id,
        generation=lease.generation,
        deadline_ns=lease.deadline_ns,
        cgroup="",
        has_pidfd=False,
        memfds=0,
        objects=(),
    )
    sock.send(protocol.encode(protocol.ARM, 1, times, times * entry))


def _answers(sock: socket.socket, count: int) -> list[int]:
    packet = protocol.decode(memoryview(sock.recv(protocol.PACKET_BYTES_MAX)))
    return list(protocol.decode_statuses(packet, count))


def _armed(sock: socket.socket, lease: Lease, times: int) -> list[int]:
    _ask_to_arm(sock, lease, times)
    return _answers(sock, times)


def _listed(sock: socket.socket) -> list[protocol.Listed]:
    sock.send(protocol.encode(protocol.LIST, 1, 1, protocol.LIST_ENTRY.pack(0, 0)))
    packet = protocol.decode(memoryview(sock.recv(protocol.PACKET_BYTES_MAX)))
    return protocol.decode_listed(packet)


def _reaper_pid(host: ReaperHost) -> int:
    connection = host.connect()
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _board(host: ReaperHost) -> mmap.mmap:
    with (host.state_path.parent / "reaper.board").open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _set_dial(board: mmap.mmap, lease: Lease, value: int) -> None:
    for at in range(HEADER_BYTES, len(board), DIAL_BYTES):
        if struct.unpack_from("<Q", board, at)[0] == lease.deadline_ns:
            struct.pack_into("<Q", board, at, value)
            return
    raise AssertionError(f"{protocol.BOARD}: the lease is not on the board")
