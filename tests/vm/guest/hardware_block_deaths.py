# SPDX-License-Identifier: Apache-2.0
"""A namespace under lease, while somebody of ours dies in the middle of its teardown: the agent,
the reaper, one of its cutters, the drive's worker. Access ends and the namespace is proven clean
all the same.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator

import drives
import host
import pytest
from drives import A1, A2, B1, Tenant, ask
from victims import agent, comes_to, cutters, killed_at, reaper, replaced, stopped, workers

from tests.hostile.verdicts import Verdict, record

MARKER = hashlib.shake_256(b"what a tenant wrote").digest(drives.BLOCK_BYTES)
WRITE = f"os.pwrite(fds[0], {MARKER!r}, 1 << 20); os.fsync(fds[0])"


@pytest.fixture(scope="module", autouse=True)
def _offered() -> Iterator[None]:
    drives.configure(**drives.USUAL)
    drives.settled()
    yield
    assert host.leasectl("verify").startswith("ok: ")


@pytest.fixture(autouse=True)
def _nothing_left(_offered: None) -> Iterator[None]:
    yield
    for lease in host.call("Lease.List", host.ADMIN)["leases"]:  # of a test that failed
        host.call("Admin.Revoke", host.ADMIN, lease_id=lease["lease_id"])
    drives.settled()
    assert not drives.mappings()


def clean(tenant: Tenant, identity: str, case: str) -> None:
    """It ended well, nobody has it, and nothing of what was written can be read."""
    ended = tenant.ended()
    assert ended["state"] == "reclaimed", host.leasectl("--admin", "why", tenant.lease_id)
    raw = drives.device(identity)
    assert drives.is_had_alone(raw)
    assert drives.search(raw, MARKER) == 0
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split()[0]
    record(Verdict(case, "block", "vm", "clean", evidence=f"hardware_block_deaths.py::{test}"))


def test_the_agent_dies_with_a_teardown_at_each_step() -> None:
    uncut, dirty = Tenant(*ask(A1), act=WRITE).ready(), Tenant(*ask(A2), act=WRITE).ready()
    pid = agent()
    with stopped(*workers()):
        dirty.revoke()
        comes_to(dirty.lease_id, "scrubbing")
        with stopped(reaper()):
            uncut.revoke()
            comes_to(uncut.lease_id, "revoking")
            os.kill(pid, signal.SIGKILL)
    replaced(pid, agent)
    clean(uncut, A1, "agent_killed")
    clean(dirty, A2, "agent_killed")


@pytest.mark.parametrize("state", ["revoking", "scrubbing"])
def test_the_reaper_dies(state: str) -> None:
    """Before its cut, and after it."""
    tenant = Tenant(*ask(B1), act=WRITE).ready()
    pid = reaper()
    held = (pid,) if state == "revoking" else workers()
    with stopped(*held):
        tenant.revoke()
        comes_to(tenant.lease_id, state)
        os.kill(pid, signal.SIGKILL)
    replaced(pid, reaper)
    clean(tenant, B1, "reaper_killed")


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_cutter_dies_in_the_middle_of_the_cut(nth: int) -> None:
    tenant = Tenant(*ask(B1), act=WRITE).ready()
    with killed_at("ioctl", nth, *cutters()):
        tenant.revoke()
        host.closed(tenant.lease_id)
    clean(tenant, B1, "reaper_killed")


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_the_worker_dies_while_it_scrubs_or_proves(nth: int) -> None:
    tenant = Tenant(*ask(B1), act=WRITE).ready()
    with killed_at("ioctl", nth, *workers()):
        tenant.revoke()
        host.closed(tenant.lease_id)
    clean(tenant, B1, "worker_killed")
