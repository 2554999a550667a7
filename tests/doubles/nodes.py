# SPDX-License-Identifier: Apache-2.0
"""Nodes to pull from, without a network: a real log on a disk in memory, and the pages of it as
PULL.md says.

A node can be copied (`clone`), put back (`restore`) and made to go on, which is all that a nemesis
needs. Everything is deterministic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import trio

from leased.chain.epochs import EpochKey, Ratchet
from leased.chain.head import GENESIS, Head
from leased.chain.note import Checkpoint, NoteKey, write_note
from leased.chain.page import PAGE_BYTES_MAX, Trailer, write_trailer
from leased.chain.record import FLAG_LAST
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY, Frontier
from leased.collector.ingest import Pinned
from leased.collector.reconcile import Problem
from leased.terms import event as e
from leased.terms.moment import Moment
from tests.doubles.logs import CountedEntropy, moment_at, started

EPOCH_NS = 60 * 10**9


class PulledNode:
    """One node's log, served page by page."""

    def __init__(self, number: int = 1, *, epoch_ns: int = 0, origin: str = "o/n") -> None:
        wide = bytes([number]) * 16 if number < 256 else number.to_bytes(4, "big") * 4
        self.log_id = wide
        self.node_id = b"\x40" * 12 + (0x40404000 + number).to_bytes(4, "big")
        self.origin = origin
        self.signer = Signer(wide * 2)
        self.first_key = self.signer.public_key
        self.seal_key = EpochKey(0, wide * 2)
        self.epoch_ns = epoch_ns
        self.clock: Callable[[], int] = lambda: 1
        """What the node says that the time is."""
        self.entropy = CountedEntropy(b"node%d" % number)
        self.ratchet = Ratchet(self.log_id, None, self.seal_key, epoch_ns) if epoch_ns else None
        self.sealer = self._sealer(GENESIS, EMPTY, 2)
        self.frames: list[bytes] = []
        self.hashes: list[bytes] = []
        self.min_seq = 0
        self.changes: list[tuple[int, e.KeyChange]] = []
        self.grown = trio.Event()

    @property
    def size(self) -> int:
        return len(self.frames)

    def pinned(self, *, seal_key: bool = True) -> Pinned:
        """What a collector is given out of band."""
        key = self.seal_key.key if seal_key and self.epoch_ns else None
        who = (self.log_id, self.node_id, self.origin, self.first_key)
        return Pinned(*who, self.epoch_ns, 0, key)

    def seal(self, events: Sequence[e.Event], moment: Moment | None = None, **options) -> None:
        """Seal and anchor a batch."""
        moment = moment or moment_at(self.size)
        items = [(event, moment) for event in events]
        self.extend(self.sealer.seal(items, moment=moment, **options).frames)

    def start(self) -> None:
        self.seal([started()])

    def extend(self, frames: bytes) -> None:
        """Take sealed frames in."""
        offset = 0
        while offset < len(frames):
            length = int.from_bytes(frames[offset : offset + 4], "little")
            self.frames.append(frames[offset : offset + length])
            self.hashes.append(self.frames[-1][-32:])
            offset += length
        self.grown.set()
        self.grown = trio.Event()

    def note(self, size: int | None = None, signer: Signer | None = None) -> str:
        """The signed note of the first `size` records."""
        size = self.size if size is None else size
        signer = signer or self.signer
        text = Checkpoint(self.origin, size, self.tree(size).root()).text()
        key = NoteKey(self.origin, signer.public_key)
        return write_note(text, [(key, signer.sign(text.encode()))])

    def tree(self, size: int) -> Frontier:
        return EMPTY.extended(self.hashes[:size])

    def page(
        self, first: int, prev: bytes | None = None, bytes_max: int = PAGE_BYTES_MAX
    ) -> bytes | Problem:
        """What the node answers."""
        if first > self.size:
            return Problem(416, "behind", size=self.size, checkpoint=self.note())
        if first < self.min_seq:
            first_kept = self.min_seq
            return Problem(410, "pruned", min_seq=first_kept, checkpoint=self.note())
        ours = self.hashes[first - 1] if first else bytes(32)
        if prev is not None and prev != ours:
            size, hash = self.size, ours.hex()
            return Problem(409, "fork", size=size, hash=hash, checkpoint=self.note())
        taken, end = b"", first
        for sequence in range(first, self.size):
            if taken and len(taken) + len(self.frames[sequence]) > bytes_max:
                break
            whole = sequence
            while not self.frames[whole][27] & FLAG_LAST:
                whole += 1
            if sequence >= end:
                taken += b"".join(self.frames[sequence : whole + 1])
                end = whole + 1
        return taken + self.trailer(end)

    def trailer(self, size: int, **changes) -> bytes:
        wall = self.clock() if size == self.size else 0
        head = self.hashes[size - 1] if size else bytes(32)
        fields = {"next_seq": size, "head": head, "note": self.note(size), "wall_ns": wall}
        return write_trailer(Trailer(**{**fields, **changes}), self.log_id)

    def rotate(self, signer: Signer) -> None:
        """Replace the node's key by a sealed record."""
        from leased.chain.signing import rotation_message

        message = rotation_message(self.log_id, self.signer.public_key, signer.public_key)
        signed = (self.signer.sign(message), signer.sign(message))
        self.sealer.successor = signer  # a checkpoint in the same batch is signed by it already
        self.changes.append((self.size, e.KeyChange(signer.public_key, *signed)))
        self.seal([e.KeyRotated(e.EventId(self.entropy()), signer.public_key, *signed)])
        self.signer = signer

    def prune(self, min_seq: int, said: tuple[e.KeyChange, ...] | None = None) -> None:
        """Let go what is before a record; `said` anew of the keys, if not what there is to say."""
        if said is None:
            said = tuple(change for at, change in self.changes if at < min_seq)
        fields = (min_seq, self.hashes[min_seq - 1], 1, min_seq, said)
        self.seal([e.Pruned(e.EventId(self.entropy()), *fields)], sign=True)
        self.min_seq = min_seq

    def clone(self) -> PulledNode:
        """A copy of the whole host at this moment: key, log, everything."""
        twin = copy.copy(self)
        twin.frames, twin.hashes = list(self.frames), list(self.hashes)
        twin.changes = list(self.changes)
        twin.entropy = CountedEntropy(b"clone%d" % self.size)
        twin.sealer, twin.ratchet = copy.copy(self.sealer), copy.copy(self.ratchet)
        twin.sealer.ratchet = twin.ratchet
        twin.sealer._entropy = twin.entropy
        return twin

    def cut(self, size: int) -> None:
        """Forget everything from record `size` on, as a restore from a backup does."""
        del self.frames[size:]
        del self.hashes[size:]
        self.changes = [one for one in self.changes if one[0] < size]
        batch = int.from_bytes(self.frames[-1][16:24], "little") + 1
        self.sealer = self._sealer(Head(size, self.hashes[-1]), self.tree(size), batch)

    def _sealer(self, head: Head, frontier: Frontier, batch: int) -> Sealer:
        return Sealer(
            self.log_id,
            head,
            frontier,
            batch,
            entropy=self.entropy,
            signer=self.signer,
            origin=self.origin,
            ratchet=self.ratchet,
            segment_bytes=1 << 30,
        )
