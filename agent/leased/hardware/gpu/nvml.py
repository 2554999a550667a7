# SPDX-License-Identifier: Apache-2.0
"""The door to NVML: single questions and orders, answered as plain values.

Rule: NVML's codes become DeviceError with an errno that says the same and a detail that says it in
NVML's words. The library is opened once per process, and has every GPU of the host attached until
the process ends: asked not to attach (`NO_ATTACH`), R580 knows of no GPU at all. A GPU is named by
its PCI address. Whoever is called may hang in the kernel for ever: only workers come here.

Does not decide anything, does not retry.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import pynvml

from leased.hardware.gpu.facts import FABRIC_FAILED, FABRIC_WAITS, Instance, Usage
from leased.terms.errors import DeviceError

Handle = Any
T = TypeVar("T")

_NO_GPUS: Final = 1
"""A host without any is no error of the library's."""

_RECOVERY_ACTION: Final = 230
_MIB: Final = 1 << 20
_FABRIC_STATES: Final = ("", *FABRIC_WAITS, "completed")

ERRNO: Final = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: errno.ENOTSUP,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: errno.ENOTSUP,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: errno.ENOTSUP,
    pynvml.NVML_ERROR_DEPRECATED: errno.ENOTSUP,
    pynvml.NVML_ERROR_NO_PERMISSION: errno.EPERM,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: errno.EINVAL,
    pynvml.NVML_ERROR_INVALID_STATE: errno.EINVAL,
    pynvml.NVML_ERROR_NOT_FOUND: errno.ENOENT,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: errno.ENODEV,
    pynvml.NVML_ERROR_GPU_IS_LOST: errno.ENODEV,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: errno.ENXIO,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: errno.ELIBACC,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: errno.ELIBBAD,
    pynvml.NVML_ERROR_RESET_REQUIRED: errno.ENOTRECOVERABLE,
    pynvml.NVML_ERROR_IN_USE: errno.EBUSY,
    pynvml.NVML_ERROR_TIMEOUT: errno.ETIMEDOUT,
    pynvml.NVML_ERROR_NOT_READY: errno.EAGAIN,
    pynvml.NVML_ERROR_MEMORY: errno.ENOMEM,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: errno.ENOSPC,
}
"""What is not named here (UNKNOWN above all) is EIO: it proves nothing."""


def call(verb: str, function: Callable[..., T], *arguments: Any) -> T:
    """One call of the library. Raises DeviceError."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        number = ERRNO.get(error.value, errno.EIO)
        raise DeviceError(f"nvml_{verb}", number, str(error)) from error


def call_if_known(verb: str, function: Callable[..., T], *arguments: Any) -> T:
    """A question that older drivers do not know: of a handle that answers all others an "invalid
    argument" says no more than "not supported". Raises DeviceError."""
    try:
        return call(verb, function, *arguments)
    except DeviceError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DeviceError(error.verb, errno.ENOTSUP, error.detail) from error


def unless_unsupported(question: Callable[[], T], missing: Callable[[], object]) -> T | None:
    """The answer; None, and `missing` told, where the driver has none. Raises DeviceError when it
    fails otherwise."""
    try:
        return question()
    except DeviceError as error:
        if error.errno != errno.ENOTSUP:
            raise
        missing()
        return None


_opened: list[None] = []


def open_library() -> None:
    """Load and initialise NVML, once. Raises DeviceError."""
    if not _opened:
        call("init", pynvml.nvmlInitWithFlags, _NO_GPUS)
        _opened.append(None)


def driver_version() -> str:
    """Such as "570.86.15"."""
    return str(call("driver_version", pynvml.nvmlSystemGetDriverVersion))


# ---- which GPUs --------------------------------------------------------------------------------


def count() -> int:
    """How many GPUs the driver has."""
    return int(call("count", pynvml.nvmlDeviceGetCount))


def at_index(index: int) -> Handle:
    """A GPU by its place in today's order: to list them, never to name one."""
    return call("by_index", pynvml.nvmlDeviceGetHandleByIndex, index)


def at_pci(pci: str, uuid: str = "") -> Handle:
    """The GPU at a PCI address, which must be the one of that UUID if one is named."""
    handle = call("by_pci", pynvml.nvmlDeviceGetHandleByPciBusId, pci.encode("ascii"))
    if uuid and uuid_of(handle) != uuid:
        raise DeviceError("nvml_by_pci", errno.ENODEV, f"another GPU is at {pci} now, not {uuid}")
    return handle


def uuid_of(handle: Handle) -> str:
    """GPU-… or MIG-…."""
    return str(call("uuid", pynvml.nvmlDeviceGetUUID, handle))


def pci_of(handle: Handle) -> str:
    """Its address as sysfs writes it: 0000:1b:00.0."""
    bus_id = call("pci_info", pynvml.nvmlDeviceGetPciInfo_v3, handle).busId
    return plain_pci(bus_id.decode("ascii") if isinstance(bus_id, bytes) else str(bus_id))


