# SPDX-License-Identifier: Apache-2.0
"""The layout of a GPU with MIG on, where it is the agent's: instances made for a lease and
destroyed after it, in a worker.

Rule: one compute instance takes the whole GPU instance, so that nobody shares its memory. What is
there already at the place is of an earlier try and is destroyed first; what cannot be destroyed
because somebody still uses it is tried again until the budget is over. MIG mode itself is never
changed.

Does not decide which places there are (`survey`).
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pynvml

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Absent, Made, Make, Nothing, Remove
from leased.hardware.gpu.examining import condition_of
from leased.hardware.gpu.facts import Instance, Place, Profile
from leased.hardware.gpu.sights import parent_of
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError

_AGAIN_S: Final = 0.1
_MIB: Final = 1 << 20
_ENGINE_SHARED: Final = 0


def profiles_of(gpu: nvml.Handle) -> tuple[Profile, ...]:
    """Every size that the GPU offers, with its places."""
    found = []
    for _, told in _profiles(gpu):
        places = _places(gpu, told.id)
        name = _name(told)
        slices, memory_bytes = int(told.sliceCount), int(told.memorySizeMB) * _MIB
        span = max((size for _, size in places), default=0)
        starts = tuple(sorted(start for start, _ in places))
        found.append(Profile(name, slices, memory_bytes, starts, span))
    return tuple(found)


def starts_of(gpu: nvml.Handle) -> dict[int, int]:
    """GPU instance id -> its first memory slice."""
    return {number: start for _, number, _, start in _instances(gpu)}


def make(call: Make, fds: list[int]) -> Made:
    """Make the instance; nothing is left of one that failed. Raises DeviceError."""
    gpu = parent_of(call.target)
    place = call.target.place
    assert place is not None
    _destroy_at(gpu, place, call.budget_ns)
    told = _profile(gpu, place)
    where = pynvml.c_nvmlGpuInstancePlacement_t()
    where.start = place.start
    where.size = span_at(_places(gpu, told.id), place)
    create = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement
    made = nvml.call("create_instance", create, gpu, told.id, ctypes.byref(where))
    try:
        compute = _compute_profile(made, int(told.sliceCount))
        create_compute = pynvml.nvmlGpuInstanceCreateComputeInstance
        nvml.call("create_compute_instance", create_compute, made, compute)
        number = int(nvml.call("instance_info", pynvml.nvmlGpuInstanceGetInfo, made).id)
        return Made(_instance(gpu, number, place.start))
    except BaseException:
        _destroy_at(gpu, place, call.budget_ns)
        raise


def span_at(places: Sequence[tuple[int, int]], place: Place) -> int:
    """How many memory slices the place takes, of (first, how many) that the driver offers of its
    profile. Raises DeviceError: another driver may offer others."""
    span = dict(places).get(place.start)
    if span is None:
        firsts = ", ".join(str(start) for start, _ in places) or "none"
        detail = f"the GPU has no place {place.name}: the driver offers {firsts}"
        raise DeviceError("gpu_layout", errno.ENOENT, detail)
    return span


def remove(call: Remove, fds: list[int]) -> Nothing:
    """Destroy what is at the place. Idempotent. Raises DeviceError(EBUSY) when it stays in use, or
    is a MIG device where only a half of one was to be."""
    place, gpu = call.target.place, parent_of(call.target)
    assert place is not None
    if call.halves and any(_computes(handle) for handle in _at(gpu, place)):
        raise DeviceError("gpu_layout", errno.EBUSY, f"a MIG device is at {place.name}")
    _destroy_at(gpu, place, call.budget_ns)
    return Nothing()


def absent(call: Remove, fds: list[int]) -> Absent:
    """Whether nothing is at the place any more, and how the GPU is."""
    began_ns = now_ns()
    gpu = parent_of(call.target)
    place = call.target.place
    assert place is not None
    told = _profile(gpu, place)
    left = sum(1 for _ in _at(gpu, place))
    ask = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
    room = int(nvml.call("remaining_capacity", ask, gpu, told.id))
    return Absent(left, room, condition_of(gpu, lambda _: None), began_ns, now_ns())


# ---- instances -----------------------------------------------------------------------------------


def _destroy_at(gpu: nvml.Handle, place: Place, budget_ns: int) -> None:
    end_ns = now_ns() + budget_ns
    while True:
        try:
            for handle in list(_at(gpu, place)):
                _destroy(handle)
            return
        except DeviceError as error:
            if error.errno != errno.EBUSY or now_ns() >= end_ns:
                raise
        time.sleep(_AGAIN_S)


def _destroy(handle: Any) -> None:
    for compute in _computes(handle):
        nvml.call("destroy_compute_instance", pynvml.nvmlComputeInstanceDestroy, compute)
    nvml.call("destroy_instance", pynvml.nvmlGpuInstanceDestroy, handle)


def _computes(handle: Any) -> list[Any]:
    """Every compute instance of a GPU instance."""
    numbers = range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
    return [one for number in numbers for one in _listed_compute(handle, number)]


def _listed_compute(handle: Any, number: int) -> list[Any]:
    try:
        ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
        told = nvml.call("compute_profile", ask, handle, number, _ENGINE_SHARED)
    except DeviceError as error:
        if error.errno in (errno.ENOTSUP, errno.EINVAL):
            return []
        raise
    count = ctypes.c_uint(int(told.instanceCount))
    found = (pynvml.c_nvmlComputeInstance_t * max(1, count.value))()
    ask_all = pynvml.nvmlGpuInstanceGetComputeInstances
    nvml.call("compute_instances", ask_all, handle, told.id, found, ctypes.byref(count))
    return [found[at] for at in range(count.value)]


def _compute_profile(handle: Any, slices: int) -> int:
    """The one that takes the whole GPU instance."""
    ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            told = nvml.call("compute_profile", ask, handle, number, _ENGINE_SHARED)
        except DeviceError as error:
            if error.errno in (errno.ENOTSUP, errno.EINVAL):
                continue
            raise
        if int(told.sliceCount) == slices:
            return int(told.id)
    raise DeviceError("gpu_layout", errno.ENOENT, f"no compute instance of {slices} slices")


def _instance(gpu: nvml.Handle, number: int, start: int) -> Instance:
    for handle in nvml.mig_handles(gpu):
        found = nvml.instance_of(handle)
        if found.gpu_instance == number:
            return msgspec.structs.replace(found, start=start)
    raise DeviceError("gpu_layout", errno.ENOENT, f"GPU instance {number} has no MIG device")


def _at(gpu: nvml.Handle, place: Place) -> Any:
    """Handles of the instances of that profile at that place."""
    for handle, _, profile, start in _instances(gpu):
        if (profile, start) == (place.profile, place.start):
            yield handle


def _instances(gpu: nvml.Handle) -> list[tuple[Any, int, str, int]]:
    """(handle, id, profile, first memory slice) of every GPU instance."""
    listed = []
    for _, told in _profiles(gpu):
        count = ctypes.c_uint(0)
        found = (pynvml.c_nvmlGpuInstance_t * max(1, int(told.instanceCount)))()
        ask = pynvml.nvmlDeviceGetGpuInstances
        nvml.call("instances", ask, gpu, told.id, found, ctypes.byref(count))
        for at in range(count.value):
            known = nvml.call("instance_info", pynvml.nvmlGpuInstanceGetInfo, found[at])
            listed.append((found[at], int(known.id), _name(told), int(known.placement.start)))
    return listed


# ---- profiles ------------------------------------------------------------------------------------


def _profiles(gpu: nvml.Handle) -> list[tuple[int, Any]]:
    found = []
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            ask = pynvml.nvmlDeviceGetGpuInstanceProfileInfo
            found.append((number, nvml.call("profile", ask, gpu, number)))
        except DeviceError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL):
                raise
    return found


def _profile(gpu: nvml.Handle, place: Place) -> Any:
    for _, told in _profiles(gpu):
        if _name(told) == place.profile:
            return told
    raise DeviceError("gpu_layout", errno.ENOENT, f"the GPU has no profile {place.profile}")


def _places(gpu: nvml.Handle, profile_id: int) -> list[tuple[int, int]]:
    count = ctypes.c_uint(0)
    ask = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    nvml.call("placements", ask, gpu, profile_id, None, ctypes.byref(count))
    found = (pynvml.c_nvmlGpuInstancePlacement_t * max(1, count.value))()
    nvml.call("placements", ask, gpu, profile_id, found, ctypes.byref(count))
    return [(int(found[at].start), int(found[at].size)) for at in range(count.value)]


def _name(told: Any) -> str:
    text = told.name.decode("ascii") if isinstance(told.name, bytes) else str(told.name)
    return text.rpartition(" ")[2]
