# SPDX-License-Identifier: Apache-2.0
"""The key of the open epoch as a file: two slots, both overwritten in place at every epoch.

Rule: a seal is anchored before its key is overwritten, and both slots are overwritten before the
key counts as forgotten, so at a start the file holds the key of the open epoch, or of the one
before it, which is evolved at once. A key of a later epoch than the log knows says that an earlier
state of the log was put back.

Does not evolve keys (`chain.epochs`). Remnants in flash cells are out of reach from here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from leased.chain.epochs import KEY_BYTES, EpochKey
from leased.chain.verdict import SEAL_KEY
from leased.durable.files import Disk, write_whole
from leased.terms.errors import ChainError

SEAL_KEY_FILE: Final = "seal.key"
SLOT_BYTES: Final = 4096
_SLOT = struct.Struct("<8s16sQ32s")
_MAGIC = b"LSEALKEY"


def create_seal_key(disk: Disk, log_id: bytes, entropy: Callable[[], bytes]) -> EpochKey:
    """Make the file with a fresh key of epoch 0."""
    key = EpochKey(0, entropy() + entropy())
    assert len(key.key) == KEY_BYTES
    write_whole(disk, SEAL_KEY_FILE, 2 * _encode(log_id, key))
    return key


def load_seal_key(disk: Disk, log_id: bytes) -> EpochKey:
    """The newest key in the file. Raises ChainError (SEAL_KEY)."""
    path = str(disk.directory / SEAL_KEY_FILE)
    try:
        raw = disk.read(SEAL_KEY_FILE)
    except FileNotFoundError:
        raw = b""
    if raw and disk.mode(SEAL_KEY_FILE) & 0o077:
        why = f"others may read the key of the seals (mode {disk.mode(SEAL_KEY_FILE):o})"
        raise ChainError(SEAL_KEY, f"{why}; run `chmod 600 {path}`", file=path)
    slots = (_decode(raw[at : at + SLOT_BYTES], log_id) for at in (0, SLOT_BYTES))
    found = [key for key in slots if key is not None]
    if not found:
        why = "the key of the open epoch is missing or not this log's: nothing could be sealed"
        advice = "restore seal.key from a backup, or move the directory away to begin a new log"
        raise ChainError(SEAL_KEY, f"{why}; {advice}", file=path)
    return max(found, key=lambda key: key.epoch)


def replace_seal_key(disk: Disk, log_id: bytes, key: EpochKey) -> None:
    """Overwrite both slots, each made durable. Blocks as long as the disk does."""
    handle = disk.open(SEAL_KEY_FILE)
    try:
        for offset in (SLOT_BYTES, 0):
            disk.write(handle, _encode(log_id, key), offset)
            disk.sync(handle)
    finally:
        disk.close_handle(handle)


def _encode(log_id: bytes, key: EpochKey) -> bytes:
    fields = _SLOT.pack(_MAGIC, log_id, key.epoch, key.key)
    return (fields + sha256(fields).digest()).ljust(SLOT_BYTES, b"\0")


def _decode(raw: bytes, log_id: bytes) -> EpochKey | None:
    """The key of a slot, None if it is none of this log."""
    end = _SLOT.size + 32
    if len(raw) != SLOT_BYTES or raw[end:] != bytes(SLOT_BYTES - end):
        return None
    magic, of_log, epoch, key = _SLOT.unpack_from(raw)
    sound = sha256(raw[: _SLOT.size]).digest() == raw[_SLOT.size : end]
    return EpochKey(epoch, key) if sound and magic == _MAGIC and of_log == log_id else None
