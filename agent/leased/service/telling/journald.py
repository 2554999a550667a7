# SPDX-License-Identifier: Apache-2.0
"""The journal's native protocol: datagrams of fields to journald; a file descriptor where an entry
is too large for one.

Rule: nothing waits for the journal. What comes in is bounded by a rate and a backlog, what cannot
be written at once is dropped, and what was dropped is counted and said. Only what is CRIT, and what
tells of the log's state, its end included, is kept until the journal takes it, and what came after
it waits as long. Where there is no journal, the sentences go to standard error under the same
terms; at the end of the process, so does what is kept and was not taken.

Does not say what an event means (`narration`), and is never the record: that is the chain.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from leased.hardware.descriptors import passing
from leased.service.batch import Told
from leased.service.config import JournaldCopy
from leased.service.telling.narration import (
    CRITICAL,
    NOTICE,
    Fields,
    narrate,
    narrate_drops,
    narrate_report,
)
from leased.terms.event import (
    CheckpointSigned,
    Event,
    InventoryChanged,
    Metered,
    NodeStarted,
    PeriodBegan,
    PolicyChanged,
    Pruned,
    Renewed,
    SegmentEnd,
)
from leased.terms.moment import NS_PER_S

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "leased"
BACKLOG_MAX: Final = 8_192
"""Entries that may wait to be written: a burst at its largest, and the agent's own lines."""

KEPT_MAX: Final = 64
"""Of them, so many that are kept push others out."""

AT_ONCE_MAX: Final = 32
"""Entries written between two checkpoints: about half a millisecond."""

STDERR_BYTES_MAX: Final = 4096
"""PIPE_BUF: a pipe that is writable takes this much without blocking."""

AGAIN_S: Final = 0.1
END_S: Final = 1.0
"""How soon a journal that takes nothing is asked again, and how long it is at the end."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""Sealed against everything, or journald would have to copy it before it could trust it."""

_CRITICAL: Final = str(CRITICAL)
_SILENT: Final = (CheckpointSigned, SegmentEnd)
"""Housekeeping of the chain: in it, and nowhere else."""


_ANEW = (NodeStarted, InventoryChanged, PolicyChanged, PeriodBegan, Metered)


