# SPDX-License-Identifier: Apache-2.0
"""The suite's eyes: NVML in a process of its own, one line in, one line of JSON out.

Rule: only asks. It stays attached to one GPU, so that an answer takes as long as the driver takes
and no longer; whoever waits for it has a deadline and kills it.

Does not measure: `bench.py` does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pynvml as n

Handle = Any


def lists(handle: Handle) -> dict[str, Any]:
    """Who has a context, and how much is in use."""
    found = [
        *n.nvmlDeviceGetComputeRunningProcesses(handle),
        *n.nvmlDeviceGetGraphicsRunningProcesses(handle),
        *n.nvmlDeviceGetMPSComputeRunningProcesses(handle),
    ]
    return {
        "pids": sorted({one.pid for one in found}),
        "bytes": {str(one.pid): one.usedGpuMemory or 0 for one in found},
        **memory(handle),
    }


def memory(handle: Handle) -> dict[str, Any]:
    """The memory's parts."""
    told = n.nvmlDeviceGetMemoryInfo(handle, n.nvmlMemory_v2)
    return {"total": told.total, "reserved": told.reserved, "free": told.free, "used": told.used}


def identity(handle: Handle) -> dict[str, Any]:
    """Which GPU it is."""
    return {
        "name": n.nvmlDeviceGetName(handle),
        "uuid": n.nvmlDeviceGetUUID(handle),
        "pci": n.nvmlDeviceGetPciInfo(handle).busId,
        "minor": n.nvmlDeviceGetMinorNumber(handle),
        "driver": n.nvmlSystemGetDriverVersion(),
        "cuda": n.nvmlSystemGetCudaDriverVersion(),
    }


def settings(handle: Handle) -> dict[str, Any]:
    """Whatever the suite must leave as it was."""
    asked = {
        "compute_mode": lambda: n.nvmlDeviceGetComputeMode(handle),
        "persistence": lambda: n.nvmlDeviceGetPersistenceMode(handle),
        "mig": lambda: list(n.nvmlDeviceGetMigMode(handle)),
        "accounting": lambda: n.nvmlDeviceGetAccountingMode(handle),
        "power_limit": lambda: n.nvmlDeviceGetEnforcedPowerLimit(handle),
    }
    told = {}
    for name, ask in asked.items():
        try:
            told[name] = ask()
        except n.NVMLError as error:
            told[name] = f"error {error.value}"
    return told


def health(handle: Handle) -> dict[str, Any]:
    """What would make a GPU unfit."""
    told: dict[str, Any] = {}
    action, pending, failure, retired = n.nvmlDeviceGetFieldValues(handle, [230, 144, 145, 31])
    for name, value in (
        ("recovery_action", action),
        ("remap_pending", pending),
        ("remap_failure", failure),
        ("retired_pending", retired),
    ):
        known = value.nvmlReturn == 0
        told[name] = value.value.uiVal if known else f"error {value.nvmlReturn}"
    try:
        told["utilization"] = n.nvmlDeviceGetUtilizationRates(handle).gpu
    except n.NVMLError as error:
        told["utilization"] = f"error {error.value}"
    return told


def main() -> int:
    """Attach to the GPU that the argument names by UUID or number; answer until the input ends."""
    questions = {ask.__name__: ask for ask in (lists, memory, identity, settings, health)}
    try:
        n.nvmlInit()
        wanted = sys.argv[1]
        if wanted.isdecimal():
            handle = n.nvmlDeviceGetHandleByIndex(int(wanted))
        else:
            handle = n.nvmlDeviceGetHandleByUUID(wanted)
        print(json.dumps(identity(handle)), flush=True)
    except n.NVMLError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    for line in sys.stdin:
        try:
            told = questions[line.strip()](handle)
        except n.NVMLError as error:
            told = {"error": str(error), "code": error.value}
        print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
