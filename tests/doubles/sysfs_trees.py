# SPDX-License-Identifier: Apache-2.0
"""Trees of /sys and /proc as hosts of different makes show them, written below a directory.

Rule: only files that the program reads, in the kernel's own format. The shapes and the numbers are
those of public listings (`numactl -H`, `daxctl list`, the vendors' documents) of such hosts, and of
the QEMU machine that the VM tier boots; none but the last was read on the real thing by us.

Does not know what a tier is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

NODES = "sys/devices/system/node"
GIB_KIB = 1 << 20
BLOCK_BYTES = 2 << 30


def write(root: Path, files: Mapping[str, str]) -> None:
    """Make every file."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def node(number: int, *, kib: int, distance: str) -> dict[str, str]:
    """One node's size and its row of distances."""
    return {
        f"{NODES}/node{number}/meminfo": f"Node {number} MemTotal:       {kib} kB\n"
        f"Node {number} MemFree:        {kib // 2} kB",
        f"{NODES}/node{number}/distance": distance,
    }


def hmat(number: int, latency_ns: int, bandwidth_mibps: int) -> dict[str, str]:
    """What the firmware measured of a node, as access class 0 shows it."""
    directory = f"{NODES}/node{number}/access0/initiators"
    return {
        f"{directory}/read_latency": str(latency_ns),
        f"{directory}/write_latency": str(latency_ns),
        f"{directory}/read_bandwidth": str(bandwidth_mibps),
        f"{directory}/write_bandwidth": str(bandwidth_mibps),
    }


def blocks(number: int, first: int, count: int) -> dict[str, str]:
    """The memory blocks of a node, by number."""
    made = {f"{NODES}/node{number}/memory{first + at}/state": "online" for at in range(count)}
    return {"sys/devices/system/memory/block_size_bytes": f"{BLOCK_BYTES:x}", **made}


def lists(*, cpu: str, memory: str, initiators: str = "") -> dict[str, str]:
    """Which nodes have what."""
    return {
        f"{NODES}/has_cpu": cpu,
        f"{NODES}/has_memory": memory,
        f"{NODES}/has_generic_initiator": initiators,
    }


def dax(
    root: Path, name: str, place: str, files: Mapping[str, str], driver: str = "device_dax"
) -> None:
    """A device-dax range that hangs at `place` in the tree of devices."""
    write(root, {f"{place}/{name}/{file}": text for file, text in files.items()})
    if driver:
        (root / "sys/bus/dax/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (root / place / name / "driver").symlink_to(root / "sys/bus/dax/drivers" / driver)
    link = root / "sys/bus/dax/devices" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(root / place / name)


def hgx_h100(root: Path) -> None:
    """Two sockets, eight H100 on PCIe: the GPUs' memory is no node."""
    write(root, lists(cpu="0-1", memory="0-1"))
    write(root, node(0, kib=1024 * GIB_KIB, distance="10 21"))
    write(root, node(1, kib=1024 * GIB_KIB, distance="21 10"))
    write(root, {**hmat(0, 110, 262_144), **hmat(1, 110, 262_144)})
    write(root, {"proc/cpuinfo": "model name\t: Intel(R) Xeon(R) Platinum 8480C"})
    for slot in range(8):
        gpu = f"proc/driver/nvidia/gpus/0000:{slot:02x}:00.0"
        write(root, {f"{gpu}/information": "Model: \t\t NVIDIA H100 80GB HBM3"})


def gh200(root: Path) -> None:
    """Grace Hopper: the driver has made node 1 of the GPU's memory; 2 to 8 wait for MIG."""
    write(root, lists(cpu="0", memory="0-1", initiators="1-8"))
    write(root, node(0, kib=480 * GIB_KIB, distance="10 80 80 80 80 80 80 80 80"))
    write(root, node(1, kib=95 * GIB_KIB, distance="80 10 255 255 255 255 255 255 255"))
    status = (
        "Node:                 1\nNuma Mem Addr:        400000000000\nStatus:               driver"
    )
    write(root, {"proc/driver/nvidia/gpus/0009:01:00.0/numa_status": status})


def xeon_max_flat(root: Path) -> None:
    """Two Xeon CPU Max, quadrant and flat mode, firmware without HMAT: nodes 2 and 3 are HBM."""
    write(root, lists(cpu="0-1", memory="0-3"))
    for number, distance in enumerate(("10 21 13 23", "21 10 23 13", "13 23 10 23", "23 13 23 10")):
        size = 256 if number < 2 else 64
        write(root, node(number, kib=size * GIB_KIB, distance=distance))
    write(root, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU Max 9480"})


def xeon_max_hmat(root: Path) -> None:
    """The same with HMAT, and a processor that does not say what it is."""
    xeon_max_flat(root)
    write(root, {"proc/cpuinfo": "model name\t: GenuineIntel"})
    for number in range(4):
        write(root, hmat(number, 110, 262_144) if number < 2 else hmat(number, 130, 716_800))


def cxl_host(root: Path) -> None:
    """Two sockets, a CXL card on each: kmem made node 2 of one, the firmware node 3 of the
    other."""
    write(root, lists(cpu="0-1", memory="0-3"))
    rows = ("10 21 14 24", "21 10 24 14", "14 24 10 26", "24 14 26 10")
    for number, distance in enumerate(rows):
        write(root, node(number, kib=64 * GIB_KIB, distance=distance))
    place = "sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0"
    dax(root, "dax0.0", place, {"target_node": "2", "size": str(64 << 30)}, "kmem")
    write(root, blocks(3, 128, 4))
    iomem = (
        "00001000-0009ffff : System RAM\n"
        "4000000000-5fffffffff : CXL Window 1\n"
        "  4000000000-5fffffffff : region1\n"
        "    4000000000-5fffffffff : System RAM"
    )
    write(root, {"proc/iomem": iomem})


def qemu(root: Path) -> None:
    """The machine of `tests/vm`: two nodes and what hmat-lb says of them (teardown.md 4.1), and the
    kernel's own tiers, which say that both are the same."""
    write(root, lists(cpu="0", memory="0-1"))
    write(root, node(0, kib=2 * GIB_KIB, distance="10 20"))
    write(root, node(1, kib=1 * GIB_KIB, distance="20 10"))
    write(root, {**hmat(0, 80, 204_800), **hmat(1, 250, 30_720)})
    tier = "sys/devices/virtual/memory_tiering/memory_tier4/nodelist"
    write(root, {tier: "0-1"})


TREES: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (hgx_h100, gh200, xeon_max_flat, xeon_max_hmat, cxl_host, qemu)
}
