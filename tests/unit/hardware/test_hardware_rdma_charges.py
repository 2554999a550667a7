# SPDX-License-Identifier: Apache-2.0
"""What a leaf is charged for, and owners whose answers do not add up: neither is believed to be
nothing."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from leased.hardware.config import HardwareConfig
from leased.hardware.rdma import calls, carrying, owner, protocol
from leased.hardware.rdma.backend import RdmaBackend
from leased.hardware.rdma.charges import charged_objects
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.leases import lease
from tests.unit.hardware.test_hardware_rdma_backend import GUID, REGION, LivelyCrew


def leaf_of(place: Path, *lines: str) -> str:
    """As the kernel writes it: a space behind each count."""
    (place / "rdma.current").write_text("".join(f"{line} \n" for line in lines))
    return str(place)


def test_a_device_answers_for_its_own_objects_alone(tmp_path: Path) -> None:
    """The objects of one that hung were the other's, too, and both were fenced."""
    leaf = leaf_of(
        tmp_path, "rxe0 hca_handle=0 hca_object=0", "mlx5_0 hca_handle=1 hca_object=4"
    )
    counts = {name: charged_objects(leaf, name) for name in ("rxe0", "mlx5_0", "", "renamed")}
    assert counts == {"rxe0": 0, "mlx5_0": 5, "": 5, "renamed": 5}


def test_where_nobody_counts_there_is_no_count(tmp_path: Path) -> None:
    assert charged_objects(str(tmp_path), "rxe0") == charged_objects(f"{tmp_path}/gone") == 0
    assert charged_objects(leaf_of(tmp_path)) == 0, "no device"


@pytest.mark.parametrize("line", ["rxe0 hca_handle=-1 hca_object=0", "rxe0", "rxe0 hca_handle="])
def test_a_count_that_is_none_is_a_failure(tmp_path: Path, line: str) -> None:
    with pytest.raises(DeviceError, match="rdma.current says"):
        charged_objects(leaf_of(tmp_path, line))


def test_the_most_that_can_be_counted_is_not_nothing(tmp_path: Path) -> None:
    assert charged_objects(leaf_of(tmp_path, "rxe0 hca_handle=max hca_object=0")) > 1 << 30


def test_a_count_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    """It was taken for 0, which is half of a proof."""
    (tmp_path / "rdma.current").mkdir()
    with pytest.raises(DeviceError):
        carrying.end(calls.Room(str(tmp_path), GUID, 1), ())


def test_what_is_still_charged_fails_the_end(tmp_path: Path) -> None:
    leaf = leaf_of(tmp_path, "rxe0 hca_handle=0 hca_object=2")
    [step] = carrying.end(calls.Room(leaf, GUID, 1), ()).steps
    assert (step.errno, step.measured) == (errno.EBUSY, 2)


# ---- owners that are none ------------------------------------------------------------------------


def test_who_has_no_door_costs_no_descriptor(tmp_path: Path) -> None:
    script = f"exec {owner.DOOR_FD}</dev/null; echo; exec sleep 60"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        try:
            (tmp_path / "cgroup.procs").write_text(f"{child.pid}\n")
            before = os.listdir("/proc/self/fd")
            with pytest.raises(DeviceError, match="no socket"), owner.door_of(str(tmp_path)):
                pass
            assert len(os.listdir("/proc/self/fd")) == len(before)
        finally:
            child.kill()


@pytest.mark.parametrize("had", [(), (4096,), (4096, 8192, 4096), (8192, 4096)])
def test_an_owner_that_has_something_else_than_it_was_given_is_not_believed(
    had: tuple[int, ...],
) -> None:
    regions = tuple((1 << 20, size_bytes) for size_bytes in had)
    told = protocol.State(1, False, bytes(16), 0, 1024, 0, regions, ())
    with pytest.raises(DeviceError) as caught:
        carrying.check_regions(told, (4096, 8192))
    assert caught.value.errno == errno.EPROTO


class LyingCrew(LivelyCrew):
    """Owners that say that they have no region; at the end something of theirs is left."""

    async def task(
        self, name: str, backend: str, verb: str, asked: Any, returns: type, **more: Any
    ) -> Any:
        self.asked.append((verb, getattr(asked, "guid", "")))
        if verb == "describe":
            return calls.Owner(GUID, "rxe0", 1, False, "0" * 32, 0, 1024, (), (7,))
        if verb == "prepare":
            return calls.Owner(GUID, "rxe0", 1, False, "0" * 32, 0, 1024, ((0, 4096),), (7,))
        if verb == "end":
            step = StepReport(TeardownStep.RELEASE, errno.EBUSY, 1, 2, 1)
            return calls.Steps((step,))
        context = calls.Object("context", 7, 1234, "", -1, -1, 0)
        return calls.Listed(True, (context,)) if verb == "witness" else calls.Nothing()

    async def stand_ready(self, name: str, backend: str) -> None:
        """It is there."""


async def test_an_owner_that_lies_ends_a_grant_and_not_the_agent() -> None:
    backend = RdmaBackend(LyingCrew(HardwareConfig()), HardwareConfig())
    with pytest.raises(DeviceError) as caught:
        await backend.access(lease(REGION), [REGION])
    assert caught.value.errno == errno.EPROTO


async def test_what_a_failed_grant_could_not_take_back_stays_its_own() -> None:
    """Its maker lives, so it is no orphan: who had forgotten it found nothing left."""
    config = HardwareConfig(settle_budget_ns=0)
    backend, held = RdmaBackend(LyingCrew(config), config), lease(REGION)
    await backend.prepare(held, [REGION], "/leaf", [0])
    await backend.abandon(held, [REGION])
    assert (await backend.prove(held, [REGION])).unproven == {REGION: 4096}
