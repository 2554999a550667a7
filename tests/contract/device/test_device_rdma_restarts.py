# SPDX-License-Identifier: Apache-2.0
"""RDMA leases across runs of the agent, on a real device: owners outlive it and speak to the next,
what nobody saw is blamed on whom it must be; and the prober, which is a child of one run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import leaves
from leased.hardware.rdma import owner
from leased.terms.teardown import TeardownStep
from tests.doubles.rdma_host import SoftDevice, cabled
from tests.doubles.rdma_leases import hands, holding, region, restarted, steps_of
from tests.vm.guest.remote_peer import REFUSED

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def cable() -> Iterator[SoftDevice]:
    with cabled() as made:
        yield made


@pytest.fixture
def device(cable: SoftDevice) -> Iterator[SoftDevice]:
    yield cable
    cable.part()


async def test_an_owner_outlives_the_agent_and_speaks_to_the_next(device: SoftDevice) -> None:
    peer, later = device.peer(), device.peer()
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            key = (await held.connect(peer)).rkeys[0]
            with restarted(devices) as again:
                assert peer.read(key) == 0, "a peer notices nothing of it"
                await again.adopt([held.lease])
                assert await again.access(held.lease) == held.prepared.access
                held.devices = again
                other = (await held.connect(later)).rkeys[0]
                assert (peer.read(key), later.read(other)) == (0, 0)
                assert not any(step.errno for step in await again.withdraw(held.lease))
                assert peer.read(key) in REFUSED and later.read(other) in REFUSED
                held.kill()
                await held.reclaim()


async def test_what_is_left_of_an_adopted_lease_is_known_by_its_contexts(
    device: SoftDevice,
) -> None:
    with hands() as devices:
        async with (
            holding(devices, region(device)) as held,
            holding(devices, region(device)) as neighbour,
        ):
            with restarted(devices) as again:
                await again.adopt([held.lease, neighbour.lease])
                held.devices = neighbour.devices = again
                stolen = held.steal_device()
                held.kill()
                neighbour.kill()
                await neighbour.reclaim()
                assert not (await held.scrub()).clean
                assert (await held.prove()).unproven == held.lease.subject.allotments
                os.close(stolen)


async def test_an_agent_that_saw_nothing_blames_whom_it_proves(device: SoftDevice) -> None:
    """The agent was restarted after the cut: whose the orphans are nobody knows any more."""
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            stolen = held.steal_device()
            held.kill()
            with restarted(devices) as again:
                await again.adopt([held.lease])
                held.devices = again
                assert not (await held.scrub()).clean
                for _ in range(2):
                    proof = await held.prove()
                    assert proof.unproven == held.lease.subject.allotments
                    [witness] = steps_of(proof, TeardownStep.WITNESS)
                    assert witness.errno == errno.EBUSY, "asked again, it is not proven either"
                os.close(stolen)
                assert not (await held.prove()).unproven


async def test_an_owner_of_nobody_is_ended_at_the_start(device: SoftDevice) -> None:
    before = device.counts()
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            assert owner.members(held.room)
            with restarted(devices) as again:
                await again.adopt([])
                assert not owner.members(held.room)
                assert device.counts() == before
                held.devices = again
                leaves.remove(held.prepared.cgroup)


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_prober_reads_at_the_grant_and_not_after_the_cut(
    device: SoftDevice, orderly: bool
) -> None:
    with hands(prober=device.far) as devices:
        async with holding(devices, region(device)) as held:
            home = Path(held.prepared.cgroup).parent / "probers"
            assert (home / "cgroup.procs").read_text().split(), "under no filter of the agent's"
            if orderly:
                assert await devices.withdraw(held.lease)
            held.kill()
            await held.scrub()
            proof = await held.prove()
            seen, probed = steps_of(proof, TeardownStep.WITNESS)
            assert not proof.unproven and seen.errno == probed.errno == 0
            assert probed.measured in REFUSED, "the prober's own completion"


async def test_a_prober_that_still_reads_proves_that_access_has_not_ended(
    device: SoftDevice,
) -> None:
    with hands(prober=device.far) as devices:
        async with holding(devices, region(device)) as held:
            stolen = held.steal_device()
            held.kill()
            proof = await held.prove()
            seen, probed = steps_of(proof, TeardownStep.WITNESS)
            assert seen.errno == probed.errno == errno.EBUSY and probed.measured == 0
            os.close(stolen)


async def test_a_prober_is_made_anew_for_a_lease_that_goes_on(device: SoftDevice) -> None:
    with hands(prober=device.far) as devices:
        async with holding(devices, region(device)) as held:
            with restarted(devices) as again:
                await again.adopt([held.lease])
                held.devices = again
                held.kill()
                await held.scrub()
                proof = await held.prove()
                seen, probed = steps_of(proof, TeardownStep.WITNESS)
                assert not proof.unproven and probed.measured in REFUSED
