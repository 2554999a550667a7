# SPDX-License-Identifier: Apache-2.0
"""Drives: what the block layer counts of a namespace, and what its drive says of itself (SMART).

Rule: a namespace is found by its identity at each look, under whatever name it has then. What the
specification calls "not reported" (a temperature of 0 K) is no reading. Counters of the block layer
begin when the namespace gets its name.

Does not judge a drive's health (`block.drives`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leased.hardware.block import verbs
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.opening import ADMIN_MS, controller_of
from leased.hardware.readings.host import numbers, text
from leased.terms import series
from leased.terms.sample import Reading

SMART_LOG = 0x02
SMART_BYTES = 512
EVERY_NAMESPACE = 0xFFFFFFFF
SECTOR_BYTES = 512
"""The unit of /sys/block/*/stat, whatever the drive's blocks are."""

_DATA_UNIT_BYTES = 512_000
_ZERO_CELSIUS_MK = 273_150
_NS_PER_H = 3_600_000_000_000
_DISK = ((series.HW_TYPE, "physical_disk"),)
_WAYS = (("read", 0, 2, 3), ("write", 4, 6, 7))


def read_stat(subject: str, name: str, root: Path = Path("/")) -> Iterator[Reading]:
    """/sys/block/<name>/stat: operations, merges, sectors and ms of reads, then of writes."""
    told = numbers(text(root / "sys/block" / name / "stat").split())
    if len(told) < 11:
        return
    for direction, operations, sectors, took_ms in _WAYS:
        way = ((series.DISK_DIRECTION, direction),)
        yield Reading("system.disk.operations", subject, told[operations], way)
        yield Reading("system.disk.io", subject, told[sectors] * SECTOR_BYTES, way)
        yield Reading("system.disk.operation_time", subject, told[took_ms] * 1_000_000, way)
    yield Reading("system.disk.io_time", subject, told[9] * 1_000_000)


def read_smart(subject: str, namespace: Namespace) -> Iterator[Reading]:
    """The drive's own log. Raises DeviceError."""
    with controller_of(namespace) as fd:
        page = verbs.read_log(
            fd,
            nsid=EVERY_NAMESPACE,
            log=SMART_LOG,
            size_bytes=SMART_BYTES,
            # The kernel's own patience: a shorter one would reset the controller of a slow drive.
            timeout_ms=ADMIN_MS,
        )
    yield from parse_smart(subject, page)


def parse_smart(subject: str, page: bytes) -> Iterator[Reading]:
    """The SMART / health log (NVMe base specification, log 02h); nothing from a short page."""
    if len(page) < SMART_BYTES:
        return
    yield Reading("leased.nvme.warnings", subject, page[0], _DISK)
    for sensor, offset in (("composite", 1), *((f"{n + 1}", 200 + 2 * n) for n in range(8))):
        kelvin = int.from_bytes(page[offset : offset + 2], "little")
        if kelvin:
            celsius = kelvin * 1000 - _ZERO_CELSIUS_MK
            where = (*_DISK, (series.SENSOR, sensor))
            yield Reading("hw.temperature", subject, celsius, where)
    yield Reading("leased.nvme.spare", subject, page[3] * 10_000, _DISK)
    yield Reading("hw.physical_disk.endurance_utilization", subject, page[5] * 10_000, _DISK)
    for direction, offset in (("read", 32), ("write", 48)):
        moved = _count(page, offset) * _DATA_UNIT_BYTES
        way = (*_DISK, (series.DISK_DIRECTION, direction))
        yield Reading("leased.nvme.data", subject, moved, way)
    yield Reading("leased.nvme.power_on.time", subject, _count(page, 128) * _NS_PER_H, _DISK)
    kinds = (("unsafe_shutdown", 144), ("media", 160))
    for kind, offset in kinds:
        what = (*_DISK, (series.ERROR_TYPE, kind))
        yield Reading("hw.errors", subject, _count(page, offset), what)


def _count(page: bytes, offset: int) -> int:
    """A counter of 16 bytes; above 2**63-1 it cannot be shown, and its series says so."""
    return int.from_bytes(page[offset : offset + 16], "little")
