# SPDX-License-Identifier: Apache-2.0
"""The RFC 6962 Merkle tree over the record hashes, held as its frontier: one peak per bit of the
size.

Rule: the record hash *is* the leaf hash, so chain and tree commit to the same value and cannot
diverge.

Does not keep leaves and makes no proofs; whoever needs one reads the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain import native

EMPTY_ROOT: Final = sha256(b"").digest()


class Frontier(msgspec.Struct, frozen=True, gc=False):
    """The peaks of a tree of `size` leaves, largest subtree first: as many as `size` has
    one-bits."""

    size: int
    peaks: tuple[bytes, ...]

    def extended(self, leaves: Sequence[bytes]) -> Frontier:
        """Return the frontier with `leaves` appended; one hash per leaf on average."""
        return self._with_one(leaves[0]) if len(leaves) == 1 else self.grown(b"".join(leaves))

    def grown(self, leaves: bytes | bytearray) -> Frontier:
        """The same for leaves that stand one behind the other."""
        peaks = native.extend_tree(self.size, self.peaks, leaves)
        return Frontier(self.size + len(leaves) // native.HASH_BYTES, peaks)

    def _with_one(self, node: bytes) -> Frontier:
        """The common case of a batch of one: carry, as in adding one to a binary number."""
        carry, kept = self.size, len(self.peaks)
        while carry & 1:
            kept -= 1
            node = sha256(b"\x01" + self.peaks[kept] + node).digest()
            carry >>= 1
        return Frontier(self.size + 1, (*self.peaks[:kept], node))

    def subtree(self, start: int, stop: int) -> bytes | None:
        """The hash over the leaves [start, stop), if they are those of one peak. Every sibling of a
        later leaf that lies in this tree is one."""
        at, peaks = 0, iter(self.peaks)
        for bit in reversed(range(self.size.bit_length())):
            if self.size >> bit & 1:
                peak, below = next(peaks), at
                at += 1 << bit
                if (below, at) == (start, stop):
                    return peak
        return None

    def root(self) -> bytes:
        """The tree head hash of RFC 6962 section 2.1."""
        if not self.peaks:
            return EMPTY_ROOT
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node


EMPTY: Final = Frontier(0, ())
