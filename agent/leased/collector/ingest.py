# SPDX-License-Identifier: Apache-2.0
"""Ingest: what is checked of one pulled page before a byte of it is stored.

Rule: in this order, and the first that does not hold decides: the trailer; CRC, sequence and link
of every frame; hash; seals and clock; the root of every checkpoint on the way; every body; the
grammar of every lease; and that the tree is the one the node signed. A page is taken whole or not
at all: what was carried in stays as it was, and what is carried on is stored with the frames.

Sans I/O: bytes and what was carried go in, what to store comes out. Does not store (`archive`) and
does not say what a refusal means (`reconcile`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from leased.chain.bodies import check_bodies
from leased.chain.canonical import decode
from leased.chain.epochs import EPOCHS_AHEAD_MAX, EpochKey, latest_epoch
from leased.chain.evidence import Rotation
from leased.chain.findings import Carried, Walk
from leased.chain.grammar import Grammar
from leased.chain.head import GENESIS, Head
from leased.chain.note import NoteKey, open_note, parse_checkpoint, parse_note
from leased.chain.page import Trailer, split_page
from leased.chain.record import FLAG_LAST
from leased.chain.tree import EMPTY
from leased.chain.verdict import (
    BAD_NOTE,
    BAD_ORDER,
    BAD_PAGE,
    BAD_ROOT,
    BAD_SIGNATURE,
    CORRUPT_RECORD,
)
from leased.chain.verifier import Verifier
from leased.terms.errors import ChainError
from leased.terms.event import (
    KIND,
    CheckpointSigned,
    HeadCountersigned,
    KeyRotated,
    NodeStarted,
    SegmentEnd,
)

QUIET_KINDS: Final = frozenset(
    KIND[event] for event in (CheckpointSigned, HeadCountersigned, SegmentEnd)
)
"""Records that an acknowledgement alone brings about: nothing to acknowledge anew."""

LEASES_MAX: Final = 262_144
"""Sixteen times what a node has by default; 65 MiB while a page is checked, 5 MiB with each."""

_STARTED: Final = KIND[NodeStarted]
_ROTATED: Final = KIND[KeyRotated]
_FLAGS_AT: Final = 27


class Pinned(msgspec.Struct, frozen=True):
    """What was enrolled of a log, out of band: never what the node says of itself. `printed_ns` is
    since when, by the clock of whoever pulls, its seals' key is known (0: not known)."""

    log_id: bytes
    node_id: bytes
    origin: str
    public_key: bytes
    epoch_ns: int = 0
    seal_epoch: int = 0
    seal_key: bytes | None = None
    printed_ns: int = 0

    def __repr__(self) -> str:
        return f"Pinned({self.log_id.hex()!r}, {self.origin!r})"


class State(msgspec.Struct, frozen=True):
    """What is carried from page to page. `loud`: something but `QUIET_KINDS` came since the head
    was last cosigned; `root` is that of the tree at the head; `lagging` that the note of the last
    page was by a key that the records have not introduced yet. `rotations` are those among the
    records: evidence is of every key that the node has had. `sealed_ns` is when, by the clock of
    whoever pulls, the last page came that had a seal in it (`noted`); `clock_ns` the latest that
    this clock ever said when a page came; `reckoned` an epoch and since when it has been open at
    the latest, where that clock was ahead at the enrolment."""

    pinned: Pinned
    verifier: Carried | None = None
    leases: dict[bytes, int] = {}
    boot_id: bytes = bytes(16)
    root: bytes = EMPTY.root()
    loud: bool = False
    lagging: bool = False
    rotations: tuple[Rotation, ...] = ()
    sealed_ns: int = 0
    clock_ns: int = 0
    reckoned: tuple[int, int] | None = None

    @property
    def head(self) -> Head:
        """Where the log stands."""
        return self.verifier.head if self.verifier is not None else GENESIS

    @property
    def public_key(self) -> bytes:
        """The node's key in force at the head."""
        carried = self.verifier
        return (carried.public_key if carried is not None else None) or self.pinned.public_key


