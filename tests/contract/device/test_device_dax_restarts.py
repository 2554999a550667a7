# SPDX-License-Identifier: Apache-2.0
"""A device-dax range that a run of the agent was ended in the middle of taking back: the next run
puts it back, or says which command does; on a tree of files with a kernel behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from leased.hardware.config import HardwareConfig
from leased.hardware.dax.backend import DaxBackend
from leased.hardware.dax.carrying import VERBS
from leased.hardware.dax.config import DaxConfig
from leased.hardware.dax.ranges import read_ranges
from leased.hardware.dax.regions import recreate
from leased.terms.errors import DeviceError
from leased.terms.lease import LeaseState
from leased.terms.resource import Allotment, Health, Resource, ResourceKind, TierKind
from tests.doubles.dax_bus import BUS, KEEPER, REGION, SIZE_BYTES, UUID, DaxBus
from tests.doubles.leases import lease

NAME = f"mem:dax-{UUID}"
SEEN = Resource(NAME, ResourceKind.MEM, TierKind.CXL, SIZE_BYTES, SIZE_BYTES)
SHARE = Allotment(NAME, ResourceKind.MEM, TierKind.CXL, SIZE_BYTES)


class Crew:
    """Carries out by itself what workers are asked."""

    async def task_again(
        self, worker: str, backend: str, verb: str, argument: Any, returns: type, **_: Any
    ) -> Any:
        kind, carry_out = VERBS[verb]
        assert backend == "dax" and worker and isinstance(argument, kind)
        try:
            answer = await trio.to_thread.run_sync(carry_out, argument, [])
        except OSError as error:
            raise DeviceError("worker", error.errno or 0, str(error)) from error
        assert isinstance(answer, returns)
        return answer

    def defer(self, name: str) -> None:
        """Nobody waits for it."""

    def dismiss(self, name: str) -> None:
        """It was asked."""

    def is_stuck(self, name: str) -> bool:
        """Nobody is."""
        return False

    def ours(self) -> tuple[tuple[int, int], ...]:
        """The agent itself."""
        return ((1, 1),)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[DaxBus]:
    with DaxBus(tmp_path) as made:
        yield made


def next_run(bus: DaxBus, *sealed: Resource) -> DaxBackend:
    """A new agent, which knows what the one before has sealed."""
    config = HardwareConfig(dax=DaxConfig(offer=True))
    backend = DaxBackend(Crew(), config, str(bus.root))  # type: ignore[arg-type]
    backend.remember(sealed)
    return backend


def switch(bus: DaxBus) -> Path:
    return bus.root / BUS / "drivers_autoprobe"


@pytest.mark.parametrize("given_back", [False, True])
async def test_what_an_earlier_run_took_away_is_put_back(bus: DaxBus, given_back: bool) -> None:
    """Ended between taking the region away and giving it back, or before the new range had a
    driver; in both the kernel was told not to probe, and nobody told it otherwise."""
    switch(bus).write_text("0\n")
    if given_back:
        bus.bind()
    backend = next_run(bus, SEEN)
    [sick] = (await backend.survey()).resources
    assert (sick.resource_id, sick.health) == (NAME, Health.SICK), "it is not gone, and not granted"
    assert "no driver" in sick.limits[0] and "echo " in sick.limits[0]
    await backend.adopt(())
    [one] = (await backend.survey()).resources
    assert (one.resource_id, one.health, one.capacity) == (NAME, Health.OK, SIZE_BYTES)
    assert dict(one.attributes)["device"] == "dax0.0"
    assert switch(bus).read_text().strip() == "1"


async def test_what_does_not_come_back_is_sick_and_says_what_mends_it(bus: DaxBus) -> None:
    bus.refuses = True
    backend = next_run(bus, SEEN)
    await backend.adopt(())
    found = await backend.survey()
    [one] = found.resources
    command = f"echo region0 > {bus.root}/{KEEPER}/bind"
    assert one.health is Health.SICK and command in one.limits[0]
    assert any(command in note for note in found.notes)
    bus.refuses = False
    bus.bind()  # as the operator is told
    bus.attach("dax0.0")


async def test_a_region_that_no_run_has_leased_is_the_operators(bus: DaxBus) -> None:
    backend = next_run(bus)
    await backend.adopt(())
    found = await backend.survey()
    assert found.resources == () and bus.told == []
    assert any("echo region0 > " in note for note in found.notes)


async def test_a_region_that_is_not_committed_is_not_lost(bus: DaxBus) -> None:
    """Somebody is about to make one."""
    (bus.root / REGION / "commit").write_text("0\n")
    assert (await next_run(bus).survey()).notes == ()


async def test_the_switch_alone_is_put_back_unless_somebody_is_at_it(bus: DaxBus) -> None:
    bus.attach("dax0.0")
    bus.bind()
    switch(bus).write_text("0\n")
    await next_run(bus, SEEN).adopt(())
    assert switch(bus).read_text().strip() == "1" and bus.told == []


@pytest.mark.parametrize("state", [LeaseState.ACTIVE, LeaseState.SCRUBBING])
async def test_what_a_lease_has_is_left_to_its_teardown(bus: DaxBus, state: LeaseState) -> None:
    """Who holds it has lost it, and is told so; and what is being torn down is put back by that."""
    held = msgspec.structs.replace(lease(SHARE), state=state)
    backend = next_run(bus, SEEN)
    await backend.adopt([held])
    assert bus.told == []
    offered = (await backend.survey()).resources
    assert len(offered) == (state is not LeaseState.ACTIVE)
    await backend.scrub(held, [SHARE])
    assert bus.told[0].startswith("region0 > "), "given back before it is overwritten"


async def test_a_cxl_range_is_taken_away_by_its_region_and_given_back(bus: DaxBus) -> None:
    """Between the two is what nobody can unbind: no range of CXL memory was ever granted, and every
    teardown would have fenced one."""
    bus.attach("dax0.0")
    bus.bind()
    [before] = read_ranges(bus.root)
    assert (before.region, before.keeper) == (str(bus.root / REGION), str(bus.root / KEEPER))
    assert (Path(before.region) / "driver/unbind").exists()
    bus.unbind()
    after = await trio.to_thread.run_sync(recreate, before, bus.root)
    # Another birth, unless the number has come round.
    assert msgspec.structs.replace(after, birth=before.birth) == before
    assert after.driver == "device_dax"
    assert bus.told == [f"region0 > {KEEPER}/bind"]
    assert switch(bus).read_text().strip() == "1"


async def test_what_the_host_made_memory_of_is_not_taken_from_it(bus: DaxBus) -> None:
    """The kernel would have to move whoever lives there; and it is said what has become of it."""
    backend = next_run(bus, SEEN)
    await backend.survey()
    bus.bind()  # and the kernel probes: it is ordinary memory now
    held = lease(SHARE)
    await backend.scrub(held, [SHARE])
    assert bus.told == [] and (await backend.prove(held, [SHARE])).unproven == {SHARE: SIZE_BYTES}
    with pytest.raises(DeviceError, match="the driver kmem has it"):
        await backend.prepare(held, [SHARE], "/leaf", ())
