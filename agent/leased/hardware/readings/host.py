# SPDX-License-Identifier: Apache-2.0
"""The host's own counters: processors, memory by node, pools of huge pages, pressure.

Rule: a file that is not there, or does not say what it should, gives no reading; nothing is
guessed. Everything is read below one root.

Does not look at leases (`leaf`) or devices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from leased.hardware.nodes import NODES
from leased.hardware.sysfs import list_names
from leased.terms import series
from leased.terms.sample import Reading

NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
MODES = ("user", "nice", "system", "idle", "iowait", "interrupt", "softirq", "steal")
"""The columns of /proc/stat by OpenTelemetry's names; guest time is within user time."""

_IDLE = (3, 4)
_NODE = re.compile(r"node(\d+)")
_POOL = re.compile(r"hugepages-(\d+)kB")
_NUMA = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")


def read_host(cores: tuple[int, ...], root: Path = Path("/")) -> list[Reading]:
    """Everything about the host; `cores` are those that are told one by one."""
    return [
        *_processors(cores, root),
        *_nodes(root),
        *pressure(root / "proc/pressure", "host"),
    ]


def _processors(cores: tuple[int, ...], root: Path) -> Iterator[Reading]:
    wanted = {f"cpu{core}": core for core in cores}
    for line in text(root / "proc/stat").splitlines():
        name, *words = line.split()
        ticks = numbers(words[: len(MODES)])
        if not name.startswith("cpu") or len(ticks) < len(MODES):
            continue
        if name == "cpu":
            for mode, count in zip(MODES, ticks, strict=True):
                attributes = ((series.CPU_MODE, mode),)
                yield Reading("system.cpu.time", "cpu", count * NS_PER_TICK, attributes)
        elif name in wanted:
            busy = sum(count for at, count in enumerate(ticks) if at not in _IDLE)
            subject = f"cpu:{wanted[name]}"
            yield Reading("leased.cpu.busy.time", subject, busy * NS_PER_TICK)


def _nodes(root: Path) -> Iterator[Reading]:
    for name in list_names(root / NODES):
        if not _NODE.fullmatch(name):
            continue
        directory, subject = root / NODES / name, f"mem:{name}"
        told = _meminfo(text(directory / "meminfo"))
        for state, key in (("free", "MemFree"), ("used", "MemUsed"), ("cached", "FilePages")):
            if key in told:
                attributes = ((series.MEMORY_STATE, state),)
                yield Reading("system.memory.usage", subject, told[key], attributes)
        if "MemTotal" in told:
            yield Reading("system.memory.limit", subject, told["MemTotal"])
        counted = pairs(text(directory / "numastat"))
        for event in _NUMA:
            if event in counted:
                attributes = ((series.NUMA_EVENT, event),)
                yield Reading("leased.memory.numa.allocations", subject, counted[event], attributes)
        yield from _pools(directory / "hugepages", subject)


def _pools(directory: Path, subject: str) -> Iterator[Reading]:
    for name in list_names(directory):
        match = _POOL.fullmatch(name)
        total = numbers([text(directory / name / "nr_hugepages").strip()])
        free = numbers([text(directory / name / "free_hugepages").strip()])
        if match is None or not total or not free or not total[0]:
            continue
        page_bytes = int(match[1]) << 10
        for state, count in (("free", free[0]), ("used", total[0] - free[0])):
            attributes = ((series.HUGEPAGES_STATE, state),)
            yield Reading(
                "system.memory.linux.hugepages.usage",
                f"{subject}:{page_bytes}",
                count * page_bytes,
                attributes,
            )


def pressure(directory: Path, subject: str, pattern: str = "{}") -> Iterator[Reading]:
    """Pressure (PSI) of the host, or of a cgroup with `pattern` "{}.pressure"."""
    for resource in ("cpu", "memory", "io"):
        for line in text(directory / pattern.format(resource)).splitlines():
            kind, _, rest = line.partition(" ")
            total = numbers([rest.rpartition("total=")[2]])
            if kind in ("some", "full") and total:
                keys = zip(series.PRESSURE, (resource, kind), strict=True)
                yield Reading("leased.pressure.time", subject, total[0] * 1000, tuple(keys))


def text(path: Path) -> str:
    """The file's text; "" where there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def pairs(told: str) -> dict[str, int]:
    """Lines of "name number"."""
    found: dict[str, int] = {}
    for line in told.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            found[name] = int(value)
    return found


def numbers(words: list[str]) -> list[int]:
    """The words as numbers; [] where one of them is none."""
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []


def _meminfo(told: str) -> dict[str, int]:
    """Bytes by name, of lines such as "Node 0 MemFree:  1024 kB"."""
    found: dict[str, int] = {}
    for line in told.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == "Node" and words[3].isdecimal() and words[4] == "kB":
            found[words[2].rstrip(":")] = int(words[3]) << 10
    return found
