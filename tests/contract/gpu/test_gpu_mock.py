# SPDX-License-Identifier: Apache-2.0
"""What the mock does when it is broken or changed: its faults are the driver's, and end."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from leased.hardware.cgroup import find_mounts
from leased.hardware.verbs import (
    ACCESS_READ,
    ACCESS_WRITE,
    DEVICE_CHAR,
    DeviceRule,
    attach_filter,
    load_filter,
)
from tests.contract.gpu.conftest import Gpus
from tests.doubles.host import not_proven
from tests.hostile.cuda_process import TrickFailed
from tests.mocks.nvml import nodes
from tests.mocks.nvml.control import Machine

EXCLUSIVE, PROHIBITED = 3, 2
LOST, IN_USE, INVALID, NO_PERMISSION, NOT_LOADED, UNKNOWN = 15, 19, 2, 4, 9, 999
NOBODY = 65534
MIB = 1 << 20


def machine(mock: Gpus) -> Machine:
    assert mock.machine is not None
    return mock.machine


@pytest.mark.parametrize("number", [PROHIBITED, EXCLUSIVE])
def test_the_compute_mode_keeps_others_out(mock: Gpus, number: int) -> None:
    with mock.hold("small"):
        assert mock.ask("mode", 0, number) == {"mode": number}
        with pytest.raises(TrickFailed, match=r"DEVICE_UNAVAILABLE \(46\)"):
            mock.start("small")


def test_exclusive_lets_one_in_as_soon_as_the_last_has_gone(mock: Gpus) -> None:
    machine(mock).set(0, compute_mode=EXCLUSIVE, release_ms=0)
    with mock.hold("small") as first:
        first.kill()
    with mock.hold("small") as second:
        assert second.ask() == "works"


def test_only_root_changes_a_mode(mock: Gpus) -> None:
    asking = mock.begin("mode", 0, 2, before=["setpriv", f"--reuid={NOBODY}", "--clear-groups"])
    assert mock.end(asking) == {"error": NO_PERMISSION}


def test_a_driver_that_was_loaded_anew_forgets_the_mode(mock: Gpus) -> None:
    machine(mock).set(0, compute_mode=PROHIBITED)
    machine(mock).driver_unload()
    assert mock.ask("identity", 0) == {"error": NOT_LOADED}
    machine(mock).driver_load()
    assert mock.ask("health", 0)["compute_mode"] == 0


def test_a_call_hangs_until_the_fault_is_cleared(mock: Gpus) -> None:
    machine(mock).fault("nvmlDeviceGetUUID", "hang", count=1)
    asking = mock.begin("identity", 0)
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(1)
    machine(mock).clear()
    assert mock.end(asking)["uuid"] == machine(mock).uuid(0)


def test_a_fault_strikes_as_often_as_it_was_told(mock: Gpus) -> None:
    machine(mock).fault("nvmlDeviceGetUUID", f"return:{UNKNOWN}", gpu=0, count=1)
    assert mock.ask("identity", 1)["uuid"] == machine(mock).uuid(1)
    assert mock.ask("identity", 0) == {"error": UNKNOWN}
    assert mock.ask("identity", 0)["uuid"] == machine(mock).uuid(0)


def test_ghosts_and_leaks_are_seen_and_go(mock: Gpus) -> None:
    machine(mock).ghost(0, 4242, 7 * MIB)
    machine(mock).leak(0, 100 * MIB)
    told = mock.ask("processes", 0)
    assert told["compute"] == [[4242, 7 * MIB]] and told["used"] == 100 * MIB
    machine(mock).unghost(0)
    machine(mock).unleak(0)
    told = mock.ask("processes", 0)
    assert told["compute"] == [] and told["used"] == 0


def test_a_gpu_that_fell_off_says_so_and_the_others_answer(mock: Gpus) -> None:
    listening = mock.begin("events", 0, 300)
    assert listening.stdout is not None and listening.stdout.readline() == "registered\n"
    machine(mock).lose(0)
    assert mock.end(listening)["seen"] == [[8, 79]]
    assert mock.ask("identity", 0) == {"error": LOST}
    assert mock.ask("identity", 1)["uuid"] == machine(mock).uuid(1)


def test_a_recovery_action_is_a_field_and_two_events(mock: Gpus) -> None:
    listening = mock.begin("events", 0, 300)
    assert listening.stdout is not None and listening.stdout.readline() == "registered\n"
    machine(mock).recovery(0, 2)
    assert mock.end(listening)["seen"] == [[8, 154], [0x8000, 2]]
    assert mock.ask("fields", 0, 230)["230"] == [0, 1, 2]


def test_a_storm_of_xids_loses_the_oldest(mock: Gpus) -> None:
    listening = mock.begin("events", 0, 1000)
    assert listening.stdout is not None and listening.stdout.readline() == "registered\n"
    machine(mock).xid(0, 31, times=1000)
    seen = mock.end(listening)["seen"]
    assert 256 <= len(seen) <= 1000 and seen[-1] == [8, 31]


def test_the_driver_tells_when_it_goes_and_comes(mock: Gpus) -> None:
    listening = mock.begin("system_events", 500)
    assert listening.stdout is not None and listening.stdout.readline() == "registered\n"
    machine(mock).driver_unload()
    machine(mock).driver_load()
    assert mock.end(listening)["seen"] == [1, 1, 2, 2]


def test_a_filter_refuses_one_gpu_and_not_the_other(mock: Gpus, leaf: int, leaf_path: str) -> None:
    root = machine(mock).root / "dev"
    second, ctl, uvm = (
        os.stat(root / name).st_rdev
        for name in (machine(mock).node(1).name, "nvidiactl", "nvidia-uvm")
    )
    plain = [(1, minor) for minor in (3, 5, 8, 9)]
    nodes = [(os.major(it), os.minor(it)) for it in (second, ctl, uvm)]
    attach_filter(
        leaf,
        load_filter(
            [DeviceRule(DEVICE_CHAR, ACCESS_READ | ACCESS_WRITE, *it) for it in (*plain, *nodes)]
        ),
    )
    script = (
        "from tests.hostile.cuda_driver import Driver; import ctypes\n"
        "count = ctypes.c_int(); Driver().call('cuDeviceGetCount', ctypes.byref(count))\n"
        "print(count.value)"
    )
    inside = ["sh", "-c", f'echo 0 > {leaf_path}/cgroup.procs && exec "$@"', "sh"]
    assert mock.run(script, before=inside) == "1"


def test_memory_that_was_let_go_is_zero_unless_the_driver_does_not_clear(mock: Gpus) -> None:
    machine(mock).set(1, scrub_on_free=0)
    for gpu in (0, 1):
        one = Gpus({**mock.environment, "CUDA_VISIBLE_DEVICES": str(gpu)}, mock.machine)
        with one.hold("most") as held:
            held.kill()
        wait_until_free(machine(mock), gpu)
    assert machine(mock).dirty(0) == 0
    assert machine(mock).dirty(1) > 60 << 30


def test_a_machine_that_goes_late_leaves_the_next_ones_nodes_alone(
    mock: Gpus, tmp_path: Path
) -> None:
    """Its root has gone before it gives its consoles back: they may be another's by then."""
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
        (root / "state").touch()
    held = nodes.reserve(roots[0], 1)
    shutil.rmtree(roots[0])
    taken = nodes.reserve(roots[1], 1)
    while taken[-1:] != held:  # another test's machine has ended just now
        held = nodes.reserve(roots[0], 1)
        taken += nodes.reserve(roots[1], 1)
    nodes.wake(held)
    nodes.release(roots[0], held)
    nodes.make(tmp_path / "vcs", nodes.VCS, held[0])
    os.close(os.open(tmp_path / "vcs", os.O_RDONLY | os.O_CLOEXEC))
    nodes.release(roots[1], taken)


