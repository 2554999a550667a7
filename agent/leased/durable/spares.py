# SPDX-License-Identifier: Apache-2.0
"""Spare segments: zero-filled, durable and ready before they are needed.

Rule: a segment has all its blocks before it has a name in the log, so the records that end leases
can be written on a full disk. A thread fills them ahead; nobody waits for it but a switch that
finds none.

Does not activate a segment (`writer.switch`).
"""

from __future__ import annotations

import threading
from typing import Final

from leased.chain.segment import HEADER_BYTES
from leased.durable.files import Disk

PREFIX: Final = "next-"
SUFFIX: Final = ".tmp"
FILL_BYTES: Final = 1024 * 1024
RETRY_S: Final = 5
"""How long after a failure (a full disk) the next attempt is made."""


def is_spare(name: str) -> bool:
    """Whether a file is a spare segment (or the beginning of one)."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


class Spares:
    """The ready segments of one directory. `wanted` is how many to keep ready."""

    def __init__(self, disk: Disk, segment_bytes: int) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._ready: list[str] = []
        self._number = 0
        self._changed = threading.Condition()
        self._making = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.wanted = 1
        self.error: OSError | None = None

    @property
    def ready(self) -> int:
        """How many are ready now."""
        return len(self._ready)

    def adopt(self) -> None:
        """Take over what an earlier run left ready; remove what it left half made."""
        for name in filter(is_spare, self._disk.names()):
            self._number = max(self._number, _number(name) + 1)
            if self._usable(name):
                self._ready.append(name)
            else:
                self._disk.unlink(name)

    def fill(self) -> None:
        """Make spares, here and now, until `wanted` are ready. Raises OSError."""
        with self._making:
            while len(self._ready) < self.wanted and not self._stopping:
                name = self._make()
                with self._changed:
                    self._ready.append(name)

    def try_fill(self) -> None:
        """As `fill`, but a failure (a full disk) is kept in `error`: grants stop by
        `reserve_ok`, and nothing else does."""
        try:
            self.fill()
            self.error = None
        except OSError as error:
            self.error = error

    def start(self) -> None:
        """Keep `wanted` ready from a thread of their own, from now on."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._keep, name="leased-spares", daemon=True)
        self._thread.start()

    def want(self, count: int) -> None:
        """Keep at least `count` ready from now on."""
        if count > self.wanted:
            with self._changed:
                self.wanted = count
                self._changed.notify_all()

    def take(self) -> str:
        """Hand over one spare, made here if none is ready. Raises OSError."""
        with self._changed:
            name = self._ready.pop(0) if self._ready else None
            self._changed.notify_all()
        if name is None:
            with self._making:
                name = self._ready.pop(0) if self._ready else self._make()
        return name

    def stop(self) -> None:
        """End the thread, waiting for the piece it is writing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep(self) -> None:
        """The thread: fill, then wait until one was taken or more are wanted."""
        while not self._stopping:
            self.try_fill()
            with self._changed:
                if self._stopping:
                    return
                if self.error is not None:
                    self._changed.wait(RETRY_S)
                elif len(self._ready) >= self.wanted:
                    self._changed.wait()

    def _make(self) -> str:
        """Make one spare: every block written, then durable, then its name."""
        name = f"{PREFIX}{self._number:08x}{SUFFIX}"
        self._number += 1
        handle = self._disk.create(name)
        try:
            self._disk.reserve(handle, self._segment_bytes)
            for offset in range(0, self._segment_bytes, FILL_BYTES):
                if self._stopping:
                    break
                piece = min(FILL_BYTES, self._segment_bytes - offset)
                self._disk.write(handle, bytes(piece), offset)
                self._disk.sync(handle)
            self._disk.sync_names()
        except OSError:
            self._disk.unlink(name)
            raise
        finally:
            self._disk.close_handle(handle)
        return name

    def _usable(self, name: str) -> bool:
        """Whether a file found at start is a whole spare. A header left by an unfinished switch
        is wiped."""
        whole = self._disk.size(name) == self._segment_bytes
        if not whole or self._disk.allocated(name) < self._segment_bytes:
            return False
        data = self._disk.read(name)
        if data.count(0) == len(data):
            return True
        if data.count(0, HEADER_BYTES) != len(data) - HEADER_BYTES:
            return False
        handle = self._disk.open(name)
        try:
            self._disk.write(handle, bytes(HEADER_BYTES), 0)
            self._disk.sync(handle)
        finally:
            self._disk.close_handle(handle)
        return True


def _number(name: str) -> int:
    """The number in a spare's name; 0 for a name that has none."""
    digits = name[len(PREFIX) : -len(SUFFIX)]
    return int(digits, 16) if digits and all(c in "0123456789abcdef" for c in digits) else 0
