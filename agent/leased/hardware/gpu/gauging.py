# SPDX-License-Identifier: Apache-2.0
"""Gauging: what one GPU is seen to do, in a worker: work, memory, power, heat, errors, throughput.

Rule: each question stands alone: one that the driver or the model has no answer to is left out,
one that fails otherwise ends the look at this GPU. GPUs with GPM tell how busy each part was
between two looks, so the first look has none of that. The worker keeps GPUs attached, and no
instance: a MIG device's handle would keep it from being destroyed, so instances are measured
through their GPU.

Does not judge (`health`) and changes nothing.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pynvml

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Gauge
from leased.hardware.gpu.examining import usage_of
from leased.terms import series
from leased.terms.errors import DeviceError
from leased.terms.sample import Attributes, Reading, Readings

NOT_MEANT: Final = -1
"""For what a driver says that is no number: no series takes it, and it is counted as rejected."""

_GPU: Final = ((series.HW_TYPE, "gpu"),)
_PPM_OF_PERCENT: Final = 10_000
_MIB: Final = 1 << 20
_MEMORY_TEMPERATURE: Final = 82
_ENGINES: Final = (
    (1, "graphics"),
    (2, "sm"),
    (3, "sm_occupancy"),
    (5, "tensor"),
    (10, "dram"),
    (11, "fp64"),
    (12, "fp32"),
    (13, "fp16"),
)
_BUSES: Final = (
    (20, "pcie", "transmit"),
    (21, "pcie", "receive"),
    (60, "nvlink", "receive"),
    (61, "nvlink", "transmit"),
)
_REASONS: Final = (
    (0x04, "power_cap"),
    (0x08, "hardware_slowdown"),
    (0x20, "software_thermal"),
    (0x40, "hardware_thermal"),
    (0x80, "power_brake"),
)
_CLOCKS: Final = ((0, "graphics"), (1, "sm"), (2, "memory"))
_ERRORS: Final = ((0, "corrected"), (1, "uncorrected"))
_WHOLE: Final = -1


class _Meter:
    """The last GPM sample of each GPU or instance that this process has looked at."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, int], Any] = {}

    def between(self, uuid: str, instance: int, take: Callable[[Any], None]) -> tuple[Any, Any]:
        """(the sample before or None, the one taken now)."""
        fresh = nvml.call("gpm_alloc", pynvml.nvmlGpmSampleAlloc)
        try:
            take(fresh)
        except DeviceError:
            nvml.call("gpm_free", pynvml.nvmlGpmSampleFree, fresh)
            raise
        before = self.last.get((uuid, instance))
        self.last[uuid, instance] = fresh
        return before, fresh


_METER: Final = _Meter()


def gauge(call: Gauge, fds: Sequence[int]) -> Readings:
    """One look at one GPU. Raises DeviceError."""
    del fds
    nvml.open_library()
    handle = nvml.at_pci(call.pci, call.uuid)
    found = list(_whole(handle, call))
    for subject, instance in call.instances:
        found.extend(_rates(handle, call.uuid, instance, subject))
    return Readings(time.clock_gettime_ns(time.CLOCK_BOOTTIME), tuple(found))


