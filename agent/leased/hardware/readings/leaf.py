# SPDX-License-Identifier: Apache-2.0
"""A lease's leaf: what its cgroup counts.

Rule: what a controller that is not there would have counted is missing. Reading a leaf that is
being removed gives what was still there.

Does not say how much of the lease that is (`service.telemetry.seen`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leased.hardware.readings.host import pairs, pressure, text
from leased.terms import series
from leased.terms.sample import Reading

_MODES = (("user", "user_usec"), ("system", "system_usec"))
_EVENTS = ("high", "max", "oom", "oom_kill")
_DIRECTIONS = (("read", "rbytes"), ("write", "wbytes"))


def read_leaf(subject: str, path: Path) -> Iterator[Reading]:
    """Everything that one leaf counts."""
    spent = pairs(text(path / "cpu.stat"))
    for mode, key in _MODES:
        if key in spent:
            attributes = ((series.CPU_MODE, mode),)
            yield Reading("leased.lease.cpu.time", subject, spent[key] * 1000, attributes)
    if "throttled_usec" in spent:
        yield Reading("leased.lease.cpu.throttled.time", subject, spent["throttled_usec"] * 1000)
    for name, file in (("usage", "memory.current"), ("limit", "memory.max")):
        told = text(path / file).strip()
        if told.isdecimal():  # "max" is no limit, and no number
            yield Reading(f"leased.lease.memory.{name}", subject, int(told))
    met = pairs(text(path / "memory.events"))
    for event in _EVENTS:
        if event in met:
            attributes = ((series.EVENT, event),)
            yield Reading("leased.lease.memory.events", subject, met[event], attributes)
    inside = text(path / "pids.current").strip()
    if inside.isdecimal():
        yield Reading("leased.lease.processes", subject, int(inside))
    yield from _moved(subject, text(path / "io.stat"))
    yield from pressure(path, subject, "{}.pressure")


def _moved(subject: str, told: str) -> Iterator[Reading]:
    """Bytes over all devices: lines of "major:minor rbytes=1 wbytes=2 ..."."""
    if not told:
        return
    words = [word.partition("=") for line in told.splitlines() for word in line.split()[1:]]
    for direction, key in _DIRECTIONS:
        count = sum(int(value) for name, _, value in words if name == key and value.isdecimal())
        yield Reading("leased.lease.io", subject, count, ((series.DISK_DIRECTION, direction),))
