# SPDX-License-Identifier: Apache-2.0
"""NUMA nodes with memory, as the kernel's files tell them: size, distance, speed and origin.

Rule: everything is read below one root, so that a copied tree reads like the live one. What a file
does not say is None; nothing is concluded here.

Where memory comes from is asked in three places: devices that say which node they became (device-
dax, NVIDIA's driver), the names of physical ranges in /proc/iomem (a CXL window, persistent memory,
"System RAM (NVIDIA)"), and the generic initiators of the firmware, which are how an accelerator's
own memory is announced.

Does not classify (`tiers`).
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from leased.hardware.sysfs import list_names, read_int, read_list, read_text
from leased.terms.errors import DeviceError

NODES = "sys/devices/system/node"
_BLOCKS = "sys/devices/system/memory"
_NVIDIA_GPUS = "proc/driver/nvidia/gpus"
_PACKAGED = "CPU Max"
"""Intel's processors with HBM in the package (Xeon CPU Max) carry it in their name."""


class Origin(enum.Enum):
    """What became the memory of a node that has no processors."""

    CXL = enum.auto()
    PMEM = enum.auto()
    GPU = enum.auto()
    PACKAGE = enum.auto()


class Speed(msgspec.Struct, frozen=True):
    """What HMAT says of a node as its best initiator sees it: ns and MiB/s, None where silent."""

    read_latency_ns: int | None = None
    write_latency_ns: int | None = None
    read_bandwidth_mibps: int | None = None
    write_bandwidth_mibps: int | None = None


class Node(msgspec.Struct, frozen=True):
    """One NUMA node with memory. `distance` is the shortest to a node with processors; `hugepages`
    are (page bytes, pages in the pool)."""

    number: int
    has_cpu: bool
    total_bytes: int
    distance: int
    speed: Speed
    origin: Origin | None
    hugepages: tuple[tuple[int, int], ...]


def read_nodes(root: Path) -> tuple[Node, ...]:
    """The nodes that have memory."""
    directory = root / NODES
    with_cpu = read_list(directory / "has_cpu")
    with_memory = read_list(directory / "has_memory")
    origins = read_origins(root, tuple(n for n in with_memory if n not in with_cpu))
    return tuple(
        Node(
            number=number,
            has_cpu=number in with_cpu,
            total_bytes=_total_bytes(directory / f"node{number}/meminfo"),
            distance=_distance(directory / f"node{number}/distance", with_cpu),
            speed=read_speed(number, root),
            origin=origins.get(number),
            hugepages=_hugepages(directory / f"node{number}/hugepages"),
        )
        for number in with_memory
    )


def read_speed(number: int, root: Path) -> Speed:
    """What HMAT says of one node: access class 0, the best initiator of any kind."""
    directory = root / NODES / f"node{number}/access0/initiators"
    return Speed(
        read_int(directory / "read_latency") or None,
        read_int(directory / "write_latency") or None,
        read_int(directory / "read_bandwidth") or None,
        read_int(directory / "write_bandwidth") or None,
    )


def read_origins(root: Path, bare: tuple[int, ...]) -> dict[int, Origin]:
    """Where the memory of the nodes `bare` (without processors) comes from, as far as anything
    says."""
    origins: dict[int, Origin] = {}
    if not bare:
        return origins
    announced = read_list(root / NODES / "has_generic_initiator")
    if _PACKAGED in _processor(root):
        origins.update(dict.fromkeys(bare, Origin.PACKAGE))
    origins.update({number: Origin.GPU for number in bare if number in announced})
    ranges = _named_ranges(read_text(root / "proc/iomem") or "")
    if ranges:
        block_bytes = int(read_text(root / _BLOCKS / "block_size_bytes") or "0", 16)
        for number in bare:
            found = _origin_of_blocks(root / NODES / f"node{number}", block_bytes, ranges)
            if found is not None:
                origins[number] = found
    origins.update(_targets_of_dax(root))
    origins.update(dict.fromkeys(_nodes_of_gpus(root), Origin.GPU))
    return {number: origin for number, origin in origins.items() if number in bare}


def dax_origin(device: str) -> Origin | None:
    """What is behind a device-dax range, from where it hangs in the tree of devices."""
    if "/ndbus" in device:
        return Origin.PMEM
    if "ACPI0017" in device or "/cxl" in device or "/decoder" in device:
        return Origin.CXL
    return None


def _targets_of_dax(root: Path) -> dict[int, Origin]:
    """The nodes that ranges became: a range that is still a device belongs to no node's memory,
    whatever node it would go to."""
    found: dict[int, Origin] = {}
    for name in list_names(root / "sys/bus/dax/devices"):
        device = root / "sys/bus/dax/devices" / name
        if os.path.basename(os.path.realpath(device / "driver")) != "kmem":
            continue
        target = read_int(device / "target_node")
        origin = dax_origin(os.path.realpath(device))
        if target is not None and origin is not None:
            found[target] = origin
    return found


def _nodes_of_gpus(root: Path) -> list[int]:
    """The nodes that NVIDIA's driver made of its GPUs' memory (Grace Hopper, Grace Blackwell)."""
    found: list[int] = []
    for name in list_names(root / _NVIDIA_GPUS):
        status = read_text(root / _NVIDIA_GPUS / name / "numa_status") or ""
        for line in status.splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "Node" and value.strip().isdigit():
                found.append(int(value))
    return found


def _named_ranges(iomem: str) -> list[tuple[int, int, Origin]]:
    """(first, last, origin) of the ranges whose name tells. Without privilege every range reads as
    0-0, which holds nothing."""
    told = {
        "CXL Window": Origin.CXL,
        "Persistent Memory": Origin.PMEM,
        "System RAM (NVIDIA)": Origin.GPU,
    }
    found: list[tuple[int, int, Origin]] = []
    for line in iomem.splitlines():
        span, _, name = line.strip().partition(" : ")
        for prefix, origin in told.items():
            if name.startswith(prefix):
                first, _, last = span.partition("-")
                if int(last, 16):
                    found.append((int(first, 16), int(last, 16), origin))
    return found


def _origin_of_blocks(
    directory: Path, block_bytes: int, ranges: list[tuple[int, int, Origin]]
) -> Origin | None:
    """The origin of the range that the node's first telling memory block lies in."""
    for name in list_names(directory):
        number = name.removeprefix("memory")
        if name.startswith("memory") and number.isdigit():
            at = int(number) * block_bytes
            for first, last, origin in ranges:
                if first <= at <= last:
                    return origin
    return None


def _processor(root: Path) -> str:
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        label, _, value = line.partition(":")
        if label.strip() == "model name":
            return value.strip()
    return ""


def _total_bytes(path: Path) -> int:
    for line in (read_text(path) or "").splitlines():
        fields = line.split()
        if "MemTotal:" in fields:
            return int(fields[fields.index("MemTotal:") + 1]) << 10
    raise DeviceError("sysfs_read", errno.EINVAL, f"{path}: no MemTotal")


def _distance(path: Path, with_cpu: tuple[int, ...]) -> int:
    distances = [int(word) for word in (read_text(path) or "").split()]
    return min((distances[cpu] for cpu in with_cpu if cpu < len(distances)), default=0)


def _hugepages(directory: Path) -> tuple[tuple[int, int], ...]:
    found: Mapping[int, int] = {
        int(size_kb) << 10: read_int(directory / name / "nr_hugepages") or 0
        for name in list_names(directory)
        if (size_kb := name.removeprefix("hugepages-").removesuffix("kB")).isdigit()
    }
    return tuple(sorted(found.items()))
