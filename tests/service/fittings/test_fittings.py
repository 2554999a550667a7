# SPDX-License-Identifier: Apache-2.0
"""Fittings over fake backends: all or nothing, in order, and what the holder is told of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
import trio

from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.fittings import Fittings
from leased.ports import Access, ObjectKind, Revocable
from leased.terms.bounds import Bounds
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.backend import FakeBackend, failed
from tests.doubles.leases import lease

GPU = Allotment("gpu:GPU-0", ResourceKind.GPU, None, 1000)
DISK = Allotment("block:0", ResourceKind.BLOCK, None, 1000)


class Bench:
    """Two backends that write into one story."""

    def __init__(self, crew: Crew, config: HardwareConfig) -> None:
        self.story: list[str] = []
        self.gpus = FakeBackend(ResourceKind.GPU, "gpu:", self.story)
        self.disks = FakeBackend(ResourceKind.BLOCK, "block:", self.story)
        bounds = Bounds(0, 2 * NS_PER_S, 3 * NS_PER_S, 4 * NS_PER_S)
        self.fittings = Fittings(crew, config, (self.gpus, self.disks), lambda _: bounds)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Without a leaf no worker is needed."""
    config = HardwareConfig()
    crew = Crew(config)
    yield Bench(crew, config)
    crew.close()


async def test_what_was_measured_and_what_must_be_known_come_from_every_part(bench: Bench) -> None:
    bench.disks.objects = (Revocable(ObjectKind.DM, 0), Revocable(ObjectKind.DM, 1))
    fitted = await bench.fittings.prepare(lease(DISK, GPU), "", ())
    assert fitted.objects == bench.disks.objects
    assert fitted.evidence == b"gpu:block:", "in the order of the backends"
    assert fitted.access == (
        Access("gpu:GPU-0", "LEASE_GPU", "gpu:GPU-0"),
        Access("block:0", "LEASE_BLOCK", "block:0"),
    )


@pytest.mark.parametrize("backend", ["gpus", "disks"])
@pytest.mark.parametrize("method", ["prepare", "access"])
async def test_a_part_that_fails_takes_the_others_back_in_reverse(
    bench: Bench, backend: str, method: str
) -> None:
    """Also when everything is prepared and only the question of how to reach it fails."""
    getattr(bench, backend).failing[method] = failed()
    with pytest.raises(DeviceError):
        await bench.fittings.prepare(lease(GPU, DISK), "", ())
    assert not bench.gpus.held and not bench.disks.held
    if method == "access":
        assert bench.story[-2:] == ["block:abandon", "gpu:abandon"]


async def test_after_the_cut_the_failure_of_one_keeps_no_other_from_being_asked(
    bench: Bench,
) -> None:
    one = lease(GPU, DISK)
    await bench.fittings.prepare(one, "", ())
    bench.story.clear()
    bench.disks.failing = {"scrub": failed(), "prove": failed()}
    with pytest.raises(DeviceError):
        await bench.fittings.scrub(one)
    assert bench.story == ["block:scrub", "gpu:scrub"], "last up, first down"
    verdict = await bench.fittings.prove(one)
    assert verdict.unproven == {DISK: 1000}, "a question without an answer proves nothing"


@pytest.mark.autojump
async def test_what_overruns_its_bound_has_failed_at_the_bound(bench: Bench) -> None:
    one = lease(GPU, DISK)
    await bench.fittings.prepare(one, "", ())
    bench.gpus.slow_s = {"scrub": 5.1, "prove": 4.1}
    began = trio.current_time()
    with pytest.raises(DeviceError, match="gpu was not clean in the 5000 ms") as caught:
        await bench.fittings.scrub(one)
    assert caught.value.errno == errno.ETIMEDOUT and trio.current_time() - began == 5
    bench.gpus.slow_s["scrub"] = 4.9
    assert (await bench.fittings.scrub(one)).clean
    began = trio.current_time()
    assert (await bench.fittings.prove(one)).unproven == {GPU: 1000}
    assert trio.current_time() - began == 4


@pytest.mark.parametrize("of_one_drive", [False, True])
@pytest.mark.autojump
async def test_what_waits_in_line_has_the_bounds_of_all_in_the_line(
    bench: Bench, of_one_drive: bool
) -> None:
    """Three namespaces, of which a drive erases one after the other within the bound of each, were
    all fenced at the bound of one."""
    disks = [Allotment(f"block:{number}", ResourceKind.BLOCK, None, 1000) for number in range(3)]
    bench.disks.lines = lambda held: [held] if of_one_drive else [[one] for one in held]
    one = lease(*disks)
    await bench.fittings.prepare(one, "", ())
    bench.disks.slow_s = {"scrub": 14.9, "prove": 11.9}
    if not of_one_drive:
        with pytest.raises(DeviceError, match="5000 ms"):
            await bench.fittings.scrub(one)
        assert (await bench.fittings.prove(one)).unproven == dict.fromkeys(disks, 1000)
        return
    assert (await bench.fittings.scrub(one)).clean
    assert not (await bench.fittings.prove(one)).unproven
    bench.disks.slow_s = {"scrub": 15.1}
    with pytest.raises(DeviceError, match="15000 ms"):
        await bench.fittings.scrub(one)
