# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at in the host: kernel, cgroups, memory, devices, clock.

Rule: everything is read below `root`, so that a made-up tree can be examined; nothing is written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leased.ctl.findings import Finding, Grade, read_text
from leased.ctl.render import counted
from leased.terms.quantity import print_size

KERNEL_MIN: Final = (5, 14)
"""cgroup.kill: the first kernel on which a leaf can be ended whole."""
KERNEL_PEERPIDFD: Final = (6, 5)
CONTROLLERS: Final = {
    "cpu": "shares of a core (--cpu 500m) cannot be enforced",
    "cpuset": "whole cores (--cpu 2) and a memory node for the leaf cannot be enforced",
    "memory": "a leaf's own memory cannot be limited or charged; leased memory itself still can",
    "pids": "a fork bomb in a lease is bounded by the host's limits only",
    "io": "throughput of leased block devices cannot be bounded",
}
FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"
REQUIRED_CONTROLLERS: Final = ("cpu", "cpuset")
_SWITCH: Final = re.compile(r"\b(init_on_(?:alloc|free))=(\w+)")


def kernel(root: Path) -> Iterator[Finding]:
    """Its release."""
    release = read_text(root / "proc/sys/kernel/osrelease") or "unknown"
    found = re.match(r"(\d+)\.(\d+)", release)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number < KERNEL_MIN:
        yield Finding(
            Grade.FAIL,
            "kernel",
            release,
            "cgroup.kill needs Linux 5.14: a lease could not be ended whole",
        )
        return
    yield Finding(Grade.OK, "kernel", release)
    if number < KERNEL_PEERPIDFD:
        yield Finding(
            Grade.NOTE,
            "peer pidfd",
            "not before Linux 6.5",
            "who asks is proven by what it says after an answer, as leasectl and the library do",
        )


def cgroup_mount(root: Path) -> Path | None:
    """Where cgroup v2 is mounted."""
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        mounted, _, described = line.partition(" - ")
        if described.split(" ")[:1] == ["cgroup2"]:
            return root / mounted.split(" ")[4].lstrip("/")
    return None


def cgroups(root: Path) -> Iterator[Finding]:
    """The v2 tree, its controllers, and what is missing because of v1."""
    mount = cgroup_mount(root)
    if mount is None:
        yield Finding(
            Grade.FAIL,
            "cgroup v2",
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2",
        )
        return
    yield Finding(Grade.OK, "cgroup v2", f"/{mount.relative_to(root)}")
    offered = (read_text(mount / "cgroup.controllers") or "").split()
    legacy = _legacy_controllers(root)
    for name, loss in CONTROLLERS.items():
        if name in offered:
            yield Finding(Grade.OK, f"controller {name}", "available")
            continue
        where = "held by cgroup v1" if name in legacy else "not offered by the kernel"
        grade = Grade.WARN if name in REQUIRED_CONTROLLERS else Grade.NOTE
        yield Finding(grade, f"controller {name}", where, loss)
    if any(mount.glob("*/cgroup.kill")) or (mount / "cgroup.kill").exists():
        yield Finding(Grade.OK, "cgroup.kill", "available")
    elif any(mount.glob("*/cgroup.procs")):
        yield Finding(Grade.FAIL, "cgroup.kill", "missing", "needs Linux 5.14 or later")


def _legacy_controllers(root: Path) -> frozenset[str]:
    """Controllers that a cgroup v1 hierarchy holds."""
    held = []
    for line in (read_text(root / "proc/cgroups") or "").splitlines():
        columns = line.split("\t")
        if not line.startswith("#") and len(columns) == 4 and columns[1] != "0":
            held.append(columns[0])
    return frozenset(held)


def births(root: Path) -> Iterator[Finding]:
    """Whether the kernel tells of new processes, by which an adopted tree is complete."""
    named = (read_text(root / "proc/net/connector") or "").split()
    namespace = root / "proc/self/ns/pid"
    first = namespace.is_symlink() and namespace.readlink().name == FIRST_PID_NAMESPACE
    if "cn_proc" in named and first:
        yield Finding(Grade.OK, "process births", "told by the kernel")
        return
    yield Finding(
        Grade.NOTE,
        "process births",
        "not told in this namespace" if named else "not told by this kernel",
        "what daemonizes at the moment of `leasectl adopt` may be left out of its lease",
    )


def numa(root: Path) -> Iterator[Finding]:
    """Memory nodes, and whether the firmware says how fast they are."""
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
    if not nodes:
        yield Finding(
            Grade.NOTE, "NUMA", "the kernel names no nodes", "all memory counts as node 0"
        )
        return
    yield Finding(Grade.OK, "NUMA", counted(len(nodes), "node"))
    told = [node.name for node in nodes if (node / "access0/initiators/read_latency").exists()]
    if told:
        yield Finding(Grade.OK, "HMAT", f"latency and bandwidth of {', '.join(told)}")
    else:
        yield Finding(
            Grade.NOTE,
            "HMAT",
            "the firmware gives no latency or bandwidth",
            "tiers come from the memory's origin and distance; [hardware] tiers overrules them",
        )


