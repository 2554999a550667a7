# SPDX-License-Identifier: Apache-2.0
"""P8 and P4 for hugepages: the pool's counters are the verdict, and what is missing is fenced by
the page. Real processes, real kernel, a pool of a few pages (teardown.md section 4.3)."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator

import pytest
import trio

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import (
    HUGEPAGE_BYTES,
    foreign_hugepages,
    free_hugepages,
    handed,
    hugepages,
    real_devices,
)
from tests.doubles.tenant import tenant
from tests.hostile.pools import grant, huge, reclaim, unproven_pages
from tests.hostile.verdicts import PLACE, Verdict, record

POOL_PAGES = 8
SLOW_PAGES = 128
"""So much takes long enough to overwrite that something else can happen meanwhile."""


@pytest.fixture
def devices() -> Iterator[Devices]:
    with hugepages(POOL_PAGES), real_devices() as real:
        yield real


async def test_pages_leave_the_pool_and_come_back(devices: Devices) -> None:
    before = free_hugepages()
    one = huge(3)
    made = await grant(devices, one)
    assert free_hugepages() == before - 3
    [fd] = handed(devices, one, made.fds)
    with mmap.mmap(fd, 3 * HUGEPAGE_BYTES) as view:
        view[:6] = b"secret"
    os.close(fd)
    scrub, proof = await reclaim(devices, one, made)
    assert scrub.clean and scrub.scrubbed_bytes == 3 * HUGEPAGE_BYTES
    assert proof.unproven == ()
    [counters] = [step for step in proof.steps if step.step is TeardownStep.COUNTERS]
    assert (counters.errno, counters.measured) == (0, 0)
    assert free_hugepages() == before


async def test_an_empty_pool_refuses_and_keeps_nothing(devices: Devices) -> None:
    before = free_hugepages()
    small, large = huge(1), huge(POOL_PAGES + 1000)
    first, failed = await devices.prepare_many([small, large])
    assert isinstance(first, Prepared) and isinstance(failed, DeviceError)
    assert free_hugepages() == before - 1
    _, proof = await reclaim(devices, small, first)
    assert proof.unproven == () and free_hugepages() == before


CASE_OF = {
    "in_flight": "fd_in_flight",
    "cow": "cow",
    "pipe_page": "vmsplice",
    "ring_buffer": "io_uring_buffer",
}
"""Tricks that are rows of the published table."""


@pytest.mark.parametrize(
    "trick", ["hold", "mapped", "in_flight", "ring_file", "cow", "shrink", "punch"]
)
async def test_tricks_with_the_descriptor_keep_no_page(devices: Devices, trick: str) -> None:
    before = free_hugepages()
    one = huge(2)
    made = await grant(devices, one)
    second = "" if trick in ("shrink", "punch") else "second:"
    with tenant(second + trick, handed(devices, one, made.fds)) as holder:
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        if trick == "in_flight":
            assert holder.ask() == "size 0, growing EPERM"
    assert scrub.clean and proof.unproven == ()
    assert free_hugepages() == before
    if trick in CASE_OF:
        name = "test_hostile_hugepages.py::test_tricks_with_the_descriptor…"
        record(Verdict(CASE_OF[trick], "hugepages", PLACE, "clean", evidence=name))


@pytest.mark.parametrize("trick", ["pipe_page", "ring_buffer"])
async def test_a_pinned_page_is_fenced_by_the_page(devices: Devices, trick: str) -> None:
    before = free_hugepages()
    one = huge(3)
    made = await grant(devices, one)
    with tenant(f"second:{trick}", handed(devices, one, made.fds)) as holder:
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        # The bytes are overwritten; one page of three is still somebody's.
        assert scrub.clean and scrub.scrubbed_bytes == 3 * HUGEPAGE_BYTES
        assert free_hugepages() == before - 1
        assert unproven_pages(proof) == 1
        [counters] = [step for step in proof.steps if step.step is TeardownStep.COUNTERS]
        assert counters.errno and counters.measured == 1

        # Nobody else is blamed for it.
        neighbour = huge(2)
        other = await grant(devices, neighbour)
        _, clean = await reclaim(devices, neighbour, other)
        assert clean.unproven == ()
        if trick == "pipe_page":
            assert holder.ask() == bytes(8).hex()
    reason = f"COUNTERS: {unproven_pages(proof)} page of 3"
    name = "test_hostile_hugepages.py::test_a_pinned_page_is_fenced_by_the_page"
    record(Verdict(CASE_OF[trick], "hugepages", PLACE, "fenced", reason, evidence=name))


async def test_a_page_that_came_back_hides_no_other(devices: Devices) -> None:
    for _ in range(2):
        one = huge(2)
        made = await grant(devices, one)
        with tenant("second:pipe_page", handed(devices, one, made.fds)) as holder:
            holder.cut()
            _, proof = await reclaim(devices, one, made)
            assert unproven_pages(proof) == 1
        # The pipe is gone with its owner, and its page is free again: seen, and not counted twice.


async def test_a_hole_punched_by_one_makes_no_room_for_the_page_pinned_by_another(
    devices: Devices,
) -> None:
    puncher, pinner = huge(2), huge(2)
    punched, pinned = await grant(devices, puncher), await grant(devices, pinner)
    with (
        tenant("punch", handed(devices, puncher, punched.fds)) as first,
        tenant("second:pipe_page", handed(devices, pinner, pinned.fds)) as second,
    ):
        second.cut()
        _, one = await reclaim(devices, pinner, pinned)
        first.cut()
        _, two = await reclaim(devices, puncher, punched)
        # Whichever of the two is told so: exactly the page that is missing is fenced.
        assert unproven_pages(one) + unproven_pages(two) == 1


async def test_what_was_given_back_without_a_scrub_hides_no_page_of_another(
    devices: Devices,
) -> None:
    """It was fenced because nobody could ask for its scrub, and an operator lifted the fence: its
    memfds are closed."""
    given_up, pinner = huge(2), huge(2)
    first = await grant(devices, given_up)
    for fd in (*first.fds, *handed(devices, given_up, first.fds)):
        os.close(fd)
    devices.forget([given_up.lease_id])
    second = await grant(devices, pinner)
    with tenant("second:pipe_page", handed(devices, pinner, second.fds)) as holder:
        holder.cut()
        _, proof = await reclaim(devices, pinner, second)
        assert unproven_pages(proof) == 1


async def test_pages_of_an_earlier_run_are_adopted(devices: Devices) -> None:
    before = free_hugepages()
    one = huge(2)
    made = await grant(devices, one)
    with real_devices(cgroup_root=f"leased-test-{os.getpid()}-next") as restarted:
        await restarted.adopt([one])
        # This run does not know to whom the descriptors went, so the whole host is searched.
        scrub, proof = await reclaim(restarted, one, made)
    assert scrub.clean and proof.unproven == ()
    assert free_hugepages() == before


async def test_a_worker_that_is_killed_between_two_scrubs_fences_nothing() -> None:
    """What it had given up before it was killed came back, and is not taken for pages that
    somebody else gave back: those would be missing at the proof."""
    with (
        hugepages(SLOW_PAGES + POOL_PAGES),
        foreign_hugepages(4),
        real_devices() as devices,
    ):
        before = free_hugepages()
        quick, slow = huge(2), huge(SLOW_PAGES)
        one, two = await grant(devices, quick), await grant(devices, slow)
        reports: list[ScrubReport | DeviceError] = []

        async def scrub() -> None:
            reports.extend(await devices.scrub_many([(quick, one.fds), (slow, two.fds)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub)
            while os.fstat(one.fds[0]).st_blocks:
                await trio.lowlevel.checkpoint()
            for pid, _ in devices._crew._links[f"pool 0:{HUGEPAGE_BYTES}"].pids:
                os.kill(pid, signal.SIGKILL)
            assert os.fstat(two.fds[0]).st_blocks  # it was in the middle
        assert all(isinstance(report, ScrubReport) and report.clean for report in reports)
        proofs = await devices.prove_many([(quick, one.fds), (slow, two.fds)])
        assert [proof.unproven for proof in proofs if isinstance(proof, ProofReport)] == [(), ()]
        for fd in (*one.fds, *two.fds):
            os.close(fd)
        assert free_hugepages() == before
