# SPDX-License-Identifier: Apache-2.0
"""Objects: mappings that the reaper revokes at the deadline, whoever holds them and however stuck
their drive is."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased.hardware.clock import BootClock
from leased.ports import ObjectKind, Revocable
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.teardown import CutReport, TeardownStep
from tests.doubles import mappings
from tests.doubles.host import not_proven
from tests.doubles.reaper_host import ReaperHost, lease_of, usable
from tests.doubles.single_link import linked, linked_reaper

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
LATER_MS = 60_000
KILL_MS = 3000
"""Time for a cut by an emulated processor that two machines share."""

SLOW = 9
FIRST = (Revocable(ObjectKind.DM, 0),)
READER = """
import mmap, os, sys
fd, page = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
print(flush=True)
try:
    while True:
        os.preadv(fd, [page], 0)
except OSError:
    print("EIO", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def needs_dm() -> None:
    if not mappings.usable():
        not_proven("that mappings are revoked at the deadline", "no device-mapper here")


def _step(report: CutReport, step: TeardownStep) -> tuple[int, int]:
    """(errno, measured) of the step."""
    [found] = [one for one in report.steps if one.step is step]
    return found.errno, found.measured


@pytest.mark.skipif(mappings.usable(), reason="this kernel can revoke mappings")
async def test_what_this_kernel_cannot_revoke_is_not_armed() -> None:
    async with linked_reaper() as (_, link):
        with pytest.raises(DeviceError) as refused:
            await link.arm(lease_of(ttl_ms=LATER_MS), "", (), None, FIRST)
        assert refused.value.errno == errno.ENODEV
        assert await link.roster() == []


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_an_open_descriptor_reads_and_writes_until_the_deadline_and_gets_eio_after_it() -> (
    None
):
    with ReaperHost() as host, mappings.Bench() as bench:
        async with linked(host.socket_path) as link:
            # Time for a first write by an emulated processor.
            lease = lease_of(ttl_ms=4000)
            with mappings.opened(bench.crypt(lease.lease_id)) as fd:
                await link.arm(lease, "", (), None, FIRST)
                mappings.write_at(fd)
                assert mappings.read_at(fd)[:27] == mappings.MARKER[:27]
                await BootClock().sleep_until(lease.deadline_ns)
                report = await link.revoke(lease.lease_id)
                for touch in (mappings.read_at, mappings.write_at):
                    with pytest.raises(OSError) as failed:
                        touch(fd)
                    assert failed.value.errno == errno.EIO
            assert report.clean and report.by_reaper
            assert _step(report, TeardownStep.OBJECT_REVOKE) == (0, 1)
            assert _step(report, TeardownStep.KEY) == (0, 1)
            assert bench.target(lease.lease_id) == "error"


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_all_of_a_lease_is_revoked_and_nothing_of_another() -> None:
    with ReaperHost() as host, mappings.Bench() as bench:
        async with linked(host.socket_path) as link:
            many, other = lease_of(ttl_ms=LATER_MS), lease_of(ttl_ms=LATER_MS)
            objects = [Revocable(ObjectKind.DM, number) for number in range(6)]
            for one in objects:
                bench.crypt(many.lease_id, one.number)
            bench.crypt(other.lease_id)
            await link.arm(many, "", (), None, objects[:4])
            await link.arm(many, "", (), None, objects[2:])
            await link.arm(other, "", (), None, FIRST)
            report = await link.revoke(many.lease_id)
            assert report.clean and not report.by_reaper
            assert _step(report, TeardownStep.OBJECT_REVOKE) == (0, 6)
            assert {bench.target(many.lease_id, one.number) for one in objects} == {"error"}
            assert bench.target(other.lease_id) == "crypt"


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_a_reader_that_hangs_on_a_suspended_mapping_comes_loose_and_dies() -> None:
    with ReaperHost() as host, mappings.Bench() as bench:
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            node = bench.crypt(lease.lease_id)
            leaf = host.leaf(lease)
            reader = subprocess.Popen(
                [sys.executable, "-S", "-c", READER, node],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert reader.stdout is not None
            reader.stdout.readline()
            Path(leaf, "cgroup.procs").write_text(str(reader.pid), "ascii")
            await link.arm(lease, leaf, (), None, FIRST)
            mappings.verbs.suspend_mapping(bench.control, mappings.uuid_of(lease.lease_id))
            stat = Path(f"/proc/{reader.pid}/stat")
            with trio.fail_after(5):
                while " D " not in stat.read_text("ascii"):
                    await trio.lowlevel.checkpoint()
            report = await link.revoke(lease.lease_id)
            assert report.clean
            reader.communicate(timeout=5)


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_a_stuck_drive_delays_no_other_cut_and_is_not_called_clean() -> None:
    with ReaperHost(f"--kill-ms={KILL_MS}") as host, mappings.Bench() as bench:
        async with linked(host.socket_path) as link:
            stuck = [lease_of(ttl_ms=LATER_MS) for _ in range(5)]
            fine = lease_of(ttl_ms=LATER_MS)
            bench.crypt(fine.lease_id)
            busy: list[subprocess.Popen[bytes]] = []
            for lease in stuck:
                slow = bench.delay(lease.lease_id, SLOW, LATER_MS * 10, bench.loop())
                node = bench.crypt(lease.lease_id, over=slow)
                await link.arm(lease, "", (), None, FIRST)
                busy.append(_read_once(node))
            await link.arm(fine, "", (), None, FIRST)
            cut: dict[bytes, CutReport] = {}

            async def revoke(lease_id: bytes) -> None:
                cut[lease_id] = await link.revoke(lease_id)

            async with trio.open_nursery() as together:
                for lease in (*stuck, fine):
                    together.start_soon(revoke, lease.lease_id)
            assert cut[fine.lease_id].clean
            took_ns = cut[fine.lease_id].cut_ns - cut[fine.lease_id].steps[0].began_ns
            assert took_ns < KILL_MS * NS_PER_MS * 5 // 6, "all the others were stuck all the time"
            for lease in stuck:
                report = cut[lease.lease_id]
                assert not report.clean
                assert _step(report, TeardownStep.OBJECT_REVOKE) == (errno.ETIMEDOUT, 0)
            # The drive lets go at last, and what was asked of it is done.
            for lease in stuck:
                bench.hasten(lease.lease_id, SLOW)
            with trio.fail_after(15):
                while {bench.target(lease.lease_id) for lease in stuck} != {"error"}:
                    await trio.lowlevel.checkpoint()
            for process in busy:
                process.communicate(timeout=5)


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_a_reaper_that_was_killed_while_it_revoked_is_followed_by_one_that_does() -> None:
    with ReaperHost(supervise=True) as host, mappings.Bench() as bench:
        lease, later = lease_of(ttl_ms=4000), lease_of(ttl_ms=LATER_MS)
        for one in (lease, later):
            bench.crypt(one.lease_id)
        async with linked(host.socket_path) as link:
            for one in (lease, later):
                await link.arm(one, "", (), None, FIRST)
        host.kill()
        await BootClock().sleep_until(lease.deadline_ns + NS_PER_MS)
        assert bench.target(lease.lease_id) == "crypt", "nobody was there to cut"
        host.start()
        async with linked(host.socket_path) as link:
            report = await link.revoke(lease.lease_id)
            assert report.clean and report.by_reaper
            assert bench.target(lease.lease_id) == "error"
            assert bench.target(later.lease_id) == "crypt"
            [listed] = [one for one in await link.roster() if one.lease_id == later.lease_id]
            assert listed.cut is None
            await link.disarm(later.lease_id)
            with trio.fail_after(5):
                while bench.target(later.lease_id) != "error":
                    await trio.lowlevel.checkpoint()


@pytest.mark.vm
@pytest.mark.usefixtures("needs_dm")
async def test_cutters_end_with_their_reaper_and_a_killed_one_is_replaced() -> None:
    with ReaperHost() as host, mappings.Bench() as bench:
        async with linked(host.socket_path) as link:
            for _ in range(3):
                lease = lease_of(ttl_ms=LATER_MS)
                bench.crypt(lease.lease_id)
                await link.arm(lease, "", (), None, FIRST)
                cutters = _children(host.process.pid)
                assert len(cutters) >= 4
                for pid in cutters:
                    os.kill(pid, 9)
                report = await link.revoke(lease.lease_id)
                assert report.clean and report.cut_ns < report.steps[0].began_ns + NS_PER_S
            cutters = _children(host.process.pid)
        host.kill()
        with trio.fail_after(5):
            while any(os.path.exists(f"/proc/{pid}") for pid in cutters):
                await trio.lowlevel.checkpoint()


def _read_once(node: str) -> subprocess.Popen[bytes]:
    """A process with one read under way."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", READER, node], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
        return [int(word) for word in text.split()]
    return []
