# SPDX-License-Identifier: Apache-2.0
"""The verifier: walks sealed frames and finds the first that does not hold.

Rule: a verdict names the sequence and the offset. The chain walk (hashes, links, batches) is one
pass; what needs more than that (bodies, checkpoints) is a pass of its own over what the walk found,
so that each caller pays for what it asks. C goes over what is plain, and says only that; every
record that is not is judged here, one by one (`_step`), by rules that are complete without it.

Does not read files and does not judge what is beyond an anchor (`recovery`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final
from zlib import crc32

from leased.chain import native
from leased.chain.bodies import check_bodies
from leased.chain.canonical import KNOWN, SHAPES, Unknown, decode
from leased.chain.epochs import Continuity, EpochKey
from leased.chain.findings import Carried, Verified, Walk
from leased.chain.head import GENESIS, Head
from leased.chain.keys import Keys
from leased.chain.note import Checkpoint
from leased.chain.record import (
    FLAG_LAST,
    FLAGS_KNOWN,
    FRAME_BYTES_MAX,
    FRAME_BYTES_MIN,
    HASH_BYTES,
    HEADER,
    HEADER_BYTES,
    PADDING,
    frame_bytes,
    hash_prefix,
    parse_frame,
)
from leased.chain.signing import verifies
from leased.chain.tree import EMPTY, Frontier
from leased.chain.verdict import (
    BAD_ROOT,
    BAD_SEAL,
    BAD_SIGNATURE,
    CORRUPT_RECORD,
    CORRUPT_SEGMENT,
)
from leased.terms.errors import ChainError
from leased.terms.event import (
    KIND,
    CheckpointSigned,
    EpochSealed,
    Event,
    KeyChange,
    KeyRotated,
    NodeStarted,
    Pruned,
)

_OF_KEYS = frozenset((KIND[KeyRotated], KIND[Pruned]))
_STARTED = KIND[NodeStarted]
_SEALED = KIND[EpochSealed]
_OF_TREES = frozenset((KIND[CheckpointSigned], _SEALED))
_NEVER_NS: Final = 1 << 64
_JUDGED = _OF_KEYS | _OF_TREES | {_STARTED}
_PLAIN: Final = bytes(
    sum(1 << (schema - 1) for known, schema in KNOWN if known == kind and kind not in _JUDGED)
    for kind in range(native.KINDS)
)

CRC_DAMAGED_MAX: Final = 64
"""How many sequences of CRC damage are named; the count is exact."""


class Verifier:
    """One pass over one chain, fed in chunks of whole frames, from any known (head, frontier)
    on."""

    def __init__(
        self,
        log_id: bytes,
        head: Head = GENESIS,
        frontier: Frontier = EMPTY,
        *,
        batch: int = 0,
        origin: str = "",
        public_key: bytes | None = None,
        key_changes: Sequence[KeyChange] = (),
        epoch_ns: int = 0,
        seal_key: EpochKey | None = None,
        latest_epoch: int | None = None,
        bodies: bool = False,
        file: str = "",
    ) -> None:
        """`public_key` is the log's first, and `key_changes` lead from it to the one in force at
        `head`. `epoch_ns` is that of the log's identity: not 0 where every epoch must be sealed;
        `seal_key` what this verifier was enrolled with, `latest_epoch` as `Continuity` has it.
        `bodies`: `check_bodies` will be asked of every walk, so they are looked at meanwhile."""
        self._log_id = log_id
        self._prefix = hash_prefix(log_id)
        self._head = head
        self._frontier = frontier
        self._batch = batch
        self._open = False
        self._shapes = SHAPES if bodies else None
        self._origin = origin
        self._keys: Keys | None = None
        if public_key is not None:
            self._keys = Keys(log_id, public_key, key_changes, head.size)
        self._boot_ns = 0
        self._last_kind = 0
        self._signed_size = 0
        self._count = 0
        self._damaged: list[int] = []
        self._damaged_count = 0
        self._unknown = 0
        self._clock_breaks = 0
        self._epochs: Continuity | None = None
        if epoch_ns:
            whole, now = head == GENESIS, latest_epoch
            self._epochs = Continuity(log_id, epoch_ns, seal_key, from_genesis=whole, latest=now)
        self.file = file

    def feed(self, data: bytes, *, start: int = 0, stop: int | None = None, base: int = 0) -> Walk:
        """Verify `data[start:stop]`, whole frames that follow what was fed before. `base` is added
        to named offsets.

        Raises ChainError at the first record that does not hold; the verifier must not be used
        after that.
        """
        stop = len(data) if stop is None else stop
        if stop > len(data):
            why = f"the file ends at {base + len(data)}, before the anchored end {base + stop}"
            raise ChainError(CORRUPT_SEGMENT, why, offset=base + len(data), file=self.file)
        walk = Walk(data, array("Q"), array("H"), bytearray(), self._head.size)
        if self._shapes is not None:
            walk.bodies = bytearray()
        self._walk(data, start, stop, base, walk)
        self._count += len(walk.offsets)
        if walk.kinds:
            self._last_kind = walk.kinds[-1]
        self._grow(walk, base)
        return walk

    def verified(self) -> Verified:
        """What holds so far."""
        return Verified(
            self._head,
            self._frontier,
            self._count,
            self._batch,
            not self._open,
            self._last_kind,
            self._keys.current if self._keys else None,
            self._signed_size,
            self._damaged_count,
            tuple(self._damaged),
            self._unknown,
            self._clock_breaks,
            self._epochs.sealed if self._epochs else 0,
            self._epochs.proven if self._epochs else 0,
            self._epochs.end_wall_ns if self._epochs else 0,
        )

    def carried(self) -> Carried:
        """Where it stands, for `resume`. The last record fed ended its batch."""
        assert not self._open, "a verifier is carried between whole batches"
        return Carried(
            self._head,
            self._frontier,
            self._batch,
            self._last_kind,
            self._keys.current if self._keys else None,
            self._signed_size,
            self._boot_ns,
            self._damaged_count,
            self._unknown,
            self._clock_breaks,
            self._epochs.carried() if self._epochs else None,
            self._keys.carried() if self._keys else None,
        )

    def resume(self, carried: Carried) -> None:
        """Go on from where another verifier of this log stood."""
        self._head, self._frontier = carried.head, carried.frontier
        self._batch, self._last_kind = carried.batch, carried.last_kind
        self._signed_size, self._boot_ns = carried.signed_size, carried.boot_ns
        self._damaged_count = carried.crc_damaged
        self._unknown, self._clock_breaks = carried.unknown, carried.clock_breaks
        if self._epochs is not None and carried.epochs is not None:
            self._epochs.resume(carried.epochs)
        if self._keys is not None and carried.public_key is not None:
            self._keys.resume(carried.keys, carried.public_key, carried.head.size)

    def _walk(self, data: bytes, offset: int, stop: int, base: int, walk: Walk) -> None:
        """Every link, hash and CRC: in strides, and where one ends, a step."""
        strider = native.Strider(data, offset, stop, self._prefix, _PLAIN, self._shapes)
        while offset < stop:
            offset = self._stride(strider, offset, walk)
            if offset < stop:
                offset = self._step(data, offset, stop, base, walk)

    def _stride(self, strider: native.Strider, offset: int, walk: Walk) -> int:
        """Take in all records from `offset` on that are plain; where they end."""
        place = (self._head.size, self._head.hash, self._batch, self._open, self._boot_ns)
        stand = native.Stand(offset, *place, self._limit_ns())
        more = True
        while more:
            offsets, kinds, hashes, bodies, stand, more = strider.go(stand)
            walk.offsets.frombytes(offsets)
            walk.kinds.frombytes(kinds)
            walk.digests += hashes
            if walk.bodies is not None:
                walk.bodies += bodies
        offset, size, head, self._batch, self._open, self._boot_ns, _ = stand
        self._head = Head(size, head)
        return offset

    def _step(self, data: bytes, offset: int, stop: int, base: int, walk: Walk) -> int:
        """Judge the record at `offset` and take it in; where the next begins. Raises
        ChainError."""
        expected, head, boot = self._head.size, self._head.hash, self._boot_ns
        if stop - offset < FRAME_BYTES_MIN:
            raise self._refusal(data, offset, stop, base, expected, head)
        length, crc, sequence, batch, kind, schema, flags, body_bytes, _, boot_ns, prev = (
            HEADER.unpack_from(data, offset)
        )
        body_end = offset + HEADER_BYTES + body_bytes
        end: int = offset + length
        hash_at = end - HASH_BYTES
        if (
            sequence != expected
            or prev != head
            or length != frame_bytes(body_bytes)
            or length > FRAME_BYTES_MAX
            or end > stop
            or flags > FLAGS_KNOWN
            or (batch != self._batch if self._open else batch <= self._batch)
            or data[body_end:hash_at] != PADDING[hash_at - body_end]
        ):
            raise self._refusal(data, offset, stop, base, expected, head)
        content = data[offset + 8 : body_end]
        digest = sha256(self._prefix + content).digest()
        if digest != data[hash_at:end]:
            raise self._refusal(data, offset, stop, base, expected, head)
        if crc32(data[body_end:end], crc32(content, crc32(data[offset : offset + 4]))) != crc:
            self._note_damage(sequence)
        if (kind, schema) not in KNOWN:
            self._unknown += 1
        if boot_ns < boot or boot_ns >= self._limit_ns() or kind in (_SEALED, _STARTED):
            where = (sequence, base + offset)
            self._note_time(data, offset, kind, boot_ns, where, late=boot_ns < boot)
            if self._epochs is not None:
                # A seal that says it ends later than it stands: nothing comes before that end.
                boot_ns = max(boot_ns, self._epochs.begin_ns)
        walk.judged.append(len(walk.offsets))
        walk.offsets.append(offset)
        walk.kinds.append(kind)
        walk.digests += digest
        if walk.bodies is not None:
            walk.bodies.append(0)
        self._head = Head(expected + 1, digest)
        self._batch, self._open, self._boot_ns = batch, not flags & FLAG_LAST, boot_ns
        return end

    def _limit_ns(self) -> int:
        """From this boot clock on a record lies beyond the open epoch."""
        limit_ns = self._epochs.limit_ns if self._epochs else None
        return _NEVER_NS if limit_ns is None else limit_ns

    def _note_time(
        self,
        data: bytes,
        offset: int,
        kind: int,
        boot_ns: int,
        where: tuple[int, int],
        *,
        late: bool,
    ) -> None:
        """A record that the clock makes remarkable: the first of a boot, one that went back, one
        beyond its epoch. Raises ChainError (BAD_SEAL)."""
        if late and kind != _STARTED and kind != _SEALED:
            self._clock_breaks += 1
        epochs = self._epochs
        if epochs is None:
            return
        sequence, at = where
        if kind == _STARTED:
            event = self._decoded(data, offset, sequence, at)
            if isinstance(event, NodeStarted):
                epochs.started(event.boot_id, boot_ns)
        elif kind != _SEALED and not epochs.begin_ns <= boot_ns < self._limit_ns():
            why = f"sealed at {boot_ns} of the boot clock, outside the epoch that is open there"
            raise ChainError(BAD_SEAL, why, sequence=sequence, offset=at, file=self.file)
        elif kind == _SEALED:
            event = self._decoded(data, offset, sequence, at)
            # The root is compared when the tree has grown to here (`_check`).
            wrong = epochs.judge(event, sequence) if isinstance(event, EpochSealed) else None
            if wrong:
                why = f"the seal: {wrong}"
                raise ChainError(BAD_SEAL, why, sequence=sequence, offset=at, file=self.file)

    def _decoded(self, data: bytes, offset: int, sequence: int, at: int) -> Event | Unknown:
        """The event of the frame at `offset`."""
        record = parse_frame(data, offset, self._prefix)
        return decode(
            record.kind, record.schema, record.body, sequence=sequence, offset=at, file=self.file
        )

    def _refusal(
        self, data: bytes, offset: int, stop: int, base: int, expected: int, head: bytes
    ) -> ChainError:
        """Say what is wrong with the record at `offset`, which is known not to hold."""

        def refuse(why: str) -> ChainError:
            return ChainError(
                CORRUPT_RECORD, why, sequence=expected, offset=base + offset, file=self.file
            )

        try:
            record = parse_frame(data[offset:stop], 0, self._prefix)
        except ChainError as error:
            return refuse(error.why)
        if record.sequence != expected:
            return refuse(f"record {record.sequence} stands where record {expected} belongs")
        if record.prev_hash != head:
            return refuse(
                f"the previous hash is {record.prev_hash.hex()}, the record before has {head.hex()}"
            )
        return refuse(f"batch {record.batch} cannot follow batch {self._batch}")

    def _note_damage(self, sequence: int) -> None:
        """Remember a CRC that does not hold over bytes whose hash does."""
        self._damaged_count += 1
        if len(self._damaged) < CRC_DAMAGED_MAX:
            self._damaged.append(sequence)

    def _grow(self, walk: Walk, base: int) -> None:
        """Extend the tree by the walked records, and check every checkpoint, seal, key rotation and
        pruning among them."""
        done, digests = 0, walk.digests
        for index in walk.judged:
            kind = walk.kinds[index]
            if kind in _OF_TREES:
                self._frontier = self._frontier.grown(
                    digests[done * HASH_BYTES : index * HASH_BYTES]
                )
                done = index
            elif kind not in _OF_KEYS or self._keys is None:
                continue
            sequence, offset = walk.first_seq + index, base + walk.offsets[index]
            event = self._decoded(walk.data, walk.offsets[index], sequence, offset)
            try:
                self._check(event, sequence)
            except ChainError as error:
                raise error.at(sequence, offset, self.file) from None
        self._frontier = self._frontier.grown(digests[done * HASH_BYTES :])

    def _check(self, event: Event | Unknown, sequence: int) -> None:
        """What record `sequence` says of the tree before it, and of keys. Raises ChainError."""
        if isinstance(event, CheckpointSigned):
            self._check_checkpoint(event, sequence)
        elif isinstance(event, EpochSealed):
            if event.root != self._frontier.root():
                why = f"the seal's root is not that of the {event.size} records before it"
                raise ChainError(BAD_ROOT, why)
        elif self._keys is not None:
            self._keys.follow(event, sequence)

    def _check_checkpoint(self, event: CheckpointSigned, sequence: int) -> None:
        """Compare a sealed checkpoint with the tree before it, and check its signature if a key
        is known. Raises ChainError."""
        if event.size != sequence or event.root != self._frontier.root():
            why = (
                f"the signed checkpoint of size {event.size} is not the root of the tree before it"
            )
            raise ChainError(BAD_ROOT, why)
        if self._keys is not None:
            text = Checkpoint(self._origin, event.size, event.root).text()
            if not verifies(self._keys.current, text.encode(), event.signature):
                why = "the checkpoint's signature is not by the node's key"
                raise ChainError(BAD_SIGNATURE, why)
        self._signed_size = event.size


def verify(chunks: Iterable[bytes], verifier: Verifier, *, bodies: bool = True) -> Verified:
    """Verify a stream of chunks of whole frames. Raises ChainError; offsets count from the first
    chunk's first byte."""
    base = 0
    for chunk in chunks:
        walk = verifier.feed(chunk, base=base)
        if bodies:
            check_bodies(walk, base=base, file=verifier.file)
        base += len(chunk)
    return verifier.verified()
