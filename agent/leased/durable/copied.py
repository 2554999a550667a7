# SPDX-License-Identifier: Apache-2.0
"""A copy of a log for whoever is to judge it: what is anchored, as it lies on disk, and none of its
secrets.

Rule: the copy is a log directory as FORMAT.md has it, so that every verifier takes it: `log.id`,
the segments, one slot that anchors what was verified, and the newest checkpoint. What an agent
writes meanwhile is not in it; its keys never are. The anchor comes last: a copy that was cut short
is none.

Does not verify (`reader` has).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from leased.durable.anchor import ANCHOR, encode_slot, slot_offset
from leased.durable.files import DirectoryDisk, Disk, make_directory, write_whole
from leased.durable.genesis import LOG_ID
from leased.durable.opened import CHECKPOINT
from leased.durable.reader import LogFacts
from leased.terms.errors import StateError

ANCHOR_BYTES: Final = 8192


def copy_log(disk: Disk, facts: LogFacts, directory: Path) -> int:
    """Write what `facts` found into a directory that is new or empty; how many bytes. One that
    cannot be finished is taken away again. Raises StateError, OSError."""
    there = directory.exists()
    make_directory(directory)
    copy = DirectoryDisk(directory)
    try:
        if copy.names():
            raise StateError(f"{directory}: there is something in it; give a new directory")
        try:
            return _write(disk, facts, copy)
        except BaseException:
            with contextlib.suppress(OSError):
                for name in copy.names():
                    copy.unlink(name)
                if not there:
                    directory.rmdir()
            raise
    finally:
        copy.close()


def _write(disk: Disk, facts: LogFacts, copy: Disk) -> int:
    """Raises StateError, OSError."""
    written = 0
    for name in (LOG_ID, *facts.segments, CHECKPOINT):
        if name == CHECKPOINT and name not in disk.names():
            continue
        try:
            data = disk.read(name)
        except FileNotFoundError as error:
            why = f"{name} was removed meanwhile: ask again"
            raise StateError(f"{disk.directory}: {why}") from error
        if name == facts.segments[-1]:
            # What lies beyond was not anchored when the log was read.
            end = facts.slot.end_offset
            data = data[:end] + bytes(facts.identity.segment_bytes - end)
        write_whole(copy, name, data)
        written += len(data)
    anchor = bytearray(ANCHOR_BYTES)
    slot = encode_slot(facts.slot)
    anchor[slot_offset(facts.slot) : slot_offset(facts.slot) + len(slot)] = slot
    write_whole(copy, ANCHOR, bytes(anchor))
    return written + len(anchor)
