# SPDX-License-Identifier: Apache-2.0
"""The ear: what it heard, what it could not have heard, and that it comes back."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
import trio.testing

from leased.hardware.gpu.calls import Heard
from leased.hardware.gpu.ear import KEPT, WORKER, Ear
from tests.doubles.gpu import GpuCrew, gpu, hung, killed, listed

A, B = gpu(0), gpu(1)
XID = 8


class Script:
    """Answers of the listening worker, one after the other; when they are over it blocks."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.over = trio.Event()
        self.began_ns = 0
        """When the listener was there, and nothing had been heard."""

    def __call__(self, name: str, argument: Any) -> Any:
        if argument.wait_ms:
            self.began_ns = self.began_ns or now_ns()
        if self.answers:
            return self.answers.pop(0)
        self.over.set()
        return trio.Event()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ear_of(script: Script) -> tuple[Ear, list[tuple[str, int]], GpuCrew]:
    crew = GpuCrew(listen=script)
    return Ear(crew), [], crew  # type: ignore[arg-type]


async def test_errors_are_told_and_kept_and_those_of_applications_only_kept() -> None:
    since_ns = now_ns()
    script = Script(Heard(()), Heard(((A.pci, XID, 43), (A.pci, XID, 79), (B.pci, 0x8000, 0))))
    ear, told, _ = ear_of(script)
    ear.hear([listed(A), listed(B)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: told.append((pci, xid)))
        await script.over.wait()
        assert told == [(A.pci, 79), (B.pci, 0)]
        assert ear.xids(A.pci, since_ns) == (43, 79) and ear.xids(B.pci, since_ns) == ()
        assert ear.xids(A.pci, now_ns()) == ()
        assert ear.heard_since(listed(A), now_ns())
        assert not ear.heard_since(listed(A), since_ns), "it was not listening yet"
        assert not ear.heard_since(listed(gpu(2)), now_ns())
        nursery.cancel_scope.cancel()
    assert not ear.heard_since(listed(A), now_ns())


async def test_a_gpu_without_events_is_never_heard() -> None:
    script = Script(Heard((), (B.uuid,)))
    ear, _, _ = ear_of(script)
    ear.hear([listed(A), listed(B)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await script.over.wait()
        assert ear.heard_since(listed(A), now_ns()) and not ear.heard_since(listed(B), now_ns())
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_a_lost_listener_is_replaced_and_the_gap_is_known() -> None:
    before_ns = now_ns()
    script = Script(Heard(()), killed(), Heard(()), hung(), Heard(()))
    ear, _, crew = ear_of(script)
    ear.hear([listed(A)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await script.over.wait()
        assert len(crew.asked) == 6
        assert not ear.heard_since(listed(A), before_ns)
        assert trio.current_time() >= 3, "later each time"
        nursery.cancel_scope.cancel()
    assert crew.running == set()


@pytest.mark.autojump
async def test_nobody_is_sent_after_a_listener_that_does_not_die() -> None:
    script = Script()
    ear, _, crew = ear_of(script)
    crew.stuck.add(WORKER)
    ear.hear([listed(A)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await trio.sleep(10)
        assert crew.asked == []
        crew.stuck.clear()
        await script.over.wait()
        nursery.cancel_scope.cancel()


async def test_other_gpus_are_listened_to_at_once() -> None:
    script = Script(Heard(()))
    ear, _, crew = ear_of(script)
    ear.hear([listed(A)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await script.over.wait()
        script.answers, script.over = [Heard(())], trio.Event()
        ear.hear([listed(A), listed(B)])
        await script.over.wait()
        assert crew.asked[-1][2].gpus == (listed(A), listed(B))
        ear.hear([])
        await trio.testing.wait_all_tasks_blocked()
        assert crew.running == set(), "nothing to hear, nobody there"
        nursery.cancel_scope.cancel()


async def test_a_storm_takes_bounded_memory() -> None:
    since_ns = now_ns()
    storm = [Heard(tuple((A.pci, XID, 100 * n + xid) for xid in range(100))) for n in range(1, 12)]
    script = Script(Heard(()), *storm)
    ear, _, _ = ear_of(script)
    ear.hear([listed(A), listed(B)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await script.over.wait()
        assert len(ear.xids(A.pci, since_ns)) == KEPT
        assert script.began_ns < now_ns() and ear.heard_since(listed(A), now_ns())
        assert ear.heard_since(listed(B), script.began_ns), "it was not pushed out of anything"
        assert not ear.heard_since(listed(A), script.began_ns), "not all of it is remembered"
        nursery.cancel_scope.cancel()


async def test_a_tenants_own_errors_push_no_other_out() -> None:
    """A proof is failed by what the GPU said in the meantime, however much more it said."""
    since_ns = now_ns()
    flood = Heard(((A.pci, XID, 13), (A.pci, XID, 31)))
    script = Script(Heard(()), Heard(((A.pci, XID, 94),)), *[flood] * KEPT)
    ear, _, _ = ear_of(script)
    ear.hear([listed(A)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.run, lambda pci, xid: None)
        await script.over.wait()
        assert ear.xids(A.pci, since_ns) == (94, 13, 31)
        nursery.cancel_scope.cancel()
