# SPDX-License-Identifier: Apache-2.0
"""Describing: each GPU asked everything that the agent wants to know of it, in a worker.

Rule: a GPU that fails is a fault beside the others' answers. What a driver or a model cannot say is
named (`Gpu.unanswered`); what it fails to say is a fault.

Does not judge what it finds.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from leased.hardware.gpu import layout, nvml
from leased.hardware.gpu.calls import Examine, Examined, Listed
from leased.hardware.gpu.examining import condition_of
from leased.hardware.gpu.facts import Gpu, Instance, Question
from leased.hardware.gpu.nodes import drm_nodes
from leased.hardware.sysfs import read_int
from leased.terms.errors import DeviceError

T = TypeVar("T")


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
        return nvml.unless_unsupported(question, lambda: unanswered.extend((name,) * bool(name)))

    usage = ask(lambda: nvml.memory_of(handle), Question.RESERVED)
    mode = ask(lambda: nvml.mig_mode_of(handle)) or (False, False)
    slices = (ask(lambda: nvml.mig_devices_max(handle)) or 0) if mode[0] else 0
    condition = condition_of(handle, unanswered.append)
    if mode[0]:
        # It says so only as long as there is no MIG device; what is offered is offered without.
        unanswered.append(Question.REPAIRS)
    compute_mode = ask(lambda: nvml.compute_mode_of(handle), Question.COMPUTE_MODE)
    memory_node = ask(lambda: nvml.numa_node_of(handle))
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
        profiles=layout.profiles_of(handle) if mode[0] else (),
        memory_node=-1 if memory_node is None else memory_node,
    )


def _instances(handle: nvml.Handle) -> tuple[Instance, ...]:
    found = still_there(nvml.mig_handles(handle), nvml.instance_of)
    sharing = Counter(one.gpu_instance for one in found)
    starts = layout.starts_of(handle)
    return tuple(
        msgspec.structs.replace(
            one,
            neighbours=sharing[one.gpu_instance] - 1,
            start=starts.get(one.gpu_instance, -1),
        )
        for one in found
    )


def still_there(
    listed: Iterable[nvml.Handle], describe_one: Callable[[nvml.Handle], Instance]
) -> list[Instance]:
    """Those of the listed MIG devices that are there. One that was destroyed meanwhile says nothing
    of its GPU. Raises DeviceError."""
    found: list[Instance] = []
    for one in listed:
        try:
            found.append(describe_one(one))
        except DeviceError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
    return found
