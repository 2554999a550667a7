# SPDX-License-Identifier: Apache-2.0
"""Leases of hugepages, for the tests that attack them, and how any lease of memory ends."""

from __future__ import annotations

import os

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.teardown import ProofReport, ScrubReport
from tests.doubles.host import HUGEPAGE_BYTES
from tests.doubles.leases import lease, memory


def huge(pages: int) -> Lease:
    return lease(memory(pages * HUGEPAGE_BYTES, HUGEPAGE_BYTES))


async def grant(devices: Devices, one: Lease) -> Prepared:
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    return made


async def reclaim(devices: Devices, one: Lease, made: Prepared) -> tuple[ScrubReport, ProofReport]:
    """Scrub and prove; whatever they say, the memfd is empty and stays so."""
    [scrub] = await devices.scrub_many([(one, made.fds)])
    [proof] = await devices.prove_many([(one, made.fds)])
    assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport), (scrub, proof)
    for fd in made.fds:
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (0, 0)
        os.close(fd)
    return scrub, proof


def unproven_pages(proof: ProofReport) -> int:
    return sum(allotment.capacity for allotment in proof.unproven) // HUGEPAGE_BYTES


async def fenced_pages(devices: Devices, one: Lease, made: Prepared) -> int:
    """How many pages are fenced at its end."""
    return unproven_pages((await reclaim(devices, one, made))[1])
