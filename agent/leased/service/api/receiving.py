# SPDX-License-Identifier: Apache-2.0
"""The door to the verb that receives: from many sockets by one call
(`native/verbs/receiving.c`).

Rule: every read goes to the same memory and is copied out: one task reads, and memory that is warm
costs nothing.

Does not know what the bytes mean, and does not end connections.
"""

from __future__ import annotations

import array
from collections.abc import Sequence

from leased._native import ffi, lib

READ_BYTES = 64 * 1024
"""Of one socket."""

SAW_FDS: int = lib.LEASED_RECEIVED_FDS
"""Descriptors were seen, and nothing was read."""

_ROOM = bytearray(4 * READ_BYTES)
_VIEW = memoryview(_ROOM)
_INTO = ffi.from_buffer("uint8_t *", _ROOM)


def receive_many(sockets: Sequence[int]) -> list[bytes | int]:
    """What each has, in order: bytes (none at its end), or -errno, or SAW_FDS. Whatever the others
    have, each is read."""
    received: list[bytes | int] = []
    while len(received) < len(sockets):
        received += _receive_some(sockets[len(received) :] if received else sockets)
    return received


def _receive_some(sockets: Sequence[int]) -> list[bytes | int]:
    """The same for as many of them, from the first on, as there is room for."""
    got = array.array("q", bytes(8 * len(sockets)))
    count = lib.leased_receive_many(
        ffi.from_buffer("int *", array.array("i", sockets)),
        len(sockets),
        _INTO,
        len(_ROOM),
        READ_BYTES,
        ffi.from_buffer("int64_t *", got),
    )
    at = 0
    received: list[bytes | int] = []
    for length in got[:count]:
        if length < 0:
            received.append(length)
        else:
            received.append(bytes(_VIEW[at : at + length]))
            at += length
    return received
