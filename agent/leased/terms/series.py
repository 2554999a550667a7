# SPDX-License-Identifier: Apache-2.0
"""The series: everything that is sampled, with its unit, its kind and what it may be.

Rule: one table, from which the local API, the OTLP stream, the exposition for Prometheus and the
table in the documentation are all made. A name is OpenTelemetry's (system.*, hw.*, process.*) where
its semantic conventions have one, else ours (leased.*). A value outside `least` to `most` is a
driver's way to say "not available" and is never shown to anybody.

Values are integers in `unit`; whoever exports divides by `per` and says `exported`.
"""

from __future__ import annotations

from typing import Final

import msgspec

COUNTER_MAX: Final = 2**63 - 1
BYTES_MAX: Final = 2**56
"""64 PiB: above it, a counter has wrapped or was never one."""

SHARE_MAX: Final = 4_000_000
"""Four times what was leased: bursts beyond a share are honest, more is a broken counter."""

ACTIVE_PPM_MIN: Final = 50_000
"""A look counts as active from 5 % of what was leased: below that a process is only kept alive."""

REQUESTS_MAX: Final = 2**31 - 1
"""No node has room for so many requests: what says more is no count."""

TABLE_NAME: Final = "leased.telemetry"


class Series(msgspec.Struct, frozen=True):
    """One series. `attributes` are the keys that tell its points apart besides the resource and
    the lease."""

    name: str
    unit: str
    exported: str
    per: int
    counter: bool
    says: str
    attributes: tuple[str, ...] = ()
    least: int = 0
    most: int = COUNTER_MAX

    def holds(self, value: int) -> bool:
        """Whether a value can be meant."""
        return self.least <= value <= self.most


def _gauge(
    name: str,
    unit: str,
    exported: str,
    per: int,
    says: str,
    *attributes: str,
    least: int = 0,
    most: int = COUNTER_MAX,
) -> Series:
    return Series(name, unit, exported, per, False, says, attributes, least, most)


def _counter(name: str, unit: str, exported: str, per: int, says: str, *attributes: str) -> Series:
    return Series(name, unit, exported, per, True, says, attributes)


def _share(name: str, says: str, *attributes: str, most: int = 1_000_000) -> Series:
    """A share, in parts per million of 1."""
    return _gauge(name, "1/1000000", "1", 1_000_000, says, *attributes, most=most)


def _bytes(name: str, says: str, *attributes: str) -> Series:
    return _gauge(name, "By", "By", 1, says, *attributes, most=BYTES_MAX)


def _time(name: str, says: str, *attributes: str) -> Series:
    return _counter(name, "ns", "s", 1_000_000_000, says, *attributes)


CPU_MODE: Final = "cpu.mode"
MEMORY_STATE: Final = "system.memory.state"
HUGEPAGES_STATE: Final = "system.memory.linux.hugepages.state"
DISK_DIRECTION: Final = "disk.io.direction"
NETWORK_DIRECTION: Final = "network.io.direction"
ERROR_TYPE: Final = "error.type"
HW_TYPE: Final = "hw.type"
SENSOR: Final = "hw.sensor_location"
GPU_TASK: Final = "hw.gpu.task"
ENGINE: Final = "leased.gpu.engine"
CLOCK: Final = "leased.gpu.clock"
REASON: Final = "leased.reason"
PRESSURE: Final = ("leased.pressure.resource", "leased.pressure.kind")
NUMA_EVENT: Final = "leased.numa.event"
PORT: Final = "leased.port"
KIND: Final = "leased.resource.kind"
EVENT: Final = "leased.event"
SOURCE: Final = "leased.telemetry.source"

