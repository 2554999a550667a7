# SPDX-License-Identifier: Apache-2.0
"""Cuts that could not end at once, and what else an earlier reaper leaves half done: nobody is let
go of, nothing is taken twice, and nothing is told that was not so.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.ports import Arming
from leased.service.reaper.process import find_reaper
from leased.terms.moment import NS_PER_MS
from leased.terms.teardown import TeardownStep
from tests.doubles.reaper_host import ReaperHost, boot_ns, lease_of, open_fds, usable, v1_frozen
from tests.doubles.single_link import SingleLink, linked

V1_FREEZER = Path("/sys/fs/cgroup/freezer/cgroup.procs")
pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
stuck = pytest.mark.skipif(not V1_FREEZER.exists(), reason="the v1 freezer stands for D state")
SOON_MS, LATER_MS = 100, 60_000
LARGE_BYTES = 512 << 20


@asynccontextmanager
async def _linked(host: ReaperHost) -> AsyncIterator[SingleLink]:
    async with linked(host.socket_path) as link:
        yield link


async def _said(host: ReaperHost, pattern: str) -> re.Match[str]:
    """Wait until the log has it."""
    with trio.fail_after(10):
        while (found := re.search(pattern, host.log())) is None:
            await trio.lowlevel.checkpoint()
    return found


@stuck
async def test_a_cut_that_did_not_end_is_watched_by_the_next_reaper() -> None:
    with ReaperHost("--kill-ms=50") as host:
        lease = lease_of(ttl_ms=LATER_MS)
        holder = host.sleeper()
        async with _linked(host) as link:
            await link.arm(lease, "", (), host.pidfd(holder))
            with v1_frozen(holder):
                assert not (await link.revoke(lease.lease_id)).clean
                host.kill()
                host.start()
                assert not (await link.revoke(lease.lease_id)).clean
            with trio.fail_after(10):
                while not (await link.revoke(lease.lease_id)).clean:
                    await trio.lowlevel.checkpoint()


@stuck
async def test_a_lease_that_is_to_be_forgotten_when_its_cut_ends_is_by_the_next_reaper() -> None:
    with ReaperHost("--kill-ms=50", "--backstop-ms=60000", supervise=True) as host:
        lease = lease_of(ttl_ms=LATER_MS)
        holder = host.sleeper()
        fd = host.closing(verbs.create_memory("left", size_bytes=8192))
        with v1_frozen(holder):
            async with _linked(host) as link:
                await link.arm(lease, "", (fd,), host.pidfd(holder))
                await link.disarm(lease.lease_id)
                await _said(host, "event=cut .* clean=0")
            host.take_notices()
            host.kill()
            host.start()
            async with _linked(host) as link:
                [entry] = await link.roster()
                assert entry.pidfd is not None
                for theirs in (entry.pidfd, *entry.fds):
                    os.close(theirs)
            assert verbs.memory_blocks(fd) == 16
        await _said(host, "event=backstop_ended .* ok=1")
        async with _linked(host) as link:
            assert await link.roster() == []
        assert verbs.memory_blocks(fd) == 0, "its memory is taken before it is forgotten"


@stuck
async def test_memory_is_taken_once_however_the_cut_ends_meanwhile() -> None:
    """Somebody outlives the kill, the backstop is at work, and then he is gone at last."""
    with ReaperHost("--kill-ms=50", "--backstop-ms=0") as host:
        lease, next_one = lease_of(ttl_ms=SOON_MS), lease_of(ttl_ms=LATER_MS)
        holder = host.sleeper()
        fd = host.closing(verbs.create_memory("large", size_bytes=LARGE_BYTES))
        with v1_frozen(holder):
            async with _linked(host) as link:
                await link.arm(lease, "", (fd,), host.pidfd(holder))
                child = int((await _said(host, r"event=backstop lease=\S+ pid=(\d+)"))[1])
                os.kill(child, signal.SIGSTOP)
                await link.disarm(lease.lease_id)
        await _said(host, "event=cut .* clean=1")
        async with _linked(host) as link:
            [entry] = await link.roster()
            for theirs in entry.fds:
                os.close(theirs)
            assert host.log().count("event=backstop lease") == 1
            os.kill(child, signal.SIGCONT)
            await _said(host, "event=backstop_ended .* ok=1")
            assert await link.roster() == []
            assert verbs.memory_blocks(fd) == 0
            # Nothing of it comes back to whoever has its place now.
            await link.arm(next_one, "", (), None)
            assert [step.step for step in (await link.revoke(next_one.lease_id)).steps] == [
                TeardownStep.KILL
            ]


@stuck
async def test_memory_is_taken_from_others_while_somebody_does_not_die() -> None:
    """The agent asked for the cut, and lives; told that it is not clean, it scrubs nothing."""
    with ReaperHost("--kill-ms=50", "--backstop-ms=200") as host:
        lease = lease_of(ttl_ms=LATER_MS)
        holder = host.sleeper()
        fd = host.closing(verbs.create_memory("kept", size_bytes=8192))
        async with _linked(host) as link:
            await link.arm(lease, "", (fd,), host.pidfd(holder))
            with v1_frozen(holder):
                assert not (await link.revoke(lease.lease_id)).clean
                with trio.fail_after(10):
                    while "event=backstop_ended" not in host.log():
                        [entry] = await link.roster()  # it is heard of all the time
                        for theirs in (*filter(None, [entry.pidfd]), *entry.fds):
                            os.close(theirs)
                assert verbs.memory_blocks(fd) == 0
            with trio.fail_after(10):
                while not (report := await link.revoke(lease.lease_id)).clean:
                    await trio.lowlevel.checkpoint()
        [scrub] = [step for step in report.steps if step.step is TeardownStep.SCRUB]
        assert (scrub.errno, scrub.measured) == (0, 8192)


async def test_memory_is_taken_though_the_child_that_overwrites_it_is_killed() -> None:
    """By a page that is gone under its hand (SIGBUS: whoever kept the memory shrinks it
    meanwhile), or by whatever else."""
    with ReaperHost("--backstop-ms=0") as host:
        lease = lease_of(ttl_ms=SOON_MS)
        fd = host.closing(verbs.create_memory("large", size_bytes=LARGE_BYTES))
        async with _linked(host) as link:
            await link.arm(lease, "", (fd,), None)
        child = int((await _said(host, r"event=backstop lease=\S+ pid=(\d+)"))[1])
        os.kill(child, signal.SIGBUS)
        await _said(host, "event=backstop_ended .* ok=1")
        assert verbs.memory_blocks(fd) == 0
        async with _linked(host) as link:
            steps = {step.step: step for step in (await link.revoke(lease.lease_id)).steps}
        assert steps[TeardownStep.SCRUB].errno == steps[TeardownStep.READ_BACK].errno
        assert steps[TeardownStep.SCRUB].errno == errno.ECHILD
        assert steps[TeardownStep.TRUNCATE].errno == 0


async def test_what_memory_came_back_is_taken_and_what_did_not_is_told() -> None:
    with ReaperHost("--rearm-ms=60000", "--backstop-ms=300", supervise=True) as host:
        lease = lease_of(ttl_ms=SOON_MS)
        kept, lost = (
            host.closing(verbs.create_memory(name, size_bytes=8192)) for name in ("kept", "lost")
        )
        async with _linked(host) as link:
            await link.arm(lease, "", (kept, lost), None)
        await _said(host, "event=cut .* clean=1")
        host.take_notices()
        host.kill()
        [(name, fd)] = [each for each in host.stored if each[0].endswith(".1")]
        host.stored.remove((name, fd))
        os.close(fd)
        host.start()
        await _said(host, "event=backstop_ended")
        assert (verbs.memory_blocks(kept), verbs.memory_blocks(lost)) == (0, 16)
        async with _linked(host) as link:
            steps = {step.step: step for step in (await link.revoke(lease.lease_id)).steps}
        assert steps[TeardownStep.SCRUB].measured == 8192
        for step in (TeardownStep.SCRUB, TeardownStep.READ_BACK, TeardownStep.TRUNCATE):
            assert steps[step].errno == errno.ENOENT


@pytest.mark.parametrize("spare", [4, 425])
async def test_a_reaper_that_is_short_of_descriptors_lets_nobody_go(
    tmp_path: Path, spare: int
) -> None:
    """Somebody lowered its limit between two starts: what it cannot open is not gone."""
    limit, short = tmp_path / "limit", tmp_path / "short"
    limit.write_text("4096", "ascii")
    short.write_text(f'#!/bin/sh\nulimit -n "$(cat {limit})"\nexec {find_reaper()} "$@"\n', "ascii")
    short.chmod(0o755)
    with ReaperHost(binary=short) as host:
        leases = [lease_of(ttl_ms=1_500) for _ in range(16)]
        leaves = [host.leaf(lease) for lease in leases]
        inside, holders = [host.sleeper(leaf) for leaf in leaves], [host.sleeper() for _ in leaves]
        # Their time begins when all of that is there, however long it took.
        deadline_ns = boot_ns() + 1_500 * NS_PER_MS
        async with _linked(host) as link:
            limit.write_text(str(open_fds(host.process.pid) + spare), "ascii")
            armings = [
                Arming(
                    msgspec.structs.replace(lease, deadline_ns=deadline_ns),
                    leaf,
                    (),
                    host.pidfd(holder),
                )
                for lease, leaf, holder in zip(leases, leaves, holders, strict=True)
            ]
            assert await link.arm_many(armings) == [None] * len(leases)
        host.kill()
        host.start()
        await BootClock().sleep_until(deadline_ns + 10 * NS_PER_MS)
        for process in (*inside, *holders):
            assert await trio.to_thread.run_sync(process.wait, 10) == -signal.SIGKILL
        with trio.fail_after(10):
            while host.log().count("clean=1") < len(leases):
                await trio.lowlevel.checkpoint()
        assert "event=out_of_reach" in host.log()