def hugepages(root: Path) -> Iterator[Finding]:
    """Pools of huge pages."""
    found = False
    for pool in sorted((root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        total = int(read_text(pool / "nr_hugepages") or 0)
        free = int(read_text(pool / "free_hugepages") or 0)
        kib = int(pool.name.removeprefix("hugepages-").removesuffix("kB"))
        if total:
            found = True
            text = f"{free} of {total} free, {print_size(total * kib << 10)} in all"
            yield Finding(Grade.OK, f"huge pages {print_size(kib << 10)}", text)
    if not found:
        yield Finding(
            Grade.NOTE, "huge pages", "no pool", "none can be leased; vm.nr_hugepages makes a pool"
        )


def page_hygiene(root: Path) -> Iterator[Finding]:
    """Whether the kernel clears pages by itself, and whether leased pages could reach a disk."""
    switches = dict(_SWITCH.findall(read_text(root / "proc/cmdline") or ""))
    config = read_text(root / f"boot/config-{read_text(root / 'proc/sys/kernel/osrelease')}") or ""
    for name in ("init_on_alloc", "init_on_free"):
        built_in = f"CONFIG_{name.upper()}_DEFAULT_ON=y" in config
        on = switches.get(name, "1" if built_in else "0") in ("1", "on", "y")
        if on:
            yield Finding(Grade.OK, name, "on")
        elif name == "init_on_alloc":
            yield Finding(
                Grade.NOTE,
                name,
                "off, or not known",
                "a second wall only: the agent overwrites and reads back what was leased",
            )
    swaps = (read_text(root / "proc/swaps") or "").splitlines()[1:]
    if swaps:
        names = ", ".join(line.split()[0] for line in swaps)
        yield Finding(
            Grade.WARN,
            "swap",
            names,
            "leased pages may be written there and outlive the lease: encrypt it",
        )
    else:
        yield Finding(Grade.OK, "swap", "none")


def nvidia(root: Path) -> Iterator[Finding]:
    """Device numbers of the NVIDIA driver, which the unit must allow by name."""
    names = []
    for line in (read_text(root / "proc/devices") or "").splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].startswith("nvidia"):
            names.append(f"{parts[1]} {parts[0]}")
    loaded = read_text(root / "proc/driver/nvidia/version")
    if not names and loaded is None:
        yield Finding(Grade.NOTE, "NVIDIA", "no driver", "no GPU can be leased")
        return
    first = (loaded or "").splitlines()[:1]
    yield Finding(Grade.OK, "NVIDIA", first[0] if first else "driver loaded")
    yield Finding(Grade.OK, "NVIDIA majors", ", ".join(names) or "none in /proc/devices")
    if not any(name.startswith("nvidia-uvm ") for name in names):
        yield Finding(
            Grade.WARN,
            "nvidia-uvm",
            "not loaded",
            "CUDA needs it: nvidia-modprobe -u -c=0 loads it",
        )
    elif not (root / "dev/nvidia-uvm").exists():
        yield Finding(
            Grade.WARN,
            "nvidia-uvm",
            "loaded, and /dev/nvidia-uvm is not there",
            "CUDA needs it, and inside a lease nobody can make it: nvidia-modprobe -u -c=0 does",
        )
    yield Finding(
        Grade.NOTE,
        "GPU reset, MIG mode",
        "never done by the agent",
        "drain the GPU, stop leased (it keeps GPUs attached to hear of errors), then nvidia-smi -r"
        " -i UUID or nvidia-smi -mig 1 -i UUID; before Ampere, and on Ampere without a fabric"
        " manager, a reset takes every GPU that has an NVLink to it along",
    )


def clock(root: Path) -> Iterator[Finding]:
    """The boot clock decides; the wall clock labels."""
    boot_s = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000_000
    yield Finding(Grade.OK, "boot clock", f"{boot_s} s since boot")
    offsets = read_text(root / "proc/self/timens_offsets") or ""
    for line in offsets.splitlines():
        parts = line.split()
        if len(parts) == 3 and (parts[1] != "0" or parts[2] != "0"):
            yield Finding(
                Grade.WARN,
                "time namespace",
                f"{parts[0]} is shifted",
                "deadlines shown here are wrong by that much; what the agent keeps is not",
            )
    if (root / "run/systemd/timesync/synchronized").exists():
        yield Finding(Grade.OK, "wall clock", "synchronized")
    elif any((root / "run" / name).exists() for name in ("chrony", "ntpd.pid", "openntpd.pid")):
        yield Finding(Grade.OK, "wall clock", "a time daemon runs")
    else:
        yield Finding(
            Grade.NOTE, "wall clock", "nobody is seen to keep it", "only labels depend on it"
        )
