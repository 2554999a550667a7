# SPDX-License-Identifier: Apache-2.0
"""Examining: which GPUs the driver has, and each described, in a worker.

Rule: a GPU that fails is a fault beside the others' answers. What a driver or a model cannot say is
named (`Gpu.unanswered`); what it fails to say is a fault.

Does not judge what it finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Bus, Examine, Examined, Listed, Listing, Where
from leased.hardware.gpu.facts import Condition, Gpu, Instance, Question, Usage
from leased.hardware.gpu.nodes import drm_nodes, parse_majors
from leased.hardware.sysfs import list_names, read_int, read_text
from leased.terms.errors import DeviceError

T = TypeVar("T")
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


def examine(call: Examine, fds: list[int]) -> Examined:
    """Each GPU described, or why it cannot be."""
    nvml.open_library()
    gpus: list[Gpu] = []
    faults: list[Listed] = []
    for one in call.gpus:
        try:
            gpus.append(_describe(one, call.driver, Path(call.root)))
        except DeviceError as error:
            faults.append(Listed(one.pci, one.uuid, error.errno, error.detail))
    return Examined(tuple(gpus), tuple(faults))


def _describe(one: Listed, driver: str, root: Path) -> Gpu:
    handle = nvml.at_pci(one.pci, one.uuid)
    unanswered: list[str] = []

    def ask(question: Callable[[], T], name: str = "") -> T | None:
        return nvml.unless_unsupported(question, lambda: name and unanswered.append(name))

    usage = ask(lambda: nvml.memory_of(handle), Question.RESERVED)
    mode = ask(lambda: nvml.mig_mode_of(handle)) or (False, False)
    slices = (ask(lambda: nvml.mig_devices_max(handle)) or 0) if mode[0] else 0
    condition = condition_of(handle, unanswered.append)
    compute_mode = ask(lambda: nvml.compute_mode_of(handle), Question.COMPUTE_MODE)
    near = read_int(root / "sys/bus/pci/devices" / one.pci / "numa_node")
    return Gpu(
        uuid=one.uuid,
        pci=one.pci,
        minor=nvml.minor_of(handle),
        name=nvml.name_of(handle),
        driver=driver,
        memory=usage or nvml.memory_lumped(handle),
        node=-1 if near is None else near,
        mig_enabled=mode[0],
        mig_pending=mode[1],
        slices=slices,
        instances=_instances(handle) if mode[0] else (),
        links=nvml.link_peers_of(handle),
        fabric=ask(lambda: nvml.fabric_of(handle)) or "",
        compute_mode=compute_mode,
        persistent=ask(lambda: nvml.is_persistent(handle)),
        condition=condition,
        processes=sum(len(pids) for pids in nvml.processes_of(handle)),
        other_nodes=drm_nodes(one.pci, root),
        unanswered=tuple(dict.fromkeys(unanswered)),
    )


def _instances(handle: nvml.Handle) -> tuple[Instance, ...]:
    found = [nvml.instance_of(one) for one in nvml.mig_handles(handle)]
    sharing = Counter(one.gpu_instance for one in found)
    return tuple(
        msgspec.structs.replace(one, neighbours=sharing[one.gpu_instance] - 1) for one in found
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
