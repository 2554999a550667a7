# SPDX-License-Identifier: Apache-2.0
"""Every promise of `ports.Clock`, kept by the fake and by the real clock alike."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from leased.hardware.clock import BootClock
from leased.terms.moment import NS_PER_MS, NS_PER_S
from tests.doubles.clock import FakeClock
from tests.doubles.host import not_proven

Subject = FakeClock | BootClock


@pytest.fixture(params=["fake", "real"])
def clock(request: pytest.FixtureRequest) -> Subject:
    return FakeClock() if request.param == "fake" else BootClock()


async def test_boot_time_never_goes_back(clock: Subject) -> None:
    moments = [clock.now() for _ in range(1000)]
    assert all(a.boot_ns <= b.boot_ns for a, b in zip(moments, moments[1:], strict=False))
    assert {moment.boot_id for moment in moments} == {clock.boot_id}
    assert len(clock.boot_id) == 16


async def test_the_boot_clock_alone_is_that_of_a_moment(clock: Subject) -> None:
    read = [clock.now().boot_ns, clock.boot_ns(), clock.now().boot_ns]
    assert read == sorted(read)


async def test_a_wait_ends_at_or_after_its_moment(clock: Subject) -> None:
    due_ns = clock.now().boot_ns + 5 * NS_PER_MS
    await clock.sleep_until(due_ns)
    assert clock.now().boot_ns >= due_ns


async def test_a_moment_that_has_passed_is_not_waited_for_but_lets_others_run(
    clock: Subject,
) -> None:
    ran: list[int] = []

    async def other() -> None:
        ran.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await clock.sleep_until(0)
        await clock.sleep_until(clock.now().boot_ns)
    assert ran == [1]


async def test_a_wait_is_cancellable_and_leaves_nothing_open(clock: Subject) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with trio.move_on_after(0.01) as scope:
        await clock.sleep_until(clock.now().boot_ns + 3600 * NS_PER_S)
    assert scope.cancelled_caught
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_fake_wall_clock_steps_and_boot_time_does_not() -> None:
    clock = FakeClock()
    before = clock.now()
    clock.step(-3600 * NS_PER_S)
    after = clock.now()
    assert after.boot_ns - before.boot_ns < NS_PER_S
    assert after.wall_ns < before.wall_ns


def test_the_real_boot_id_is_the_kernels() -> None:
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert BootClock().boot_id.hex() == text.replace("-", "")


@pytest.fixture
def may_set_clock() -> None:
    if os.environ.get("LEASED_MAY_SET_CLOCK") != "1":
        not_proven("that a step of the wall clock is seen", "LEASED_MAY_SET_CLOCK is not 1")


async def test_a_step_of_the_real_wall_clock_is_noticed(may_set_clock: None) -> None:
    seen: list[int] = []

    async def watch(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for delta_ns in BootClock().steps():
            seen.append(delta_ns)
            return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(watch)
            await trio.testing.wait_all_tasks_blocked()
            time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + 2 * NS_PER_S)
    time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() - 2 * NS_PER_S)
    assert abs(seen[0] - 2 * NS_PER_S) < NS_PER_S // 2