class Taken(msgspec.Struct, frozen=True):
    """A page that holds. `note` is "" where it could not be judged yet (`State.lagging`)."""

    frames: bytes
    before: Head
    after: Head
    state: State
    trailer: Trailer
    note: str
    fresh: bool
    """The page ends where the log ends: the node was heard now."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(State)


def encode_state(state: State) -> bytes:
    """A state as the archive keeps it. It may hold a key."""
    return _ENCODER.encode(state)


def decode_state(raw: bytes) -> State:
    """A state as the archive kept it."""
    return _DECODER.decode(raw)


def verifier_at(state: State, now_ns: int) -> Verifier:
    """A verifier that goes on from where the log stands, for whoever's clock says `now_ns`."""
    pinned = state.pinned
    key = None if pinned.seal_key is None else EpochKey(pinned.seal_epoch, pinned.seal_key)
    latest = None
    if key is not None and pinned.epoch_ns and pinned.printed_ns:
        epoch, since_ns = _reckoned(state, now_ns) or (key.epoch, pinned.printed_ns)
        latest = latest_epoch(epoch, since_ns, now_ns, pinned.epoch_ns)
        reached = _reached(state)
        if now_ns < max(state.clock_ns, since_ns) or reached > latest:
            # Our own clock was set back: it says nothing. What one page may add is a bound, too.
            latest = max(latest, reached + EPOCHS_AHEAD_MAX)
    verifier = Verifier(
        pinned.log_id,
        origin=pinned.origin,
        public_key=pinned.public_key,
        key_changes=[one.change() for one in state.rotations],
        epoch_ns=pinned.epoch_ns,
        seal_key=key,
        latest_epoch=latest,
        bodies=True,
    )
    if state.verifier is not None:
        verifier.resume(state.verifier)
    return verifier


def _reckoned(state: State, now_ns: int) -> tuple[int, int] | None:
    """As `State` has it, by now: counted from a time to come, no epoch could ever end."""
    since_ns = state.reckoned[1] if state.reckoned is not None else state.pinned.printed_ns
    carried = state.verifier.epochs if state.verifier is not None else None
    if since_ns <= now_ns or carried is None or carried.next is None:
        return state.reckoned
    return carried.next, now_ns


def _reached(state: State) -> int:
    """The epoch that is open where the log stands, as far as its seals say."""
    epochs = state.verifier.epochs if state.verifier is not None else None
    return (epochs.next or 0) if epochs is not None else 0


def take_page(state: State, page: bytes, now_ns: int) -> Taken:
    """Check one page that was asked for at the head of `state`. Raises ChainError."""
    try:
        frames_end, trailer = split_page(page, state.pinned.log_id)
    except ChainError as error:
        # The trailer is no record: what is wrong with it says nothing about the log.
        raise ChainError(BAD_PAGE, error.why, offset=error.offset) from error
    frames, before = page[:frames_end], state.head
    new = take_frames(state, frames, now_ns)
    after, root = new.head, new.root
    if (trailer.next_seq, trailer.head) != (after.size, after.hash):
        said = f"the trailer says {trailer.next_seq}:{trailer.head.hex()}"
        raise ChainError(BAD_PAGE, f"{said} after a page that ends at {after.text()}")
    fresh = trailer.wall_ns != 0
    if not frames and not fresh:
        raise ChainError(BAD_PAGE, "a page without records ends where the log ends, and says when")
    key, note = new.public_key, trailer.note
    known = _check_note(state.pinned.origin, key, note, after.size, root, fresh=fresh)
    new = msgspec.structs.replace(new, lagging=not known)
    return Taken(frames, before, after, new, trailer, trailer.note if known else "", fresh)


def take_frames(state: State, frames: bytes, now_ns: int) -> State:
    """Check whole batches that follow where the log stands, wherever they are from; where it then
    stands. That it is the node's own tree no note of it has said yet. Raises ChainError."""
    verifier, grammar = verifier_at(state, now_ns), Grammar(dict(state.leases))
    boot_id, loud, rotations = state.boot_id, state.loud, state.rotations
    if frames:
        walk = verifier.feed(frames)
        _check_end(frames, walk)
        check_bodies(walk)
        grammar.follow(walk)
        boot_id = _boot_id(walk) or boot_id
        rotations += _rotations(walk, state.public_key)
        loud = loud or not QUIET_KINDS.issuperset(walk.kinds)
    carried, leases = verifier.carried(), grammar.stages
    if len(leases) > LEASES_MAX:
        # They are carried from page to page, and stored with each.
        why = f"{len(leases)} leases at a time: more than {LEASES_MAX} no node has"
        raise ChainError(BAD_ORDER, why, sequence=carried.head.size - 1)
    broken = state.verifier.clock_breaks if state.verifier is not None else 0
    if carried.clock_breaks != broken:
        why = "the boot clock goes back without a start"
        raise ChainError(CORRUPT_RECORD, why, sequence=state.head.size)
    return State(
        *(state.pinned, carried, leases, boot_id, carried.frontier.root()),
        loud=loud,
        lagging=True,
        rotations=rotations,
        sealed_ns=state.sealed_ns,
        clock_ns=state.clock_ns,
        reckoned=_reckoned(state, now_ns),
    )


