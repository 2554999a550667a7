# SPDX-License-Identifier: Apache-2.0
"""P8: whatever a holder of normal memory does, it ends without access, and nothing of what it wrote
is left. Real processes, real kernel (teardown.md section 1.5)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from leased.hardware.config import EscapeePolicy
from leased.hardware.devices import Devices
from leased.hardware.verbs import kill_cgroup
from leased.ports import Prepared
from leased.terms.lease import Lease
from leased.terms.teardown import ScrubReport, TeardownStep
from tests.doubles.host import handed, not_proven, real_devices
from tests.doubles.leases import lease, memory
from tests.doubles.tenant import tenant
from tests.hostile.pools import reclaim
from tests.hostile.verdicts import PLACE, Verdict, record

PAGES = 4


@pytest.fixture
def devices() -> Iterator[Devices]:
    with real_devices() as real:
        yield real


async def grant(devices: Devices, one: Lease) -> Prepared:
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared), made
    for fd in made.fds:
        os.pwrite(fd, b"secret", 0)
    return made


def measured(scrub: ScrubReport, step: TeardownStep) -> int:
    return sum(report.measured for report in scrub.steps if report.step is step)


CASE_OF = {
    "mapped": "mapped_and_closed",
    "cow": "cow",
    "double_fork": "double_fork",
    "user_namespace": "user_namespace_root",
    "ring_file": "io_uring_file",
    "traced": "ptraced",
}
"""Tricks that are rows of the published table."""


@pytest.mark.parametrize(
    "trick",
    ["hold", "reopen", "path_only", "thread", *CASE_OF],
)
async def test_a_second_process_outside_the_lease_is_found_and_killed(
    devices: Devices, trick: str
) -> None:
    one = lease(memory(PAGES * 4096))
    made = await grant(devices, one)
    with tenant(f"second:{trick}", handed(devices, one, made.fds)) as holder:
        holder.cut()
        assert not holder.other_gone
        scrub, proof = await reclaim(devices, one, made)
        if trick == "path_only":
            # It has no open: it may live, but what it opens is empty and cannot grow.
            assert holder.ask() == "size 0, growing EPERM"
        else:
            assert holder.wait_other_gone()
            assert measured(scrub, TeardownStep.ESCAPEE_SCAN) >= 1
    assert scrub.clean and proof.unproven == ()
    assert scrub.scrubbed_bytes == PAGES * 4096
    if trick in CASE_OF:
        name = "test_hostile_memory_holders.py::test_a_second_process_outside_the_lease…"
        record(Verdict(CASE_OF[trick], "mem", PLACE, "clean", evidence=name))


@pytest.mark.parametrize("trick", ["hold", "mapped", "thread", "ring_file"])
async def test_the_search_finds_them_also_where_the_keepers_file_was_given_away(
    devices: Devices, trick: str
) -> None:
    """Without `handout` the kernel cannot tell the tenant's open from ours: /proc must."""
    one = lease(memory(PAGES * 4096))
    made = await grant(devices, one)
    with tenant(f"second:{trick}", [os.dup(fd) for fd in made.fds]) as holder:
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        assert holder.wait_other_gone()
    assert scrub.clean and proof.unproven == ()


async def test_a_descriptor_in_flight_is_worth_nothing_when_it_arrives(devices: Devices) -> None:
    one = lease(memory(PAGES * 4096))
    made = await grant(devices, one)
    with tenant("second:in_flight", handed(devices, one, made.fds)) as holder:
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        # Nobody can see a descriptor in a queue, so its owner lives.
        assert not holder.other_gone
        assert holder.ask() == "size 0, growing EPERM"
    assert scrub.clean and proof.unproven == ()
    assert scrub.scrubbed_bytes == PAGES * 4096
    name = "test_hostile_memory_holders.py::test_a_descriptor_in_flight…"
    record(Verdict("fd_in_flight", "mem", PLACE, "clean", evidence=name))


async def test_a_page_in_a_pipe_has_lost_what_it_said(devices: Devices) -> None:
    one = lease(memory(PAGES * 4096))
    made = await grant(devices, one)
    with tenant("second:pipe_page", handed(devices, one, made.fds)) as holder:
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
        assert holder.ask() == bytes(8).hex()
    assert scrub.clean and proof.unproven == ()
    inventory = await devices.inventory()
    normal = [r for r in inventory.resources if r.resource_id == "mem:node0:4096"]
    assert any("pins" in limit for limit in normal[0].limits)
    name = "test_hostile_memory_holders.py::test_a_page_in_a_pipe…"
    record(Verdict("vmsplice", "mem", PLACE, "clean", evidence=name))
    print("NOT PROVEN: that a pinned normal page came back (published as a limit)")


async def test_who_opens_it_again_and_again_is_too_late(devices: Devices) -> None:
    """Never open for long: a search may miss it, and an open may come between two steps."""
    for _ in range(5):
        one = lease(memory(PAGES * 4096))
        made = await grant(devices, one)
        with tenant("second:reopens", handed(devices, one, made.fds)) as holder:
            while not (rate := int(holder.ask())):
                pass
            holder.cut()
            scrub, proof = await reclaim(devices, one, made)
        print(f"re-opened {rate} times a second")
        assert scrub.clean and proof.unproven == ()
    name = "test_hostile_memory_holders.py::test_who_opens_it_again_and_again…"
    record(Verdict("reopens", "mem", PLACE, "clean", evidence=name))


