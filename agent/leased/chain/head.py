# SPDX-License-Identifier: Apache-2.0
"""The head of a chain: how many records there are and the hash of the last.

Rule: two heads of one log compare as one of four answers; FORK is the one that nothing honest
explains.

Does not say where on disk the head lies (`ports.AnchorSlot`).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.terms.errors import InvalidParameter

HASH_BYTES: Final = 32


class Head(msgspec.Struct, frozen=True, gc=False):
    """`size` records, the last of which (number size-1) has the hash `hash`; 32 zero bytes
    before the first."""

    size: int
    hash: bytes

    def text(self) -> str:
        """The form people compare: size, colon, hex."""
        return f"{self.size}:{self.hash.hex()}"


GENESIS: Final = Head(0, bytes(HASH_BYTES))


class Comparison(enum.Enum):
    """What two heads say about each other."""

    SAME = "same"
    AHEAD = "ahead"
    BEHIND = "behind"
    FORK = "fork"


def parse_head(text: str) -> Head:
    """Return the head that `text` (as `Head.text` writes it) stands for. Raises
    InvalidParameter."""
    size, _, digest = text.partition(":")
    if (
        size.isdecimal()
        and size.isascii()
        and len(digest) == 2 * HASH_BYTES
        and digest == digest.lower()
    ):
        try:
            return Head(int(size), bytes.fromhex(digest))
        except ValueError:
            pass
    raise InvalidParameter("head", "a head is a decimal size, a colon and 64 lower-case hex digits")


def compare(ours: Head, theirs: Head) -> Comparison:
    """Say how `ours` stands to `theirs`. Different sizes need the records between to tell AHEAD
    from a fork."""
    if ours.size != theirs.size:
        return Comparison.AHEAD if ours.size > theirs.size else Comparison.BEHIND
    return Comparison.SAME if ours.hash == theirs.hash else Comparison.FORK
