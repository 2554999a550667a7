# SPDX-License-Identifier: Apache-2.0
"""Hardware that does not answer a new agent, kind by kind: it is sick, as it was to the old one,
and what the kernel no longer lists is gone. A resource that is gone ends the leases on it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from leased.hardware.backend import Backend
from leased.hardware.block import calls as block
from leased.hardware.block.backend import BlockBackend
from leased.hardware.block.config import BlockConfig
from leased.hardware.block.drives import Drive, Layout
from leased.hardware.calls import CgroupFacts, Found, Founded
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.dax import calls as dax
from leased.hardware.dax.backend import DaxBackend
from leased.hardware.dax.config import DaxConfig
from leased.hardware.dax.ranges import DEVICE_MODE, Range
from leased.hardware.fittings import Fittings
from leased.hardware.rdma import calls as rdma
from leased.hardware.rdma.backend import RdmaBackend
from leased.hardware.rdma.config import RdmaConfig
from leased.hardware.rdma.devices import Gid, Port, RdmaDevice
from leased.terms.bounds import Bounds
from leased.terms.errors import DeviceError
from leased.terms.resource import Health, Inventory, Resource, ResourceKind, TierKind
from tests.doubles.nvme_trees import seen

CONFIG = HardwareConfig(
    block=BlockConfig(namespaces=("aa01", "aa02")),
    rdma=RdmaConfig(offer=True),
    dax=DaxConfig(offer=True),
)
HUNG = DeviceError("worker_answer", errno.ETIMEDOUT, "a worker did not answer in 5000 ms")
EXAMINED = block.Examined(Drive(()), Layout(1 << 21, 512, 0, 0, False))
ABLE = rdma.Ability("", 1 << 62, windows=True)
MUTE = rdma.Ability("leased-rdma does not answer: Connection timed out")
MEMORY = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 1 << 30, 4096, node=0)
CORE = Resource("cpu:1", ResourceKind.CPU, None, 1000, 1)
RANGES = tuple(
    Range(f"dax{n}.0", f"r{n}", 1 << 30, 4096, 0, DEVICE_MODE, f"/r{n}", "/d", True, "CXL")
    for n in range(2)
)
SPACES = tuple(seen(f"aa0{n}", nqn=f"nqn.{n}", number=(259, n)) for n in (1, 2))


def card(number: int, *, address: bool = True) -> RdmaDevice:
    """One with a port that is active, also while it has no address."""
    gids = (Gid(3, "0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v2"),) if address else ()
    guid = f"{number:016x}"
    port = Port(1, 4, "eth0", gids)
    return RdmaDevice(number, f"mlx5_{number}", guid, "1", "roce", "mlx5", 0, (port,))


class Host(Crew):
    """Workers that answer each verb with a value, or not at all."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(CONFIG)
        self.answers = answers

    async def one(self, name: str, call: object, *rest: object, **more: object) -> Founded:
        assert isinstance(call, Found)
        return Founded(CgroupFacts("/sys/fs/cgroup/x", ("rdma",), ()))

    async def task(self, name: str, kind: str, verb: str, argument: Any, *_: Any, **__: Any) -> Any:
        answer = self.answers[verb]
        if isinstance(answer, dict):
            answer = answer[argument.identity]
        if isinstance(answer, DeviceError):
            raise answer
        return answer


def rdma_seen(*told: tuple[RdmaDevice, rdma.Ability]) -> rdma.Seen:
    return rdma.Seen(tuple(one for one, _ in told), tuple(can for _, can in told), (MEMORY,))


BOTH_DRIVES = {"look": block.Seen(SPACES, ()), "examine": EXAMINED}
ONE_HANGS = {**BOTH_DRIVES, "examine": {"aa01": HUNG, "aa02": EXAMINED}}
ONE_DRIVE = {"look": block.Seen(SPACES[1:], ()), "examine": EXAMINED}
BOTH_CARDS = rdma_seen((card(1), ABLE), (card(2), ABLE))
ONE_IS_MUTE = rdma_seen((card(1), MUTE), (card(2), ABLE))
ONE_HAS_NO_ADDRESS = rdma_seen((card(1, address=False), ABLE), (card(2), ABLE))


