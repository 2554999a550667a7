# SPDX-License-Identifier: Apache-2.0
"""Memory tiers from trees of /sys: HMAT first, then origin, distance; the operator over all."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.hardware.calls import CgroupFacts, Counted, Pool, Survey
from leased.hardware.config import HardwareConfig
from leased.hardware.memory import read_pool, survey_memory
from leased.hardware.nodes import Origin, Speed, read_nodes, read_origins
from leased.hardware.survey import survey
from leased.hardware.tiers import classify, classify_bare
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind, TierKind, capacity_id
from tests.doubles import sysfs_trees
from tests.doubles.sysfs_trees import NODES, TREES, hmat, write

GIB = 1 << 30
NO_CGROUP = CgroupFacts("", (), ("memory",), ("no cgroup2 is mounted",))
V1_MEMORY = CgroupFacts("/sys/fs/cgroup/unified/leased", ("hugetlb",), ("cpuset", "memory"))
V2 = CgroupFacts("/sys/fs/cgroup/leased", ("cpu", "cpuset", "memory", "pids"), ())


def node(number: int, *, kib: int = GIB >> 10, distance: str = "10 20") -> dict[str, str]:
    return sysfs_trees.node(number, kib=kib, distance=distance)


def huge(number: int, size_kib: int, pages: int, free: int) -> dict[str, str]:
    directory = f"{NODES}/node{number}/hugepages/hugepages-{size_kib}kB"
    return {f"{directory}/nr_hugepages": str(pages), f"{directory}/free_hugepages": str(free)}


def two_nodes(root: Path) -> None:
    """Node 0 has the CPUs, node 1 only memory."""
    write(
        root,
        {f"{NODES}/has_cpu": "0", f"{NODES}/has_memory": "0-1", **node(0), **node(1)},
    )


def offered(root: Path, config: HardwareConfig | None = None) -> tuple[Resource, ...]:
    return survey_memory(config or HardwareConfig(), NO_CGROUP, root).resources


def tier_of(root: Path, number: int, config: HardwareConfig | None = None) -> TierKind | None:
    by_node = {r.node: r for r in offered(root, config)}
    return by_node[number].tier


@pytest.mark.parametrize(
    ("name", "tiers"),
    [
        ("hgx_h100", {0: ("DRAM", "processors"), 1: ("DRAM", "processors")}),
        ("gh200", {0: ("DRAM", "processors"), 1: ("HBM", "origin")}),
        (
            "xeon_max_flat",
            {
                **dict.fromkeys((0, 1), ("DRAM", "processors")),
                2: ("HBM", "origin"),
                3: ("HBM", "origin"),
            },
        ),
        (
            "xeon_max_hmat",
            {
                **dict.fromkeys((0, 1), ("DRAM", "processors")),
                2: ("HBM", "hmat"),
                3: ("HBM", "hmat"),
            },
        ),
        (
            "cxl_host",
            {
                **dict.fromkeys((0, 1), ("DRAM", "processors")),
                2: ("CXL", "origin"),
                3: ("CXL", "origin"),
            },
        ),
        ("qemu", {0: ("DRAM", "processors"), 1: ("CXL", "hmat")}),
    ],
)
def test_hosts_of_many_makes(tmp_path: Path, name: str, tiers: dict[int, tuple[str, str]]) -> None:
    TREES[name](tmp_path)
    nodes = read_nodes(tmp_path)
    found = {one.number: classify(one, nodes) for one in nodes}
    assert {number: (c.tier.name, c.by) for number, c in found.items()} == tiers


def test_the_memory_of_a_gpu_goes_with_the_gpu_unless_the_operator_says_otherwise(
    tmp_path: Path,
) -> None:
    TREES["gh200"](tmp_path)
    surveyed = survey_memory(HardwareConfig(), NO_CGROUP, tmp_path)
    assert {one.node for one in surveyed.resources} == {0}
    assert surveyed.notes == ("node 1: the memory of a GPU, leased with the GPU",)
    told = HardwareConfig(tiers=((1, TierKind.HBM),))
    surveyed = survey_memory(told, NO_CGROUP, tmp_path)
    assert {one.node: one.tier for one in surveyed.resources}[1] is TierKind.HBM
    assert surveyed.notes == ()


@pytest.mark.parametrize(
    ("speed", "origin", "tier"),
    [
        (Speed(None, None, 30_000, 30_000), None, TierKind.CXL),
        (Speed(None, None, 800_000, 800_000), None, TierKind.HBM),
        (Speed(300, 300, None, None), None, TierKind.CXL),
        (Speed(300, 300, None, None), Origin.PMEM, TierKind.PMEM),
        (Speed(100, 100, 200_000, 200_000), Origin.CXL, TierKind.CXL),
        (Speed(100, 100, 200_000, 200_000), None, TierKind.DRAM),
        (Speed(600, 600, 450_000, 450_000), Origin.GPU, TierKind.HBM),
    ],
)
def test_half_an_hmat_says_what_it_can(speed: Speed, origin: Origin | None, tier: TierKind) -> None:
    reference = Speed(90, 90, 200_000, 200_000)
    assert classify_bare(speed, origin, 20, reference).tier is tier


def test_ranges_that_the_kernel_hides_say_nothing(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    write(tmp_path, sysfs_trees.blocks(1, 0, 4))
    write(tmp_path, {"proc/iomem": "00000000-00000000 : CXL Window 0"})
    assert read_origins(tmp_path, (1,)) == {}
    write(tmp_path, {"proc/iomem": "00000000-1ffffffff : System RAM (NVIDIA)"})
    assert read_origins(tmp_path, (1,)) == {1: Origin.GPU}


def test_one_plain_node_is_dram_with_half_of_it_offered(tmp_path: Path) -> None:
    write(tmp_path, {f"{NODES}/has_cpu": "0", f"{NODES}/has_memory": "0", **node(0)})
    [pool] = offered(tmp_path)
    assert (pool.resource_id, pool.kind, pool.tier) == (
        "mem:node0:4096",
        ResourceKind.MEM,
        TierKind.DRAM,
    )
    assert pool.capacity == GIB // 2 and pool.granule == 4096
    assert pool.read_latency_ns is None


def test_hugepages_are_offered_whole_and_not_counted_twice(tmp_path: Path) -> None:
    write(tmp_path, {f"{NODES}/has_cpu": "0", f"{NODES}/has_memory": "0", **node(0)})
    write(tmp_path, {**huge(0, 2048, 128, 100), **huge(0, 1048576, 0, 0)})
    config = HardwareConfig(normal_share_pm=1000)
    normal, pool = offered(tmp_path, config)
    assert pool.resource_id == "mem:node0:2097152" and pool.capacity == 128 * (2 << 20)
    assert normal.capacity == GIB - pool.capacity
    assert normal.limits and not pool.limits
    [only] = offered(tmp_path, HardwareConfig(hugepages=False))
    assert only.granule == 4096


@pytest.mark.parametrize(
    ("latency_ns", "bandwidth_mibps", "tier"),
    [
        (80, 204800, TierKind.DRAM),
        (250, 30720, TierKind.CXL),
        (130, 1_500_000, TierKind.HBM),
        (400, 1_500_000, TierKind.CXL),
        (90, 90_000, TierKind.CXL),
    ],
)
def test_hmat_decides_against_the_node_with_cpus(
    tmp_path: Path, latency_ns: int, bandwidth_mibps: int, tier: TierKind
) -> None:
    two_nodes(tmp_path)
    write(tmp_path, {**hmat(0, 80, 204800), **hmat(1, latency_ns, bandwidth_mibps)})
    assert tier_of(tmp_path, 1) is tier
    assert tier_of(tmp_path, 0) is TierKind.DRAM
    [slow] = [r for r in offered(tmp_path) if r.node == 1]
    assert (slow.read_latency_ns, slow.write_bandwidth_mibps) == (latency_ns, bandwidth_mibps)
    assert ("tier_by", "hmat") in slow.attributes


def test_a_node_without_hmat_is_named_by_its_origin(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    for place, tier in {
        "sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0": TierKind.CXL,
        "sys/devices/LNXSYSTM:00/ACPI0012:00/ndbus0/region0/dax0.1": TierKind.PMEM,
    }.items():
        link = tmp_path / "sys/bus/dax/devices/dax0.0"
        link.unlink(missing_ok=True)
        sysfs_trees.dax(tmp_path, "dax0.0", place, {"target_node": "1"}, "kmem")
        assert tier_of(tmp_path, 1) is tier
        # HMAT says that it is slow; what it is made of is still the origin's to tell.
        write(tmp_path, {**hmat(0, 80, 204800), **hmat(1, 300, 30720)})
        assert tier_of(tmp_path, 1) is tier
        for path in (tmp_path / NODES).glob("node*/access0/initiators/*"):
            path.unlink()


def test_without_any_word_distance_decides(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    assert tier_of(tmp_path, 1) is TierKind.CXL
    write(tmp_path, node(1, distance="120 10"))
    assert tier_of(tmp_path, 1) is TierKind.REMOTE


@pytest.mark.parametrize("tier", list(TierKind))
def test_the_operator_goes_over_all_of_it(tmp_path: Path, tier: TierKind) -> None:
    two_nodes(tmp_path)
    write(tmp_path, {**hmat(0, 80, 204800), **hmat(1, 250, 30720)})
    told = HardwareConfig(tiers=((1, tier),))
    assert tier_of(tmp_path, 1, told) is tier


def test_a_pool_is_read_and_a_pool_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, huge(1, 2048, 32, 31))
    assert read_pool(Pool(1, 2 << 20), tmp_path) == Counted(32, 31)
    with pytest.raises(DeviceError):
        read_pool(Pool(0, 2 << 20), tmp_path)
    write(tmp_path, huge(1, 2048, 32, 31) | {f"{NODES}/node1/hugepages/x": ""})
    path = tmp_path / NODES / "node1/hugepages/hugepages-2048kB/free_hugepages"
    path.write_text("many\n")
    with pytest.raises(DeviceError, match="many"):
        read_pool(Pool(1, 2 << 20), tmp_path)


def test_this_host_offers_what_its_nodes_have() -> None:
    resources: tuple[Resource, ...] = offered(Path("/"))
    assert {r.node for r in resources} >= {0}
    assert all(r.capacity > 0 and r.tier is not None for r in resources)


def test_budgets_are_another_way_to_the_normal_pages(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    write(tmp_path, huge(0, 2048, 8, 8))
    surveyed = survey_memory(HardwareConfig(), V2, tmp_path)
    by_id = {one.resource_id: one for one in surveyed.resources}
    budgets = [one for one in by_id if one.startswith("mem:budget:")]
    assert budgets == ["mem:budget:node0:4096", "mem:budget:node1:4096"]
    for name in budgets:
        normal = by_id[capacity_id(name)]
        assert (by_id[name].capacity, by_id[name].tier) == (normal.capacity, normal.tier)
    assert surveyed.absences == ()
    write(tmp_path, {f"{V2.path[1:]}/cpuset.mems.effective": "1"})
    surveyed = survey_memory(HardwareConfig(), V2, tmp_path)
    assert [one.resource_id for one in surveyed.resources if "budget" in one.resource_id] == [
        "mem:budget:node1:4096"
    ]
    assert any("AllowedMemoryNodes=" in note for note in surveyed.notes)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (NO_CGROUP, "no cgroup2 is mounted"),
        (V1_MEMORY, "memory and cpuset are bound to cgroup v1 here"),
        (CgroupFacts("/c", ("cpuset",), ()), "memory: the kernel or the delegation"),
    ],
)
def test_where_v2_has_no_controllers_budgets_are_absent_with_the_reason(
    tmp_path: Path, facts: CgroupFacts, why: str
) -> None:
    two_nodes(tmp_path)
    surveyed = survey_memory(HardwareConfig(), facts, tmp_path)
    assert not any("budget" in one.resource_id for one in surveyed.resources)
    [absence] = surveyed.absences
    assert absence.kind is ResourceKind.MEM and why in absence.why


def test_a_node_that_goes_while_it_is_read_is_no_word_about_memory(tmp_path: Path) -> None:
    """Whoever keeps what was seen last is told so (`sighting`)."""
    two_nodes(tmp_path)
    seen = survey(Survey(HardwareConfig(), NO_CGROUP), tmp_path)
    assert seen.failed == () and {one.node for one in seen.resources} == {0, 1}
    (tmp_path / NODES / "node1/meminfo").unlink()
    seen = survey(Survey(HardwareConfig(), NO_CGROUP), tmp_path)
    assert seen.failed == (ResourceKind.MEM,) and seen.resources == ()
    assert any("no MemTotal" in one.why for one in seen.absences)
