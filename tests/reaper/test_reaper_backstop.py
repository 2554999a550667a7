# SPDX-License-Identifier: Apache-2.0
"""The backstop: no agent takes over after the cut, and somebody outside the lease kept memory."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import pytest
import trio

from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.terms.moment import NS_PER_MS
from leased.terms.teardown import TeardownStep
from tests.doubles.reaper_host import ReaperHost, lease_of, usable
from tests.doubles.single_link import linked

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
SIZE_BYTES = 1 << 20
ESCAPEE = """
import mmap, os, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
print(flush=True)
while True:
    memory[0]
"""


async def _arm_and_leave(host: ReaperHost, fd: int, ttl_ms: int) -> tuple[bytes, int]:
    """An agent that arms one lease and is gone."""
    lease = lease_of(ttl_ms=ttl_ms)
    async with linked(host.socket_path) as link:
        await link.arm(lease, "", (fd,), None)
    return lease.lease_id, lease.deadline_ns


async def test_with_the_agent_gone_an_escapee_loses_the_memory() -> None:
    with ReaperHost("--backstop-ms=100") as host:
        fd = host.closing(verbs.create_memory("escaped", size_bytes=SIZE_BYTES))
        with mmap.mmap(fd, SIZE_BYTES) as memory:
            memory[:] = b"\x5a" * SIZE_BYTES
        escapee = subprocess.Popen(
            [sys.executable, "-S", "-c", ESCAPEE, str(fd), str(SIZE_BYTES)],
            pass_fds=[fd],
            stdout=subprocess.PIPE,
        )
        assert escapee.stdout is not None
        escapee.stdout.readline()
        lease_id, deadline_ns = await _arm_and_leave(host, fd, 100)
        assert await trio.to_thread.run_sync(escapee.wait, 5) == -signal.SIGBUS
        escapee.stdout.close()
        assert verbs.memory_blocks(fd) == 0
        async with linked(host.socket_path) as link:
            [entry] = await link.roster()
            assert entry.lease_id == lease_id
            for inherited in entry.fds:
                os.close(inherited)
            while len((report := await link.revoke(lease_id)).steps) < 4:
                await trio.lowlevel.checkpoint()
            steps = {step.step: step for step in report.steps}
            assert steps[TeardownStep.SCRUB].measured == SIZE_BYTES
            assert steps[TeardownStep.SCRUB].began_ns >= deadline_ns + 100 * NS_PER_MS
            assert steps[TeardownStep.READ_BACK].measured == 0
            assert steps[TeardownStep.TRUNCATE].measured == 0
            assert all(step.errno == 0 for step in report.steps)
            await link.disarm(lease_id)


async def test_a_disarmed_lease_is_left_alone() -> None:
    with ReaperHost("--backstop-ms=50") as host:
        fd = host.closing(verbs.create_memory("clean", size_bytes=SIZE_BYTES))
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=60_000)
            await link.arm(lease, "", (fd,), None)
            report = await link.revoke(lease.lease_id)
            await link.disarm(lease.lease_id)
        await BootClock().sleep_until(report.cut_ns + 300 * NS_PER_MS)
        assert verbs.memory_blocks(fd) == SIZE_BYTES // 512


async def test_a_claim_ends_with_its_connection() -> None:
    with ReaperHost("--backstop-ms=200") as host:
        fd = host.closing(verbs.create_memory("claimed", size_bytes=SIZE_BYTES))
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=60_000)
            await link.arm(lease, "", (fd,), None)
            report = await link.revoke(lease.lease_id)
        await BootClock().sleep_until(report.cut_ns + 200 * NS_PER_MS)
        with trio.fail_after(5):
            while verbs.memory_blocks(fd) != 0:
                await trio.lowlevel.checkpoint()
