# SPDX-License-Identifier: Apache-2.0
"""Where cgroup2 is and who has which controller, from captured mountinfo; kernel lists."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.hardware.calls import CgroupFacts, Survey
from leased.hardware.cgroup import find_mounts, found, home_of
from leased.hardware.config import HardwareConfig
from leased.hardware.cpu import offered_cores, survey_cpu
from leased.hardware.survey import survey
from leased.hardware.sysfs import format_list, parse_list
from leased.terms.errors import ConfigError, DeviceError
from leased.terms.resource import ResourceKind
from tests.doubles.sysfs_trees import write

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = """\
22 28 0:20 / /proc rw,nosuid shared:14 - proc proc rw
31 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_hybrid_and_unified_are_told_apart() -> None:
    assert find_mounts(HYBRID) == (
        "/sys/fs/cgroup/unified",
        ("blkio", "cpu", "cpuset", "memory"),
    )
    assert find_mounts(UNIFIED) == ("/sys/fs/cgroup", ())
    assert find_mounts("") == (None, ())
    spaced = UNIFIED.replace("/sys/fs/cgroup ", "/a\\040b ")
    assert find_mounts(spaced) == ("/a b", ())


def test_no_cgroup2_is_said_and_not_worked_around() -> None:
    facts = found("leased", HYBRID.replace("cgroup2", "tmpfs"))
    assert facts.path == "" and "cgroup2" in facts.troubles[0]


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "leased").write_text("a file is in the way")
    facts = found("leased/slice", UNIFIED.replace("/sys/fs/cgroup", str(tmp_path)))
    assert facts.path == "" and facts.troubles


def test_what_v2_does_not_have_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb rdma misc\n")
    mounts = HYBRID.replace("/sys/fs/cgroup/unified", str(tmp_path))
    facts = found("leased", mounts)
    # A plain directory takes writes and gives nothing back: exactly what is read counts.
    assert facts.path == str(tmp_path / "leased")
    assert facts.controllers == ()
    assert set(facts.v1_only) == {"blkio", "cpu", "cpuset", "memory"}


@given(st.sets(st.integers(min_value=0, max_value=300), max_size=40))
def test_lists_come_back_as_they_went(numbers: set[int]) -> None:
    ordered = tuple(sorted(numbers))
    assert parse_list(format_list(ordered)) == ordered


def test_lists_as_the_kernel_writes_them() -> None:
    assert parse_list("0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert parse_list("\n") == ()
    assert format_list((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    for nonsense in ("x", "3-1", "-1", "1-"):
        with pytest.raises(ValueError):
            parse_list(nonsense)


def cpus(root: Path) -> None:
    directory = root / "sys/devices/system/cpu"
    for core, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7"}.items():
        for thread in (core, core + 4):
            topology = directory / f"cpu{thread}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(siblings)
            (topology / "physical_package_id").write_text("0")
            (directory / f"cpu{thread}/node0").mkdir()
    (directory / "online").write_text("0-7\n")


def test_the_first_core_and_its_sibling_stay_with_the_host(tmp_path: Path) -> None:
    cpus(tmp_path)
    assert offered_cores("auto", tmp_path) == ((1, 2, 3, 5, 6, 7), ())
    assert offered_cores("2-3", tmp_path) == ((2, 3), ())
    assert offered_cores("none", tmp_path) == ((), ())
    with pytest.raises(ConfigError, match="cpu_cores"):
        offered_cores("a-b", tmp_path)


@pytest.mark.parametrize(("spec", "left"), [("2-3", ["cpu:2"]), ("3", []), ("a-b", [])])
def test_a_core_that_is_not_online_costs_itself_alone(
    tmp_path: Path, spec: str, left: list[str]
) -> None:
    """One that is named went offline, and from then on nothing of the host was seen any more: what
    there had been was granted, the core and memory that had gone among it."""
    cpus(tmp_path)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-2,4-7\n")
    facts = CgroupFacts("/sys/fs/cgroup/leased", ("cpu", "cpuset", "memory"), ())
    config = HardwareConfig(cpu_cores=spec)
    seen = survey(Survey(config, facts), tmp_path)
    cores = [r.resource_id for r in seen.resources if r.kind is ResourceKind.CPU]
    assert cores == left and ResourceKind.CPU not in seen.failed
    [why] = [one.why for one in seen.absences if one.kind is ResourceKind.CPU]
    assert "cpu_cores" in why and ("3" in why or spec == "a-b")


def test_who_is_gone_is_in_no_cgroup() -> None:
    """It exited while a tree was adopted: that failed half-way, and who had been moved was killed
    with the lease that was not granted."""
    with pytest.raises(DeviceError) as caught:
        home_of(1 << 22)
    assert caught.value.errno == errno.ESRCH


def test_cores_are_leased_only_where_both_controllers_are_ours(tmp_path: Path) -> None:
    cpus(tmp_path)
    whole = CgroupFacts("/sys/fs/cgroup/leased", ("cpu", "cpuset", "memory"), ())
    resources, absences = survey_cpu(HardwareConfig(), whole, tmp_path)
    assert [r.resource_id for r in resources] == [f"cpu:{n}" for n in (1, 2, 3, 5, 6, 7)]
    assert absences == () and resources[0].node == 0
    assert ("siblings", "1,5") in resources[0].attributes

    write(tmp_path, {"sys/fs/cgroup/leased/cpuset.cpus.effective": "0,2-3"})
    resources, [absence] = survey_cpu(HardwareConfig(), whole, tmp_path)
    assert [r.resource_id for r in resources] == ["cpu:2", "cpu:3"]
    assert "AllowedCPUs=" in absence.why and "[1, 5, 6, 7]" in absence.why

    hybrid = CgroupFacts("/sys/fs/cgroup/unified/leased", ("hugetlb",), ("cpu", "cpuset"))
    resources, [absence] = survey_cpu(HardwareConfig(), hybrid, tmp_path)
    assert resources == () and absence.kind is ResourceKind.CPU
    assert "systemd.unified_cgroup_hierarchy=1" in absence.why

    half = CgroupFacts("/sys/fs/cgroup/leased", ("cpu",), (), ("/: +cpuset: EBUSY",))
    _, [absence] = survey_cpu(HardwareConfig(), half, tmp_path)
    assert "cpuset" in absence.why and "EBUSY" in absence.why

    _, [absence] = survey_cpu(HardwareConfig(cpu_cores="none"), whole, tmp_path)
    assert "cpu_cores" in absence.why
