# SPDX-License-Identifier: Apache-2.0
"""The real Clock: CLOCK_BOOTTIME for decisions, CLOCK_REALTIME as a label, and the boot id.

Rule: a wait is a timerfd on CLOCK_BOOTTIME, because trio's own clock stands still in suspend and a
lease does not. A step of the wall clock is seen by a second timerfd that the kernel cancels when
somebody sets the clock (TFD_TIMER_CANCEL_ON_SET); how far it went is the change of wall - boot.

Does not decide what a moment means.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_MS, NS_PER_S, Moment

STEP_NS_MIN = 10 * NS_PER_MS
"""NTP slews small errors; what moves the wall clock by more than this at once is a step."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_AGAIN_NS = 100 * NS_PER_MS
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_FAR_AHEAD_S = 1 << 33
"""The second timer must never fire by itself: far beyond any wall clock."""

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class BootClock:
    """`ports.Clock` on this host."""

    def __init__(self) -> None:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        self.boot_id = BootId(uuid.UUID(boot_id.strip()).bytes)

    def now(self) -> Moment:
        """Both clocks and the boot id, read together."""
        return Moment(self.boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME alone, for whoever asks with every call."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def sleep_until(self, boot_ns: int) -> None:
        """Return at or after `boot_ns`; suspend counts. Cancellable."""
        await trio.lowlevel.checkpoint()
        while (left_ns := boot_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) > 0:
            try:
                fd = _open_timer(time.CLOCK_BOOTTIME)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                # Whoever waits must not end for want of a descriptor: a little at a time.
                await trio.sleep(min(left_ns, _AGAIN_NS) / NS_PER_S)
                continue
            try:
                _arm(fd, boot_ns, _TFD_TIMER_ABSTIME)
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)

    async def steps(self, step_ns_min: int = STEP_NS_MIN) -> AsyncIterator[int]:
        """Every step of the wall clock from here on, as the ns that it jumped by."""
        fd = _open_timer(time.CLOCK_REALTIME)
        try:
            offset = _offset_ns()
            while True:
                _arm(fd, _FAR_AHEAD_S * NS_PER_S, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET)
                # Read after arming: a step between the two is in the difference already.
                seen = _offset_ns()
                stepped, offset = seen - offset, seen
                if abs(stepped) >= step_ns_min:
                    yield stepped
                await trio.lowlevel.wait_readable(fd)
                _consume(fd)
        finally:
            os.close(fd)


def _offset_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _open_timer(clock: int) -> int:
    fd = _LIBC.timerfd_create(clock, _TFD_NONBLOCK | _TFD_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


def _arm(fd: int, due_ns: int, flags: int) -> None:
    seconds, nanoseconds = divmod(max(due_ns, 1), NS_PER_S)
    spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
    if _LIBC.timerfd_settime(fd, flags, ctypes.byref(spec), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _consume(fd: int) -> None:
    try:
        os.read(fd, 8)
    except OSError as error:
        if error.errno not in (errno.ECANCELED, errno.EAGAIN):
            raise
