# SPDX-License-Identifier: Apache-2.0
"""Every promise of `ports.Device`, kept by the fake and by the real devices alike."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator

import pytest
import trio

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import RevocationReason
from leased.terms.resource import ResourceKind
from leased.terms.teardown import ProofReport, ScrubReport
from tests.doubles.devices import FakeDevices
from tests.doubles.host import handed, real_devices
from tests.doubles.leases import lease, memory
from tests.doubles.workers import workers_of

Subject = FakeDevices | Devices


@pytest.fixture(params=["fake", "real"])
async def devices(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "fake":
        yield FakeDevices()
        return
    with real_devices() as real:
        yield real


async def prepared(devices: Subject, one: object) -> Prepared:
    [made] = await devices.prepare_many([one])  # type: ignore[list-item]
    assert isinstance(made, Prepared), made
    return made


def close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


async def test_inventory_offers_whole_granules_and_names_every_absent_kind(
    devices: Subject,
) -> None:
    inventory = await devices.inventory()
    for resource in inventory.resources:
        assert resource.capacity % resource.granule == 0 < resource.capacity
    told = {r.kind for r in inventory.resources} | {a.kind for a in inventory.absences}
    assert told == set(ResourceKind)
    assert all(absence.why for absence in inventory.absences)


async def test_memory_comes_whole_and_sealed(devices: Subject) -> None:
    one = lease(memory(3 * 4096), memory(4096))
    made = await prepared(devices, one)
    assert [os.fstat(fd).st_size for fd in made.fds] == [3 * 4096, 4096]
    for fd in made.fds:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert len(made.evidence) == 32
    close(*made.fds)


async def test_a_lease_bound_to_nobody_gets_a_leaf_and_a_bare_one_does_not(
    devices: Subject,
) -> None:
    inside, bare = lease(pid=0), lease(pid=1)
    with_leaf, without = await devices.prepare_many([inside, bare])
    assert isinstance(with_leaf, Prepared) and isinstance(without, Prepared)
    assert with_leaf.cgroup.endswith(inside.subject.cgroup) and without.cgroup == ""
    pairs = [(inside, with_leaf.fds), (bare, without.fds)]
    await devices.scrub_many(pairs)
    for proof in await devices.prove_many(pairs):
        assert isinstance(proof, ProofReport) and proof.unproven == ()
    assert not os.path.exists(with_leaf.cgroup)
    close(*with_leaf.fds, *without.fds)


def for_workers() -> int:
    """Descriptors that workers may cost: the fork server's socket, and each one's own and
    pidfd."""
    return 1 + 2 * len(workers_of(os.getpid()))


async def test_all_or_nothing_and_each_answer_in_its_place(devices: Subject) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    good, bad, last = lease(), lease(memory(), memory(node=999)), lease()
    first, failed, third = await devices.prepare_many([good, bad, last])
    assert isinstance(first, Prepared) and isinstance(third, Prepared)
    assert isinstance(failed, DeviceError) and failed.errno
    for one, made in ((good, first), (last, third)):
        close(*handed(devices, one, made.fds), *made.fds)
    assert len(os.listdir("/proc/self/fd")) <= open_before + for_workers(), "nothing of `bad`"


async def test_what_nobody_fetched_keeps_nobody_from_the_proof(devices: Subject) -> None:
    # No handout: the holder had gone when its grant was ready.
    open_before = len(os.listdir("/proc/self/fd"))
    one = lease()
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    [scrub] = await devices.scrub_many([(one, made.fds)])
    assert isinstance(scrub, ScrubReport) and scrub.clean
    [proof] = await devices.prove_many([(one, made.fds)])
    assert isinstance(proof, ProofReport) and proof.unproven == ()
    close(*made.fds)
    # What was opened for the holder is closed.
    assert len(os.listdir("/proc/self/fd")) <= open_before + for_workers()


async def test_a_whole_teardown_proves_clean_and_leaves_the_descriptors_open(
    devices: Subject,
) -> None:
    leases = [lease(memory(4096 * size)) for size in (1, 2, 300)]
    made = [m for m in await devices.prepare_many(leases) if isinstance(m, Prepared)]
    for one, ready in zip(leases, made, strict=True):
        for fd in handed(devices, one, ready.fds):
            os.pwrite(fd, b"secret", 0)
            os.close(fd)
    pairs = [(one, ready.fds) for one, ready in zip(leases, made, strict=True)]
    scrubs = await devices.scrub_many(pairs)
    for one, scrub in zip(leases, scrubs, strict=True):
        assert isinstance(scrub, ScrubReport) and scrub.clean and scrub.lease_id == one.lease_id
        assert scrub.scrubbed_bytes == one.subject.allotments[0].capacity
    for proof in await devices.prove_many(pairs):
        assert isinstance(proof, ProofReport) and proof.unproven == ()
    for ready in made:
        for fd in ready.fds:
            status = os.fstat(fd)
            assert (status.st_size, status.st_blocks) == (0, 0)
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 4096)
        close(*ready.fds)


async def test_scrubbing_again_is_harmless(devices: Subject) -> None:
    one = lease()
    made = await prepared(devices, one)
    for _ in range(2):
        [scrub] = await devices.scrub_many([(one, made.fds)])
        assert isinstance(scrub, ScrubReport) and scrub.clean
        [proof] = await devices.prove_many([(one, made.fds)])
        assert isinstance(proof, ProofReport) and proof.unproven == ()
    close(*made.fds)


async def test_what_was_not_scrubbed_is_not_proven(devices: Subject) -> None:
    one = lease(memory(8192))
    made = await prepared(devices, one)
    [proof] = await devices.prove_many([(one, made.fds)])
    assert isinstance(proof, ProofReport)
    assert proof.unproven == one.subject.allotments
    close(*made.fds)


async def test_lost_descriptors_are_an_error_but_not_those_never_made(devices: Subject) -> None:
    lost, never = lease(), lease(reason=RevocationReason.GRANT_FAILED)
    late = lease(activated=False)  # its time was over while it was being made
    failed, *rest = await devices.scrub_many([(lost, ()), (never, ()), (late, ())])
    assert isinstance(failed, DeviceError)
    for nothing in rest:
        assert isinstance(nothing, ScrubReport) and nothing.clean and nothing.scrubbed_bytes == 0


async def test_many_tasks_at_once_each_get_their_own(devices: Subject) -> None:
    sizes: dict[int, int] = {}

    async def grant(pages: int) -> None:
        one = lease(memory(4096 * pages))
        made = await prepared(devices, one)
        sizes[pages] = os.fstat(made.fds[0]).st_size
        close(*made.fds)

    async with trio.open_nursery() as nursery:
        for pages in range(1, 21):
            nursery.start_soon(grant, pages)
    assert sizes == {pages: 4096 * pages for pages in range(1, 21)}
