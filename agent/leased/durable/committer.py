# SPDX-License-Identifier: Apache-2.0
"""The committer: hands one batch to the native disk thread and waits for its eventfd.

Rule: one batch is one hand-over; append, fdatasync, slot, fdatasync happen without the interpreter.
One at a time.

Does not compute what is written (`writer`) and never retries.
"""

from __future__ import annotations

import os
import time
from typing import Final

import trio

from leased._native import ffi, lib
from leased.durable.writer import Writes

SMALL_BATCH_BYTES: Final = 2048
"""About six records: a handful of clients at most, each of whom waits for the whole round trip."""

FAST_NS: Final = 400_000
"""Two barriers of a fast disk (0.05 to 0.25 ms measured). While the recent commits took no longer,
a small batch is written on the spot; one that takes longer holds up the loop once, as it holds up
every answer anyway, and the next goes to the thread."""

_STAGES: Final = (
    "idle",
    "append",
    "fdatasync of the segment",
    "anchor slot",
    "fdatasync of the anchor",
)


class NativeCommitter:
    """The C thread behind `leased._native` and the eventfd it answers by."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handle = lib.leased_committer_new(self._event)
        self._stage = ffi.new("int *")
        self._recent_ns = 2 * FAST_NS
        if self._handle == ffi.NULL:
            os.close(self._event)
            raise OSError(ffi.errno, "the disk thread of the log could not be started")

    def write_at_once(self, asked: Writes) -> bool:
        """As `write`, on the caller's own thread, if the batch is small and the disk has been fast;
        False: nothing was done."""
        data, block = asked.data, asked.block
        if len(data) > SMALL_BATCH_BYTES or self._recent_ns > FAST_NS:
            return False
        batch = (asked.segment, data, len(data), asked.offset, asked.anchor, block, len(block))
        began_ns = time.monotonic_ns()
        code = lib.leased_committer_run(self._handle, *batch, asked.block_offset, self._stage)
        self._note(time.monotonic_ns() - began_ns, code)
        return True

    async def write(self, asked: Writes) -> None:
        """Return when batch and slot are durable. Raises OSError naming the step."""
        # The buffers are pinned by these names until the result is in.
        with ffi.from_buffer(asked.data) as data, ffi.from_buffer(asked.block) as block:
            batch = (asked.segment, data, len(data), asked.offset, asked.anchor, block, len(block))
            began_ns = time.monotonic_ns()
            code = lib.leased_committer_submit(self._handle, *batch, asked.block_offset)
            if code < 0:
                self._stage[0] = 0
            else:
                await trio.lowlevel.wait_readable(self._event)
                os.eventfd_read(self._event)
                code = lib.leased_committer_result(self._handle, self._stage)
            took_ns = time.monotonic_ns() - began_ns
        self._note(took_ns, code)

    def _note(self, took_ns: int, code: int) -> None:
        """Remember how fast the disk is; raise what went wrong."""
        self._recent_ns += (took_ns - self._recent_ns) // 4
        if code < 0:
            stage = self._stage[0]
            name = _STAGES[stage] if 0 <= stage < len(_STAGES) else f"stage {stage}"
            raise OSError(-code, f"writing the log failed at the {name}: {os.strerror(-code)}")

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._event >= 0:
            lib.leased_committer_free(self._handle)
            os.close(self._event)
            self._event = -1
