# SPDX-License-Identifier: Apache-2.0
"""The sealer: gives events their sequence, previous hash and own hash, batch by batch.

Rule: what is sealed is fixed; the sealer's state moves on with it, so a batch that was sealed is
committed or the process ends. The last record of a batch carries a flag, so recovery knows a whole
batch from a half one. A batch larger than the geometry allows is cut into several, never inside a
run of events of one lease.

Does not write anything (`durable.journal`) and reads neither clock nor randomness: moments and
entropy are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final
from zlib import crc32

import msgspec

from leased.chain import native, segment
from leased.chain.canonical import SCHEMA, encode, written
from leased.chain.epochs import Ratchet
from leased.chain.head import Head
from leased.chain.note import Checkpoint
from leased.chain.record import (
    FLAG_LAST,
    FRAME_BYTES_MIN,
    PADDING,
    PREFIX,
    SEALED,
    frame_bytes,
    hash_prefix,
)
from leased.chain.signing import Signer
from leased.chain.tree import Frontier
from leased.terms.errors import InvariantError
from leased.terms.event import KIND, CheckpointSigned, Event, KeyRotated, SegmentEnd
from leased.terms.identity import EventId
from leased.terms.moment import NS_PER_S, Moment

CHECKPOINT_NS: Final = 1 * NS_PER_S
"""At most one checkpoint per this much boot time, unless asked for: signing costs 40 us,
verifying 130."""


MANY: Final = 4
"""Records of a batch from which on sealing them natively costs less than handing them over."""

ENDS_KEPT: Final = 8
_Body = tuple[int, bytes, Moment, int]
"""Kind, bytes, when, schema."""

_ROTATED: Final = KIND[KeyRotated]


class SealedBatch(msgspec.Struct, frozen=True, gc=False):
    """Frames ready to commit. `hashes` and `sequences` belong to the sealed items one to one, in
    their order.

    `count` records are in `frames`: the items and what the sealer added (EpochSealed,
    CheckpointSigned, SegmentEnd). `head` is the hash of the last of them, as `Journal.commit` wants
    it. `ends_epoch`: once it is anchored, the key of the epoch it seals must be forgotten.
    """

    frames: bytes
    count: int
    first_seq: int
    hashes: tuple[bytes, ...]
    sequences: Sequence[int]
    head: bytes
    new_head: Head
    ends_epoch: bool = False


class Sealer:
    """The one writer's side of the chain. `batch` is the anchor generation that the next batch
    will get; `successor` signs from the KeyRotated on that names it."""

    def __init__(
        self,
        log_id: bytes,
        head: Head,
        frontier: Frontier,
        batch: int,
        *,
        entropy: Callable[[], bytes],
        signer: Signer | None = None,
        origin: str = "",
        ratchet: Ratchet | None = None,
        segment_no: int = 0,
        end_offset: int = segment.HEADER_BYTES,
        segment_bytes: int = segment.SEGMENT_BYTES,
    ) -> None:
        assert frontier.size == head.size, "head and frontier are of the same tree"
        self.log_id = log_id
        self.successor: Signer | None = None
        self._prefix = hash_prefix(log_id)
        self._press = native.Press(self._prefix)
        self._geometry = segment.geometry(segment_bytes)
        self._entropy = entropy
        self._signer = signer
        self.ratchet = ratchet
        self._origin = origin
        self._sequence = head.size
        self._hash = head.hash
        self._frontier = frontier
        self._batch = batch
        self._segment_no = segment_no
        self._end_offset = end_offset
        self._signed_ns: int | None = None
        self._ends: dict[int, Frontier] = {}

    @property
    def head(self) -> Head:
        """The head after everything sealed so far."""
        return Head(self._sequence, self._hash)

    @property
    def frontier(self) -> Frontier:
        """The tree of everything sealed so far."""
        return self._frontier

    def frontier_at(self, size: int) -> Frontier | None:
        """The tree of `size` records, if one of the last segments sealed here ended there."""
        return self._ends.get(size)

    def seal(
        self,
        items: Sequence[tuple[Event, Moment]],
        *,
        sign: bool = False,
        moment: Moment | None = None,
    ) -> SealedBatch:
        """Seal `items` in order. `sign` asks for a checkpoint now; `moment` stamps it if there
        are no items. A seal of an epoch that has ended comes before everything else."""
        if moment is None:
            assert items, "nothing to seal and no moment to seal it at"
            moment = items[-1][1]
        opening = self._end_epoch(moment)
        signing = self._signer is not None and (sign or self._checkpoint_due(moment))
        assert items or signing or opening, "nothing to seal"
        first = self._sequence
        frames: list[bytes] = []
        hashes: list[bytes] = []
        sequences: list[int] = []
        items = [*opening, *items] if opening else items
        events, moments = zip(*items, strict=True) if items else ((), ())
        bodies = [
            (kind, body, at, schema)
            for (kind, body, schema), at in zip(written(events), moments, strict=True)
        ]
        sizes = [len(body) for _, body, _, _ in bodies]
        cuts = [(0, len(bodies))]
        if sum(sizes) + len(sizes) * (FRAME_BYTES_MIN + 7) > self._geometry.batch_bytes:
            cuts = self._cuts(events, sizes)
        for start, stop in cuts:
            closing = signing and stop == len(bodies)
            added, made, digests = self._seal_batch(bodies[start:stop], moment, closing=closing)
            sequences.extend(range(added, added + stop - start))
            hashes.extend(digests)
            frames.extend(made)
        joined, ours = b"".join(frames), len(opening)
        contiguous = range(first, first + len(items)) if len(cuts) == 1 else tuple(sequences)
        return SealedBatch(
            joined,
            self._sequence - first,
            first,
            tuple(hashes[ours:]),
            contiguous[ours:],
            self._hash,
            self.head,
            bool(opening),
        )

    def epoch_due(self, moment: Moment) -> bool:
        """Whether the next batch begins with a seal."""
        return self.ratchet is not None and self.ratchet.due(moment)

    def _end_epoch(self, moment: Moment) -> list[tuple[Event, Moment]]:
        """The seal of an epoch that has ended, as the first item of a batch."""
        if self.ratchet is None or not self.ratchet.due(moment):
            return []
        root = self._frontier.root()
        return [(self.ratchet.seal(self._entropy(), self._sequence, root, moment), moment)]

    def _seal_batch(
        self, bodies: Sequence[_Body], moment: Moment, *, closing: bool
    ) -> tuple[int, list[bytes], list[bytes]]:
        """Seal one batch and move on; its first sequence, all its frames, and the hash of each of
        `bodies`."""
        first = self._sequence
        sizes = [frame_bytes(len(body)) for _, body, _, _ in bodies]
        ends = self._end_offset + sum(sizes) + segment.CLOSING_BYTES_MAX > self._geometry.ends_after
        if max(sizes, default=0) > self._geometry.frame_bytes_max:
            raise InvariantError(
                f"a record has {max(sizes)} bytes; {self._geometry.frame_bytes_max} fit"
            )
        seal = self._seal_many if len(bodies) >= MANY else self._seal_each
        frames, digests = seal(bodies, ends=not (closing or ends))
        self._frontier = self._frontier.extended(digests)
        if self.successor is not None and any(kind == _ROTATED for kind, _, _, _ in bodies):
            self._signer, self.successor = self.successor, None
        if closing:
            frames.append(self._sign_checkpoint(moment, FLAG_LAST if not ends else 0))
        if ends:
            event = SegmentEnd(EventId(self._entropy()), self._segment_no)
            frames.append(self._seal_record(KIND[SegmentEnd], encode(event), moment, FLAG_LAST))
            self._frontier = self._frontier.extended([self._hash])
            self._ends = {
                self._sequence: self._frontier,
                **dict(list(self._ends.items())[:ENDS_KEPT]),
            }
            # The switch writes an anchor slot of its own, which takes one generation.
            self._batch += 2
            self._segment_no += 1
            self._end_offset = segment.HEADER_BYTES
        else:
            self._batch += 1
            self._end_offset += sum(map(len, frames))
        return first, frames, digests

    def _seal_many(
        self, bodies: Sequence[_Body], *, ends: bool
    ) -> tuple[list[bytes], list[bytes]]:
        """As `_seal_each`, natively, where all are of one moment, as nearly always."""
        kinds, plain, moments, schemas = zip(*bodies, strict=True)
        moment = moments[0]
        if moments.count(moment) < len(moments):
            return self._seal_each(bodies, ends=ends)
        link, stamp = (self._sequence, self._batch, self._hash), (moment.wall_ns, moment.boot_ns)
        frames, digests = self._press.seal(link, stamp, plain, kinds, schemas, ends=ends)
        self._sequence += len(bodies)
        self._hash = digests[-1]
        return [frames], digests

    def _seal_each(
        self, bodies: Sequence[_Body], *, ends: bool
    ) -> tuple[list[bytes], list[bytes]]:
        """Frames and hashes of records, one after the other; the last of them may end a batch."""
        frames, digests = [], []
        for left, (kind, body, at, schema) in enumerate(bodies, 1 - len(bodies)):
            flags = FLAG_LAST if ends and not left else 0
            frames.append(self._seal_record(kind, body, at, flags, schema))
            digests.append(self._hash)
        return frames, digests

    def _seal_record(
        self, kind: int, body: bytes, at: Moment, flags: int, schema: int = SCHEMA
    ) -> bytes:
        """Return the frame of one record, and make it the head."""
        body_bytes = len(body)
        content = (
            SEALED.pack(
                self._sequence,
                self._batch,
                kind,
                schema,
                flags,
                body_bytes,
                at.wall_ns,
                at.boot_ns,
                self._hash,
            )
            + body
        )
        digest = sha256(self._prefix + content).digest()
        length = frame_bytes(body_bytes)
        tail = content + PADDING[length - body_bytes - FRAME_BYTES_MIN] + digest
        self._sequence += 1
        self._hash = digest
        return PREFIX.pack(length, crc32(tail, crc32(length.to_bytes(4, "little")))) + tail

    def _sign_checkpoint(self, moment: Moment, flags: int) -> bytes:
        """Seal the node's signature over the tree of all records before this one."""
        assert self._signer is not None
        root = self._frontier.root()
        text = Checkpoint(self._origin, self._sequence, root).text()
        event = CheckpointSigned(
            EventId(self._entropy()), self._sequence, root, self._signer.sign(text.encode())
        )
        frame = self._seal_record(KIND[CheckpointSigned], encode(event), moment, flags)
        self._frontier = self._frontier.extended([self._hash])
        self._signed_ns = moment.boot_ns
        return frame

    def _checkpoint_due(self, moment: Moment) -> bool:
        """Whether the last checkpoint of this run is long enough ago."""
        return self._signed_ns is None or moment.boot_ns - self._signed_ns >= CHECKPOINT_NS

    def _cuts(self, events: Sequence[Event], sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Say where to cut what may be too much for one batch: index ranges."""
        soft = self._geometry.batch_bytes
        hard = soft + self._geometry.frame_bytes_max
        cuts, start, held = [], 0, 0
        for index, body_bytes in enumerate(sizes):
            frame = frame_bytes(body_bytes)
            apart = index > start and _lease_of(events[index]) != _lease_of(events[index - 1])
            if index > start and held + frame > (soft if apart else hard):
                cuts.append((start, index))
                start, held = index, 0
            held += frame
        cuts.append((start, len(sizes)))
        return cuts


def _lease_of(event: Event) -> bytes:
    """The lease an event is about; its own id if none, so that it stands apart from its
    neighbours."""
    return getattr(event, "lease_id", event.event_id)
