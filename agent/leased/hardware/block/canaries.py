# SPDX-License-Identifier: Apache-2.0
"""Canaries: known blocks in known places of a namespace, which must not be there any more when it
is clean.

Rule: places and contents follow from the lease's id and the namespace's identity, so nothing has to
be remembered: an agent that was restarted, or replaced, finds the same ones. The places are spread:
the first block, the last, and one somewhere in each of as many equal parts as there are others. The
contents are incompressible and occur nowhere else, so a drive can neither skip nor share them.

A tenant could know both, and gains nothing: they are written when it has no access yet, or none any
more. Pure; does not read or write.
"""

from __future__ import annotations

import hashlib

BLOCK_BYTES = 4096


def places(seed: bytes, size_bytes: int, count: int) -> tuple[int, ...]:
    """Offsets of blocks, ascending."""
    blocks = size_bytes // BLOCK_BYTES
    if blocks <= count:
        return tuple(BLOCK_BYTES * at for at in range(blocks))
    found = {0, blocks - 1}
    for part in range(count - 2):
        begin, end = blocks * part // (count - 2), blocks * (part + 1) // (count - 2)
        drawn = int.from_bytes(_draw(seed, b"place", part, 8))
        found.add(begin + drawn % (end - begin))
    return tuple(BLOCK_BYTES * at for at in sorted(found))


def content(seed: bytes, offset: int) -> bytes:
    """What the canary at `offset` is."""
    return _draw(seed, b"content", offset, BLOCK_BYTES)


def _draw(seed: bytes, what: bytes, number: int, size_bytes: int) -> bytes:
    drawn = hashlib.shake_256(b"leased canary\0" + what + b"\0")
    drawn.update(number.to_bytes(8))
    drawn.update(seed)
    return drawn.digest(size_bytes)
