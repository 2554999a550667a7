# SPDX-License-Identifier: Apache-2.0
"""Who is killed and stays, because of somebody outside: a dead one keeps no lease, and nobody is
killed for what he does not do.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.doubles.lingering import parent_of, tracer_of
from tests.doubles.reaper_host import ReaperHost, lease_of, usable
from tests.doubles.single_link import linked

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
LATER_MS = 60_000


@pytest.mark.parametrize("where", ["holder", "leaf"])
@pytest.mark.parametrize("how", ["thread", "init"])
async def test_a_dead_one_that_nobody_waits_for_keeps_no_lease(how: str, where: str) -> None:
    with ReaperHost("--kill-ms=2000") as host, parent_of(how) as (parent, child):
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


async def test_a_tracer_of_any_thread_keeps_no_holder_at_its_exit() -> None:
    with ReaperHost("--kill-ms=2000") as host, parent_of("two") as (_, child):
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
