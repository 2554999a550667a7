# SPDX-License-Identifier: Apache-2.0
"""Memory tiers: which NUMA nodes there are, what kind of memory they are, what of it is leased.

Rule: a tier is what the firmware measured (HMAT, access class 0) where it tells; else where the
memory comes from (CXL, PMEM, a GPU); else how far away it is. The operator's word goes over all of
it. Kernel 6.1 sorts nodes into tiers without HMAT, so the kernel's own tiers are not asked.

A node offers its hugepage pools whole and a configured share of the rest as normal pages. Does not
allocate anything.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from leased.hardware.calls import Counted, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.sysfs import list_names, read_int, read_list, read_text
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind, TierKind

NORMAL_LIMIT = (
    "a normal page that a pipe, an io_uring buffer or an RDMA region pins is overwritten, but its"
    " return cannot be counted; hugepage pools count every page"
)
_NVIDIA_NUMA = "proc/driver/nvidia/gpus"
_FAR = 80
"""SLIT distances: 10 is local, 20 to 40 another socket or a CXL card; beyond it is not this box."""


class Speed(msgspec.Struct, frozen=True):
    """What HMAT says of a node as its best initiator sees it: ns and MiB/s, None where silent."""

    read_latency_ns: int | None = None
    write_latency_ns: int | None = None
    read_bandwidth_mibps: int | None = None
    write_bandwidth_mibps: int | None = None


class Node(msgspec.Struct, frozen=True):
    """One NUMA node with memory."""

    number: int
    has_cpu: bool
    total_bytes: int
    distance: int
    speed: Speed
    origin: TierKind | None
    hugepages: tuple[tuple[int, int], ...]


def survey_memory(config: HardwareConfig, root: Path = Path("/")) -> tuple[Resource, ...]:
    """Every memory resource that this host can lease."""
    nodes = read_nodes(root)
    reference = _reference(nodes)
    told = dict(config.tiers)
    resources: list[Resource] = []
    for node in nodes:
        by_operator = node.number in told
        tier = told[node.number] if by_operator else classify(node, reference)
        resources.extend(_resources(node, tier, config, "operator" if by_operator else ""))
    return tuple(resources)


def read_nodes(root: Path) -> tuple[Node, ...]:
    """The nodes that have memory, as sysfs tells them."""
    directory = root / "sys/devices/system/node"
    with_cpu = read_list(directory / "has_cpu")
    with_memory = read_list(directory / "has_memory")
    origins = read_origins(root)
    return tuple(
        Node(
            number=number,
            has_cpu=number in with_cpu,
            total_bytes=_total_bytes(directory / f"node{number}/meminfo"),
            distance=_distance(directory / f"node{number}/distance", with_cpu),
            speed=_speed(directory / f"node{number}/access0/initiators"),
            origin=origins.get(number),
            hugepages=_hugepages(directory / f"node{number}/hugepages"),
        )
        for number in with_memory
    )


def classify(node: Node, reference: Speed | None) -> TierKind:
    """The tier of `node`, measured against the fastest node that has CPUs."""
    latency, bandwidth = node.speed.read_latency_ns, node.speed.read_bandwidth_mibps
    if reference is not None and latency and bandwidth and not node.has_cpu:
        known_latency, known_bandwidth = reference.read_latency_ns, reference.read_bandwidth_mibps
        assert known_latency and known_bandwidth
        if bandwidth >= 2 * known_bandwidth and latency <= 2 * known_latency:
            return TierKind.HBM
        if 2 * latency >= 3 * known_latency or 2 * bandwidth <= known_bandwidth:
            # HMAT tells that it is slow, not what it is made of.
            slow = node.origin in (TierKind.CXL, TierKind.PMEM, TierKind.REMOTE)
            return node.origin if slow and node.origin is not None else TierKind.CXL
        return TierKind.DRAM
    if node.origin is not None:
        return node.origin
    if node.has_cpu:
        return TierKind.DRAM
    return TierKind.REMOTE if node.distance >= _FAR else TierKind.CXL


def read_origins(root: Path) -> dict[int, TierKind]:
    """Where the memory of a node comes from, where a device says that it became that node."""
    origins: dict[int, TierKind] = {}
    for name in list_names(root / "sys/bus/dax/devices"):
        device = root / "sys/bus/dax/devices" / name
        target = read_int(device / "target_node")
        if target is None or target < 0:
            continue
        path = os.path.realpath(device)
        if "/ndbus" in path:
            origins[target] = TierKind.PMEM
        elif "ACPI0017" in path or "cxl" in path or "/decoder" in path:
            origins[target] = TierKind.CXL
    for name in list_names(root / _NVIDIA_NUMA):
        status = read_text(root / _NVIDIA_NUMA / name / "numa_status") or ""
        for line in status.splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "Node" and value.strip().isdigit():
                origins[int(value)] = TierKind.HBM
    return origins


def read_pool(pool: Pool, root: Path = Path("/")) -> Counted:
    """How many hugepages the pool has, and how many are free."""
    directory = (
        root
        / f"sys/devices/system/node/node{pool.node}"
        / f"hugepages/hugepages-{pool.page_bytes >> 10}kB"
    )
    total, free = read_int(directory / "nr_hugepages"), read_int(directory / "free_hugepages")
    if total is None or free is None:
        raise DeviceError("pool_count", errno.ENOENT, str(directory))
    return Counted(total, free)


def _reference(nodes: tuple[Node, ...]) -> Speed | None:
    speeds = [
        node.speed
        for node in nodes
        if node.has_cpu and node.speed.read_latency_ns and node.speed.read_bandwidth_mibps
    ]
    return min(speeds, key=lambda speed: speed.read_latency_ns or 0, default=None)


def _resources(
    node: Node, tier: TierKind, config: HardwareConfig, classified: str
) -> list[Resource]:
    how = classified or ("hmat" if node.speed.read_latency_ns else "origin or distance")
    offers = list(node.hugepages) if config.hugepages else []
    page_bytes = os.sysconf("SC_PAGESIZE")
    rest_bytes = node.total_bytes - sum(size * count for size, count in node.hugepages)
    normal_pages = max(rest_bytes, 0) * config.normal_share_pm // 1000 // page_bytes
    offers.insert(0, (page_bytes, normal_pages))
    return [
        Resource(
            resource_id=f"mem:node{node.number}:{size}",
            kind=ResourceKind.MEM,
            tier=tier,
            capacity=size * count,
            granule=size,
            node=node.number,
            read_latency_ns=node.speed.read_latency_ns,
            write_latency_ns=node.speed.write_latency_ns,
            read_bandwidth_mibps=node.speed.read_bandwidth_mibps,
            write_bandwidth_mibps=node.speed.write_bandwidth_mibps,
            limits=(NORMAL_LIMIT,) if size == page_bytes else (),
            attributes=(("page_bytes", str(size)), ("tier_by", how)),
        )
        for size, count in offers
        if count > 0
    ]


def _total_bytes(path: Path) -> int:
    for line in (read_text(path) or "").splitlines():
        fields = line.split()
        if "MemTotal:" in fields:
            return int(fields[fields.index("MemTotal:") + 1]) << 10
    raise DeviceError("sysfs_read", errno.EINVAL, f"{path}: no MemTotal")


def _distance(path: Path, with_cpu: tuple[int, ...]) -> int:
    distances = [int(word) for word in (read_text(path) or "").split()]
    return min((distances[cpu] for cpu in with_cpu if cpu < len(distances)), default=0)


def _speed(directory: Path) -> Speed:
    return Speed(
        read_int(directory / "read_latency") or None,
        read_int(directory / "write_latency") or None,
        read_int(directory / "read_bandwidth") or None,
        read_int(directory / "write_bandwidth") or None,
    )


def _hugepages(directory: Path) -> tuple[tuple[int, int], ...]:
    """(page bytes, pages in the pool) of each size."""
    found: list[tuple[int, int]] = []
    for name in list_names(directory):
        size_kb = name.removeprefix("hugepages-").removesuffix("kB")
        if size_kb.isdigit():
            found.append((int(size_kb) << 10, read_int(directory / name / "nr_hugepages") or 0))
    return tuple(sorted(found))