async def test_policy_fence_kills_nobody_and_proves_nothing() -> None:
    with real_devices(escapees=EscapeePolicy.FENCE) as devices:
        one = lease(memory(PAGES * 4096))
        made = await grant(devices, one)
        with tenant("second:mapped", handed(devices, one, made.fds)) as holder:
            holder.cut()
            scrub, _ = await reclaim(devices, one, made)
            assert not holder.other_gone
            assert not scrub.clean
            # Fenced, and without access all the same: touching the mapping is SIGBUS.
            assert holder.ask() == "" and holder.wait_other_gone()


@pytest.mark.parametrize("trick", ["shrink", "punch", "seal"])
async def test_what_a_tenant_does_to_its_own_memfd_stops_nothing(
    devices: Devices, trick: str
) -> None:
    one = lease(memory(PAGES * 4096))
    made = await grant(devices, one)
    with tenant(trick, handed(devices, one, made.fds)) as holder:
        said = holder.ask()
        assert (
            said
            == {
                "shrink": "size 0, growing EPERM",
                "punch": f"size {PAGES * 4096}, grew",
                "seal": "EPERM EPERM EPERM",
            }[trick]
        )
        seals = fcntl.fcntl(made.fds[0], fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        holder.cut()
        scrub, proof = await reclaim(devices, one, made)
    assert scrub.clean and proof.unproven == ()
    # What it gave up itself the kernel clears when it is touched next; we do not claim it.
    assert scrub.scrubbed_bytes == (
        PAGES * 4096 if trick == "seal" else PAGES * 4096 - GIVEN[trick]
    )
    if trick == "seal":
        name = "test_hostile_memory_holders.py::test_what_a_tenant_does_to_its_own_memfd…"
        record(Verdict("seals", "mem", PLACE, "clean", evidence=name))


GIVEN = {"shrink": PAGES * 4096, "punch": (PAGES - 1) * 4096}


async def test_an_escapee_of_one_lease_spoils_no_other_of_the_batch(devices: Devices) -> None:
    bad, *good = (lease(memory(PAGES * 4096)) for _ in range(8))
    made = {one.lease_id: await grant(devices, one) for one in (bad, *good)}
    for one in good:
        for fd in handed(devices, one, made[one.lease_id].fds):
            os.close(fd)
    with tenant("second:hold", handed(devices, bad, made[bad.lease_id].fds)) as holder:
        holder.cut()
        pairs = [(one, made[one.lease_id].fds) for one in (bad, *good)]
        scrubs = await devices.scrub_many(pairs)
        assert holder.wait_other_gone()
    killed = []
    for scrub in scrubs:
        assert isinstance(scrub, ScrubReport) and scrub.clean
        killed.append(measured(scrub, TeardownStep.ESCAPEE_SCAN))
    assert killed == [1] + [0] * len(good)
    for prepared in made.values():
        os.close(prepared.fds[0])


async def test_a_fork_bomb_in_the_leaf_is_gone_with_one_kill(devices: Devices) -> None:
    one = lease(memory(PAGES * 4096), pid=0)
    made = await grant(devices, one)
    assert made.cgroup
    with tenant("fork_bomb", handed(devices, one, made.fds)) as holder:
        path = await devices.join(one, holder.pid, holder.pidfd)
        assert path == made.cgroup
        if not os.path.exists(f"{path}/pids.max"):
            print("NOT PROVEN: that pids.max bounds a fork bomb (no pids controller in cgroup2)")
        assert holder.ask() == "exploding"
        dirfd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            kill_cgroup(dirfd, timeout_ms=5000)
        finally:
            os.close(dirfd)
        scrub, proof = await reclaim(devices, one, made)
    assert scrub.clean and proof.unproven == ()
    assert not os.path.exists(path)
    name = "test_hostile_memory_holders.py::test_a_fork_bomb_in_the_leaf…"
    record(Verdict("fork_bomb", "mem", PLACE, "clean", evidence=name))


async def test_somebody_left_in_the_leaf_proves_nothing(devices: Devices) -> None:
    one = lease(memory(PAGES * 4096), pid=0)
    made = await grant(devices, one)
    with tenant("seal", handed(devices, one, made.fds)) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        scrub, proof = await reclaim(devices, one, made)
        # It had the memory too, so the search has killed it; the leaf is empty by then or not.
        assert scrub.clean and holder.wait_other_gone()
        assert proof.unproven in ((), one.subject.allotments)
    with tenant("seal", [os.memfd_create("its own")]) as stranger:
        two = lease(memory(4096), pid=0)
        made = await grant(devices, two)
        await devices.join(two, stranger.pid, stranger.pidfd)
        _, proof = await reclaim(devices, two, made)
        assert proof.unproven == two.subject.allotments
        [removal] = [s for s in proof.steps if s.step is TeardownStep.REMOVE_CGROUP]
        assert removal.errno


async def test_a_pidfd_that_names_another_process_moves_nobody(devices: Devices) -> None:
    one = lease(memory(4096), pid=0)
    made = await grant(devices, one)
    with tenant("hold", [os.memfd_create("its own")]) as holder:
        own = os.pidfd_open(os.getpid())
        try:
            with pytest.raises(Exception, match="does not name process"):
                await devices.join(one, holder.pid, own)
        finally:
            os.close(own)
        with open(f"{made.cgroup}/cgroup.procs", encoding="ascii") as procs:
            assert procs.read() == ""
    await reclaim(devices, one, made)


def test_what_this_kernel_cannot_show() -> None:
    if not os.path.exists("/dev/infiniband"):
        not_proven("RDMA regions that pin lease memory", "no RDMA device")
