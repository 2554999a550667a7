# SPDX-License-Identifier: Apache-2.0
"""Examining: which GPUs the driver and the bus have, and the questions that several verbs ask of
one (its health, its memory in use), in a worker.

Rule: a GPU that fails is named beside the others, and what the driver has no words for is told
apart from what it failed to say.

Does not describe a GPU whole (`describing`) and does not judge what it finds (`health`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Bus, Listed, Listing, Where
from leased.hardware.gpu.facts import Condition, Question, Usage
from leased.hardware.gpu.nodes import parse_majors
from leased.hardware.sysfs import list_names, read_text
from leased.terms.errors import DeviceError

_NVIDIA = "0x10de"


def list_gpus(where: Where, fds: list[int]) -> Listing:
    """Every GPU that the driver counts, with its address and UUID."""
    nvml.open_library()
    kernel = parse_majors(read_text(Path("/proc/devices")) or "")
    real = where.root == "/" and kernel.front is not None
    gpus = tuple(_list_one(index) for index in range(nvml.count()))
    return Listing(nvml.driver_version(), real, gpus)


def _list_one(index: int) -> Listed:
    pci = ""
    try:
        handle = nvml.at_index(index)
        pci = nvml.pci_of(handle)
        return Listed(pci, nvml.uuid_of(handle))
    except DeviceError as error:
        return Listed(pci, "", error.errno, error.detail)


def list_bus(where: Where, fds: list[int]) -> Bus:
    """PCI addresses of NVIDIA's display and 3D controllers."""
    devices = Path(where.root) / "sys/bus/pci/devices"
    return Bus(
        tuple(
            address
            for address in list_names(devices)
            if read_text(devices / address / "vendor") == _NVIDIA
            and (read_text(devices / address / "class") or "").startswith("0x03")
        )
    )


def condition_of(handle: nvml.Handle, lacks: Callable[[str], object]) -> Condition:
    """What the driver says of the GPU's health; `lacks` is told what it has no words for."""
    action = nvml.unless_unsupported(
        lambda: nvml.recovery_action_of(handle), lambda: lacks(Question.RECOVERY)
    )
    # Newer GPUs remap rows of their memory, older ones retire pages; those without ECC do neither.
    remapped = nvml.unless_unsupported(lambda: nvml.remapped_rows_of(handle), lambda: None)
    retiring = nvml.unless_unsupported(lambda: nvml.retirement_pending_of(handle), lambda: None)
    if remapped is None and retiring is None:
        lacks(Question.REPAIRS)
    pending, failed = remapped if remapped is not None else (None, None)
    return Condition(action, pending, failed, retiring)


def usage_of(handle: nvml.Handle) -> Usage:
    """Memory in use now, as exactly as the driver says."""
    told = nvml.unless_unsupported(lambda: nvml.memory_of(handle), lambda: None)
    return told if told is not None else nvml.memory_lumped(handle)
