# SPDX-License-Identifier: Apache-2.0
"""Hugepages that somebody without a lease takes from the pool while a lease of it ends, or would
begin: who may do that is everybody on the host, so it has no page of any lease fenced."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.host import HUGEPAGE_BYTES, charged_hugepages, free_hugepages, hugepages
from tests.doubles.host_agent import NOBODY, HostAgent, mem
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root

PAGES = 2
ASKED = [mem(PAGES * HUGEPAGE_BYTES, page_size=HUGEPAGE_BYTES)]
STRANGER = f"""
import mmap, os, sys
pages = int(sys.argv[1])
os.setgroups([]); os.setresgid(*({NOBODY},) * 3); os.setresuid(*({NOBODY},) * 3)
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000
with mmap.mmap(-1, pages * {HUGEPAGE_BYTES}, flags=flags) as view:
    for at in range(pages):
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


@contextlib.contextmanager
def stranger(pages: int) -> Iterator[None]:
    """A process of nobody has so many meanwhile."""
    before = free_hugepages()
    words = [sys.executable, "-I", "-S", "-c", STRANGER, str(pages)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline()
        assert free_hugepages() == before - pages
        yield
        process.stdin.close()


def test_hugepages_that_a_stranger_takes_have_no_lease_fenced(agent: HostAgent) -> None:
    lease = agent.acquire(resources=ASKED)
    with stranger(PAGES):
        agent.call("Lease.Release", lease_id=lease["lease_id"])
        ended = agent.wait_for(lease["lease_id"])
    assert ended["runtime"]["state"] == "reclaimed", ended["runtime"]


def test_a_grant_that_a_stranger_leaves_no_hugepage_fences_none(agent: HostAgent) -> None:
    lease = agent.acquire(resources=ASKED)
    with stranger(free_hugepages() - 1):
        with pytest.raises(Remote):
            agent.acquire(resources=ASKED)
        agent.call("Lease.Release", lease_id=lease["lease_id"])
        agent.wait_for(lease["lease_id"])
    listed = agent.call("Device.List")["resources"]
    [pool] = [one for one in listed if one["resource_id"].endswith(f":{HUGEPAGE_BYTES}")]
    assert (pool["use"]["fenced"], pool["use"]["leased"]) == (0, 0)
    agent.acquire(resources=ASKED)
