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
import re
from functools import lru_cache
from pathlib import Path

import msgspec

from leased.hardware.calls import CgroupFacts, Counted, Pool, Surveyed
from leased.hardware.cgroup import allowed, find_mounts, read_names, why_missing
from leased.hardware.config import HardwareConfig
from leased.hardware.nodes import Node, Origin, read_nodes
from leased.hardware.sysfs import read_int, read_text
from leased.hardware.tiers import Classified, classify
from leased.terms.errors import DeviceError
from leased.terms.resource import Absence, Resource, ResourceKind

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
NORMAL_LIMIT = (
    "a normal page that a pipe, an io_uring buffer or an RDMA region pins is overwritten, but its"
    " return cannot be counted; hugepage pools count every page"
)
BUDGET_NEEDS = ("memory", "cpuset")
NOT_OURS = "no budgets: the leases' cgroup does not have it (AllowedMemoryNodes= of leased.slice?)"
BUDGET_LIMIT = (
    "pages of a budget go back to the kernel, which clears each before another process gets it (at"
    " once where it was booted with init_on_free=1); a budget does not count what its processes"
    " brought along, use of hugepages or left in a pipe of somebody else's"
)


def survey_memory(config: HardwareConfig, facts: CgroupFacts, root: Path = Path("/")) -> Surveyed:
    """Every memory resource that this host can lease, why budgets are not where they are not, and
    notes on what else is left out."""
    nodes = read_nodes(root)
    told = dict(config.tiers)
    resources: list[Resource] = []
    notes: list[str] = []
    why = why_missing(facts, BUDGET_NEEDS, "budgets (shape=budget)")
    ours = allowed(facts, "cpuset.mems", root)
    for node in nodes:
        if node.origin is Origin.GPU and node.number not in told:
            notes.append(f"node {node.number}: the memory of a GPU, leased with the GPU")
            continue
        offered = _resources(node, classify(node, nodes, told), config)
        resources.extend(offered)
        if not why and node.number in (ours or (node.number,)):
            resources.extend(_budget(one) for one in offered if one.granule == PAGE_BYTES)
        elif not why:
            notes.append(f"node {node.number}: {NOT_OURS}")
    absences = (Absence(ResourceKind.MEM, why),) if why else ()
    return Surveyed(tuple(resources), absences, tuple(notes))


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


def read_charge(pool: Pool) -> int:
    """How many bytes of the pool are charged to the cgroup of this process; 0 where nobody counts
    them: in the root, or where its parent hands the controller to no child."""
    size, unit = pool.page_bytes >> 10, "KB"
    for larger in ("MB", "GB"):
        size, unit = (size >> 10, larger) if size >> 10 else (size, unit)
    try:
        own = _own_cgroup(read_names("/proc/self/cgroup"))
        told = read_text(Path(own, f"hugetlb.{size}{unit}.numa_stat")) if own else None
    except (OSError, DeviceError):
        return 0
    on_node = re.search(rf" N{pool.node}=([0-9]+)", told or "")
    return int(on_node[1]) if on_node else 0


@lru_cache(maxsize=1)
def _own_cgroup(told: str) -> str:
    """Where the cgroup2 is that /proc/self/cgroup tells of; "" where there is none."""
    unified, _ = find_mounts(read_names("/proc/self/mountinfo"))
    path = next((line[3:] for line in told.split("\n") if line.startswith("0::")), "")
    return f"{unified}{path}" if unified and path else ""


def _resources(node: Node, classified: Classified, config: HardwareConfig) -> list[Resource]:
    offers = list(node.hugepages) if config.hugepages else []
    rest_bytes = node.total_bytes - sum(size * count for size, count in node.hugepages)
    normal_pages = max(rest_bytes, 0) * config.normal_share_pm // 1000 // PAGE_BYTES
    offers.insert(0, (PAGE_BYTES, normal_pages))
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
            limits=(NORMAL_LIMIT,) if size == PAGE_BYTES else (),
            attributes=(("page_bytes", str(size)), ("tier_by", classified.by)),
        )
        for size, count in offers
        if count > 0
    ]


def _budget(normal: Resource) -> Resource:
    """The other way to a node's normal pages."""
    return msgspec.structs.replace(
        normal,
        resource_id=f"mem:budget:node{normal.node}:{PAGE_BYTES}",
        limits=(BUDGET_LIMIT,),
    )
