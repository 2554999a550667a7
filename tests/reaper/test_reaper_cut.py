# SPDX-License-Identifier: Apache-2.0
"""The cut, with real processes in real cgroups: who is killed, when, and what is told of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.ports import Arming
from leased.service.reaper import protocol
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.teardown import CutReport, TeardownStep
from tests.doubles.lingering import tracer_of
from tests.doubles.reaper_host import ReaperHost, lease_of, usable, v1_frozen
from tests.doubles.single_link import SingleLink, linked, linked_reaper

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
SOON_MS, LATER_MS = 100, 60_000
V1_FREEZER = Path("/sys/fs/cgroup/freezer/cgroup.procs")
FORK_BOMB = (
    "import os, signal\nprint(flush=True)\n"
    "for _ in range(7):\n    os.fork() or [0 for _ in range(9**5)]\n"
    "signal.pause()"
)

async def _cut_at_deadline(link: SingleLink, lease_id: bytes, deadline_ns: int) -> CutReport:
    await BootClock().sleep_until(deadline_ns)
    [report] = await link.revoke_many([lease_id])
    assert isinstance(report, CutReport)
    return report


async def test_everybody_in_the_leaf_and_the_bound_holder_die_at_the_deadline() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=SOON_MS)
        leaf = host.leaf(lease)
        inside, holder, stranger = host.sleeper(leaf), host.sleeper(), host.sleeper()
        await link.arm(lease, leaf, (), host.pidfd(holder))
        report = await _cut_at_deadline(link, lease.lease_id, lease.deadline_ns)
        assert inside.wait(5) == holder.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        assert report.clean and report.by_reaper
        assert [step.step for step in report.steps] == [
            TeardownStep.DENY,
            TeardownStep.KILL,
            TeardownStep.FREEZE,
        ]
        assert [step.errno for step in report.steps] == [0, 0, 0]
        deny, kill, freeze = report.steps
        assert kill.measured == 2
        assert lease.deadline_ns <= deny.began_ns <= deny.ended_ns <= kill.began_ns
        assert kill.began_ns <= freeze.began_ns <= kill.ended_ns
        assert kill.ended_ns == report.cut_ns < lease.deadline_ns + NS_PER_S


async def test_the_agent_is_told_of_a_cut_that_it_did_not_ask_for() -> None:
    told: list[int] = []
    heard = trio.Event()

    def hear() -> None:
        told.append(BootClock().now().boot_ns)
        heard.set()

    with ReaperHost() as host:
        async with linked(host.socket_path, cut=hear) as link:
            asked, due = lease_of(ttl_ms=LATER_MS), lease_of(ttl_ms=SOON_MS)
            leaf = host.leaf(due)
            host.sleeper(leaf)
            await link.arm(asked, host.leaf(asked), (), None)
            await link.arm(due, leaf, (), None)
            await link.revoke(asked.lease_id)
            assert told == []
            with trio.fail_after(5):
                await heard.wait()
            assert due.deadline_ns <= told[0]
            # Whoever asks is told all the same, and it is not news.
            report = await link.revoke(due.lease_id)
            assert report.clean and report.by_reaper and report.cut_ns <= told[0]
            assert len(told) == 1


async def test_a_tracer_outside_keeps_nobody_at_its_exit() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        inside, holder, stranger = host.sleeper(leaf), host.sleeper(), host.sleeper()
        # Its tracer is traced in turn; and somebody traces one who has nothing to do with it.
        first = tracer_of(inside.pid, holder.pid)
        second, other = tracer_of(first.pid), tracer_of(stranger.pid)
        try:
            await link.arm(lease, leaf, (), host.pidfd(holder))
            report = await link.revoke(lease.lease_id)
            assert report.clean, report
            [kill] = [step for step in report.steps if step.step is TeardownStep.KILL]
            assert kill.ended_ns - kill.began_ns < 4 * NS_PER_S
            for gone in (inside, holder, first, second):
                assert gone.wait(5) == -signal.SIGKILL
            assert other.poll() is None and stranger.poll() is None
            assert host.log().count("event=tracer") >= 2
        finally:
            for process in (first, second, other):
                process.kill()
                process.wait(5)


@pytest.mark.parametrize("stays", ["leaf", "holder"])
async def test_who_is_gone_takes_no_processor_while_others_stay(stays: str) -> None:
    """A pidfd stays readable, cgroup.events tells of every change until it is read: a reaper that
    goes on listening turns before everybody else, the kernel's own threads too.
    """
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        inside, holder = host.sleeper(leaf), host.sleeper()
        tracer = tracer_of(inside.pid if stays == "leaf" else holder.pid)
        try:
            await link.arm(lease, leaf, (), host.pidfd(holder))
            before_ns = host.ran_ns()
            report = await link.revoke(lease.lease_id)
            turning_ns = host.ran_ns() - before_ns
            assert report.clean, report
            [kill] = [step for step in report.steps if step.step is TeardownStep.KILL]
            assert turning_ns < (kill.ended_ns - kill.began_ns) // 4, "half a second and more"
            assert kill.ended_ns - kill.began_ns > 400 * NS_PER_MS, "the tracer let go"
        finally:
            tracer.kill()
            tracer.wait(5)


async def test_who_comes_into_the_leaf_behind_the_kill_does_not_stay() -> None:
    """Between the kill and the freeze somebody may come in, or be forked: neither meets him."""
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        inside, late = host.sleeper(leaf), host.sleeper()
        tracer = tracer_of(inside.pid)  # the leaf is not empty before half a second
        try:
            await link.arm(lease, leaf, (), None)
            reports: list[CutReport] = []

            async def revoke() -> None:
                reports.append(await link.revoke(lease.lease_id))

            async with trio.open_nursery() as revoking:
                revoking.start_soon(revoke)
                while Path(leaf, "cgroup.freeze").read_text("ascii") != "1\n":
                    await trio.lowlevel.checkpoint()
                Path(leaf, "cgroup.procs").write_text(str(late.pid), "ascii")
            assert reports[0].clean, reports[0]
            assert late.wait(5) == -signal.SIGKILL
        finally:
            tracer.kill()
            tracer.wait(5)


async def test_what_an_agent_asked_for_before_it_died_is_done() -> None:
    """The reaper reads it only when nobody is there to be answered any more."""
    with ReaperHost() as host:
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            leaf = host.leaf(lease)
            inside = host.sleeper(leaf)
            await link.arm(lease, leaf, (), None)
        dying = host.connect()
        host.process.send_signal(signal.SIGSTOP)
        for serial in range(3):
            dying.send(protocol.encode(protocol.PING, serial, 0, b""))
        entry = protocol.encode_revoke(lease.lease_id, spare_holder=False)
        dying.send(protocol.encode(protocol.REVOKE, 3, 1, entry))
        dying.close()
        host.process.send_signal(signal.SIGCONT)
        assert inside.wait(5) == -signal.SIGKILL


async def test_disarming_a_lease_with_somebody_inside_cuts_it_first() -> None:
    # Found by the simulation: an agent that could not reach the reaper fenced the lease and told it
    # to forget; access would never have ended.
    async with linked_reaper("--backstop-ms=60000") as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        inside, holder = host.sleeper(leaf), host.sleeper()
        fd = host.closing(verbs.create_memory("left", size_bytes=4096))
        await link.arm(lease, leaf, (fd,), host.pidfd(holder))
        await link.disarm(lease.lease_id)
        assert inside.wait(5) == holder.wait(5) == -signal.SIGKILL
        with trio.fail_after(5):
            while await link.roster():
                await trio.lowlevel.checkpoint()
        assert verbs.memory_blocks(fd) == 0, "its memory is taken before it is forgotten"


async def test_a_fork_bomb_dies_whole() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=400)
        leaf = host.leaf(lease)
        await link.arm(lease, leaf, (), None)
        join = f"open({leaf + '/cgroup.procs'!r}, 'w').write('0')\n"
        bomb = subprocess.Popen(
            [sys.executable, "-S", "-c", join + FORK_BOMB],
            stdout=subprocess.PIPE,
        )
        assert bomb.stdout is not None
        bomb.stdout.readline()
        report = await _cut_at_deadline(link, lease.lease_id, lease.deadline_ns)
        assert report.clean
        assert Path(leaf, "cgroup.procs").read_text("ascii") == ""
        bomb.wait(5)
        bomb.stdout.close()


async def test_nothing_in_a_cut_leaf_opens_a_device_or_runs() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        await link.arm(lease, leaf, (), None)
        await link.revoke(lease.lease_id)
        assert "frozen 1" in Path(leaf, "cgroup.events").read_text("ascii")
        Path(leaf, "cgroup.freeze").write_text("0", "ascii")
        code = (
            f"open({leaf + '/cgroup.procs'!r}, 'w').write('0')\n"
            "try:\n    open('/dev/zero')\nexcept PermissionError:\n    raise SystemExit(7)"
        )
        late = await trio.run_process([sys.executable, "-S", "-c", code], check=False)
        assert late.returncode == 7


async def test_a_holder_that_gave_its_lease_back_lives() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        leaf = host.leaf(lease)
        holder, inside = host.sleeper(), host.sleeper(leaf)
        await link.arm(lease, leaf, (), host.pidfd(holder))
        report = await link.revoke(lease.lease_id, spare_holder=True)
        assert report.clean and not report.by_reaper
        assert inside.wait(5) == -signal.SIGKILL
        assert holder.poll() is None


async def test_a_cgroup_may_be_added_after_the_grant() -> None:
    async with linked_reaper() as (host, link):
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (), None)
        leaf = host.leaf(lease)
        await link.arm(lease, leaf, (), None)
        inside = host.sleeper(leaf)
        other = lease_of(ttl_ms=LATER_MS)
        [second] = await link.arm_many([Arming(lease, host.leaf(other))])
        assert second is not None and second.errno == errno.EEXIST
        await link.revoke(lease.lease_id)
        assert inside.wait(5) == -signal.SIGKILL


async def test_descriptors_are_what_they_must_be_or_nothing_is_armed() -> None:
    async with linked_reaper() as (host, link):
        before = (await link.ping()).slots_used
        plain = host.closing(os.open("/dev/null", os.O_RDONLY))
        unsealed = host.closing(os.memfd_create("x", os.MFD_ALLOW_SEALING))
        init = host.closing(os.pidfd_open(1))
        reaper = host.closing(os.pidfd_open(host.process.pid))
        for leaf, fds, pidfd, expected in (
            ("", (plain,), None, errno.EBADF),
            ("", (unsealed,), None, errno.EPERM),
            ("", (), plain, errno.EBADF),
            ("", (), init, errno.EPERM),
            ("", (), reaper, errno.EPERM),
            ("/proc", (), None, errno.EPERM),
            (str(host.cgroup.parent), (), None, errno.EPERM),
            ("relative", (), None, errno.EINVAL),
            (str(host.cgroup / "absent"), (), None, errno.ENOENT),
        ):
            [error] = await link.arm_many([Arming(lease_of(ttl_ms=LATER_MS), leaf, fds, pidfd)])
            assert error is not None and error.errno == expected, (leaf, error)
        assert (await link.ping()).slots_used == before


@pytest.mark.skipif(not V1_FREEZER.exists(), reason="needs the v1 freezer to stand for D state")
async def test_who_cannot_be_killed_makes_the_cut_unclean_and_delays_nobody() -> None:
    async with linked_reaper("--kill-ms=400") as (host, link):
        stuck, fine = lease_of(ttl_ms=SOON_MS), lease_of(ttl_ms=SOON_MS + 50)
        holder = host.sleeper()
        await link.arm(stuck, "", (), host.pidfd(holder))
        await link.arm(fine, host.leaf(fine), (), None)
        with v1_frozen(holder):
            clean = await _cut_at_deadline(link, fine.lease_id, fine.deadline_ns)
            assert clean.clean and clean.cut_ns < fine.deadline_ns + 200 * NS_PER_MS
            report = await link.revoke(stuck.lease_id)
            assert not report.clean
            kill = report.steps[-1]
            assert (kill.step, kill.errno) == (TeardownStep.KILL, errno.ETIMEDOUT)
            assert report.cut_ns >= stuck.deadline_ns + 400 * NS_PER_MS
        while not (late := await link.revoke(stuck.lease_id)).clean:
            await trio.lowlevel.checkpoint()
        assert late.cut_ns > report.cut_ns


async def test_memory_is_left_to_the_agent_that_asked_for_the_cut() -> None:
    async with linked_reaper("--backstop-ms=1200") as (host, link):
        fd = host.closing(verbs.create_memory("kept", size_bytes=8192))
        lease = lease_of(ttl_ms=LATER_MS)
        await link.arm(lease, "", (fd,), None)
        report = await link.revoke(lease.lease_id)
        await BootClock().sleep_until(report.cut_ns + 2000 * NS_PER_MS)
        assert verbs.memory_blocks(fd) == 16
        assert len((await link.revoke(lease.lease_id)).steps) == 1


async def test_a_table_that_is_full_says_so() -> None:
    async with linked_reaper(slots=16) as (_, link):
        leases = [lease_of(ttl_ms=LATER_MS) for _ in range(17)]
        outcomes = await link.arm_many([Arming(lease) for lease in leases])
        assert outcomes[:16] == [None] * 16
        assert outcomes[16] is not None and outcomes[16].errno == errno.ENOSPC
        await link.disarm(leases[3].lease_id)
        await link.arm(leases[16], "", (), None)
