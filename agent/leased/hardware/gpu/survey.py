# SPDX-License-Identifier: Apache-2.0
"""GPUs: seen and listed by UUID, not leased yet.

Rule: runs in a worker of its own, because the vendor's library may hang in the kernel for ever; the
worker ends after the listing, because an initialised library holds the devices open and blocks a
reset. Whatever fails is an Absence with NVML's own words.

Does not grant, cut or scrub a GPU: that is a later issue, and the inventory says so.
"""

from __future__ import annotations

from pathlib import Path

import pynvml

from leased.hardware.sysfs import list_names, read_text
from leased.terms.resource import Absence, ResourceKind

_LATER = "seen; leased in a later issue"
_NVIDIA = "0x10de"


def survey_gpus(root: Path = Path("/")) -> tuple[tuple[Absence, ...], tuple[str, ...]]:
    """Why no GPU is leased, and one note for each that is there."""
    on_bus = list_bus(root)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not on_bus:
            return (Absence(ResourceKind.GPU, f"no GPU: {error}"),), ()
        notes = tuple(f"gpu at {address}: on the bus, driver not usable" for address in on_bus)
        return (Absence(ResourceKind.GPU, f"{len(on_bus)} GPU seen on the bus; {error}"),), notes
    try:
        notes = tuple(_describe(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (Absence(ResourceKind.GPU, f"{len(on_bus)} GPU seen on the bus; {error}"),), ()
    finally:
        pynvml.nvmlShutdown()
    return (Absence(ResourceKind.GPU, f"{len(notes)} GPU {_LATER}"),), notes


def list_bus(root: Path) -> tuple[str, ...]:
    """PCI addresses of NVIDIA display and 3D controllers."""
    devices = root / "sys/bus/pci/devices"
    return tuple(
        address
        for address in list_names(devices)
        if read_text(devices / address / "vendor") == _NVIDIA
        and (read_text(devices / address / "class") or "").startswith("0x03")
    )


def _describe(index: int) -> str:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
        memory_mib = pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20
    except pynvml.NVMLError as error:
        return f"gpu {index}: {error}"
    return f"gpu:{uuid} {name}, {memory_mib} MiB: {_LATER}"
