# SPDX-License-Identifier: Apache-2.0
"""Passes: one look at every process of the host, which none of them holds up.

A thread asks one after the other. Where one hangs in an exec, whoever asks it waits for the end of
that; then it is told by what does not wait (`execs`), and another thread goes on from there. The
one that waits ends with the exec, or with this worker.

Rule: who is not seen to the end is not passed over: the pass fails, and names it. Any user may have
a process that takes long: who took the longest when there was no time left is named.

Does not know what is looked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from leased.hardware.execs import is_bare
from leased.hardware.instant import now_ns
from leased.hardware.procfs import read_or_empty, start_time
from leased.terms.errors import DeviceError

PATIENCE_NS = 1_000_000_000
"""An exec takes a millisecond; on a host that is short of processor, some more."""

_GLANCE_S = 0.02
_CAP_SYS_PTRACE = 1 << 19

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Way(Protocol[T_co]):
    """How a process is looked at."""

    def look(self, pid: int) -> T_co:
        """What it has, in its own time. Raises DeviceError."""

    def glimpse(self, pid: int) -> T_co:
        """The same of a bare one (`execs`), at once. Raises DeviceError where that is in doubt."""


def everybody(verb: str) -> list[int]:
    """The processes of the host. Raises DeviceError(EPERM) where the kernel does not let us see
    what one has, or (without CAP_SYS_PTRACE, where /proc hides others) who there is: to find nobody
    there proves nothing."""
    status = read_or_empty("/proc/self/status")
    capable = int(status.partition(b"CapEff:")[2].split()[0], 16)
    if not capable & _CAP_SYS_PTRACE:
        raise DeviceError(verb, errno.EPERM, "without CAP_SYS_PTRACE who has it is not seen")
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def ask_each(
    verb: str, way: Way[T], pids: Iterable[int], *, exempt: Mapping[int, int], deadline_ns: int
) -> dict[int, T]:
    """What each of them has, but for the `exempt` (pids to start times).

    Raises DeviceError: ETIMEDOUT when not all were asked by `deadline_ns` (CLOCK_BOOTTIME).
    """
    told: dict[int, T] = {}
    rest = deque(pids)
    while True:
        turn = _Turn(verb, way, rest, exempt, deadline_ns, told)
        if turn.see_through():
            return told


class _Turn(Generic[T]):
    """One thread, until it has asked all that are left, or waits for one."""

    def __init__(
        self,
        verb: str,
        way: Way[T],
        rest: deque[int],
        exempt: Mapping[int, int],
        deadline_ns: int,
        told: dict[int, T],
    ) -> None:
        self._verb, self._way = verb, way
        self._rest, self._told = rest, told
        self._exempt = exempt
        self._deadline_ns = deadline_ns
        self._lock = threading.Lock()
        self._left = False
        self._over = threading.Event()
        self._failed: DeviceError | None = None
        self._whole = False
        self._at = (0, now_ns())
        self._longest = (0, 0)

    def see_through(self) -> bool:
        """Whether all have been asked; not where this thread waits, and another is to go on."""
        try:
            threading.Thread(target=self._ask, daemon=True).start()
        except RuntimeError as error:
            raise DeviceError(self._verb, errno.EAGAIN, "there is no thread to be had") from error
        before = self._at
        while not self._over.wait(_GLANCE_S):
            at = self._at
            if at == before and self._take_over(at):
                return False
            if now_ns() > self._deadline_ns and self._leave(at):
                raise self._late(at)
            before = at
        if self._failed is not None:
            raise self._failed
        if not self._whole:  # it has said why
            raise DeviceError(self._verb, errno.EIO, "the look ended before its end")
        return True

    # -- by whoever waits --------------------------------------------------------------------------

    def _take_over(self, at: tuple[int, int]) -> bool:
        """Whether it is told of a process without the thread, which waits there since then."""
        pid, since_ns = at
        if not is_bare(pid):
            return False
        try:
            found = self._way.glimpse(pid)
        except DeviceError:
            if now_ns() - since_ns < PATIENCE_NS or not self._leave(at):
                return False
            raise
        if not is_bare(pid) or not self._leave(at):
            return False
        self._told[pid] = found
        return True

    def _leave(self, at: tuple[int, int]) -> bool:
        """Leave the thread to itself, if it is there still."""
        with self._lock:
            self._left = self._at == at and not self._over.is_set()
            return self._left

    # -- by the thread -----------------------------------------------------------------------------

    def _ask(self) -> None:
        try:
            while self._rest and self._ask_next():
                pass
            self._whole = not self._rest
        except DeviceError as error:
            self._failed = error
        finally:
            self._over.set()

    def _ask_next(self) -> bool:
        with self._lock:
            if self._left:
                return False
            pid = self._rest.popleft()
            before, at_ns = self._at, now_ns()
            self._longest = max(self._longest, (at_ns - before[1], before[0]))
            self._at = (pid, at_ns)
        if at_ns > self._deadline_ns:
            raise self._late(self._at)
        if pid in self._exempt and self._exempt[pid] == start_time(pid):
            return True
        found = self._has(pid)
        with self._lock:
            if not self._left:
                self._told[pid] = found
            return not self._left

    def _has(self, pid: int) -> T:
        if is_bare(pid):
            with contextlib.suppress(DeviceError):
                found = self._way.glimpse(pid)
                if is_bare(pid):  # still: what it has open was told before what it maps, as of all
                    return found
        demand_sight(self._verb, pid)
        return self._way.look(pid)

    def _late(self, at: tuple[int, int]) -> DeviceError:
        spent_ns, pid = max(self._longest, (now_ns() - at[1], at[0]))
        detail = "not everybody was looked at in time"
        with contextlib.suppress(OSError):
            if pid:
                uid = os.stat(f"/proc/{pid}").st_uid
                detail += f": process {pid} of uid {uid} alone took {spent_ns // 1_000_000} ms"
        return DeviceError(self._verb, errno.ETIMEDOUT, detail)


def demand_sight(verb: str, pid: int) -> None:
    """Raises DeviceError(EPERM) where a process is there and may not be looked at. Of one that is
    gone the kernel says EACCES as well; the first is the host itself, and some sandboxes hide it.
    """
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError as error:
        if pid != 1 and os.path.exists(f"/proc/{pid}"):
            detail = f"what process {pid} has may not be looked at"
            raise DeviceError(verb, errno.EPERM, detail) from error
    except OSError:
        pass  # gone, or a thread of the kernel's
