# SPDX-License-Identifier: Apache-2.0
"""Names of any bytes, where whoever is on the host may make them: of a mount (FUSE, udisks), of a
cgroup below one that is delegated to a user. The kernel tells of both in files that we read.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.doubles.host_agent import HostAgent

pytestmark = pytest.mark.root
ODD = b"leased-test-odd-\xff\r0::\x85"


@contextlib.contextmanager
def odd_cgroup(agent: HostAgent) -> Iterator[bytes]:
    """A cgroup that is no lease's, with whoever is moved into it."""
    path = os.fsencode(agent.cgroup.parent) + b"/" + ODD
    os.mkdir(path)
    try:
        yield path
    finally:
        os.rmdir(path)


def test_a_mount_of_any_name_keeps_no_agent_from_starting() -> None:
    """Anybody may have one where FUSE is; the agent ended in a traceback at each start."""
    script = 'mkdir "$1" && mount -t tmpfs odd "$1" && shift && exec "$@"'
    with HostAgent() as agent:
        place = os.fsencode(agent.directory) + b"/" + ODD
        agent.start(("unshare", "--mount", "sh", "-c", script, "sh", os.fsdecode(place)))
        agent.leasectl("run", "--mem", "4KiB", "--", "true")


def test_work_from_a_cgroup_of_any_name_is_leased_as_any_other() -> None:
    """The worker ended that makes everybody's grants."""
    with HostAgent() as agent, odd_cgroup(agent.start()) as path:
        words = (sys.executable, "-m", "leased.ctl.main", "run", "--mem", "4KiB", "--", "true")
        done = subprocess.run(
            ("sh", "-c", 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"', "sh", path, *words),
            env={**os.environ, **agent.sockets()},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "worker" not in agent.log(), agent.log()
