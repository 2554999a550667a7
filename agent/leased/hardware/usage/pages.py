# SPDX-License-Identifier: Apache-2.0
"""Pages: which processes have hugepages of a pool, whoever gave them to them.

Rule: the kernel's own count per process (`HugetlbPages`) says whom to look at; only then the
mappings are read, node by node. Reading them waits for the process's memory lock, which a process
that hangs may hold: so this runs in a worker.

Does not see pages that are mapped by nobody: the pools' counters do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from leased.hardware.calls import Pool

_HELD = re.compile(rb"^HugetlbPages:\s+([0-9]+) kB", re.MULTILINE)
_ON_NODE = re.compile(r"^N([0-9]+)=[1-9][0-9]*$")
_PAGE_KIB = re.compile(r"^kernelpagesize_kB=([0-9]+)$")


def users_of(pools: Iterable[Pool]) -> Iterator[tuple[int, Pool]]:
    """(pid, pool) of every process that has pages of one of the pools mapped."""
    wanted = tuple(dict.fromkeys(pools))
    for entry in os.listdir("/proc") if wanted else ():
        if not entry.isdecimal():
            continue
        held = _HELD.search(_read(f"/proc/{entry}/status"))
        if held is None or int(held[1]) == 0:
            continue
        mapped = _read(f"/proc/{entry}/numa_maps").decode("ascii", "replace")
        seen = _pools_in(mapped)
        yield from ((int(entry), pool) for pool in wanted if pool in seen)


def _pools_in(numa_maps: str) -> frozenset[Pool]:
    """The pools that the mappings of one process have pages of. Mappings of normal pages are
    passed over."""
    found: set[Pool] = set()
    for line in numa_maps.splitlines():
        words = line.split()
        if "huge" not in words:
            continue
        sizes = [int(size[1]) << 10 for size in map(_PAGE_KIB.match, words) if size]
        nodes = [int(node[1]) for node in map(_ON_NODE.match, words) if node]
        found.update(Pool(node, size) for node in nodes for size in sizes)
    return frozenset(found)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""  # it has exited, or is a thread of the kernel
