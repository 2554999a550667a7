# SPDX-License-Identifier: Apache-2.0
"""Questions to NVML, asked by the real nvidia-ml-py in a process of its own: JSON out.

    python -m tests.contract.gpu.questions NAME [ARGUMENT...]

A process that uses the mock must be started with its libraries; the same program asks a real
driver.

Rule: one question a process; an NVML error is an answer ({"error": code}).

Does not judge.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any

import pynvml as n

Handle = Any


def nvidia_descriptors() -> list[str]:
    """Names of the device nodes that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if os.path.basename(target).startswith("nvidia"):
            found.append(os.path.basename(target))
    return sorted(found)


def attachment() -> dict[str, Any]:
    """What is open after each step of NVML's life, asked not to attach and asked nothing."""
    n.nvmlInitWithFlags(3)
    unattached, unattached_count = nvidia_descriptors(), n.nvmlDeviceGetCount()
    n.nvmlShutdown()
    n.nvmlInitWithFlags(1)
    attached, count = nvidia_descriptors(), n.nvmlDeviceGetCount()
    handle = n.nvmlDeviceGetHandleByIndex(0)
    minor = n.nvmlDeviceGetMinorNumber(handle)
    after_handle = nvidia_descriptors()
    n.nvmlShutdown()
    return {
        "unattached": unattached,
        "unattached_count": unattached_count,
        "attached": attached,
        "count": count,
        "handle": after_handle,
        "minor": minor,
        "shutdown": nvidia_descriptors(),
    }


def identity(index: str) -> dict[str, Any]:
    """Who a GPU is, and that every way to name it leads to it."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    pci = n.nvmlDeviceGetPciInfo(handle)
    uuid = n.nvmlDeviceGetUUID(handle)
    again = [
        n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByUUID(uuid)),
        n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByPciBusId(pci.busId)),
    ]
    return {
        "uuid": uuid,
        "again": again,
        "bus": pci.busId,
        "legacy": pci.busIdLegacy,
        "numbers": [pci.domain, pci.bus, pci.device],
        "device_id": pci.pciDeviceId,
        "minor": n.nvmlDeviceGetMinorNumber(handle),
        "name": n.nvmlDeviceGetName(handle),
    }


def memory(index: str) -> dict[str, Any]:
    """Both versions of the memory's numbers."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    first = n.nvmlDeviceGetMemoryInfo(handle)
    second = n.nvmlDeviceGetMemoryInfo(handle, n.nvmlMemory_v2)
    bar1 = n.nvmlDeviceGetBAR1MemoryInfo(handle)
    return {
        "v1": [first.total, first.free, first.used],
        "v2": [second.total, second.reserved, second.free, second.used],
        "bar1": [bar1.bar1Total, bar1.bar1Free, bar1.bar1Used],
    }


def processes(index: str) -> dict[str, Any]:
    """The three lists and the detailed one, (pid, bytes)."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    lists = {
        "compute": n.nvmlDeviceGetComputeRunningProcesses(handle),
        "graphics": n.nvmlDeviceGetGraphicsRunningProcesses(handle),
        "mps": n.nvmlDeviceGetMPSComputeRunningProcesses(handle),
    }
    told: dict[str, Any] = {
        name: [(one.pid, one.usedGpuMemory) for one in found] for name, found in lists.items()
    }
    told["used"] = n.nvmlDeviceGetMemoryInfo(handle, n.nvmlMemory_v2).used
    return told


def details(index: str) -> dict[str, Any]:
    """The detailed list, all kinds."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    found = n.nvmlDeviceGetRunningProcessDetailList(handle, n.nvmlProcessDetailList_v1, 3)
    return {"all": [(row.pid, row.usedGpuMemory) for row in found]}