def noted(before: State, after: State, now_ns: int) -> State:
    """A state as it is taken in now: a log that is heard of and seals nothing has stopped. Nothing
    was sealed later than now: our own clock may have been ahead."""
    seals = [
        one.verifier.epochs.sealed if one.verifier and one.verifier.epochs else 0
        for one in (before, after)
    ]
    news = seals[1] > seals[0] or not before.sealed_ns
    sealed_ns = now_ns if news else min(before.sealed_ns, now_ns)
    clock_ns = max(before.clock_ns, now_ns)
    return msgspec.structs.replace(after, sealed_ns=sealed_ns, clock_ns=clock_ns)


def judge_note(state: State, note: str) -> int:
    """The size that a note by the node's key is of. Raises ChainError if it is not by it, or if
    it says another root of the very tree that is held."""
    checked = open_note(note, [NoteKey(state.pinned.origin, state.public_key)])
    checkpoint = parse_checkpoint(checked.text)
    if checkpoint.origin != state.pinned.origin:
        raise ChainError(BAD_NOTE, f"the note is of {checkpoint.origin[:80]!r}, not of this log")
    if checkpoint.size == state.head.size and checkpoint.root != state.root:
        raise ChainError(BAD_ROOT, f"two roots of the same {checkpoint.size} records")
    return checkpoint.size


def _check_end(frames: bytes, walk: Walk) -> None:
    """A page ends with a batch. Raises ChainError."""
    if not frames[walk.offsets[-1] + _FLAGS_AT] & FLAG_LAST:
        sequence = walk.first_seq + len(walk.kinds) - 1
        raise ChainError(CORRUPT_RECORD, "the page ends within a batch", sequence=sequence)


def _boot_id(walk: Walk) -> bytes | None:
    """The boot that the last NodeStarted of a page names."""
    for index in range(len(walk.kinds) - 1, -1, -1):
        if walk.kinds[index] == _STARTED:
            record = walk.record(index)
            event = decode(record.kind, record.schema, record.body)
            if isinstance(event, NodeStarted):
                return event.boot_id
    return None


def _rotations(walk: Walk, key: bytes) -> tuple[Rotation, ...]:
    """The replacements of the node's key, at first `key`, in a page that was verified."""
    found = []
    for index in walk.judged:
        if walk.kinds[index] == _ROTATED:
            record = walk.record(index)
            event = decode(record.kind, record.schema, record.body)
            if isinstance(event, KeyRotated):
                signatures = event.signature_old.hex(), event.signature_new.hex()
                found.append(Rotation(key.hex(), event.public_key.hex(), *signatures))
                key = event.public_key
    return tuple(found)


def _check_note(origin: str, key: bytes, note: str, size: int, root: bytes, *, fresh: bool) -> bool:
    """Compare the node's note with the tree; whether its signature could be judged. A note of old
    records may be by a key that a later record introduces: that is judged once it is known, and
    where the log ends every key is. Raises ChainError."""
    parsed = parse_note(note)
    checkpoint = parse_checkpoint(parsed.text)
    if checkpoint.origin != origin or checkpoint.size != size:
        why = f"the note is of {checkpoint.size} records of {checkpoint.origin[:80]!r}"
        raise ChainError(BAD_NOTE, f"{why}, the page ends at {size} of {origin}")
    if checkpoint.root != root:
        raise ChainError(BAD_ROOT, f"the node signed another tree of {size} records", sequence=size)
    ours = NoteKey(origin, key)
    known = any((line.name, line.key_id) == (origin, ours.key_id) for line in parsed.signatures)
    if known:
        open_note(note, [ours])
    elif fresh:
        raise ChainError(BAD_SIGNATURE, "the note at the log's end is not by the node's key")
    return known