def rdma_backend(crew: Crew, config: HardwareConfig) -> RdmaBackend:
    """On a kernel that has RDMA."""
    return RdmaBackend(crew, config, place="/proc/self")


def healths(found: Any) -> dict[str, Health]:
    return {one.resource_id: one.health for one in found.resources}


@pytest.mark.parametrize(
    ("make", "well", "silent", "gone"),
    [
        pytest.param(BlockBackend, BOTH_DRIVES, ONE_HANGS, ONE_DRIVE, id="block"),
        pytest.param(
            rdma_backend,
            {"see": BOTH_CARDS},
            {"see": ONE_IS_MUTE},
            {"see": rdma_seen((card(2), ABLE))},
            id="rdma",
        ),
        pytest.param(
            rdma_backend,
            {"see": BOTH_CARDS},
            {"see": ONE_HAS_NO_ADDRESS},
            {"see": rdma_seen((card(2), ABLE))},
            id="rdma-address",
        ),
        pytest.param(
            DaxBackend,
            {"look": dax.Seen(RANGES, (), ())},
            None,
            {"look": dax.Seen(RANGES[1:], (), ())},
            id="dax",
        ),
    ],
)
async def test_what_does_not_answer_a_new_agent_is_sick_and_what_is_not_listed_is_gone(
    make: Callable[[Crew, HardwareConfig], Backend],
    well: dict[str, Any],
    silent: dict[str, Any] | None,
    gone: dict[str, Any],
) -> None:
    sealed = (await make(Host(**well), CONFIG).survey()).resources
    assert len(sealed) == 2
    host = Host(**dict.fromkeys(well, HUNG))
    backend = make(host, CONFIG)
    fittings = Fittings(host, CONFIG, (backend,), lambda _: Bounds())
    fittings.recall((), Inventory((CORE, MEMORY, *sealed)))
    first, second = (one.resource_id for one in sealed)
    for _ in range(2):
        assert healths(await backend.survey()) == {first: Health.SICK, second: Health.SICK}
    if silent is not None:
        host.answers = silent
        found = await backend.survey()
        assert healths(found) == {first: Health.SICK, second: Health.OK} and not found.absences
    host.answers = well
    assert healths(await backend.survey()) == {first: Health.OK, second: Health.OK}
    host.answers = gone
    assert healths(await backend.survey()) == {second: Health.OK}
    host.answers = dict.fromkeys(well, HUNG)
    assert healths(await backend.survey()) == {second: Health.OK}, "what was seen last stands"


@pytest.mark.parametrize("silent", [ONE_IS_MUTE, ONE_HAS_NO_ADDRESS])
async def test_a_device_that_cannot_be_used_for_once_is_sick_and_still_there(
    silent: rdma.Seen,
) -> None:
    """A host too busy to start a program in time has lost no card, nor has one whose address is
    being configured."""
    host = Host(see=BOTH_CARDS)
    backend = rdma_backend(host, CONFIG)
    first, second = healths(await backend.survey())
    for _ in range(2):
        host.answers = {"see": silent}
        assert healths(await backend.survey()) == {first: Health.SICK, second: Health.OK}
    host.answers = {"see": BOTH_CARDS}
    found = await backend.survey()
    assert healths(found) == {first: Health.OK, second: Health.OK}
    assert all("leased-rdma" not in limit for one in found.resources for limit in one.limits)
    clone = card(1), MUTE
    host.answers = {"see": rdma_seen(clone, clone, (card(2), ABLE))}
    assert healths(await backend.survey()) == {second: Health.OK}, "nobody knows which it is"


async def test_what_was_never_seen_is_not_offered_because_it_does_not_answer() -> None:
    for make, silent in ((BlockBackend, ONE_HANGS), (rdma_backend, {"see": ONE_IS_MUTE})):
        [only] = (await make(Host(**silent), CONFIG).survey()).resources
        assert only.health is Health.OK


