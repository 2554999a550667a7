# SPDX-License-Identifier: Apache-2.0
"""Hugepages that somebody without a lease takes from the pool while leases of it end. Everybody on
the host may do that, and it costs no lease its clean end; nor does it hide what a tenant keeps."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import msgspec
import pytest

from leased.hardware.devices import Devices
from leased.terms.errors import Shortage
from leased.terms.lease import RevocationReason
from leased.terms.teardown import ProofReport, ScrubReport
from tests.doubles.host import (
    HUGEPAGE_BYTES,
    charged_hugepages,
    foreign_hugepages,
    free_hugepages,
    handed,
    hugepages,
    real_devices,
)
from tests.doubles.tenant import tenant
from tests.hostile.pools import fenced_pages, grant, huge, unproven_pages
from tests.hostile.test_hostile_holes import HELD, punch, take_again

STRANGERS = 3


@pytest.fixture
async def devices() -> AsyncIterator[Devices]:
    """Their workers' hugepages are counted, as those of the agent's unit are; not those of the
    tests, which play tenants and strangers."""
    with hugepages(4 * HELD), charged_hugepages() as cgroup, real_devices() as real:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        await real.facts()
        (cgroup.parent / "cgroup.procs").write_text(str(os.getpid()))
        yield real


async def test_pages_that_a_stranger_takes_have_no_lease_fenced(devices: Devices) -> None:
    before = free_hugepages()
    one, other = huge(HELD), huge(2)
    first, second = await grant(devices, one), await grant(devices, other)
    with foreign_hugepages(STRANGERS):
        assert await fenced_pages(devices, one, first) == 0
    assert await fenced_pages(devices, other, second) == 0
    assert free_hugepages() == before


@pytest.mark.parametrize("hides", ["nothing", "hole", "hole, filled again"])
async def test_beside_a_stranger_what_a_tenant_keeps_is_fenced(
    devices: Devices, hides: str
) -> None:
    """The page that it pins; and where it was punched out of the file, as many as are missing."""
    one = huge(HELD)
    made = await grant(devices, one)
    [fd] = handed(devices, one, made.fds)
    with foreign_hugepages(STRANGERS), tenant("second:pipe_page", [os.dup(fd)]) as holder:
        if hides != "nothing":
            punch(fd)
        if hides == "hole, filled again":
            take_again(fd)
        holder.cut()
        os.close(fd)
        expected = 1 if hides == "nothing" else STRANGERS + 1
        assert await fenced_pages(devices, one, made) == expected


async def test_a_hole_of_another_lease_is_settled_at_its_end(devices: Devices) -> None:
    """It could have stood for a page that the first kept: what is missing is this one's, for all we
    know."""
    one, other = huge(HELD), huge(HELD)
    first, second = await grant(devices, one), await grant(devices, other)
    [fd] = handed(devices, other, second.fds)
    with foreign_hugepages(STRANGERS):
        punch(fd)
        assert await fenced_pages(devices, one, first) == 0
        take_again(fd)
        os.close(fd)
        assert await fenced_pages(devices, other, second) == STRANGERS


async def test_a_grant_that_fails_for_want_of_pages_fences_none(devices: Devices) -> None:
    """It never had any: those that are missing are whoever's who took them all."""
    one, other = huge(1), huge(HELD)
    assert await fenced_pages(devices, one, await grant(devices, one)) == 0
    with foreign_hugepages(free_hugepages() - 1):
        [failed] = await devices.prepare_many([other])
        assert isinstance(failed, Shortage)
        assert failed.limit - failed.usage == HUGEPAGE_BYTES and failed.again_ns is None
        other = msgspec.structs.replace(other, reason=RevocationReason.GRANT_FAILED)
        [scrub] = await devices.scrub_many([(other, ())])
        [proof] = await devices.prove_many([(other, ())])
        assert isinstance(scrub, ScrubReport) and scrub.clean
        assert isinstance(proof, ProofReport) and unproven_pages(proof) == 0
