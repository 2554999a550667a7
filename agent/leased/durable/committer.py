# SPDX-License-Identifier: Apache-2.0
"""The committer: hands one batch to the native disk thread and waits for its eventfd.

Rule: one batch is one hand-over; append, fdatasync, slot, fdatasync happen without the interpreter.
One at a time.

Does not compute what is written (`writer`) and never retries.
"""

from __future__ import annotations

import os
import select
from typing import Final

import trio

from leased._native import ffi, lib

SMALL_BATCH_BYTES: Final = 2048
"""About six records: a handful of clients at most."""

PATIENCE_S: Final = 0.0003
"""Two barriers of a fast disk (0.05 to 0.25 ms measured); less than what a client would notice."""

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
        if self._handle == ffi.NULL:
            os.close(self._event)
            raise OSError(ffi.errno, "the disk thread of the log could not be started")

    async def write(
        self, segment: int, data: bytes, offset: int, anchor: int, block: bytes, block_offset: int
    ) -> None:
        """Return when batch and slot are durable. Raises OSError naming the step."""
        # The buffers are pinned by these names until the result is in.
        pinned, pinned_block = ffi.from_buffer(data), ffi.from_buffer(block)
        code = lib.leased_committer_submit(
            self._handle,
            segment,
            pinned,
            len(data),
            offset,
            anchor,
            pinned_block,
            len(block),
            block_offset,
        )
        if code < 0:
            raise OSError(
                -code, "the disk thread of the log refused a batch: " + os.strerror(-code)
            )
        # A small batch means that few clients wait, each for the round trip: a fast disk answers
        # sooner than a turn of the event loop takes. A slow disk costs the loop PATIENCE_S, once.
        small = len(data) <= SMALL_BATCH_BYTES
        if not (small and select.select((self._event,), (), (), PATIENCE_S)[0]):
            await trio.lowlevel.wait_readable(self._event)
        os.eventfd_read(self._event)
        code = lib.leased_committer_result(self._handle, self._stage)
        ffi.release(pinned)
        ffi.release(pinned_block)
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
