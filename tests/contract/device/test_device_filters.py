# SPDX-License-Identifier: Apache-2.0
"""Device filters of leaves: what is loaded once is attached to many, and holds on each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import cgroup
from leased.hardware.fittings import PSEUDO_DEVICES, READ_WRITE
from leased.hardware.verbs import DEVICE_CHAR, DeviceRule
from tests.doubles.reaper_host import cgroup_root, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
NULL, FULL = (1, 3), (1, 7)
TOUCH = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for path in sys.argv[2:]:
    try:
        os.close(os.open(path, os.O_RDWR))
        print(path)
    except PermissionError:
        pass
"""
MAKE = """
import os, stat, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for name in sys.argv[3:]:
    number = os.makedev(*map(int, name.split(":")))
    try:
        os.mknod(f"{sys.argv[2]}/{name}", stat.S_IFCHR | 0o666, number)
        print(name)
    except PermissionError:
        pass
"""


@pytest.fixture
def leaves() -> Iterator[list[str]]:
    root = cgroup_root()
    assert root is not None
    made = [str(root / f"leased-filters-{os.getpid()}-{number}") for number in range(3)]
    for path in made:
        os.mkdir(path)
    yield made
    for path in made:
        os.rmdir(path)


def allowed(leaf: str) -> list[str]:
    """Which of /dev/null and /dev/full a process in the leaf may open."""
    command = [sys.executable, "-S", "-c", TOUCH, leaf, "/dev/null", "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def rules(*nodes: tuple[int, int]) -> list[DeviceRule]:
    return [DeviceRule(DEVICE_CHAR, READ_WRITE, *node) for node in nodes]


def test_each_leaf_opens_what_its_rules_say(leaves: list[str]) -> None:
    cgroup.let_open(leaves[0], rules(NULL))
    cgroup.let_open(leaves[1], rules(NULL, FULL))
    cgroup.let_open(leaves[2], rules(NULL))
    assert [allowed(leaf) for leaf in leaves] == [
        ["/dev/null"],
        ["/dev/null", "/dev/full"],
        ["/dev/null"],
    ]


def test_a_leaf_may_be_given_its_rules_again(leaves: list[str]) -> None:
    for _ in range(2):
        cgroup.let_open(leaves[0], rules(NULL))
    assert allowed(leaves[0]) == ["/dev/null"]


def test_no_more_filters_stay_loaded_than_are_of_use(leaves: list[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for minor in range(3 * cgroup.PROGRAMS_MAX):
        Path(leaves[0]).rmdir()
        Path(leaves[0]).mkdir()
        cgroup.let_open(leaves[0], [*PSEUDO_DEVICES, *rules((240, minor))])
    assert len(os.listdir("/proc/self/fd")) <= before + cgroup.PROGRAMS_MAX


def test_a_container_of_roots_gets_nodes_of_its_own_for_what_is_nobodys(
    leaves: list[str], tmp_path: Path
) -> None:
    """podman, docker and runc make them; and nobody makes one for a device."""
    cgroup.let_open(leaves[0], [*PSEUDO_DEVICES, *rules((240, 0))])
    command = [sys.executable, "-S", "-c", MAKE, leaves[0], str(tmp_path)]
    names = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2")
    done = subprocess.run(
        [*command, *names, "1:1", "5:1", "240:0"], capture_output=True, text=True, timeout=30
    )
    assert tuple(done.stdout.split()) == names, done.stderr