def fields(index: str, *ids: str) -> dict[str, Any]:
    """Field values: id -> (status, type, value)."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    values = n.nvmlDeviceGetFieldValues(handle, [int(word) for word in ids])
    return {
        str(one.fieldId): (one.nvmlReturn, one.valueType, one.value.ullVal & 0xFFFFFFFF)
        for one in values
    }


def health(index: str) -> dict[str, Any]:
    """Whatever says whether a GPU is well, each answer by itself."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    return {
        "remapped": _try(lambda: list(n.nvmlDeviceGetRemappedRows(handle))),
        "ecc": _try(lambda: n.nvmlDeviceGetTotalEccErrors(handle, 1, 0)),
        "temperature": _try(lambda: n.nvmlDeviceGetTemperature(handle, 0)),
        "power": _try(lambda: n.nvmlDeviceGetPowerUsage(handle)),
        "energy": _try(lambda: n.nvmlDeviceGetTotalEnergyConsumption(handle)),
        "reasons": _try(lambda: n.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        "persistence": _try(lambda: n.nvmlDeviceGetPersistenceMode(handle)),
        "compute_mode": _try(lambda: n.nvmlDeviceGetComputeMode(handle)),
        "mig": _try(lambda: n.nvmlDeviceGetMigMode(handle)),
        "utilization": _try(lambda: n.nvmlDeviceGetUtilizationRates(handle).gpu),
        "nvlink": _try(lambda: n.nvmlDeviceGetNvLinkState(handle, 0)),
        "numa": _try(lambda: n.nvmlDeviceGetNumaNodeId(handle)),
        "accounting": _try(lambda: n.nvmlDeviceGetAccountingMode(handle)),
    }


def mode(index: str, number: str) -> dict[str, Any]:
    """Set the compute mode and read it back."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    n.nvmlDeviceSetComputeMode(handle, int(number))
    return {"mode": n.nvmlDeviceGetComputeMode(handle)}


def events(index: str, timeout_ms: str) -> dict[str, Any]:
    """Register, say so, and wait for one event after the other until none comes in time."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    found = n.nvmlEventSetCreate()
    n.nvmlDeviceRegisterEvents(handle, n.nvmlEventTypeXidCriticalError | 0x8000, found)
    print("registered", flush=True)
    seen = []
    while True:
        try:
            data = n.nvmlEventSetWait_v2(found, int(timeout_ms))
        except n.NVMLError_Timeout:
            break
        seen.append((data.eventType, data.eventData))
    n.nvmlEventSetFree(found)
    return {"seen": seen}


def system_events(timeout_ms: str) -> dict[str, Any]:
    """The same for the driver itself."""
    n.nvmlInit()
    found = n.nvmlSystemEventSetCreate(n.nvmlSystemEventSetCreateRequest_v1)
    n.nvmlSystemRegisterEvents(n.nvmlSystemRegisterEventRequest_v1, 3, found)
    print("registered", flush=True)
    seen: list[int] = []
    room = (n.c_nvmlSystemEventData_v1_t * 1)()
    version = n.nvmlSystemEventSetWaitRequest_v1
    while got := n.nvmlSystemEventSetWait(version, found, int(timeout_ms), room, 1):
        seen += [one["eventType"] for one in got]
    return {"seen": seen}


def mig(index: str, *profiles: str) -> dict[str, Any]:
    """Make an instance of each profile (by NVML's enum), look at it, and take all away again."""
    n.nvmlInit()
    parent = n.nvmlDeviceGetHandleByIndex(int(index))
    ids = [n.nvmlDeviceGetGpuInstanceProfileInfo(parent, int(word)).id for word in profiles]
    before = [n.nvmlDeviceGetGpuInstanceRemainingCapacity(parent, one) for one in ids]
    made = []
    for one in ids:
        instance = n.nvmlDeviceCreateGpuInstance(parent, one)
        whole = n.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, 0, 0)
        compute = n.nvmlGpuInstanceCreateComputeInstance(instance, whole.id)
        made.append((instance, compute))
    devices = []
    for position in range(len(made)):
        device = n.nvmlDeviceGetMigDeviceHandleByIndex(parent, position)
        attributes = n.nvmlDeviceGetAttributes(device)
        devices.append(
            {
                "uuid": n.nvmlDeviceGetUUID(device),
                "gi": n.nvmlDeviceGetGpuInstanceId(device),
                "ci": n.nvmlDeviceGetComputeInstanceId(device),
                "memory": n.nvmlDeviceGetMemoryInfo(device).total,
                "slices": attributes.gpuInstanceSliceCount,
                "name": n.nvmlDeviceGetName(device),
                "parent": n.nvmlDeviceGetUUID(
                    n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
                ),
            }
        )
    during = [n.nvmlDeviceGetGpuInstanceRemainingCapacity(parent, one) for one in ids]
    refused = _try(lambda: n.nvmlGpuInstanceDestroy(made[0][0]))
    for instance, compute in made:
        n.nvmlComputeInstanceDestroy(compute)
        n.nvmlGpuInstanceDestroy(instance)
    after = [n.nvmlDeviceGetGpuInstanceRemainingCapacity(parent, one) for one in ids]
    stale = _try(lambda: n.nvmlDeviceGetUUID(device))
    return {
        "before": before,
        "during": during,
        "after": after,
        "devices": devices,
        "refused": refused,
        "stale": stale,
    }


