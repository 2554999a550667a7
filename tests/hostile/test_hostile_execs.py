# SPDX-License-Identifier: Apache-2.0
"""Whoever hangs in an exec, which closes a file whose server does not answer, costs the lease whose
memory he has, and nobody else (teardown.md section 1.5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.teardown import TeardownStep
from tests.doubles.execs import in_exec
from tests.doubles.host import handed, real_devices
from tests.doubles.leases import lease, memory
from tests.doubles.tenant import tenant
from tests.hostile.pools import reclaim

# Quiet, for what searches /proc may wait for him, too.
pytestmark = [pytest.mark.quiet, pytest.mark.skipif(os.geteuid() != 0, reason="mounts FUSE")]


KILL_NS = 100_000_000


@pytest.fixture
def devices() -> Iterator[Devices]:
    with real_devices(kill_budget_ns=KILL_NS) as real:  # one that hangs does not die
        yield real


async def grant(devices: Devices) -> tuple[Lease, Prepared, list[int]]:
    one = lease(memory(4096))
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    return one, made, handed(devices, one, made.fds)


async def test_who_has_nothing_of_it_is_in_nobodys_way(devices: Devices, tmp_path: Path) -> None:
    one, made, fds = await grant(devices)
    with in_exec(tmp_path, "more = os.open(at + '/f', os.O_CREAT)"), tenant("second:hold", fds) as (
        holder
    ):
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        assert holder.wait_other_gone()
    assert scrub.clean and proof.unproven == ()


async def test_who_has_memory_costs_the_lease_that_it_is_of(
    devices: Devices, tmp_path: Path
) -> None:
    one, made, fds = await grant(devices)
    other, others, more = await grant(devices)
    with in_exec(tmp_path, "pass", fds=tuple(fds)), tenant("second:hold", more) as holder:
        for fd in fds:
            os.close(fd)
        holder.cut()
        scrub, _ = await reclaim(devices, one, made)
        assert [step.errno for step in scrub.steps if step.step is TeardownStep.ESCAPEE_SCAN] == [
            errno.EBUSY
        ]
        scrub, proof = await reclaim(devices, other, others)
        assert holder.wait_other_gone()
    assert scrub.clean and proof.unproven == ()