def test_residue_is_where_it_was_put(mock: Gpus) -> None:
    assert machine(mock).residue(0, 3 * MIB + 8, 100, 0x01010101) == 100
    assert machine(mock).dirty(0) == 100


def test_a_latched_utilization_is_cleared_by_a_context(mock: Gpus) -> None:
    machine(mock).set(0, latch_on_kill=1)
    with mock.hold("spin") as held:
        assert mock.ask("health", 0)["utilization"] == 100
        held.kill()
    wait_until_free(machine(mock), 0)
    assert mock.ask("health", 0)["utilization"] == 100
    with mock.hold("small") as next_one:
        next_one.process.communicate("")
    assert mock.ask("health", 0)["utilization"] == 0


def test_instances_have_their_own_memory_and_names_and_capacity_comes_back(mock: Gpus) -> None:
    machine(mock).set(0, mig_mode=1, mig_pending=1)
    told = mock.ask("mig", 0, 2, 1, 0)  # 3g, 2g, 1g
    assert told["after"] == told["before"]
    assert all(was > now for was, now in zip(told["before"], told["during"], strict=True))
    assert len({one["uuid"] for one in told["devices"]}) == 3
    assert {one["parent"] for one in told["devices"]} == {machine(mock).uuid(0)}
    assert sorted(one["slices"] for one in told["devices"]) == [1, 2, 3]
    assert told["refused"] == {"error": IN_USE} and told["stale"] == {"error": INVALID}
    files = machine(mock).root / "proc/driver/nvidia/capabilities"
    assert not list(files.rglob("access"))


