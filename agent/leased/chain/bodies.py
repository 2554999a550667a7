# SPDX-License-Identifier: Apache-2.0
"""Bodies of records that were walked: each is the one legal encoding of an event of its kind.

Rule: what plainly fits the shape of its kind is passed over natively, here or already by the
verifier on its way; every other body is decoded and encoded again (`canonical.decode`), whose word
alone refuses one.

Does not look at the frames (`verifier` has) and keeps nothing of what it reads.
"""

from __future__ import annotations

from leased.chain.canonical import SHAPES, decode
from leased.chain.findings import Walk


def check_bodies(walk: Walk, *, base: int = 0, file: str = "") -> None:
    """Decode every body strictly. Raises ChainError (BAD_BODY) at the first that is not the one
    legal encoding."""
    if walk.bodies is not None:
        index = walk.bodies.find(0)
        while index >= 0:
            check_body(walk, index, base=base, file=file)
            index = walk.bodies.find(0, index + 1)
        return
    index, count = 0, len(walk.offsets)
    while index < count:
        index += SHAPES.plain_bodies(walk.data, walk.offsets, walk.kinds, index)
        if index < count:
            check_body(walk, index, base=base, file=file)
            index += 1


def check_body(walk: Walk, index: int, *, base: int = 0, file: str = "") -> None:
    """Decode one body strictly. Raises ChainError (BAD_BODY)."""
    record = walk.record(index)
    decode(
        record.kind,
        record.schema,
        record.body,
        sequence=record.sequence,
        offset=base + walk.offsets[index],
        file=file,
    )