def _whole(handle: nvml.Handle, call: Gauge) -> Iterator[Reading]:
    subject = call.subject
    for name, question, attributes in _questions(handle):
        answer = nvml.unless_unsupported(question, lambda: None)
        if answer is not None:
            yield Reading(name, subject, answer, attributes)
    usage = usage_of(handle)
    yield Reading("hw.gpu.memory.usage", subject, usage.used_bytes)
    yield Reading("hw.gpu.memory.limit", subject, usage.total_bytes)
    yield from _memory_temperature(handle, subject)
    reasons = nvml.unless_unsupported(
        lambda: nvml.call("throttle", pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
        lambda: None,
    )
    for bit, reason in _REASONS if reasons is not None else ():
        held = int(bool(int(reasons or 0) & bit))
        yield Reading("leased.gpu.throttled", subject, held, ((series.REASON, reason),))
    if not call.sliced:
        yield from _utilization(handle, subject)
        yield from _rates(handle, call.uuid, _WHOLE, subject)


Question = tuple[str, Callable[[], int], Attributes]


def _questions(handle: nvml.Handle) -> Iterator[Question]:
    """Those with one number for an answer."""

    def ask(
        verb: str, function: Callable[..., Any], *rest: int, scale: int = 1
    ) -> Callable[[], int]:
        return lambda: int(nvml.call(verb, function, handle, *rest)) * scale

    yield "hw.power", ask("power", pynvml.nvmlDeviceGetPowerUsage), _GPU
    limit = ask("power_limit", pynvml.nvmlDeviceGetEnforcedPowerLimit)
    yield "leased.power.limit", limit, _GPU
    yield "hw.energy", ask("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption), _GPU
    where = (*_GPU, (series.SENSOR, "gpu"))
    yield "hw.temperature", ask("heat", pynvml.nvmlDeviceGetTemperature, 0, scale=1000), where
    for kind, name in _CLOCKS:
        clock = ask("clock", pynvml.nvmlDeviceGetClockInfo, kind, scale=1_000_000)
        yield "leased.gpu.frequency", clock, ((series.CLOCK, name),)
    for kind, name in _ERRORS:
        # Lifetime counts (1): the volatile ones begin anew with the driver.
        errors = ask("ecc", pynvml.nvmlDeviceGetTotalEccErrors, kind, 1)
        yield "hw.errors", errors, (*_GPU, (series.ERROR_TYPE, name))


def _utilization(handle: nvml.Handle, subject: str) -> Iterator[Reading]:
    rates = nvml.unless_unsupported(
        lambda: nvml.call("utilization", pynvml.nvmlDeviceGetUtilizationRates, handle), lambda: None
    )
    if rates is not None:
        task = ((series.GPU_TASK, "general"),)
        yield Reading("hw.gpu.utilization", subject, int(rates.gpu) * _PPM_OF_PERCENT, task)
        yield Reading("hw.gpu.memory.utilization", subject, int(rates.memory) * _PPM_OF_PERCENT)


def _memory_temperature(handle: nvml.Handle, subject: str) -> Iterator[Reading]:
    """Of the memory's own sensor, where it has one: 0 says that there is none."""
    (field,) = nvml.call(
        "memory_heat", pynvml.nvmlDeviceGetFieldValues, handle, [_MEMORY_TEMPERATURE]
    )
    if field.nvmlReturn == pynvml.NVML_SUCCESS and field.value.uiVal:
        where = (*_GPU, (series.SENSOR, "memory"))
        yield Reading("hw.temperature", subject, int(field.value.uiVal) * 1000, where)


def _rates(handle: nvml.Handle, uuid: str, instance: int, subject: str) -> Iterator[Reading]:
    """What GPM tells of the time since the last look; nothing without GPM."""

    def take(sample: Any) -> None:
        if instance == _WHOLE:
            nvml.call("gpm", pynvml.nvmlGpmSampleGet, handle, sample)
        else:
            nvml.call("gpm", pynvml.nvmlGpmMigSampleGet, handle, instance, sample)

    try:
        support = nvml.call("gpm_support", pynvml.nvmlGpmQueryDeviceSupport, handle)
        if not support.isSupportedDevice:
            return
        before, fresh = _METER.between(uuid, instance, take)
    except DeviceError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL):
            raise
        return  # older than GPM, or the instance has just gone
    if before is None:
        return
    try:
        told = _metrics(before, fresh)
    finally:
        nvml.call("gpm_free", pynvml.nvmlGpmSampleFree, before)
    for metric, engine in _ENGINES:
        if metric in told:
            share = _scaled(told[metric], _PPM_OF_PERCENT)
            yield Reading("leased.gpu.active", subject, share, ((series.ENGINE, engine),))
    for metric, bus, direction in _BUSES:
        if metric in told:
            way = (("leased.gpu.bus", bus), (series.NETWORK_DIRECTION, direction))
            yield Reading("leased.gpu.throughput", subject, _scaled(told[metric], _MIB), way)


def _metrics(before: Any, fresh: Any) -> dict[int, float]:
    """The metrics that this GPU has."""
    wanted = [number for number, *_ in (*_ENGINES, *_BUSES)]
    asked = pynvml.c_nvmlGpmMetricsGet_t()
    asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    asked.numMetrics = len(wanted)
    asked.sample1, asked.sample2 = before, fresh
    for at, number in enumerate(wanted):
        asked.metrics[at].metricId = number
    nvml.call("gpm_metrics", pynvml.nvmlGpmMetricsGet, asked)
    return {
        number: float(asked.metrics[at].value)
        for at, number in enumerate(wanted)
        if asked.metrics[at].nvmlReturn == pynvml.NVML_SUCCESS
    }


def _scaled(value: float, scale: int) -> int:
    return round(value * scale) if math.isfinite(value) else NOT_MEANT
