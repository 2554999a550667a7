# SPDX-License-Identifier: Apache-2.0
"""What a verification found: the records that a walk went over, and what holds.

Rule: values only; a record of a walk has been checked already.

Does not check anything (`verifier`).
"""

from __future__ import annotations

import msgspec

from leased.chain.epochs import CarriedEpochs
from leased.chain.head import Head
from leased.chain.record import HEADER, HEADER_BYTES, Record
from leased.chain.tree import Frontier


class Walk(msgspec.Struct):
    """What one call of `Verifier.feed` went over: offset and kind of every record, in order, and
    their hashes."""

    data: bytes
    offsets: list[int]
    kinds: list[int]
    hashes: list[bytes]
    first_seq: int

    def record(self, index: int) -> Record:
        """Take the `index`-th record apart (its hash was checked already)."""
        offset = self.offsets[index]
        length, crc, sequence, batch, kind, schema, flags, body_bytes, wall_ns, boot_ns, prev = (
            HEADER.unpack_from(self.data, offset)
        )
        body = self.data[offset + HEADER_BYTES : offset + HEADER_BYTES + body_bytes]
        digest = self.hashes[index]
        return Record(
            sequence, batch, kind, schema, flags, wall_ns, boot_ns, prev, body, digest, length, True
        )


class Verified(msgspec.Struct, frozen=True):
    """What holds. `count` records were walked and end at `head`; `whole` if the last of them ends
    its batch.

    `crc_damaged` counts frames whose hash holds but whose CRC does not (media damage outside the
    hash), `unknown` records of kinds this release does not know, `clock_breaks` a boot clock that
    went back without a NodeStarted. `signed_size` is the size of the newest checkpoint whose root
    (and, where a key was given, signature) holds; `seals` counts the epoch seals that hold, and
    `seals_proven` those of them whose MAC was checked.
    """

    head: Head
    frontier: Frontier
    count: int
    batch: int
    whole: bool
    last_kind: int
    public_key: bytes | None
    signed_size: int
    crc_damaged: int
    crc_damaged_at: tuple[int, ...]
    unknown: int
    clock_breaks: int
    seals: int = 0
    seals_proven: int = 0


class Carried(msgspec.Struct, frozen=True, array_like=True):
    """Where a verifier stands after whole batches: what another one goes on from. Holds the key of
    an epoch, if the verifier was enrolled with one."""

    head: Head
    frontier: Frontier
    batch: int
    last_kind: int
    public_key: bytes | None
    signed_size: int
    boot_ns: int
    crc_damaged: int
    unknown: int
    clock_breaks: int
    epochs: CarriedEpochs | None
