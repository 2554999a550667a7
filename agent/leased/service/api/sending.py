# SPDX-License-Identifier: Apache-2.0
"""The door to the verb that sends: many letters by one call (`native/verbs/sending.c`).

Rule: no socket is waited for, and what became of a letter is told of each by itself.

Does not send what a socket did not take, and does not end connections: the sender does.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence

import msgspec

from leased._native import ffi, lib

FDS_MAX: int = lib.LEASED_SEND_FDS_MAX
"""Of one letter, by the kernel."""

_LETTER = struct.Struct("=iIQq")
"""`struct leased_letter`."""


class Letter(msgspec.Struct, frozen=True, gc=False):
    """What one socket is to be sent; `fds` go with the first byte."""

    socket: int
    wire: bytes
    fds: Sequence[int] = ()


def send_many(letters: Sequence[Letter]) -> list[int]:
    """Send each as far as its socket takes it: how many bytes went, or -errno, in order. The
    descriptors of a letter of which a byte went are closed."""
    packed = b"".join([_LETTER.pack(one.socket, len(one.fds), len(one.wire), 0) for one in letters])
    table = bytearray(packed)
    every_fd = array.array("i", [fd for letter in letters for fd in letter.fds])
    lib.leased_send_many(
        ffi.from_buffer("struct leased_letter *", table),
        len(letters),
        ffi.from_buffer("uint8_t *", b"".join([letter.wire for letter in letters])),
        ffi.from_buffer("int *", every_fd),
    )
    return [sent for *_, sent in _LETTER.iter_unpack(table)]