def plain_pci(bus_id: str) -> str:
    """NVML writes eight digits of domain and capitals, the kernel four and none."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def name_of(handle: Handle) -> str:
    """The model."""
    return str(call("name", pynvml.nvmlDeviceGetName, handle))


def minor_of(handle: Handle) -> int:
    """N of /dev/nvidiaN; not the index."""
    return int(call("minor", pynvml.nvmlDeviceGetMinorNumber, handle))


def numa_node_of(handle: Handle) -> int:
    """The NUMA node that its memory is (coherent GPUs only)."""
    return int(call_if_known("numa_node", pynvml.nvmlDeviceGetNumaNodeId, handle))


# ---- state -------------------------------------------------------------------------------------


def memory_of(handle: Handle) -> Usage:
    """Total, the driver's own and used; raises ENOTSUP where the driver's own is not told apart."""
    told = call("memory", pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return Usage(int(told.total), int(told.reserved), int(told.used))


def memory_lumped(handle: Handle) -> Usage:
    """As older drivers tell it: their own share counts as used."""
    told = call("memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Usage(int(told.total), 0, int(told.used))


def processes_of(handle: Handle) -> tuple[tuple[int, ...], ...]:
    """The pids with a compute, a graphics, and an MPS context."""
    lists = (
        ("compute_processes", pynvml.nvmlDeviceGetComputeRunningProcesses_v3),
        ("graphics_processes", pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3),
        ("mps_processes", pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3),
    )
    return tuple(
        tuple(sorted({int(one.pid) for one in call(verb, function, handle)}))
        for verb, function in lists
    )


def compute_mode_of(handle: Handle) -> int:
    """Who may make a context."""
    return int(call("get_compute_mode", pynvml.nvmlDeviceGetComputeMode, handle))


def set_compute_mode(handle: Handle, mode: int) -> None:
    """Say who may make a context from here on."""
    call("set_compute_mode", pynvml.nvmlDeviceSetComputeMode, handle, mode)


def is_persistent(handle: Handle) -> bool:
    """Whether the driver stays initialised without a client."""
    return bool(call("persistence", pynvml.nvmlDeviceGetPersistenceMode, handle))


def recovery_action_of(handle: Handle) -> int:
    """What the driver wants done to the GPU; 0 is nothing."""

    def ask() -> int:
        (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    return call_if_known("recovery_action", ask)


def remapped_rows_of(handle: Handle) -> tuple[bool, bool]:
    """(a row waits for a reset to be remapped, one could not be)."""
    told = call("remapped_rows", pynvml.nvmlDeviceGetRemappedRows, handle)
    return bool(told[2]), bool(told[3])


def retirement_pending_of(handle: Handle) -> bool:
    """Whether a page waits for a reset to be retired (before Ampere)."""
    return bool(call("retired_pages", pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle))


# ---- neighbours --------------------------------------------------------------------------------


def link_peers_of(handle: Handle) -> tuple[str, ...]:
    """PCI addresses at the other end of each active NVLink (GPUs or switches), each once."""
    peers: set[str] = set()
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not call("link_state", pynvml.nvmlDeviceGetNvLinkState, handle, link):
                continue
            remote = call("link_peer", pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        except DeviceError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                break  # the GPU has fewer links than the library knows of, or none
            continue  # nothing is proven by links: one that cannot be asked is left out
        bus_id = remote.busId
        peers.add(plain_pci(bus_id.decode("ascii") if isinstance(bus_id, bytes) else str(bus_id)))
    return tuple(sorted(peers))


def fabric_of(handle: Handle) -> str:
    """How far it has joined an NVLink fabric; "" where there is none."""
    told = pynvml.c_nvmlGpuFabricInfo_v2_t()
    told.version = pynvml.nvmlGpuFabricInfo_v2
    call_if_known("fabric", pynvml.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(told))
    state, status = int(told.state), int(told.status)
    if state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED and status != pynvml.NVML_SUCCESS:
        return f"{FABRIC_FAILED} (NVML error {status})"
    return _FABRIC_STATES[state] if state < len(_FABRIC_STATES) else f"state {state}"


# ---- MIG ---------------------------------------------------------------------------------------


def mig_mode_of(handle: Handle) -> tuple[bool, bool]:
    """(MIG is on, MIG will be on after the next reset)."""
    current, pending = call("mig_mode", pynvml.nvmlDeviceGetMigMode, handle)
    return bool(current), bool(pending)


def mig_devices_max(handle: Handle) -> int:
    """Into how many slices it may be cut."""
    return int(call("mig_count", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle))


def mig_handles(handle: Handle) -> list[Handle]:
    """Every MIG device that is there."""
    found = []
    for index in range(mig_devices_max(handle)):
        try:
            found.append(
                call("mig_handle", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            )
        except DeviceError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def mig_handle(handle: Handle, uuid: str) -> Handle:
    """The MIG device of that UUID. Raises DeviceError(ENODEV)."""
    for one in mig_handles(handle):
        if uuid_of(one) == uuid:
            return one
    raise DeviceError("nvml_mig_handle", errno.ENODEV, f"{uuid} is no MIG device any more")


def instance_of(handle: Handle) -> Instance:
    """One MIG device, described."""
    ask = partial(call, "mig_device")
    told = ask(pynvml.nvmlDeviceGetAttributes_v2, handle)
    return Instance(
        uuid=uuid_of(handle),
        gpu_instance=int(ask(pynvml.nvmlDeviceGetGpuInstanceId, handle)),
        compute_instance=int(ask(pynvml.nvmlDeviceGetComputeInstanceId, handle)),
        profile=name_of(handle).rpartition(" ")[2],
        slices=int(told.computeInstanceSliceCount),
        memory_bytes=int(told.memorySizeMB) * _MIB,
    )
