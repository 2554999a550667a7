# SPDX-License-Identifier: Apache-2.0
"""The chain reader: anchored records for whoever may see them, and the judge on request.

Rule: only what is anchored is read. Reading is done in a thread, bounded in bytes per page, and one
search at a time; verifying a long chain in this process would starve the sequencer of the
interpreter, so it is a process of its own: `leasectl verify`, the same judge that an auditor runs.

Does not cache and does not verify by itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import trio

from leased.chain.canonical import decode
from leased.chain.record import HEADER, HEADER_BYTES
from leased.ports import Journal
from leased.terms.errors import CallerError, RecordsPruned
from leased.terms.event import Allocated
from leased.terms.identity import CommandId
from leased.terms.moment import NS_PER_S

PAGE_BYTES_MAX = 512 << 10
"""Base64 makes 700 KB of it: within the 1 MiB that a message may have."""

VERIFY_NS_MAX = 600 * NS_PER_S
"""As long as 200 million records take on one slow core."""

_FRAME_LENGTH_BYTES = 4


class Page(msgspec.Struct, frozen=True):
    """Whole frames of the records `from_sequence` up to, and without, `next_sequence`."""

    from_sequence: int
    next_sequence: int
    frames: bytes


class ChainReader:
    """Reads what the sequencer has committed."""

    def __init__(self, *, journal: Journal, directory: Path, next_seq: int) -> None:
        self._journal = journal
        self._directory = directory
        self.next_seq = next_seq
        self._searches = trio.CapacityLimiter(1)

    async def read(self, first: int, *, records_max: int | None, bytes_max: int | None) -> Page:
        """One page from `first`. Raises CallerError beyond the end."""
        if first > self.next_seq:
            raise CallerError(f"sequence {first} is beyond the end: the next is {self.next_seq}")
        if first == self.next_seq:
            return Page(first, first, b"")
        most = min(records_max or 1 << 30, self.next_seq - first)
        return await trio.to_thread.run_sync(
            self._collect, first, most, min(bytes_max or PAGE_BYTES_MAX, PAGE_BYTES_MAX)
        )

    async def grants(self, command_id: CommandId, since: int) -> bool | None:
        """Whether a record from `since` on grants the request of that id; None: the log does not
        know any more, that record was pruned. Raises StateError."""
        search = self._find_grant
        try:
            return await trio.to_thread.run_sync(search, command_id, since, limiter=self._searches)
        except RecordsPruned:
            return None

    def _find_grant(self, command_id: CommandId, since: int) -> bool:
        sought = bytes(command_id)
        for chunk in self._journal.frames(since):
            at = 0 if sought in chunk else len(chunk)
            while at < len(chunk):
                length, _, _, _, kind, schema, _, body_bytes, *_ = HEADER.unpack_from(chunk, at)
                body = chunk[at + HEADER_BYTES : at + HEADER_BYTES + body_bytes]
                if sought in body:
                    event = decode(kind, schema, body)
                    if isinstance(event, Allocated) and event.command_id == command_id:
                        return True
                at += length
        return False

    def _collect(self, first: int, records: int, size: int) -> Page:
        taken = bytearray()
        count = 0
        for chunk in self._journal.frames(first):
            at = 0
            while at < len(chunk) and count < records:
                length = int.from_bytes(chunk[at : at + _FRAME_LENGTH_BYTES], "little")
                if taken and len(taken) + length > size:
                    return Page(first, first + count, bytes(taken))
                taken += chunk[at : at + length]
                at += length
                count += 1
            if count == records:
                break
        return Page(first, first + count, bytes(taken))

    async def verify(self) -> bytes:
        """The JSON verdict of `leasectl verify` on the log directory."""
        command = [
            sys.executable,
            "-m",
            "leased.ctl.main",
            "verify",
            "--json",
            "--log",
            str(self._directory),
        ]
        with trio.fail_after(VERIFY_NS_MAX / NS_PER_S):
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
        return done.stdout
