# SPDX-License-Identifier: Apache-2.0
"""Memory tiers from captured sysfs trees: HMAT first, then origin, then distance, then nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.hardware.calls import Counted, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.memory import read_origins, read_pool, survey_memory
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind, TierKind

NODES = "sys/devices/system/node"
GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def node(number: int, *, kib: int = GIB >> 10, distance: str = "10 20") -> dict[str, str]:
    return {
        f"{NODES}/node{number}/meminfo": f"Node {number} MemTotal:       {kib} kB\n"
        f"Node {number} MemFree:        {kib // 2} kB",
        f"{NODES}/node{number}/distance": distance,
    }


def hmat(number: int, latency_ns: int, bandwidth_mibps: int) -> dict[str, str]:
    """As a QEMU machine with hmat-lb showed them (teardown.md 4.1)."""
    directory = f"{NODES}/node{number}/access0/initiators"
    return {
        f"{directory}/read_latency": str(latency_ns),
        f"{directory}/write_latency": str(latency_ns),
        f"{directory}/read_bandwidth": str(bandwidth_mibps),
        f"{directory}/write_bandwidth": str(bandwidth_mibps),
    }


def huge(number: int, size_kib: int, pages: int, free: int) -> dict[str, str]:
    directory = f"{NODES}/node{number}/hugepages/hugepages-{size_kib}kB"
    return {f"{directory}/nr_hugepages": str(pages), f"{directory}/free_hugepages": str(free)}


def two_nodes(root: Path) -> None:
    """Node 0 has the CPUs, node 1 only memory."""
    write(
        root,
        {f"{NODES}/has_cpu": "0", f"{NODES}/has_memory": "0-1", **node(0), **node(1)},
    )


def tier_of(root: Path, number: int, config: HardwareConfig | None = None) -> TierKind | None:
    by_node = {r.node: r for r in survey_memory(config or HardwareConfig(), root)}
    return by_node[number].tier


def test_one_plain_node_is_dram_with_half_of_it_offered(tmp_path: Path) -> None:
    write(tmp_path, {f"{NODES}/has_cpu": "0", f"{NODES}/has_memory": "0", **node(0)})
    [pool] = survey_memory(HardwareConfig(), tmp_path)
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
    normal, pool = survey_memory(config, tmp_path)
    assert pool.resource_id == "mem:node0:2097152" and pool.capacity == 128 * (2 << 20)
    assert normal.capacity == GIB - pool.capacity
    assert normal.limits and not pool.limits
    [only] = survey_memory(HardwareConfig(hugepages=False), tmp_path)
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
    [slow] = [r for r in survey_memory(HardwareConfig(), tmp_path) if r.node == 1]
    assert (slow.read_latency_ns, slow.write_bandwidth_mibps) == (latency_ns, bandwidth_mibps)
    assert ("tier_by", "hmat") in slow.attributes


def test_a_node_without_hmat_is_named_by_its_origin(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    for place, tier in {
        "sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0": TierKind.CXL,
        "sys/devices/LNXSYSTM:00/ACPI0012:00/ndbus0/region0/dax0.1": TierKind.PMEM,
    }.items():
        device = tmp_path / place / "dax0.0"
        write(device, {"target_node": "1"})
        link = tmp_path / "sys/bus/dax/devices/dax0.0"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(device)
        assert tier_of(tmp_path, 1) is tier
        # HMAT says that it is slow; what it is made of is still the origin's to tell.
        write(tmp_path, {**hmat(0, 80, 204800), **hmat(1, 300, 30720)})
        assert tier_of(tmp_path, 1) is tier
        for path in (tmp_path / NODES).glob("node*/access0/initiators/*"):
            path.unlink()


def test_memory_of_a_gpu_is_hbm(tmp_path: Path) -> None:
    two_nodes(tmp_path)
    status = "Node:                  1\nNuma Mem Addr:         400000000000\nStatus:  online"
    write(tmp_path, {"proc/driver/nvidia/gpus/0009:01:00.0/numa_status": status})
    assert read_origins(tmp_path) == {1: TierKind.HBM}
    assert tier_of(tmp_path, 1) is TierKind.HBM


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
    resources: tuple[Resource, ...] = survey_memory(HardwareConfig(), Path("/"))
    assert {r.node for r in resources} >= {0}
    assert all(r.capacity > 0 and r.tier is not None for r in resources)
