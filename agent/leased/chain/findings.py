# SPDX-License-Identifier: Apache-2.0
"""What a verification found: the records that a walk went over, and what holds.

Rule: values only; a record of a walk has been checked already.

Does not check anything (`verifier`).
"""

from __future__ import annotations

from array import array

import msgspec

from leased.chain.epochs import CarriedEpochs
from leased.chain.head import Head
from leased.chain.record import HASH_BYTES, HEADER, HEADER_BYTES, Record
from leased.chain.tree import Frontier
from leased.terms.event import KeyChange


class Walk(msgspec.Struct):
    """What one call of `Verifier.feed` went over: offset and kind of every record, in order, and
    their hashes, one behind the other. `judged` are those (by index, in order) that are not plain:
    the verifier looked at each of them by itself. `bodies`, where the verifier was asked to look at
    them on its way: for each record whether its body was seen to be the one legal encoding; what
    was not must be decoded (`bodies.check_bodies`)."""

    data: bytes
    offsets: array[int]
    kinds: array[int]
    digests: bytearray
    first_seq: int
    judged: list[int] = []
    bodies: bytearray | None = None

    def hash(self, index: int) -> bytes:
        """The hash of the `index`-th record."""
        return bytes(self.digests[index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def record(self, index: int) -> Record:
        """Take the `index`-th record apart (its hash was checked already)."""
        offset = self.offsets[index]
        length, crc, sequence, batch, kind, schema, flags, body_bytes, wall_ns, boot_ns, prev = (
            HEADER.unpack_from(self.data, offset)
        )
        body = self.data[offset + HEADER_BYTES : offset + HEADER_BYTES + body_bytes]
        digest = self.hash(index)
        return Record(
            sequence, batch, kind, schema, flags, wall_ns, boot_ns, prev, body, digest, length, True
        )


class Verified(msgspec.Struct, frozen=True):
    """What holds. `count` records were walked and end at `head`; `whole` if the last of them ends
    its batch.

    `crc_damaged` counts frames whose hash holds but whose CRC does not (media damage outside the
    hash), `unknown` records of kinds this release does not know, `clock_breaks` a boot clock that
    went back without a NodeStarted. `signed_size` is the size of the newest checkpoint whose root
    (and, where a key was given, signature) holds; `seals` counts the epoch seals that hold,
    `seals_proven` those of them whose MAC was checked, and the last epoch sealed ended at
    `sealed_wall_ns`, by the node's wall clock.
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
    sealed_wall_ns: int = 0


class CarriedKeys(msgspec.Struct, frozen=True, array_like=True):
    """How a log came to its key: by `before`, which were before record `begins`, and then by those
    in `since`, each with its sequence."""

    begins: int
    before: tuple[KeyChange, ...]
    since: tuple[tuple[int, KeyChange], ...]


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
    keys: CarriedKeys | None = None
    """None: not known (an earlier release did not keep it)."""