def test_an_instance_in_use_is_not_destroyed(mock: Gpus) -> None:
    machine(mock).set(0, mig_mode=1, mig_pending=1)
    made = mock.ask("layout", 0, 0, 1)
    inside = Gpus({**mock.environment, "CUDA_VISIBLE_DEVICES": made["uuid"]}, mock.machine)
    with inside.hold("small") as held:
        assert held.ask() == "works"
        busy = mock.ask("layout", 0, 0, 0)["results"]
        assert busy == [{"error": IN_USE}, {"error": IN_USE}]
    wait_until_free(machine(mock), 0)
    machine(mock).mig_in_use(0, 1)
    assert mock.ask("layout", 0, 0, 0)["results"] == [{"error": IN_USE}, {"error": IN_USE}]
    assert mock.ask("layout", 0, 0, 0)["results"] == [0, 0]


def test_draining_hides_removing_needs_nobody_and_old_handles_are_dead(mock: Gpus) -> None:
    steps = mock.ask("drain", 1)
    assert steps["persistent"] == {"error": IN_USE}
    assert steps["drained"] is None and steps["count"] == 1
    assert steps["attached"] == {"error": IN_USE}
    assert steps["removed"] is None and steps["old handle"] == {"error": INVALID}
    assert steps["discovered"] is None and steps["count after"] == 2


def wait_until_free(one: Machine, gpu: int) -> None:
    deadline = time.monotonic() + 10
    while one.processes(gpu) or one.used(gpu):
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)


@pytest.fixture
def leaf_path(request: pytest.FixtureRequest) -> str:
    unified, _ = find_mounts(Path("/proc/self/mountinfo").read_text("utf-8"))
    if unified is None or not os.access(unified, os.W_OK):
        not_proven("that a filter gates the mock's GPUs", "needs a writable cgroup2")
    path = f"{unified}/leased-mock-{os.getpid()}"
    os.mkdir(path)
    request.addfinalizer(lambda: os.rmdir(path))
    return path


@pytest.fixture
def leaf(leaf_path: str, request: pytest.FixtureRequest) -> int:
    descriptor = os.open(leaf_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    request.addfinalizer(lambda: os.close(descriptor))
    return descriptor
