# SPDX-License-Identifier: Apache-2.0
"""Servers: who serves a file system of FUSE to processes that were killed, and does not answer;
and who else keeps them (`keepers`).

A process that waits for such a server does not die until it is answered, or the connection is
aborted; and any user may serve one to processes of its own, mounted where nobody else sees it. So
whoever does would say when its lease ends.

Rule: a connection is aborted only if a killed thread sleeps on and somebody waits for the
connection, which belongs to the thread's uid, or is mounted where the thread sees it and the
host does not. What root serves is the host's, as a drive is, and what the host sees of another user
is that user's: a tenant that keeps itself waiting must not have it ended. One look serves all who
do not die. How long it takes is bounded, and divided among their tenants: one of them may mount a
hundred thousand file systems, or have a thousand leases.

Does not kill: the reaper has.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path

import msgspec

from leased.hardware.adoption.keepers import end_keepers, waits_for_pipe
from leased.hardware.execs import is_bare
from leased.hardware.leaves import INSIDE
from leased.hardware.procfs import listed, read_or_empty
from leased.terms.errors import DeviceError

CONNECTIONS = Path("/sys/fs/fuse/connections")
BUDGET_NS = 1_000_000_000
TOLD_MAX = 16
"""Connections of one tenant that are named: it may have any number."""

PATIENCE = 8
"""One server after the other that does not answer: whoever has more of them has them for that, and
all that are his are aborted, also those that nobody waits for yet."""

_AGAIN_S = 0.005
_MOUNTS_BYTES_MAX = 16 << 20
_FIRST_BYTES = 4096
_CHUNK_BYTES = 64 << 10
_SIGKILL = 1 << 8
_PF_EXITING = 0x4
_MODULE = re.compile(rb"\[(\w+)\]$", re.MULTILINE)
_OF_SERVERS = frozenset({b"fuse", b"overlay"})
"""What of the kernel a process of any user may have between itself and a server of its own."""

_MOUNTED = re.compile(rb"^\d+ \d+ 0:(\d+) .* - fuse", re.MULTILINE)


class Killed(msgspec.Struct, frozen=True, array_like=True):
    """Of one lease: those in the leaf, and the holder. `at` is its place among all asked for."""

    at: int
    leaf: str
    pid: int


class Loosen(msgspec.Struct, frozen=True, array_like=True):
    """Whose killed processes are to be let go of, by tenants; `root` is above all leaves."""

    root: str
    tenants: tuple[tuple[Killed, ...], ...]


class Aborted(msgspec.Struct, frozen=True, array_like=True):
    """A connection, the uid that it belonged to, a thread that waited, the place of its lease."""

    number: int
    uid: int
    tid: int
    at: int


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """Who was killed for the lock of a pipe, its uid, the place of the lease that waited."""

    pid: int
    uid: int
    at: int


class Loosened(msgspec.Struct, frozen=True, array_like=True):
    """Which connections were aborted, and of how many more that is not said."""

    connections: tuple[Aborted, ...]
    untold: int = 0
    ended: tuple[Ended, ...] = ()


class Stuck(msgspec.Struct, frozen=True):
    """A thread that was killed and sleeps on."""

    tid: int
    at: int
    uids: frozenset[int]


def loosen(asked: Loosen, fds: Sequence[int], budget_ns: int = BUDGET_NS) -> Loosened:
    """Abort what keeps them. Raises DeviceError."""
    del fds
    end_ns = time.monotonic_ns() + budget_ns
    known: set[bytes] = set()
    hosts = frozenset(chain.from_iterable(_mounted(pid, known, end_ns) for pid in ("self", "1")))
    told: list[Aborted] = []
    ended: list[Ended] = []
    untold = 0
    for before, tenant in enumerate(asked.tenants):
        now_ns = time.monotonic_ns()
        until_ns = now_ns + max(0, end_ns - now_ns) // (len(asked.tenants) - before)
        aborted = list(_let_go_on(asked.root, tenant, hosts, until_ns))
        told += aborted[:TOLD_MAX]
        untold += len(aborted[TOLD_MAX:])
        ended += list(_end_keepers(asked.root, tenant, until_ns))[:TOLD_MAX]
    return Loosened(tuple(told), untold, tuple(ended))


def _end_keepers(root: str, tenant: Sequence[Killed], end_ns: int) -> Iterator[Ended]:
    """Of one tenant, who has the lock of a pipe that its killed wait for."""
    stuck = [one for one in _find_stuck(root, tenant, end_ns) if waits_for_pipe(one.tid)]
    if stuck:
        uids = frozenset(chain.from_iterable(one.uids for one in stuck))
        for pid, uid in end_keepers(uids, end_ns):
            yield Ended(pid, uid, next((one.at for one in stuck if uid in one.uids), stuck[0].at))


def _let_go_on(
    root: str, tenant: Sequence[Killed], hosts: Collection[int], end_ns: int
) -> Iterator[Aborted]:
    """Of one tenant, as long as that helps: who is let go of by one server may have a file of the
    next, which is closed when it ends."""
    for turn in count():
        aborted = tuple(_let_go(root, tenant, hosts, end_ns, patient=turn < PATIENCE))
        yield from aborted
        if not aborted:
            return
        time.sleep(_AGAIN_S)


def _let_go(
    root: str, tenant: Iterable[Killed], hosts: Collection[int], end_ns: int, *, patient: bool
) -> Iterator[Aborted]:
    """What is mounted where the stuck threads are is looked at first, for half of the time; then
    whatever else has their uids."""
    now_ns = time.monotonic_ns()
    stuck = tuple(_find_stuck(root, tenant, end_ns))
    if not stuck:
        return
    uids = frozenset(chain.from_iterable(one.uids for one in stuck))
    seen_by: dict[int, Stuck] = {}
    known: set[bytes] = set()
    for one in stuck:
        for number in _mounted(str(one.tid), known, (now_ns + end_ns) // 2):
            if number not in hosts:
                seen_by.setdefault(number, one)
    others = map(int, filter(str.isdigit, listed(str(CONNECTIONS))))
    for number in chain(seen_by, (one for one in others if one not in seen_by)):
        if time.monotonic_ns() > end_ns:
            return
        uid = _owner(number)
        if uid is not None and is_kept_by(number, uid, uids, seen_by.keys()):
            by_uid = next((one for one in stuck if uid in one.uids), stuck[0])
            waits = seen_by.get(number, by_uid)
            if (not patient or _is_waited_for(number)) and _abort(number):
                yield Aborted(number, uid, waits.tid, waits.at)


def is_kept_by(
    number: int, uid: int, uids: Collection[int], theirs: Collection[int]
) -> bool:
    """Whether a connection of this uid is to blame for a thread with those uids, which sees
    `theirs` mounted where the host sees nothing."""
    return uid != 0 and (uid in uids or number in theirs)


def _find_stuck(root: str, tenant: Iterable[Killed], end_ns: int) -> Iterator[Stuck]:
    for one in tenant:
        with contextlib.suppress(DeviceError):  # of one that cannot be looked at, not of all
            for tid in _threads(root, one):
                if time.monotonic_ns() > end_ns:
                    return
                uids = _uids_of_the_stuck(tid)
                if uids:
                    yield Stuck(tid, one.at, uids)


def _threads(root: str, killed: Killed) -> Iterator[int]:
    if killed.pid > 0:
        yield from map(int, listed(f"/proc/{killed.pid}/task"))
    if killed.leaf:
        for room in (killed.leaf, f"{killed.leaf}/{INSIDE}"):
            yield from map(int, read_or_empty(f"{root}/{room}/cgroup.threads").split())


def _uids_of_the_stuck(tid: int) -> frozenset[int]:
    """The uids of a thread that was killed and sleeps on, before its end or, where nothing is
    pending any more, within it; none of any other."""
    lines = read_or_empty(f"/proc/{tid}/status").decode("utf-8", "replace").splitlines()
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    pending = [int(said[name][0], 16) for name in ("SigPnd", "ShdPnd") if said.get(name)]
    state = said.get("State", [""])[0]
    stays = state == "D" and any(mask & _SIGKILL for mask in pending)
    if not stays and not (state in ("D", "S") and _ends(tid)):
        return frozenset()
    return frozenset(map(int, said.get("Uid", ())))


def _ends(tid: int) -> bool:
    """Whether it ends, and no driver keeps it there. By what name the kernel waits for a server is
    not asked: for a file that it closes, a page that is written or read, I/O that the process had
    begun, or whoever does one of these beside it."""
    if is_bare(tid):
        return False  # it may hang in an exec, and whoever asks would wait with it
    fields = read_or_empty(f"/proc/{tid}/stat").rpartition(b")")[2].split()
    exiting = len(fields) > 6 and int(fields[6]) & _PF_EXITING != 0
    return exiting and not is_in_driver(read_or_empty(f"/proc/{tid}/stack"))


def is_in_driver(stack: bytes) -> bool:
    """Whether a thread that sleeps like this does in what the kernel has loaded for a device: one
    that is slow to close has nothing to do with what else its user has mounted."""
    return not _OF_SERVERS.issuperset(_MODULE.findall(stack))


def _mounted(tid: str, known: set[bytes], end_ns: int) -> Iterator[int]:
    """Which connections are mounted where the thread is, as far as there is time; once for each
    namespace of mounts, for a mount is of one. The link that names it waits for whoever hangs in an
    exec (`execs`)."""
    try:
        with open(f"/proc/{tid}/mountinfo", "rb", buffering=0) as file:
            text = file.read(_FIRST_BYTES)
            first = text.partition(b" ")[0]
            if first in known:
                return
            known.add(first)
            for _ in range(_MOUNTS_BYTES_MAX // _CHUNK_BYTES):
                chunk = file.read(_CHUNK_BYTES)
                whole, _, text = (text + chunk).rpartition(b"\n")
                yield from map(int, _MOUNTED.findall(whole))
                if not chunk or time.monotonic_ns() > end_ns:
                    return
    except OSError:
        return  # it is gone


def _owner(number: int) -> int | None:
    try:
        return os.stat(CONNECTIONS / str(number)).st_uid
    except OSError:
        return None  # unmounted meanwhile


def _is_waited_for(number: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return int((CONNECTIONS / str(number) / "waiting").read_bytes()) > 0
    return False


def _abort(number: int) -> bool:
    try:
        with open(CONNECTIONS / str(number) / "abort", "wb", buffering=0) as file:
            file.write(b"1")
    except OSError:
        return False  # unmounted meanwhile
    return True