class Journald:
    """Takes batches as they are committed; `run` writes them."""

    def __init__(
        self,
        copy: JournaldCopy,
        *,
        monotonic_ns: Callable[[], int],
        address: str = SOCKET,
        stderr_fd: int = 2,
    ) -> None:
        self._copy = copy
        self._monotonic_ns = monotonic_ns
        self._address = address
        self._stderr_fd = stderr_fd
        self._waiting: deque[Fields] = deque()
        self._arrived = trio.Event()
        self._tokens = copy.burst_events_max
        self._filled_ns = monotonic_ns()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self.dropped = 0

    def tell(self, told: Told) -> None:
        """A batch was committed: queue the copy of its events, as many as the rate allows."""
        if not self._copy.copied:
            return
        self._earn_tokens()
        for index, event in enumerate(told.events):
            if self._is_silent(event) or _is_said_anew(told.events, index):
                continue
            if not self._tokens:
                self.dropped += 1
                continue
            self._tokens -= 1
            self._queue(narrate(event, told.sequences[index], told.hashes[index]))

    def tell_report(self, lease_id: bytes, step: str, report: bytes, evidence: bytes) -> None:
        """A teardown step reported: queue the whole report, whose hash is sealed, as the rate
        allows."""
        if not self._copy.copied:
            return
        self._earn_tokens()
        if not self._tokens:
            self.dropped += 1
            return
        self._tokens -= 1
        self._queue(narrate_report(lease_id, step, report, evidence))

    def say(self, message: str, *, priority: int = NOTICE, **fields: str) -> None:
        """One of the agent's own lines."""
        self._queue({"MESSAGE": message, "PRIORITY": str(priority), **fields})

    def add(self, entry: Fields) -> None:
        """An entry made by `narration`, outside the rate of events."""
        self._queue(entry)

    async def run(self) -> None:
        """Write what waits until cancelled; then write what is left."""
        try:
            while True:
                if not self._waiting and not self.dropped:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                if not self.flush(AT_ONCE_MAX):
                    await trio.sleep(AGAIN_S)
                if self.dropped and not self._waiting:
                    # One line for a whole storm: leave it a second to end.
                    await trio.sleep(1)
                    self._say_drops()
                await trio.lowlevel.checkpoint()
        finally:
            with trio.move_on_after(END_S, shield=True):
                while not self.flush(BACKLOG_MAX):
                    await trio.sleep(AGAIN_S)
            self._say_drops()

    def flush(self, most: int) -> bool:
        """Write up to `most` entries now, without waiting for anyone. False: one that must not be
        dropped was not taken, and is the next."""
        for _ in range(min(most, len(self._waiting))):
            entry = self._waiting.popleft()
            if not self._write(entry):
                if _is_kept(entry):
                    self._waiting.appendleft(entry)
                    return False
                self.dropped += 1
        return True

    def close(self) -> None:
        """Write what is left, and then nothing more. Idempotent."""
        while not self.flush(BACKLOG_MAX):
            self._write_stderr(self._waiting.popleft())
        self._socket.close()

    # -- bounds ------------------------------------------------------------------------------------

    def _is_silent(self, event: Event) -> bool:
        return isinstance(event, _SILENT) or (
            isinstance(event, Renewed) and not self._copy.renewals
        )

    def _earn_tokens(self) -> None:
        now_ns = self._monotonic_ns()
        earned = (now_ns - self._filled_ns) * self._copy.events_per_s_max // NS_PER_S
        if earned > 0:
            self._tokens = min(self._copy.burst_events_max, self._tokens + earned)
            self._filled_ns = now_ns

    def _queue(self, entry: Fields) -> None:
        full = len(self._waiting) >= BACKLOG_MAX
        if full:
            self.dropped += 1
        if not full or (_is_kept(entry) and self._make_room()):
            self._waiting.append(entry)
        self._arrived.set()

    def _make_room(self) -> bool:
        """Let go of the oldest entry that may be lost; whether few enough are left that may not."""
        plain = [at for at, entry in enumerate(self._waiting) if not _is_kept(entry)]
        if len(self._waiting) - len(plain) >= KEPT_MAX:
            return False
        del self._waiting[plain[0]]
        return True

    def _say_drops(self) -> None:
        if self.dropped and self._write(narrate_drops(self.dropped)):
            self.dropped = 0

    # -- writing -----------------------------------------------------------------------------------

    def _write(self, entry: Fields) -> bool:
        """True if it was taken. A journal that is not there is replaced by standard error."""
        datagram = encode({"SYSLOG_IDENTIFIER": IDENTIFIER, **entry})
        try:
            self._socket.sendto(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
            return True
        except OSError as error:
            if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                return self._write_large(datagram)
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.EACCES):
                return self._write_stderr(entry)
            return False

    def _write_large(self, datagram: bytes) -> bool:
        """As the protocol has it: a sealed memfd with the entry, sent in an empty datagram."""
        fd = os.memfd_create("leased-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(datagram)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            self._socket.sendmsg([], passing([fd]), flags, self._address)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def _write_stderr(self, entry: Fields) -> bool:
        poll = select.poll()
        poll.register(self._stderr_fd, select.POLLOUT)
        if not any(events & select.POLLOUT for _, events in poll.poll(0)):
            return False
        line = f"{IDENTIFIER}: {entry['MESSAGE']!s}".encode(errors="replace")[
            : STDERR_BYTES_MAX - 1
        ]
        try:
            os.write(self._stderr_fd, line + b"\n")
        except OSError:
            return False
        return True


def encode(entry: Fields) -> bytes:
    """The native protocol's serialization: KEY=value, or KEY, length and value where the value has
    a newline.
    """
    parts: list[bytes] = []
    for key, value in entry.items():
        raw = value if isinstance(value, bytes) else value.encode(errors="replace")
        if isinstance(value, bytes) or b"\n" in raw:
            parts += (key.encode("ascii"), b"\n", len(raw).to_bytes(8, "little"), raw, b"\n")
        else:
            parts += (key.encode("ascii"), b"=", raw, b"\n")
    return b"".join(parts)


def _is_kept(entry: Fields) -> bool:
    """Whoever was told that nothing is granted must be told, too, when it is again."""
    return entry.get("PRIORITY") == _CRITICAL or "LEASED_LOG_STATE" in entry


def _is_said_anew(events: Sequence[Event], index: int) -> bool:
    """Whether it is old news, sealed again because the record that said it goes: from a NodeStarted
    to a Pruned (`note_pruned`)."""
    if type(events[index]) not in _ANEW:
        return False
    for later in events[index + 1 :]:
        if type(later) is NodeStarted or type(later) not in _ANEW:
            return type(later) is Pruned
    return False
