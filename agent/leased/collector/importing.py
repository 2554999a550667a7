# SPDX-License-Identifier: Apache-2.0
"""Importing: records of a log that its node has pruned, or that somebody who is away has, from a
copy: another collector's state directory, a backup of one, or an export of frames.

Rule: whose copy it is says nothing. A record is taken in if it holds from record 0 on as it would
if the node had served it, and if a checkpoint further on, by the key that was enrolled, is of a
tree with it in it: one among the records, or the note that another collector has of the node. What
lies below none is left for the node itself to serve. So a forged copy is refused, and never makes a
node look like a liar. A sticky verdict stays one.

Does not cosign (`puller` does, once the node has signed where the log stands) and reads nothing of
the copy but its raw segments and that note.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.record import FLAG_LAST, FRAME_BYTES_MAX, FRAME_BYTES_MIN, HEADER
from leased.collector.archive.archive import Archive, Page
from leased.collector.archive.manifest import DATABASE, LogEntry, Manifest
from leased.collector.archive.segments import SEGMENTS
from leased.collector.asking import BODY_BYTES_MAX
from leased.collector.ingest import State, decode_state, encode_state, judge_note, take_frames
from leased.collector.reconcile import Verdict
from leased.terms.errors import ChainError, StateError

PIECE_BYTES: Final = 16 * 1024 * 1024
BATCH_BYTES_MAX: Final = BODY_BYTES_MAX
"""A node could not have served more in one."""

UNSIGNED_BYTES_MAX: Final = 16 * PIECE_BYTES
"""What is kept in memory until a checkpoint over it comes. A node signs once a second, and seals a
tenth of this in one; whoever made the copy may have left them out."""

_Piece = tuple[bytes, State | None]
_NAME: Final = re.compile(r"(\d{20})-(\d{20})-[0-9a-f]{8}\.seg\Z")


class Imported(msgspec.Struct, frozen=True):
    """Records `first_seq` to `next_seq` - 1 were taken in; `unsigned` more that were read are below
    no checkpoint."""

    first_seq: int
    next_seq: int
    unsigned: int


class _Held(msgspec.Struct, frozen=True):
    """Verified batches that wait for a checkpoint over them."""

    before: State
    frames: bytes
    after: State


def import_copy(
    archive: Archive,
    entry: LogEntry,
    source: Path,
    now_ns: int,
    *,
    unsigned_bytes_max: int = UNSIGNED_BYTES_MAX,
    beat: Callable[[], object] = lambda: None,
) -> Imported:
    """Take in what a copy has of a log beyond what is here; of what goes on without a checkpoint no
    more is read than that. `beat` is called before each piece. Raises StateError, ChainError, and
    what that raises; what was taken in before stays."""
    state, held = decode_state(entry.state), deque[_Held]()
    begin = state.head.size
    while _bytes_of(held) <= unsigned_bytes_max:
        found = _following(state, source, entry.node, now_ns)
        if found is None:
            break
        for piece, known in found:
            beat()
            after = known or take_frames(state, piece, now_ns)
            held.append(_Held(state, piece, after))
            state = after
            while held and held[0].after.head.size <= _signed(state):
                _store(archive, entry, held.popleft())
            if _bytes_of(held) > unsigned_bytes_max:
                break
    verified, stands = state.head.size, held[0].before if held else state
    proven = max(_signed(state), _noted(source, entry, held, now_ns))
    while held and held[0].after.head.size <= proven:
        stands = held[0].after
        _store(archive, entry, held.popleft())
    cut = _end_below(held[0].frames, proven) if held else 0
    if cut:
        frames = held[0].frames[:cut]
        stands = take_frames(held[0].before, frames, now_ns)
        _store(archive, entry, _Held(held[0].before, frames, stands))
    if Verdict(entry.verdict).sticky:
        with archive.manifest.transaction():
            archive.manifest.set(entry.log_id, stands.head, why=entry.why)
    if verified == begin:
        raise StateError(f"{source}: no record {begin} of log {entry.log_id} is in it")
    return Imported(begin, stands.head.size, verified - stands.head.size)


def _bytes_of(held: Iterable[_Held]) -> int:
    return sum(len(one.frames) for one in held)


def _signed(state: State) -> int:
    """So many records the node has signed, by checkpoints among them."""
    return state.verifier.signed_size if state.verifier is not None else 0


def _noted(source: Path, entry: LogEntry, held: Iterable[_Held], now_ns: int) -> int:
    """So many records the node has signed, by the note that the copy's own collector has: it is
    judged where it says that the log stood then. 0 where there is none that holds."""
    if not (source / DATABASE).exists():
        return 0
    try:
        with closing(Manifest(source, read_only=True)) as manifest:
            theirs = manifest.log(entry.log_id)
        size = theirs.signed_size if theirs is not None else 0
        for one in held:
            if theirs is not None and one.before.head.size < size <= one.after.head.size:
                there = take_frames(one.before, one.frames[: _end_below(one.frames, size)], now_ns)
                return size if judge_note(there, theirs.note) == size == there.head.size else 0
    except (StateError, ChainError):
        pass  # it proves nothing, and is no part of what is brought
    return 0


def _store(archive: Archive, entry: LogEntry, held: _Held) -> None:
    """Raises StateError."""
    page = Page(
        entry.log_id,
        held.before.head,
        held.after.head,
        held.frames,
        encode_state(held.after),
        entry.signed_size,
        entry.note,
        entry.contact_ns,
        entry.verdict if Verdict(entry.verdict).sticky else Verdict.BEHIND,
    )
    for moved in archive.persist([page]):
        if moved is not None:
            raise moved


def _following(state: State, source: Path, node: str, now_ns: int) -> Iterator[_Piece] | None:
    """What goes on from where the log stands, in pieces of whole batches, the first with where the
    log stands then; None: there is no more. A node that has had two logs has files of both, and the
    same records may lie in files of several sizes: the first that holds counts. Raises StateError,
    ChainError."""
    size, refused = state.head.size, None
    for path in _files(source, node, size):
        pieces = _pieces(path, size)
        try:
            first = next(pieces, b"")
            if first:
                return _again(first, take_frames(state, first, now_ns), pieces)
        except ChainError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None


def _again(first: bytes, after: State, rest: Iterator[bytes]) -> Iterator[_Piece]:
    yield first, after
    for piece in rest:
        yield piece, None


def _files(source: Path, node: str, size: int) -> list[Path]:
    """The files of a copy that may have record `size`. Raises StateError."""
    if source.is_file():
        return [source]
    if not source.exists():
        raise StateError(f"{source}: No such file or directory")
    if not (source / SEGMENTS).is_dir():
        why = "no export of frames, and no segments/ in it: where a collector keeps what it pulled"
        raise StateError(f"{source}: {why}")
    directory, found = source / SEGMENTS / f"node={node}", []
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _NAME.match(path.name)
        if match is not None and int(match[1]) <= size <= int(match[2]) and path.is_file():
            found.append((-int(match[2]), path))
    return [path for _, path in sorted(found)]


def _pieces(path: Path, first_seq: int) -> Iterator[bytes]:
    """The batches of a file from record `first_seq` on, some at a time. Raises StateError."""
    left = b""
    try:
        with path.open("rb") as file:
            while data := file.read(PIECE_BYTES):
                left += data
                begin, end = _span(left, first_seq)
                if begin < end:
                    yield left[begin:end]
                left = left[end:]
                if len(left) > BATCH_BYTES_MAX:
                    break
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    if left:
        raise StateError(f"{path}: ends in the middle of a batch; it was cut, or is no frames")


def _span(data: bytes, first_seq: int) -> tuple[int, int]:
    """Where the first frame from `first_seq` on begins, and where the last whole batch ends."""
    offset = begin = end = 0
    while (length := _length(data, offset)) and offset + length <= len(data):
        _, _, sequence, _, _, _, flags, *_ = HEADER.unpack_from(data, offset)
        offset += length
        if flags & FLAG_LAST:
            end = offset
        if sequence < first_seq:
            begin = offset
    return begin, end


def _end_below(frames: bytes, size: int) -> int:
    """Where the last batch ends of which every record is below `size`."""
    offset = end = 0
    while offset < len(frames):
        length, _, sequence, _, _, _, flags, *_ = HEADER.unpack_from(frames, offset)
        offset += length
        if sequence < size and flags & FLAG_LAST:
            end = offset
    return end


def _length(data: bytes, offset: int) -> int:
    """What a frame says of its length; 0 where none can begin."""
    length = int.from_bytes(data[offset : offset + 4], "little")
    whole = offset + HEADER.size <= len(data)
    return length if whole and FRAME_BYTES_MIN <= length <= FRAME_BYTES_MAX else 0
