# SPDX-License-Identifier: Apache-2.0
"""Renewals on the board, with the real reaper: they hold, they lose when they are late, they
outlive the reaper, and what cannot be a deadline is not believed.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from leased.hardware.clock import BootClock
from leased.service.reaper import protocol
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.teardown import CutReport
from tests.doubles.reaper_host import ReaperHost, boot_ns, lease_of, usable
from tests.doubles.single_link import SingleLink

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
HEADER_BYTES, DIAL_BYTES = 64, 16
LATER_MS = 60_000


@asynccontextmanager
async def _linked(host: ReaperHost) -> AsyncIterator[SingleLink]:
    async with trio.open_nursery() as nursery:
        link = SingleLink(host.socket_path)
        await nursery.start(link.run)
        await link.ping()  # behind BOARD, so the board has come too
        yield link
        nursery.cancel_scope.cancel()


def _renewed(lease: Lease, *, ms: int) -> Lease:
    later = lease.deadline_ns + ms * NS_PER_MS
    return msgspec.structs.replace(lease, generation=lease.generation + 1, deadline_ns=later)


def _move(link: SingleLink, lease: Lease) -> list[bool] | None:
    return link.renew_at_once([(lease.lease_id, lease.generation, lease.deadline_ns)])


async def test_a_renewal_on_the_board_is_what_the_reaper_cuts_by() -> None:
    with ReaperHost() as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=150)
            leaf = host.leaf(lease)
            inside = host.sleeper(leaf)
            await link.arm(lease, leaf, (), None)
            for _ in range(5):
                lease = _renewed(lease, ms=60)
                assert _move(link, lease) == [True]
            await BootClock().sleep_until(lease.deadline_ns - 20 * NS_PER_MS)
            assert inside.poll() is None, "the deadline it was armed with has passed"
            [entry] = await link.roster()
            assert (entry.generation, entry.deadline_ns) == (lease.generation, lease.deadline_ns)
            await BootClock().sleep_until(lease.deadline_ns)
            [report] = await link.revoke_many([lease.lease_id])
            assert isinstance(report, CutReport) and report.clean and report.by_reaper
            assert lease.deadline_ns <= report.cut_ns < lease.deadline_ns + NS_PER_S
            assert inside.wait(5) == -signal.SIGKILL


async def test_after_the_cut_has_begun_a_renewal_on_the_board_is_late() -> None:
    with ReaperHost() as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            await link.arm(lease, "", (), None)
            await link.revoke(lease.lease_id)
            assert _move(link, _renewed(lease, ms=10)) == [False]
            assert not await link.renew(lease.lease_id, 2, lease.deadline_ns + NS_PER_S)


async def test_a_deadline_that_has_passed_is_late_whoever_was_quicker() -> None:
    with ReaperHost() as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=30)
            await link.arm(lease, "", (), None)
            await BootClock().sleep_until(lease.deadline_ns)
            assert _move(link, _renewed(lease, ms=1_000)) == [False]


async def test_an_earlier_deadline_goes_to_the_reaper_itself() -> None:
    with ReaperHost() as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            leaf = host.leaf(lease)
            inside = host.sleeper(leaf)
            await link.arm(lease, leaf, (), None)
            sooner = _renewed(lease, ms=100 - LATER_MS)
            assert _move(link, sooner) is None
            assert await link.renew(lease.lease_id, sooner.generation, sooner.deadline_ns)
            assert inside.wait(5) == -signal.SIGKILL


async def test_a_renewal_that_the_reaper_never_saw_outlives_it() -> None:
    with ReaperHost() as host:
        lease = lease_of(ttl_ms=LATER_MS)
        later = _renewed(lease, ms=5_000)
        async with _linked(host) as link:
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


@pytest.mark.parametrize("nonsense", ["far", "early"])
async def test_what_cannot_be_a_deadline_is_not_believed(nonsense: str) -> None:
    with ReaperHost("--horizon-s=3600") as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=300)
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
    with ReaperHost("--horizon-s=3600") as host:
        async with _linked(host) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            await link.arm(lease, "", (), None)
            far = _renewed(lease, ms=7_200_000)
            assert _move(link, far) is None
            assert not await link.renew(lease.lease_id, far.generation, far.deadline_ns)


async def test_a_place_that_another_lease_has_now_is_not_touched() -> None:
    with ReaperHost() as host:
        async with _linked(host) as link, _linked(host) as other:
            ours, theirs = lease_of(ttl_ms=LATER_MS), lease_of(ttl_ms=2 * LATER_MS)
            await link.arm(ours, "", (), None)
            await other.revoke(ours.lease_id)
            await other.disarm(ours.lease_id)
            await other.arm(theirs, "", (), None)
            assert _move(link, _renewed(ours, ms=1_000)) is None
            [entry] = await other.roster()
            assert entry.deadline_ns == theirs.deadline_ns


async def test_at_the_deadline_either_the_renewal_or_the_cut_wins_and_both_know() -> None:
    # The two race for the same word on two cores; the seed is in the failure's name.
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    won = lost = 0
    with ReaperHost() as host:
        async with _linked(host) as link:
            for _ in range(150):
                lease = lease_of(ttl_ms=4)
                await link.arm(lease, "", (), None)
                until_ns = lease.deadline_ns - draw.randrange(-30_000, 60_000)
                while boot_ns() < until_ns:
                    pass
                later = _renewed(lease, ms=60_000)
                [in_time] = _move(link, later) or [None]
                await BootClock().sleep_until(lease.deadline_ns + 5 * NS_PER_MS)
                [entry] = await link.roster()
                assert (entry.cut is None) == in_time, f"seed {seed}"
                won, lost = won + bool(in_time), lost + (not in_time)
                await link.revoke_many([lease.lease_id])
                await link.disarm(lease.lease_id)
    assert won and lost, f"seed {seed}: {won} won, {lost} lost: no race was run"


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
