# SPDX-License-Identifier: Apache-2.0
"""Workers hang, die and are replaced; the agent's own processes are nobody's escapees."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from leased.hardware import exclusion
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import DEFERRED_NICE, Crew
from leased.hardware.devices import Devices
from leased.hardware.readings.carrying import Leaves
from leased.hardware.starting import _pair
from leased.ports import Prepared
from leased.terms.bounds import published
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind, Shape, shape_of
from leased.terms.sample import Readings
from leased.terms.teardown import ProofReport, ScrubReport, TeardownStep
from tests.doubles.host import real_devices
from tests.doubles.leases import lease, memory
from tests.doubles.scarcity import descriptors_left
from tests.doubles.tenant import tenant
from tests.doubles.workers import workers_of

pytestmark = pytest.mark.quiet

PATIENT_NS = 600 * NS_PER_S
"""A call's budget, and a look for memory to settle, where nobody hangs: a busy host is no hung
driver, and what is late here proves nothing."""


@pytest.fixture
def devices() -> Iterator[Devices]:
    with real_devices(call_budget_ns=PATIENT_NS, settle_budget_ns=30 * NS_PER_S) as real:
        yield real


def workers() -> list[int]:
    """Pids of the workers of ours."""
    return workers_of(os.getpid())


async def test_a_worker_that_hangs_is_abandoned_and_replaced(
    devices: Devices, mock_clock: trio.testing.MockClock
) -> None:
    """Its budget ends when the test says so, and not while somebody else has the processor."""
    [first] = await devices.prepare_many([lease()])
    assert isinstance(first, Prepared)
    [pid] = workers()
    stuck = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSTOP)
    one, two = lease(), lease()
    answers: list[object] = []

    async def ask() -> None:
        answers.extend(await devices.prepare_many([one, two]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(PATIENT_NS / NS_PER_S - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [], "given up before its budget was over"
        mock_clock.jump(2)  # and what its bytes take
    for answer in answers:
        assert isinstance(answer, DeviceError) and answer.verb == "worker_answer"
        assert answer.errno == errno.ETIMEDOUT
    assert select.select([stuck], [], [], 60)[0], "abandoned but not killed"
    os.close(stuck)
    [again] = await devices.prepare_many([one])
    assert isinstance(again, Prepared)
    os.close(first.fds[0])
    os.close(again.fds[0])


async def test_a_worker_that_is_nobodys_hurry_goes_after_the_others() -> None:
    crew = Crew(HardwareConfig(call_budget_ns=PATIENT_NS))
    crew.defer("look")
    try:
        for name in ("look", "reclaim"):
            await crew.ask(name, ())
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        nice = sorted(os.getpriority(os.PRIO_PROCESS, pid) for pid in workers())
        assert nice == [mine, min(19, mine + DEFERRED_NICE)]
    finally:
        crew.close()


async def test_a_worker_that_is_killed_fails_its_calls_only(devices: Devices) -> None:
    one, two = lease(), lease()
    first, second = await devices.prepare_many([one, two])
    assert isinstance(first, Prepared) and isinstance(second, Prepared)
    [pid] = workers()
    os.kill(pid, signal.SIGSTOP)  # it has the call, and does not answer
    failed: list[object] = []

    async def ask() -> None:
        failed.extend(await devices.prepare_many([lease()]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    assert isinstance(failed[0], DeviceError) and failed[0].verb == "worker_answer"
    # Scrubbing has a worker of its own, which is started now.
    [scrub] = await devices.scrub_many([(one, first.fds)])
    assert isinstance(scrub, ScrubReport) and scrub.clean
    [made] = await devices.prepare_many([lease()])
    assert isinstance(made, Prepared)
    for fd in (*first.fds, *second.fds, *made.fds):
        os.close(fd)


async def test_a_worker_that_is_killed_while_it_cleans_fences_nothing(devices: Devices) -> None:
    """The kernel kills workers first when memory is short; that says nothing of the hardware."""
    leases = [lease(), lease(pid=0), lease()]
    pairs: list[tuple[Lease, tuple[int, ...]]] = []
    for one, ready in zip(leases, await devices.prepare_many(leases), strict=True):
        assert isinstance(ready, Prepared)
        pairs.append((one, ready.fds))
    await devices.warm()
    scrubs: list[object] = []
    proofs: list[object] = []
    for act, answers in ((devices.scrub_many, scrubs), (devices.prove_many, proofs)):
        stopped = workers()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)  # whoever has the calls does not answer

        async def ask(act: Any = act, answers: list[object] = answers) -> None:
            answers.extend(await act(pairs))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)
    assert all(isinstance(scrub, ScrubReport) and scrub.clean for scrub in scrubs)
    assert all(isinstance(proof, ProofReport) and proof.unproven == () for proof in proofs)
    for _, fds in pairs:
        for fd in fds:
            os.close(fd)


async def test_a_worker_that_is_killed_while_it_is_idle_costs_nothing(devices: Devices) -> None:
    """It had seen nothing of what is asked next: a clean lease must not be fenced for it."""
    one = lease()
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    await devices.warm()
    for pid in workers():
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
    [scrub] = await devices.scrub_many([(one, made.fds)])
    assert isinstance(scrub, ScrubReport) and scrub.clean
    [proof] = await devices.prove_many([(one, made.fds)])
    assert isinstance(proof, ProofReport) and proof.unproven == ()
    [again] = await devices.prepare_many([lease()])
    assert isinstance(again, Prepared)
    for fd in (*made.fds, *again.fds):
        os.close(fd)


async def test_a_worker_that_was_killed_while_it_was_idle_keeps_no_descriptor() -> None:
    """Its successor may be the last to be started for a long time."""
    crew = Crew(HardwareConfig(call_budget_ns=PATIENT_NS))
    try:
        await crew.ask("look", ())
        before = len(os.listdir("/proc/self/fd"))
        [pid] = workers()
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        await crew.ask("look", ())
        assert workers() not in ([], [pid])
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        crew.close()


async def test_a_worker_that_starts_slowly_does_not_empty_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that boots has better things to do than to start Python: that is no hung driver."""
    (tmp_path / "sitecustomize.py").write_text("import select\nselect.select([], [], [], 1.5)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with real_devices(call_budget_ns=NS_PER_S) as devices:
        inventory = await devices.inventory()
    assert "mem:node0:4096" in [resource.resource_id for resource in inventory.resources]


async def test_a_vendors_library_that_is_broken_ends_nobody_elses_worker(tmp_path: Path) -> None:
    """Read with anything but an ImportError, by the process that all workers are forked from."""
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('half of an upgrade')\n", "ascii")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), before)))
    crew = Crew(HardwareConfig())
    try:
        ask = partial(crew.task, argument=Leaves(()), returns=Readings, extra_ns=PATIENT_NS)
        await ask("first", "readings", "leaves")
        [first] = workers()
        with pytest.raises(DeviceError) as failed:
            await ask("second", "gpu", "list")
        assert "half of an upgrade" in failed.value.detail
        await ask("first", "readings", "leaves")
        assert first in workers()
    finally:
        crew.close()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


async def test_an_answer_that_is_too_long_is_said_to_be_and_ends_no_worker(tmp_path: Path) -> None:
    for name in ("memory.current", "memory.max", "pids.current"):
        (tmp_path / name).write_text("1\n", "ascii")
    (tmp_path / "memory.events").write_text("high 1\nmax 1\noom 1\noom_kill 1\n", "ascii")
    crew = Crew(HardwareConfig())
    seen: set[int] = set()
    try:
        for count, fails in ((1_000, False), (5_000, True), (1_000, False)):
            call = Leaves(tuple((f"{at:032x}", str(tmp_path)) for at in range(count)))
            ask = partial(crew.task, "long", "readings", "leaves", call, Readings)
            if fails:
                with pytest.raises(DeviceError) as failed:
                    await ask(extra_ns=PATIENT_NS)
                assert failed.value.errno == errno.EMSGSIZE
            else:
                assert len((await ask(extra_ns=PATIENT_NS)).readings) == 7 * count
            seen.update(workers())
        assert len(seen) == 1
    finally:
        crew.close()


def test_a_workers_socket_has_room_for_the_longest_message_whatever_the_host_allows() -> None:
    allowed = int(Path("/proc/sys/net/core/wmem_max").read_text("ascii"))
    for end in _pair(4 * allowed):
        with end:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 4 * allowed


async def test_workers_end_when_closed() -> None:
    with real_devices() as devices:
        await devices.inventory()
        [made] = await devices.prepare_many([lease()])
        assert isinstance(made, Prepared)
        os.close(made.fds[0])
        # The surveyors end with the survey: no driver stays open.
        with trio.fail_after(120):
            while len(workers()) != 1:
                await trio.lowlevel.checkpoint()
    assert workers() == []


async def test_whoever_keeps_by_right_is_not_killed(devices: Devices) -> None:
    one = lease(memory(4 * 4096))
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    # It stands for the reaper: it has the keepers' own open file.
    with tenant("mapped", [os.dup(fd) for fd in made.fds]) as reaper:
        devices.exempt(reaper.pid)
        [scrub] = await devices.scrub_many([(one, made.fds)])
        [proof] = await devices.prove_many([(one, made.fds)])
        assert not reaper.other_gone
    assert isinstance(scrub, ScrubReport) and isinstance(proof, ProofReport)
    assert scrub.clean and proof.unproven == ()
    [searched] = [s for s in scrub.steps if s.step is TeardownStep.ESCAPEE_SCAN]
    assert (searched.errno, searched.measured) == (0, 0)
    os.close(made.fds[0])


async def test_memory_of_an_earlier_run_is_searched_for_only_if_somebody_has_it(
    devices: Devices,
) -> None:
    """A search goes through the whole host: thousands of leases that an agent took over would wait
    for one after the other."""
    kept, had = lease(), lease()
    made = [one for one in await devices.prepare_many([kept, had]) if isinstance(one, Prepared)]
    await devices.adopt([kept, had])
    own, others = os.dup(made[0].fds[0]), exclusion.reopen(made[1].fds[0])
    with tenant("mapped", [own]) as keeper, tenant("mapped", [others]) as holder:
        [quiet] = await devices.scrub_many([(kept, made[0].fds)])
        assert not keeper.other_gone, "the kernel said that nobody else has it"
        [searched] = await devices.scrub_many([(had, made[1].fds)])
        assert holder.other_gone
    for report, killed in ((quiet, 0), (searched, 1)):
        assert isinstance(report, ScrubReport) and report.clean
        [search] = [s for s in report.steps if s.step is TeardownStep.ESCAPEE_SCAN]
        assert (search.errno, search.measured) == (0, killed)
    for one in made:
        os.close(one.fds[0])


async def test_a_reaper_that_nobody_announced_is_known_by_its_binary(
    devices: Devices, tmp_path: Path
) -> None:
    binary = tmp_path / "leased-reaper"
    shutil.copy(shutil.which("cat") or "/bin/cat", binary)
    one = lease()
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    with subprocess.Popen(
        [binary], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=made.fds
    ) as reaper:
        [scrub] = await devices.scrub_many([(one, made.fds)])
        assert isinstance(scrub, ScrubReport) and scrub.clean
        assert reaper.poll() is None
    os.close(made.fds[0])


async def test_a_lease_of_several_kinds_of_work_is_still_one_answer(devices: Devices) -> None:
    """Small and large memory go to different workers at the same time."""
    one = lease(memory(4096), memory(20 << 20), memory(8192), pid=0)
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    assert [os.fstat(fd).st_size for fd in made.fds] == [4096, 20 << 20, 8192]
    [scrub] = await devices.scrub_many([(one, made.fds)])
    assert isinstance(scrub, ScrubReport)
    assert scrub.clean and scrub.scrubbed_bytes == (20 << 20) + 3 * 4096
    [proof] = await devices.prove_many([(one, made.fds)])
    assert isinstance(proof, ProofReport) and proof.unproven == ()
    for fd in made.fds:
        os.close(fd)


async def test_every_resource_says_how_long_its_teardown_may_take() -> None:
    with real_devices() as devices:
        for resource in (await devices.inventory()).resources:
            bounds = published(resource)
            assert bounds is not None and bounds.cut_ns > 0 and bounds.prove_ns > 0, resource
            if resource.kind is ResourceKind.MEM:
                rate = HardwareConfig().touch_bytes_per_s
                # Of a budget the kernel takes the pages back, while their return is proven.
                budget = shape_of(resource.resource_id) is Shape.BUDGET
                touching_ns = bounds.prove_ns if budget else bounds.overwrite_ns
                assert touching_ns >= resource.capacity * NS_PER_S // rate


async def test_before_the_host_was_ever_seen_a_grant_fails_and_not_whoever_carries_grants_out(
    devices: Devices,
) -> None:
    """An agent that starts on a host too busy to be looked at serves what it knew."""
    one = lease()
    with descriptors_left(0):
        [refused] = await devices.prepare_many([one])
        [unproven] = await devices.prove_many([(one, ())])
    assert isinstance(refused, DeviceError) and isinstance(unproven, DeviceError)
    [made] = await devices.prepare_many([lease()])
    assert isinstance(made, Prepared)
