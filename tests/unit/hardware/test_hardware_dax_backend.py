# SPDX-License-Identifier: Apache-2.0
"""The device-dax backend over a crew that answers as told: what a look sees of a range whose region
is being taken away and given back.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from leased.hardware.config import HardwareConfig
from leased.hardware.dax import calls
from leased.hardware.dax.backend import DaxBackend
from leased.hardware.dax.config import DaxConfig
from leased.hardware.dax.ranges import DEVICE_MODE, Range
from leased.hardware.dax.survey import WAS_AWAY
from leased.terms.errors import DeviceError
from leased.terms.lease import LeaseState
from leased.terms.resource import Allotment, ResourceKind, TierKind
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.leases import lease

GIB = 1 << 30
ONE = Range("dax0.0", "one", GIB, 4096, 0, DEVICE_MODE, "/r0", "/d", True, "CXL")
OTHER = msgspec.structs.replace(ONE, name="dax1.0", identity="other", region="/r1")
SHARE = Allotment(ONE.resource_id, ResourceKind.MEM, TierKind.CXL, GIB)


class Crew:
    """Regions that are gone for as long as somebody recreates them."""

    def __init__(self) -> None:
        self.ranges = {"one": ONE, "other": OTHER}
        self.hangs = "", ""
        self.recreating = trio.Event()
        self.go_on = trio.Event()
        self.while_looking: Callable[[], Awaitable[object]] | None = None
        self.asked: list[str] = []

    async def task_again(
        self, worker: str, backend: str, verb: str, argument: Any, returns: type, **_: Any
    ) -> Any:
        assert backend == "dax" and worker
        self.asked.append(verb)
        if verb == "look":
            if self.while_looking is not None:
                await self.while_looking()
            return calls.Seen(tuple(self.ranges.values()), (), ())
        if verb in ("release", "witness"):
            await trio.sleep(1)
            if (verb, argument.identity) == self.hangs:
                raise DeviceError("worker_answer", errno.ETIMEDOUT)
            steps = (StepReport(TeardownStep.SCRUB, 0, 1, 2),)
            released = calls.Released(f"{argument.identity}.0", GIB, steps)
            return released if verb == "release" else calls.Steps(steps)
        if verb == "mend":
            return calls.Nothing()
        assert verb == "ready" and not argument.clean
        del self.ranges[argument.identity]
        self.recreating.set()
        await self.go_on.wait()
        self.ranges["one"] = msgspec.structs.replace(ONE, name="dax9.0", birth=9)
        return calls.Readied("dax9.0", 9, 250, 0, GIB)

    def defer(self, name: str) -> None:
        assert name == "dax list"

    def dismiss(self, name: str) -> None:
        """It was asked."""

    def is_stuck(self, name: str) -> bool:
        """Nobody is."""
        return False

    def ours(self) -> tuple[tuple[int, int], ...]:
        """The agent itself."""
        return ((1, 1),)


async def seen_by(backend: DaxBackend) -> list[str]:
    return sorted(one.resource_id for one in (await backend.survey()).resources)


@pytest.mark.parametrize("looks_first", [False, True])
async def test_a_range_that_is_made_ready_while_a_survey_looks_is_still_there(
    looks_first: bool,
) -> None:
    """Or its lease, just granted, would be revoked: its device is not there."""
    crew = Crew()
    backend = DaxBackend(crew, HardwareConfig(dax=DaxConfig(offer=True)))  # type: ignore[arg-type]
    both = [ONE.resource_id, OTHER.resource_id]
    assert await seen_by(backend) == both
    async with trio.open_nursery() as nursery:

        async def grant() -> None:
            nursery.start_soon(backend.prepare, lease(SHARE), (SHARE,), "/leaf", ())
            await crew.recreating.wait()

        if looks_first:
            crew.while_looking = grant
        else:
            await grant()
        assert await seen_by(backend) == both
        crew.while_looking = None
        crew.go_on.set()
    assert await seen_by(backend) == both
    del crew.ranges["one"]
    assert await seen_by(backend) == [OTHER.resource_id], "nobody handles it: it is gone"


@pytest.mark.parametrize("verb", ["", "release", "witness"])
@pytest.mark.autojump
async def test_ranges_are_taken_back_at_the_same_time_and_fenced_one_by_one(verb: str) -> None:
    """The bound that is published is a range's, not that of as many as a lease has."""
    crew = Crew()
    crew.hangs = verb, "one"
    backend = DaxBackend(crew, HardwareConfig(dax=DaxConfig(offer=True)))  # type: ignore[arg-type]
    both = Allotment(OTHER.resource_id, ResourceKind.MEM, TierKind.CXL, GIB)
    held = lease(SHARE, both)
    with trio.fail_after(2.5):
        await backend.scrub(held, (SHARE, both))
        verdict = await backend.prove(held, (SHARE, both))
    assert verdict.unproven == ({SHARE: GIB} if verb else {})


@pytest.mark.autojump
async def test_an_end_does_not_reach_the_lease_that_has_the_range_by_then() -> None:
    """An operator lifted the fence while it was tried once more: whoever had the range by then was
    killed, and what he had written overwritten."""
    crew = Crew()
    crew.go_on.set()
    backend = DaxBackend(crew, HardwareConfig(dax=DaxConfig(offer=True)))  # type: ignore[arg-type]
    first, second = lease(SHARE), lease(SHARE)
    await backend.prepare(second, (SHARE,), "/leaf", ())
    crew.asked.clear()
    await backend.scrub(first, (SHARE,))
    await backend.abandon(first, (SHARE,))
    assert (await backend.prove(first, (SHARE,))).unproven == {SHARE: GIB}
    assert crew.asked == []
    await backend.scrub(second, (SHARE,))
    assert not (await backend.prove(second, (SHARE,))).unproven


async def test_a_range_that_was_away_for_a_moment_is_not_what_its_lease_has(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its region was taken and given back: what the lease has is dead, and it went on."""
    crew = Crew()
    crew.go_on.set()
    backend = DaxBackend(crew, HardwareConfig(dax=DaxConfig(offer=True)))  # type: ignore[arg-type]
    both = [ONE.resource_id, OTHER.resource_id]
    await backend.prepare(lease(SHARE), (SHARE,), "/leaf", ())
    assert await seen_by(backend) == both
    for name in crew.ranges:
        crew.ranges[name] = msgspec.structs.replace(crew.ranges[name], birth=10)
    seen = await backend.survey()
    assert [one.resource_id for one in seen.resources] == [OTHER.resource_id]
    assert WAS_AWAY in seen.notes[0]


async def test_what_a_lease_has_is_what_it_had_when_the_agent_began(
    autojump_clock: trio.testing.MockClock,
) -> None:
    crew = Crew()
    backend = DaxBackend(crew, HardwareConfig(dax=DaxConfig(offer=True)))  # type: ignore[arg-type]
    held = msgspec.structs.replace(lease(SHARE), state=LeaseState.ACTIVE)
    await backend.adopt([held])
    assert len(await seen_by(backend)) == 2
    crew.ranges["one"] = msgspec.structs.replace(ONE, birth=10)
    assert await seen_by(backend) == [OTHER.resource_id]
    await backend.scrub(held, (SHARE,))
    assert len(await seen_by(backend)) == 2, "it has ended"
