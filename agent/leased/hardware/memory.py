# SPDX-License-Identifier: Apache-2.0
"""Memory: what of each NUMA node is leased, and in which shapes.

Rule: a node offers its hugepage pools whole, and a configured share of the rest as normal pages,
which can also be had as a cgroup's budget where the cgroups of leases have the controllers for it.
The memory of a GPU goes with the GPU: its node is offered only if the operator names its tier.

Does not classify (`tiers`) and does not allocate anything.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from leased.hardware.calls import Counted, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.nodes import Node, Origin, read_nodes
from leased.hardware.sysfs import read_int
from leased.hardware.tiers import Classified, classify
from leased.terms.errors import DeviceError
from leased.terms.resource import Resource, ResourceKind

NORMAL_LIMIT = (
    "a normal page that a pipe, an io_uring buffer or an RDMA region pins is overwritten, but its"
    " return cannot be counted; hugepage pools count every page"
)


def survey_memory(
    config: HardwareConfig, root: Path = Path("/")
) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
    """Every memory resource that this host can lease, and notes on what it does not."""
    nodes = read_nodes(root)
    told = dict(config.tiers)
    resources: list[Resource] = []
    notes: list[str] = []
    for node in nodes:
        if node.origin is Origin.GPU and node.number not in told:
            notes.append(f"node {node.number}: the memory of a GPU, leased with the GPU")
            continue
        resources.extend(_resources(node, classify(node, nodes, told), config))
    return tuple(resources), tuple(notes)


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


def _resources(node: Node, classified: Classified, config: HardwareConfig) -> list[Resource]:
    offers = list(node.hugepages) if config.hugepages else []
    page_bytes = os.sysconf("SC_PAGESIZE")
    rest_bytes = node.total_bytes - sum(size * count for size, count in node.hugepages)
    normal_pages = max(rest_bytes, 0) * config.normal_share_pm // 1000 // page_bytes
    offers.insert(0, (page_bytes, normal_pages))
    return [
        Resource(
            resource_id=f"mem:node{node.number}:{size}",
            kind=ResourceKind.MEM,
            tier=classified.tier,
            capacity=size * count,
            granule=size,
            node=node.number,
            read_latency_ns=node.speed.read_latency_ns,
            write_latency_ns=node.speed.write_latency_ns,
            read_bandwidth_mibps=node.speed.read_bandwidth_mibps,
            write_bandwidth_mibps=node.speed.write_bandwidth_mibps,
            limits=(NORMAL_LIMIT,) if size == page_bytes else (),
            attributes=(("page_bytes", str(size)), ("tier_by", classified.by)),
        )
        for size, count in offers
        if count > 0
    ]
