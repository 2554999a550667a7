# SPDX-License-Identifier: Apache-2.0
"""Hugepages that somebody without a lease takes from the pool while a lease of it ends: who may do
that is everybody on the host, so it costs no lease its clean end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.host import HUGEPAGE_BYTES, charged_hugepages, free_hugepages, hugepages
from tests.doubles.host_agent import NOBODY, HostAgent, mem
from tests.doubles.story import judge

pytestmark = pytest.mark.root

PAGES = 2
STRANGER = f"""
import mmap, os, sys
os.setgroups([]); os.setresgid(*({NOBODY},) * 3); os.setresuid(*({NOBODY},) * 3)
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000
with mmap.mmap(-1, {PAGES * HUGEPAGE_BYTES}, flags=flags) as view:
    for at in range({PAGES}):
        view[at * {HUGEPAGE_BYTES}] = 1
    print("has them", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def agent() -> Iterator[HostAgent]:
    """One whose workers' hugepages are counted for it, as its unit's are."""
    with hugepages(4 * PAGES), charged_hugepages() as cgroup, HostAgent() as running:
        told = running.config.read_text().replace("hugepages = false", "hugepages = true")
        running.config.write_text(told)
        procs = Path(cgroup, "cgroup.procs")
        running.start(preexec_fn=lambda: procs.write_text(str(os.getpid())))
        yield running
        judge(running)


def test_hugepages_that_a_stranger_takes_have_no_lease_fenced(agent: HostAgent) -> None:
    before = free_hugepages()
    asked = mem(PAGES * HUGEPAGE_BYTES, page_size=HUGEPAGE_BYTES)
    lease = agent.acquire(resources=[asked])
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", STRANGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as stranger:
        assert stranger.stdin is not None and stranger.stdout is not None
        assert stranger.stdout.readline()
        assert free_hugepages() == before - 2 * PAGES
        agent.call("Lease.Release", lease_id=lease["lease_id"])
        ended = agent.wait_for(lease["lease_id"])
        stranger.stdin.close()
    assert ended["runtime"]["state"] == "reclaimed", ended["runtime"]
