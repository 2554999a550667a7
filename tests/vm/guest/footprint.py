# SPDX-License-Identifier: Apache-2.0
"""What would leak of the agent as it is installed, counted from outside.

Rule: the kernel's own lists, not the agent's word.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import drives
import host
import victims

OBJECTS = ("qp", "mr", "pd", "ctx", "cq")


def counted() -> dict[str, int]:
    """How many there are of each."""
    pids = [host.main_pid(unit) for unit in ("leased.service", "leased-reaper.service")]
    fds = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
    leaves = [place for place in host.CGROUP.iterdir() if place.is_dir()]
    pages = {f"free huge pages, node {node}": host.huge_pages_free(node) for node in range(3)}
    return {
        "agent's descriptors": fds[0],
        "reaper's descriptors": fds[1],
        "leaves": len(leaves),
        "mappings": len(drives.mappings()),
        "keys": Path("/proc/keys").read_text().count("leased"),
        "workers": len(victims.workers()),
        "RDMA objects": _rdma_objects(),
        **pages,
    }


def steady(apart_s: int = 5) -> dict[str, int]:
    """The counts once nothing comes or goes: workers that looked something up, or erased it, end by
    themselves, or are replaced."""
    last, deadline = counted(), time.monotonic() + host.HANGS_S
    while True:
        time.sleep(apart_s)
        now = counted()
        if now == last:
            return now
        assert time.monotonic() < deadline, f"never the same twice: {last}, {now}"
        last = now


def differing(before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What is more or less than it was: before and now."""
    return {n: (before[n], now) for n, now in counted().items() if now != before[n]}


def is_again(before: dict[str, int]) -> None:
    """Wait until all is as it was."""
    with contextlib.suppress(AssertionError):
        host.eventually("as many of each as before", lambda: not differing(before))
    assert differing(before) == {}


def _rdma_objects() -> int:
    """Those that programs have made, on every device."""
    if not Path("/sys/class/infiniband").exists():
        return 0
    rows = [r for kind in OBJECTS for r in json.loads(host.run("rdma", "-j", "res", "show", kind))]
    return sum("pid" in row for row in rows)
