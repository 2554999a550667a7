# SPDX-License-Identifier: Apache-2.0
"""Servers: who serves a file system of FUSE to processes that were killed, and does not answer.

A process that waits for such a server does not die until it is answered, or the connection is
aborted; and any user may serve one to processes of its own, mounted where nobody else sees it. So
whoever does would say when its lease ends.

Rule: a connection is aborted only if a killed thread sleeps uninterruptibly and somebody waits for
the connection, which belongs to the thread's uid, or is mounted where the thread sees it and the
host does not. What root serves is the host's, as a drive is, and what the host sees of another user
is that user's: a tenant that keeps itself waiting must not have it ended. How much is read is
bounded: a tenant may mount a hundred thousand file systems.

Does not kill: the reaper has.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from leased.hardware.leaves import INSIDE
from leased.hardware.occupants import listed, read_or_empty

CONNECTIONS = Path("/sys/fs/fuse/connections")
BUDGET_NS = 1_000_000_000
_MOUNTS_BYTES_MAX = 16 << 20
_CHUNK_BYTES = 64 << 10
_SIGKILL = 1 << 8
_MOUNTED = re.compile(rb"^\d+ \d+ 0:(\d+) .* - fuse", re.MULTILINE)


class Loosen(msgspec.Struct, frozen=True, array_like=True):
    """Whose killed processes are to be let go of: those in the leaf, and the holder."""

    leaf: str
    pid: int


class Loosened(msgspec.Struct, frozen=True, array_like=True):
    """Which connections were aborted: (number, uid that it belongs to, thread that waited)."""

    connections: tuple[tuple[int, int, int], ...]


def loosen(asked: Loosen, fds: Sequence[int]) -> Loosened:
    """Abort what keeps them. Raises DeviceError."""
    del fds
    end_ns = time.monotonic_ns() + BUDGET_NS
    aborted: list[tuple[int, int, int]] = []
    known: set[str] = set()
    hosts = frozenset(one for pid in ("self", "1") for one in _mounted(pid, known, end_ns))
    for tid in _threads(asked):
        if time.monotonic_ns() > end_ns:
            break
        uids = _uids_of_the_stuck(tid)
        if not uids:
            continue
        theirs = frozenset(_mounted(str(tid), known, end_ns)) - hosts
        for number, uid in _waited_for():
            if is_kept_by(number, uid, uids, theirs) and _abort(number):
                aborted.append((number, uid, tid))
    return Loosened(tuple(aborted))


def is_kept_by(number: int, uid: int, uids: frozenset[int], theirs: frozenset[int]) -> bool:
    """Whether a connection of this uid is to blame for a thread with those uids, which sees
    `theirs` mounted where the host sees nothing."""
    return uid != 0 and (uid in uids or number in theirs)


def _threads(asked: Loosen) -> Iterable[int]:
    if asked.pid > 0:
        yield from map(int, listed(f"/proc/{asked.pid}/task"))
    if asked.leaf:
        for room in (asked.leaf, f"{asked.leaf}/{INSIDE}"):
            yield from map(int, read_or_empty(f"{room}/cgroup.threads").split())


def _uids_of_the_stuck(tid: int) -> frozenset[int]:
    """The uids of a thread that was killed and sleeps on; none of any other."""
    lines = read_or_empty(f"/proc/{tid}/status").decode("utf-8", "replace").splitlines()
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    pending = [int(said[name][0], 16) for name in ("SigPnd", "ShdPnd") if said.get(name)]
    if said.get("State", [""])[0] != "D" or not any(mask & _SIGKILL for mask in pending):
        return frozenset()
    return frozenset(map(int, said.get("Uid", ())))


def _mounted(tid: str, known: set[str], end_ns: int) -> Iterator[int]:
    """Which connections are mounted where the thread is, as far as there is time; once for each
    namespace of mounts."""
    try:
        namespace = os.readlink(f"/proc/{tid}/ns/mnt")
        if namespace in known:
            return
        known.add(namespace)
        with open(f"/proc/{tid}/mountinfo", "rb", buffering=0) as file:
            text = b""
            for _ in range(_MOUNTS_BYTES_MAX // _CHUNK_BYTES):
                chunk = file.read(_CHUNK_BYTES)
                whole, _, text = (text + chunk).rpartition(b"\n")
                yield from map(int, _MOUNTED.findall(whole))
                if not chunk or time.monotonic_ns() > end_ns:
                    return
    except OSError:
        return  # it is gone


def _waited_for() -> Iterator[tuple[int, int]]:
    """(number, uid) of each connection that somebody waits for."""
    for name in listed(str(CONNECTIONS)):
        with contextlib.suppress(OSError, ValueError):
            uid = os.stat(CONNECTIONS / name).st_uid
            if int((CONNECTIONS / name / "waiting").read_bytes()) > 0:
                yield int(name), uid


def _abort(number: int) -> bool:
    try:
        with open(CONNECTIONS / str(number) / "abort", "wb", buffering=0) as file:
            file.write(b"1")
    except OSError:
        return False  # unmounted meanwhile
    return True
