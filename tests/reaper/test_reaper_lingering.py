# SPDX-License-Identifier: Apache-2.0
"""Who is killed and stays, because of somebody outside: a dead one keeps no lease, and nobody is
killed for what he does not do.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.ports import Arming
from leased.service.reaper.process import find_reaper
from tests.doubles.lingering import parent_of, tracer_of
from tests.doubles.reaper_host import ReaperHost, lease_of, usable
from tests.doubles.single_link import linked

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
UNIT = Path(__file__).resolve().parents[2] / "systemd" / "leased-reaper.service"
LATER_MS = 60_000


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ReaperHost]:
    """A reaper with no more rights than its unit gives it: it may not look into other processes."""
    [given] = re.findall(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text("utf-8"), re.MULTILINE)
    kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in given.split())
    limited = tmp_path / "limited"
    limited.write_text(
        f'#!/bin/sh\nexec setpriv --bounding-set=-all,{kept} {find_reaper()} "$@"\n', "ascii"
    )
    limited.chmod(0o755)
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    with ReaperHost("--kill-ms=2000", binary=limited) as host:
        yield host


@pytest.mark.parametrize("where", ["holder", "leaf"])
@pytest.mark.parametrize("how", ["thread", "init"])
async def test_a_dead_one_that_nobody_waits_for_keeps_no_lease(
    how: str, where: str, host: ReaperHost
) -> None:
    with parent_of(how) as (parent, child):
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            leaf, pidfd = "", None
            if where == "leaf":
                leaf = host.leaf(lease)
                Path(leaf, "cgroup.procs").write_text(str(child), "ascii")
            else:
                pidfd = host.closing(os.pidfd_open(child))
            await link.arm(lease, leaf, (), pidfd)
            report = await link.revoke(lease.lease_id)
            assert report.clean, report
            assert parent.poll() is None, "nobody is killed for being a parent"


async def test_a_tracer_of_any_thread_keeps_no_holder_at_its_exit(host: ReaperHost) -> None:
    with parent_of("two") as (_, child):
        async with linked(host.socket_path) as link:
            lease = lease_of(ttl_ms=LATER_MS)
            await link.arm(lease, "", (), host.closing(os.pidfd_open(child)))
            [other] = {int(tid) for tid in os.listdir(f"/proc/{child}/task")} - {child}
            tracer = tracer_of(other)
            try:
                report = await link.revoke(lease.lease_id)
                assert report.clean, report
                assert tracer.wait(5) == -signal.SIGKILL
            finally:
                tracer.kill()
                tracer.wait(5)


async def test_a_pidfd_of_one_thread_is_no_holder(host: ReaperHost) -> None:
    """After its leader's exit the kernel would deliver the others no signal by it."""
    with parent_of("two") as (_, child):
        try:
            of_leader = host.closing(os.pidfd_open(child, os.O_EXCL))  # PIDFD_THREAD
        except OSError:
            pytest.skip("older than Linux 6.9")
        whole = host.closing(os.pidfd_open(child))
        async with linked(host.socket_path) as link:
            armings = [Arming(lease_of(ttl_ms=LATER_MS), "", (), fd) for fd in (whole, of_leader)]
            outcomes = await link.arm_many(armings)
            assert [one and one.errno for one in outcomes] == [None, errno.EPERM]
