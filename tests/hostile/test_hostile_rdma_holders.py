# SPDX-License-Identifier: Apache-2.0
"""P8 for memory that RDMA reaches: whoever keeps a registration beyond the cut, stops or kills the
owner, or kills the worker half-way, nothing is granted again that somebody remote still reaches.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
from collections.abc import Iterator

import pytest
import trio

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import free_hugepages, handed, hugepages
from tests.doubles.leases import lease, memory
from tests.doubles.rdma_host import SoftDevice, a_moment, cabled, need_machine
from tests.doubles.rdma_leases import HUGE, MS, hands, holding, now_ns, race, region, steps_of
from tests.hostile.verdicts import Verdict, record
from tests.vm.guest.remote_peer import REFUSED

pytestmark = pytest.mark.vm
MODULE = "test_hostile_rdma_holders.py"


@pytest.fixture(scope="module")
def cable() -> Iterator[SoftDevice]:
    with cabled() as made:
        yield made


@pytest.fixture
def device(cable: SoftDevice) -> Iterator[SoftDevice]:
    yield cable
    cable.part()


@pytest.fixture(scope="module")
def devices() -> Iterator[Devices]:
    need_machine()
    with hands() as made:
        yield made


async def test_whoever_holds_the_device_beyond_the_cut_has_it_fenced(
    device: SoftDevice, devices: Devices
) -> None:
    """The registration lives by the device's descriptor, and somebody has a copy."""
    async with holding(devices, region(device)) as held:
        peer = device.peer()
        key = (await held.connect(peer)).rkeys[0]
        stolen = held.steal_device()
        held.kill()
        assert peer.read(key) == 0, "nothing ended it"
        scrub = await held.scrub()
        [release] = steps_of(scrub, TeardownStep.RELEASE)
        assert not scrub.clean and release.errno == errno.EBUSY and release.measured > 0
        proof = await held.prove()
        [witness] = steps_of(proof, TeardownStep.WITNESS)
        assert witness.errno == errno.EBUSY and witness.measured >= 5
        assert proof.unproven == held.lease.subject.allotments
        os.close(stolen)
        assert peer.read(key) in REFUSED
    # What was left is nobody else's.
    async with holding(devices, region(device)) as next_held:
        next_held.kill()
        await next_held.reclaim()
    reason = "the driver has not let go (release: EBUSY), the kernel still lists it (witness)"
    test = f"{MODULE}::test_whoever_holds_the_device_beyond_the_cut_has_it_fenced"
    record(Verdict("pinned_mr", "rdma", "vm", "fenced", reason, evidence=test))


async def test_pages_that_a_stranger_registered_are_counted_as_missing(
    device: SoftDevice, devices: Devices
) -> None:
    """A holder passed its descriptor on; the stranger registered the pages, and kept nothing that
    could be found."""
    with hugepages(4):
        free = free_hugepages()
        one = lease(memory(2 * HUGE, HUGE), pid=os.getpid())
        [made] = await devices.prepare_many([one])
        assert isinstance(made, Prepared), made
        [fd] = handed(devices, one, made.fds)
        stranger = device.peer(here=True, fds=(fd,))
        with mmap.mmap(fd, 2 * HUGE) as view:
            view[:6] = b"secret"
        stranger.ask("pin", fd=fd, size=2 * HUGE)
        os.close(fd)
        [scrub] = await devices.scrub_many([(one, made.fds)])
        [proof] = await devices.prove_many([(one, made.fds)])
        assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport)
        assert stranger.process.poll() is None, "nobody could find it"
        assert scrub.clean and scrub.scrubbed_bytes == 2 * HUGE
        assert [a.capacity for a in proof.unproven] == [2 * HUGE], "to the page"
        assert free_hugepages() == free - 2
        for fd in made.fds:
            os.close(fd)
        device.part()
        with trio.fail_after(10):
            while free_hugepages() != free:
                await a_moment()
    reason = "2 of 2 pages did not come back to the pool"
    test = f"{MODULE}::test_pages_that_a_stranger_registered_are_counted_as_missing"
    record(Verdict("pinned_mr", "hugepages", "vm", "fenced", reason, evidence=test))


async def test_an_owner_that_is_stopped_is_cut_all_the_same(device: SoftDevice) -> None:
    with hands(withdraw_budget_ns=100 * MS) as devices:
        peer = device.peer()
        async with holding(devices, region(device)) as held:
            await race(peer, await held.connect(peer))
            os.kill(held.owner_pid, signal.SIGSTOP)
            began_ns = now_ns()
            assert await devices.withdraw(held.lease) == ()
            assert now_ns() - began_ns < 3_000 * MS, "nobody waits for it"
            held.kill()
            told = await trio.to_thread.run_sync(peer.answer)
            assert told["status"] in REFUSED
            await held.reclaim()


async def test_an_owner_that_is_killed_takes_access_with_it(
    device: SoftDevice, devices: Devices
) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        os.kill(held.owner_pid, signal.SIGKILL)
        told = await trio.to_thread.run_sync(peer.answer)
        assert told["status"] in REFUSED
        with pytest.raises(DeviceError) as caught:
            await held.connect(device.peer())
        assert caught.value.errno == errno.ESRCH
        assert await devices.withdraw(held.lease) == (), "nothing is left to be ended in order"
        held.kill()
        await held.reclaim()


def kill_worker(devices: Devices) -> None:
    """That of the first device; it is dead when this returns."""
    for pid, _ in devices._crew._links["rdma 0"].pids:
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)


@pytest.mark.parametrize("step", ["withdraw", "scrub", "prove"])
async def test_a_worker_that_is_killed_before_a_step_is_replaced(
    device: SoftDevice, devices: Devices, step: str
) -> None:
    peer = device.peer()
    async with holding(devices, region(device)) as held:
        key = (await held.connect(peer)).rkeys[0]
        for name in ("withdraw", "scrub", "prove"):
            if name == step:
                kill_worker(devices)
            if name == "withdraw":
                assert len(await devices.withdraw(held.lease)) == 4
                assert peer.read(key) in REFUSED
                held.kill()
            elif name == "scrub":
                assert (await held.scrub()).clean
            else:
                assert not (await held.prove()).unproven
    test = f"{MODULE}::test_a_worker_that_is_killed_before_a_step_is_replaced"
    record(Verdict("worker_killed", "rdma", "vm", "clean", evidence=test))


@pytest.mark.parametrize("lets_go", [True, False])
async def test_a_worker_that_is_killed_within_a_step_is_asked_again(
    device: SoftDevice, devices: Devices, lets_go: bool
) -> None:
    """While it waits for a driver that does not let go, and then does or does not."""
    async with holding(devices, region(device)) as held:
        stolen = held.steal_device()
        held.kill()
        reports: list[ScrubReport] = []

        async def scrub() -> None:
            reports.append(await held.scrub())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub)
            await a_moment()
            if lets_go:
                os.close(stolen)
            kill_worker(devices)
        proof = await held.prove()
        assert reports[0].clean == lets_go and bool(proof.unproven) != lets_go
        if not lets_go:
            os.close(stolen)
    verdict = ("clean", "") if lets_go else ("fenced", "the driver has not let go (release: EBUSY)")
    test = f"{MODULE}::test_a_worker_that_is_killed_within_a_step_is_asked_again"
    record(Verdict("worker_killed", "rdma", "vm", *verdict, evidence=test))