def layout(index: str, profile: str, keep: str) -> dict[str, Any]:
    """Make one instance and leave it; or (keep = 0) destroy all that are there, patiently."""
    n.nvmlInit()
    parent = n.nvmlDeviceGetHandleByIndex(int(index))
    info = n.nvmlDeviceGetGpuInstanceProfileInfo(parent, int(profile))
    if int(keep):
        instance = n.nvmlDeviceCreateGpuInstance(parent, info.id)
        n.nvmlGpuInstanceCreateComputeInstance(instance, int(profile))
        device = n.nvmlDeviceGetMigDeviceHandleByIndex(parent, 0)
        return {"uuid": n.nvmlDeviceGetUUID(device), "gi": n.nvmlDeviceGetGpuInstanceId(device)}
    room, count = (n.c_nvmlGpuInstance_t * info.instanceCount)(), ctypes.c_uint()
    n.nvmlDeviceGetGpuInstances(parent, info.id, room, ctypes.byref(count))
    results = []
    for instance in list(room)[: count.value]:
        compute = n.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
        results.append(_try(lambda it=compute: n.nvmlComputeInstanceDestroy(it)))
        results.append(_try(lambda it=instance: n.nvmlGpuInstanceDestroy(it)))
    return {"results": results}


def gpm(index: str) -> dict[str, Any]:
    """Two samples, and what is between them."""
    n.nvmlInit()
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    if not n.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
        return {"supported": 0}
    first, second = n.nvmlGpmSampleAlloc(), n.nvmlGpmSampleAlloc()
    n.nvmlGpmSampleGet(handle, first)
    select.select([], [], [], 0.12)
    n.nvmlGpmSampleGet(handle, second)
    wanted = n.c_nvmlGpmMetricsGet_t(version=1, numMetrics=2, sample1=first, sample2=second)
    wanted.metrics[0].metricId, wanted.metrics[1].metricId = 2, 999
    n.nvmlGpmMetricsGet(wanted)
    return {
        "supported": 1,
        "sm": wanted.metrics[0].value,
        "unknown": wanted.metrics[1].nvmlReturn,
    }


def drain(index: str) -> dict[str, Any]:
    """Drain, remove and discover, and what each step does to handles."""
    n.nvmlInit()
    address = n.nvmlDeviceGetPciInfo(n.nvmlDeviceGetHandleByIndex(int(index)))
    n.nvmlShutdown()  # whoever is attached is in the way, this process too
    n.nvmlInit()
    steps: dict[str, Any] = {}
    steps["persistent"] = _try(lambda: n.nvmlDeviceModifyDrainState(address, 1))
    handle = n.nvmlDeviceGetHandleByIndex(int(index))
    n.nvmlDeviceSetPersistenceMode(handle, 0)
    steps["drained"] = _try(lambda: n.nvmlDeviceModifyDrainState(address, 1))
    steps["count"] = n.nvmlDeviceGetCount()
    steps["attached"] = _try(lambda: n.nvmlDeviceRemoveGpu(address))
    n.nvmlShutdown()
    n.nvmlInit()
    other = n.nvmlDeviceGetHandleByIndex(0)
    steps["removed"] = _try(lambda: n.nvmlDeviceRemoveGpu(address))
    steps["old handle"] = _try(lambda: n.nvmlDeviceGetUUID(other))
    steps["discovered"] = _try(lambda: n.nvmlDeviceDiscoverGpus(address))
    steps["count after"] = n.nvmlDeviceGetCount()
    return steps


def _try(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except n.NVMLError as error:
        return {"error": error.value}


def main() -> int:
    """Ask, print."""
    questions: dict[str, Callable[..., dict[str, Any]]] = {
        name: value for name, value in globals().items() if callable(value) and name[0] != "_"
    }
    told = _try(lambda: questions[sys.argv[1]](*sys.argv[2:]))
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
