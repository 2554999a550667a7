# SPDX-License-Identifier: Apache-2.0
"""P8 for device-dax: whatever keeps a range, no descriptor and no mapping of it outlives the lease.

A page that is pinned and hidden outside the lease is not among these tests: it ends the kernel of
the machine (published with every range, `dax.survey.PIN_LIMIT`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from leased.hardware.config import EscapeePolicy
from leased.hardware.dax.config import DaxConfig
from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, Shape, shape_of
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import dax_range, handed, real_devices
from tests.doubles.leases import lease
from tests.doubles.tenant import tenant
from tests.hostile.verdicts import PLACE, Verdict, record

pytestmark = pytest.mark.vm
OFFER = DaxConfig(offer=True, persistent=True)


@pytest.fixture
def devices() -> Iterator[Devices]:
    with dax_range(), real_devices(dax=OFFER) as real:
        yield real


async def granted(devices: Devices) -> Lease:
    inventory = await devices.inventory()
    [one] = [r for r in inventory.resources if shape_of(r.resource_id) is Shape.DAX]
    made = lease(Allotment(one.resource_id, one.kind, one.tier, one.capacity))
    [prepared] = await devices.prepare_many([made])
    assert isinstance(prepared, Prepared), prepared
    return made


async def reclaim(devices: Devices, one: Lease) -> tuple[ScrubReport, ProofReport]:
    [scrub] = await devices.scrub_many([(one, ())])
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport), (scrub, proof)
    return scrub, proof


async def test_second_processes_outside_the_lease_are_found_and_killed(devices: Devices) -> None:
    one = await granted(devices)
    with contextlib.ExitStack() as stack:
        holders = [
            stack.enter_context(tenant(f"second:{trick}", handed(devices, one, ())))
            for trick in ("hold", "mapped", "thread", "ring_file")
        ]
        for holder in holders:
            holder.cut()
        scrub, proof = await reclaim(devices, one)
        assert all(holder.wait_other_gone() for holder in holders)
    [search] = [step for step in scrub.steps if step.step is TeardownStep.ESCAPEE_SCAN]
    assert (search.errno, search.measured) == (0, len(holders))
    assert proof.unproven == (), proof
    name = "test_hostile_dax.py::test_second_processes_outside_the_lease…"
    record(Verdict("mapped_and_closed", "dax", PLACE, "clean", evidence=name))


async def test_a_descriptor_in_flight_opens_nothing_when_it_arrives(devices: Devices) -> None:
    one = await granted(devices)
    with tenant("second:in_flight", handed(devices, one, ())) as holder:
        holder.cut()
        _, proof = await reclaim(devices, one)
        # Nobody can see a descriptor in a queue, so its owner lives; the device it is of does not,
        # also after the range was given back.
        assert not holder.other_gone
        assert holder.ask() == "ENXIO"
        assert proof.unproven == ()
        again = await granted(devices)
        assert holder.ask() in ("ENXIO", "EBADF", "")
        await reclaim(devices, again)


async def test_policy_fence_kills_nobody_and_takes_nothing_from_under_them() -> None:
    with dax_range(), real_devices(dax=OFFER, escapees=EscapeePolicy.FENCE) as devices:
        one = await granted(devices)
        with tenant("second:mapped", handed(devices, one, ())) as holder:
            holder.cut()
            scrub, proof = await reclaim(devices, one)
            assert proof.unproven == one.subject.allotments
            assert scrub.scrubbed_bytes == 0 and not holder.other_gone
        _, proof = await reclaim(devices, one)
        assert proof.unproven == () and os.path.exists("/sys/bus/dax/devices")
