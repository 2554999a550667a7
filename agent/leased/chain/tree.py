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

EMPTY_ROOT: Final = sha256(b"").digest()


class Frontier(msgspec.Struct, frozen=True, gc=False):
    """The peaks of a tree of `size` leaves, largest subtree first: as many as `size` has
    one-bits."""

    size: int
    peaks: tuple[bytes, ...]

    def extended(self, leaves: Sequence[bytes]) -> Frontier:
        """Return the frontier with `leaves` appended; one hash per leaf on average."""
        if len(leaves) == 1:
            return self._with_one(leaves[0])
        by_level: dict[int, bytes] = {}
        rest = list(self.peaks)
        for level in range(self.size.bit_length()):
            if self.size >> level & 1:
                by_level[level] = rest.pop()
        nodes = list(leaves)
        level = 0
        while nodes:
            if self.size >> level & 1:
                nodes.insert(0, by_level.pop(level))
            if len(nodes) & 1:
                by_level[level] = nodes.pop()
            nodes = [
                sha256(b"\x01" + left + right).digest()
                for left, right in zip(nodes[::2], nodes[1::2], strict=True)
            ]
            level += 1
        return Frontier(
            self.size + len(leaves), tuple(by_level[n] for n in sorted(by_level, reverse=True))
        )

    def _with_one(self, node: bytes) -> Frontier:
        """The common case of a batch of one: carry, as in adding one to a binary number."""
        carry, kept = self.size, len(self.peaks)
        while carry & 1:
            kept -= 1
            node = sha256(b"\x01" + self.peaks[kept] + node).digest()
            carry >>= 1
        return Frontier(self.size + 1, (*self.peaks[:kept], node))

    def root(self) -> bytes:
        """The tree head hash of RFC 6962 section 2.1."""
        if not self.peaks:
            return EMPTY_ROOT
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node


EMPTY: Final = Frontier(0, ())
