# SPDX-License-Identifier: Apache-2.0
"""What an agent and its leases take of a host, counted: for "nothing is left" as a number.

Rule: counted from outside, in /proc, /sys and the cgroup tree, never asked of the agent. What
changes by itself while nothing is held (a worker that is replaced) is counted by its kind, not by
its name. `settled` names what is more than before.

A kind of hardware with objects of its own adds a counter: a function to how many there are.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import re
import select
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

Counts = collections.Counter[str]
_NUMBER = re.compile(r"[0-9a-f]{8,}|\d+")
_LEASED = re.compile(r"/memfd:leased-([0-9a-f]{16})")
_POLL_S = 0.05


class Footprint:
    """Counts of the processes and the cgroup of one agent."""

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        cgroup: Path,
        granted: Callable[[], set[str]],
        more: Mapping[str, Callable[[], int]] | None = None,
    ) -> None:
        """`pids` are the agent's and the reaper's; `granted` names the leases that it ever made:
        another agent on the host has memory of its own."""
        self._pids = pids
        self._cgroup = cgroup
        self._granted = granted
        self._more = dict(more or {})

    def count(self) -> Counts:
        """How much there is now."""
        found: Counts = collections.Counter()
        for pid in self._pids():
            found.update(_descriptors(pid))
            found["child processes"] += len(_children(pid))
        found["leaves"] = sum(1 for entry in os.scandir(self._cgroup) if entry.is_dir())
        found["device mappings"] = len(list(Path("/sys/block").glob("dm-*")))
        open_memfds = _memfds()
        if open_memfds:
            ours = self._granted()
            found["leased memfds on the host"] = sum(name in ours for name in open_memfds.values())
        for name, counter in self._more.items():
            found[name] = counter()
        return +found

    def settled(self, before: Counts, timeout_s: float = 15.0) -> dict[str, int]:
        """What is more than `before` when it has had the time to go; {} if nothing."""
        until = time.monotonic() + timeout_s
        while True:
            more = {name: n - before[name] for name, n in self.count().items() if n > before[name]}
            if not more or time.monotonic() > until:
                return more
            select.select([], [], [], _POLL_S)


def kept(root: object) -> Counts:
    """How many things an object of ours and those below it keep, by whose they are: what stays in a
    table after its lease is left, too."""
    found: Counts = collections.Counter()
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [(type(root).__name__, root)]
    while todo:
        whose, one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict | set | frozenset | list | tuple):
            found[whose] += len(one)
            inside = [*one, *one.values()] if isinstance(one, dict) else [*one]
            todo += [(whose, each) for each in inside]
        elif type(one).__module__.startswith("leased.") and not isinstance(
            one, msgspec.Struct | enum.Enum
        ):
            name = type(one).__name__
            todo += [
                (f"{name}.{attr}", value) for attr, value in getattr(one, "__dict__", {}).items()
            ]
    return found


def _descriptors(pid: int) -> Counts:
    """The open descriptors of a process by what they lead to, without numbers."""
    found: Counts = collections.Counter()
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{number}")
                found[f"descriptor to {_NUMBER.sub('#', target)}"] += 1
    return found


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += task.read_text().split()
    return found


def _memfds() -> dict[int, str]:
    """Leases' memory that any process of the host still has open: inode, and the first half of the
    lease's id."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{entry}/fd"):
                    path = f"/proc/{entry}/fd/{number}"
                    with contextlib.suppress(OSError):
                        named = _LEASED.match(os.readlink(path))
                        if named is not None:
                            found[os.stat(path).st_ino] = named[1]
    return found