_ALL: Final = (
    # -- the host ----------------------------------------------------------------------------------
    _time("system.cpu.time", "processor time of the whole host", CPU_MODE),
    _time("leased.cpu.busy.time", "time that a core was not idle"),
    _bytes("system.memory.usage", "memory of a NUMA node", MEMORY_STATE),
    _bytes("system.memory.limit", "all memory of a NUMA node"),
    _bytes("system.memory.linux.hugepages.usage", "a pool of huge pages", HUGEPAGES_STATE),
    _counter(
        "leased.memory.numa.allocations",
        "{page}",
        "{page}",
        1,
        "pages by where they came from",
        NUMA_EVENT,
    ),
    _time("leased.pressure.time", "time in which somebody (all) waited (PSI)", *PRESSURE),
    # -- drives ------------------------------------------------------------------------------------
    _counter("system.disk.io", "By", "By", 1, "bytes read and written", DISK_DIRECTION),
    _counter(
        "system.disk.operations", "{operation}", "{operation}", 1, "completed", DISK_DIRECTION
    ),
    _time("system.disk.operation_time", "time that operations took, added up", DISK_DIRECTION),
    _time("system.disk.io_time", "time with an operation under way"),
    _gauge(
        "hw.temperature",
        "Cel/1000",
        "Cel",
        1000,
        "temperature",
        HW_TYPE,
        SENSOR,
        least=-60_000,
        most=200_000,
    ),
    _share(
        "hw.physical_disk.endurance_utilization",
        "used of what the drive is rated to endure (may exceed 1)",
        HW_TYPE,
        most=2_540_000,
    ),
    _share("leased.nvme.spare", "spare blocks that are left", HW_TYPE),
    _gauge(
        "leased.nvme.warnings",
        "1",
        "1",
        1,
        "critical warnings that are set (bits)",
        HW_TYPE,
        most=255,
    ),
    _time("leased.nvme.power_on.time", "time that the drive was on", HW_TYPE),
    _counter("leased.nvme.data", "By", "By", 1, "moved over its life", HW_TYPE, DISK_DIRECTION),
    _counter("hw.errors", "{error}", "{error}", 1, "errors", HW_TYPE, ERROR_TYPE),
    # -- GPUs --------------------------------------------------------------------------------------
    _share("hw.gpu.utilization", "time with work on it", GPU_TASK),
    _bytes("hw.gpu.memory.usage", "memory in use"),
    _bytes("hw.gpu.memory.limit", "all memory"),
    _share("hw.gpu.memory.utilization", "time in which memory was read or written"),
    _share("leased.gpu.active", "time in which a part of it worked (GPM)", ENGINE),
    _gauge(
        "leased.gpu.throughput",
        "By/s",
        "By/s",
        1,
        "over PCIe and NVLink",
        "leased.gpu.bus",
        NETWORK_DIRECTION,
        most=10**14,
    ),
    _gauge("hw.power", "mW", "W", 1000, "electrical power", HW_TYPE, most=10**8),
    _gauge("leased.power.limit", "mW", "W", 1000, "power it is held to", HW_TYPE, most=10**8),
    _counter("hw.energy", "mJ", "J", 1000, "electrical energy", HW_TYPE),
    _gauge("leased.gpu.frequency", "Hz", "Hz", 1, "clock", CLOCK, most=10**11),
    _gauge(
        "leased.gpu.throttled", "1", "1", 1, "1 while held back for that reason", REASON, most=1
    ),
    # -- RDMA --------------------------------------------------------------------------------------
    _counter("hw.network.io", "By", "By", 1, "bytes of a port", PORT, NETWORK_DIRECTION),
    _counter(
        "hw.network.packets",
        "{packet}",
        "{packet}",
        1,
        "packets of a port",
        PORT,
        NETWORK_DIRECTION,
    ),
    _gauge("hw.network.up", "1", "1", 1, "1 while the link is up", PORT, most=1),
    _counter(
        "leased.network.errors", "{error}", "{error}", 1, "errors of a port", PORT, ERROR_TYPE
    ),
    # -- leases ------------------------------------------------------------------------------------
    _share("leased.lease.utilization", "used of what is leased", KIND, most=SHARE_MAX),
    _gauge("leased.lease.capacity", "1", "1", 1, "leased, in the raw unit of the kind", KIND),
    _time("leased.lease.cpu.time", "processor time", CPU_MODE),
    _time("leased.lease.cpu.throttled.time", "time held back to its share"),
    _bytes("leased.lease.memory.usage", "memory charged to its cgroup"),
    _bytes("leased.lease.memory.limit", "memory its cgroup may be charged"),
    _counter("leased.lease.memory.events", "{event}", "{event}", 1, "limits met, kills", EVENT),
    _gauge("leased.lease.processes", "{process}", "{process}", 1, "threads inside", most=2**22),
    _counter("leased.lease.io", "By", "By", 1, "read and written", DISK_DIRECTION),
    # -- the agent itself --------------------------------------------------------------------------
    _gauge(
        "leased.queue.depth",
        "{request}",
        "{request}",
        1,
        "requests that wait on this node",
        most=REQUESTS_MAX,
    ),
    _time("process.cpu.time", "processor time of the agent", CPU_MODE),
    _bytes("process.memory.usage", "resident memory of the agent"),
    _counter(f"{TABLE_NAME}.dropped", "{point}", "{point}", 1, "points lost: the buffer was full"),
    _counter(
        f"{TABLE_NAME}.refused", "{point}", "{point}", 1, "points the receiver would not have"
    ),
    _counter(
        f"{TABLE_NAME}.rejected", "{value}", "{value}", 1, "values that can not be meant", SOURCE
    ),
    _counter(f"{TABLE_NAME}.failures", "{look}", "{look}", 1, "looks without an answer", SOURCE),
    _counter(f"{TABLE_NAME}.postponed", "{lease}", "{lease}", 1, "leases left to the next round"),
    _time(f"{TABLE_NAME}.round.time", "time that the rounds took, added up"),
)

SERIES: Final[dict[str, Series]] = {one.name: one for one in _ALL}
"""Every series by its name."""
