# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at in what agent and reaper may do, and have: capabilities, libraries.

Rule: of a program that runs, what the kernel says of it counts, not what its unit asks for: a
container may have less to give. Each thing that is missing is named with what it is needed for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from leased.ctl.findings import Finding, Grade, read_bytes, read_text


class Need(NamedTuple):
    """A capability, and what the units say that it is for."""

    number: int
    name: str
    use: str


NEEDS: Final = {
    "leased.service": (
        Need(0, "CAP_CHOWN", "hand what is leased to its user"),
        Need(1, "CAP_DAC_OVERRIDE", "hand what is leased to its user"),
        Need(2, "CAP_DAC_READ_SEARCH", "see who still holds what was leased"),
        Need(3, "CAP_FOWNER", "hand what is leased to its user"),
        Need(5, "CAP_KILL", "end who keeps what was leased"),
        Need(12, "CAP_NET_ADMIN", "attach the device filter of a lease"),
        Need(14, "CAP_IPC_LOCK", "lease huge pages where their group is restricted"),
        Need(19, "CAP_SYS_PTRACE", "see who still holds what was leased"),
        Need(
            21,
            "CAP_SYS_ADMIN",
            "make and end the mappings of namespaces, command drives, close GPUs, and see who has"
            " a device mapped",
        ),
        Need(23, "CAP_SYS_NICE", "have the memory of a killed process back early"),
        Need(24, "CAP_SYS_RESOURCE", "keep the limits of device workers"),
        Need(27, "CAP_MKNOD", "make the nodes of a MIG device that nobody has used yet"),
        Need(39, "CAP_BPF", "attach the device filter of a lease"),
    ),
    "leased-reaper.service": (
        Need(2, "CAP_DAC_READ_SEARCH", "open the cgroups of leases again after a restart"),
        Need(5, "CAP_KILL", "end the holder of a lease that has no cgroup"),
        Need(12, "CAP_NET_ADMIN", "close devices to a lease at its deadline"),
        Need(14, "CAP_IPC_LOCK", "wait for no disk at a deadline"),
        Need(21, "CAP_SYS_ADMIN", "end the mappings of namespaces at a deadline"),
        Need(23, "CAP_SYS_NICE", "come before other programs at a deadline"),
        Need(24, "CAP_SYS_RESOURCE", "outlive a shortage of memory"),
        Need(39, "CAP_BPF", "close devices to a lease at its deadline"),
    ),
}
"""By unit: those of its CapabilityBoundingSet=."""


def capabilities(unit: str, shown: dict[str, str], root: Path) -> Iterator[Finding]:
    """Which of those that a unit's program needs it does not have."""
    status = read_text(root / "proc" / (shown.get("MainPID") or "0") / "status") or ""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    bounded = shown.get("CapabilityBoundingSet", "").upper().split()
    if effective is None and not bounded:
        return
    mask = int(effective[1], 16) if effective else -1
    missing = [
        need
        for need in NEEDS[unit]
        if not mask >> need.number & 1 or (effective is None and need.name not in bounded)
    ]
    topic = f"{unit} capabilities"
    if not missing:
        yield Finding(Grade.OK, topic, "as shipped")
    for need in missing:
        yield Finding(Grade.WARN, topic, f"{need.name} is missing", f"it is needed to {need.use}")


class Library(NamedTuple):
    """A library that is loaded where it is found, where there must be something for it to matter,
    and what there is not without it."""

    name: str
    matters: str
    loss: str


LIBRARIES: Final = (
    Library("libudev.so.1", "", "devices that come and go are found within a minute, not at once"),
    Library("libibverbs.so.1", "sys/class/infiniband/*", "no memory is leased to remote peers"),
    Library("libnvidia-ml.so.1", "proc/driver/nvidia/version", "no GPU is leased"),
    Library("libcuda.so.1", "proc/driver/nvidia/version", "no GPU is proven clean"),
)
_PLACES: Final = ("lib", "lib64", "usr/lib", "usr/lib64")


def libraries(root: Path) -> Iterator[Finding]:
    """Which of those are not there where what they are for is."""
    told = (read_bytes(root / "etc/ld.so.cache") or b"").split(b"\0")
    listed = {entry.decode("utf-8", "replace") for entry in told if entry[:1] == b"/"}
    for one in LIBRARIES:
        if one.matters and not any(root.glob(one.matters)):
            continue
        paths = [path for path in listed if path.endswith(f"/{one.name}")]
        paths += [f"/{place}/{one.name}" for place in _PLACES]
        if any((root / path.lstrip("/")).exists() for path in paths):
            yield Finding(Grade.OK, one.name, "installed")
        else:
            yield Finding(Grade.WARN, one.name, "not found", one.loss)
