# SPDX-License-Identifier: Apache-2.0
"""The door to the C verbs of the chain: strides over plain records, their bodies, links, leases,
the tree.

Rule: C only ever says how far all is plain; the first record of which it cannot say that is judged
in Python by whoever asked (`verifier`, `canonical`). These verbs read bytes that they are handed
and compute: no file, no clock, and no state but that of the leases that are followed. The
interpreter's lock is let go of meanwhile.

Does not decide anything.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from leased._native import ffi, lib

HASH_BYTES: Final = lib.LEASED_HASH_BYTES
KINDS: Final = lib.LEASED_KINDS
SCHEMAS: Final = lib.LEASED_SCHEMAS
LEASE_KINDS: Final = range(
    lib.LEASED_LEASE_KIND_FIRST, lib.LEASED_LEASE_KIND_FIRST + lib.LEASED_LEASE_KINDS
)
ID_BYTES: Final = 16
STAGES: Final = 256
INTEGER: Final = lib.LEASED_SHAPE_INTEGER
ENUM: Final = lib.LEASED_SHAPE_ENUM
BOOL: Final = lib.LEASED_SHAPE_BOOL
BYTES: Final = lib.LEASED_SHAPE_BYTES
TEXT: Final = lib.LEASED_SHAPE_TEXT
FIELDS: Final = lib.LEASED_SHAPE_FIELDS
LIST: Final = lib.LEASED_SHAPE_LIST
AMOUNT: Final = lib.LEASED_SHAPE_AMOUNT

STRIDE_RECORDS: Final = 4096
"""So much at a time: 2 ms, and 170 KiB of results."""

_FRAME_BYTES_MIN: Final = 112
_PEAKS_MAX: Final = 64 + 1
_U64_MAX: Final = (1 << 64) - 1
_CUT_SHORT: Final = -errno.ENODATA


class Stand(NamedTuple):
    """Where a walk stands: what the next record must follow. A record of the boot clock `limit_ns`
    or later is not plain."""

    offset: int
    sequence: int
    head: bytes
    batch: int
    open: bool
    boot_ns: int
    limit_ns: int


class Stride(NamedTuple):
    """What one stride went over, as raw arrays of 8, 2, 32 and 1 bytes a record, and where it
    ended. `bodies` is 1 where a body was seen to be the one legal encoding of its kind. `more`: it
    ended because there is no room for more, and not at a record that is not plain."""

    offsets: bytes
    kinds: bytes
    hashes: bytes
    bodies: bytes
    stand: Stand
    more: bool


class Strider:
    """Goes over plain records of `data[:stop]`."""

    def __init__(
        self,
        data: bytes,
        start: int,
        stop: int,
        prefix: bytes,
        plain: bytes,
        shapes: Shapes | None = None,
    ) -> None:
        """Bit n - 1 of `plain[kind]` is set where a record of the kind in schema n needs no
        thought; `shapes` are for bodies to be looked at."""
        self._data, self._stop = ffi.from_buffer(data), stop
        assert stop <= len(data)
        self._at = ffi.new("struct leased_stride *")
        self._at.prefix, self._at.plain = prefix, plain
        self._shapes = shapes  # C has pointers into it
        if shapes is not None:
            self._at.shapes, self._at.roots = shapes.raw
        self._room = min(STRIDE_RECORDS, (stop - start) // _FRAME_BYTES_MIN + 1)
        self._offsets = ffi.new("uint64_t[]", self._room)
        self._kinds = ffi.new("uint16_t[]", self._room)
        self._hashes = ffi.new("uint8_t[]", self._room * HASH_BYTES)
        self._bodies = ffi.new("uint8_t[]", self._room)

    def go(self, stand: Stand) -> Stride:
        """From where a walk stands to the first record that is not plain, or as far as there is
        room."""
        at, limit_ns = self._at, min(max(0, stand.limit_ns), _U64_MAX)
        if stand.sequence > _U64_MAX or not 0 <= stand.batch <= _U64_MAX:
            return Stride(b"", b"", b"", b"", stand, False)  # no record says so: none is plain
        at.offset, at.sequence, at.head, at.batch, at.open, at.boot_ns, _ = stand
        at.limit_ns = limit_ns
        arrays = (self._offsets, self._kinds, self._hashes, self._bodies)
        count = lib.leased_chain_stride(at, self._data, self._stop, self._room, *arrays)
        head = bytes(at.head)
        reached = (at.offset, at.sequence, head, at.batch, bool(at.open), at.boot_ns)
        return Stride(
            ffi.buffer(self._offsets, 8 * count)[:],
            ffi.buffer(self._kinds, 2 * count)[:],
            ffi.buffer(self._hashes, HASH_BYTES * count)[:],
            ffi.buffer(self._bodies, count)[:],
            Stand(*reached, stand.limit_ns),
            count == self._room,
        )


class CutShort(Exception):
    """The data ends within a frame at `at`."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class NotLinked(CutShort):
    """The frame at `at` does not follow the one before, or is none."""


def links(data: bytes, offset: int, most: int, *, bytes_max: int | None) -> tuple[int, int, bytes]:
    """Walk at most `most` frames by their links alone; with `bytes_max` only whole batches, as many
    as fit but at least one. (records, bytes, hashes). Raises CutShort, NotLinked."""
    size = len(data) - offset
    room = max(0, min(most, size // _FRAME_BYTES_MIN))
    most = min(most, room + 1)  # one more than there can be finds that it is cut short
    hashes = ffi.new("uint8_t[]", (room + 1) * HASH_BYTES)
    records, length = ffi.new("size_t *"), ffi.new("size_t *")
    limit = _U64_MAX if bytes_max is None else bytes_max
    start = ffi.from_buffer(data) + offset
    rc = lib.leased_chain_links(
        start, size, most, limit, bytes_max is not None, hashes, records, length
    )
    if rc < 0:
        raise (CutShort if rc == _CUT_SHORT else NotLinked)(offset + length[0])
    return records[0], length[0], ffi.buffer(hashes, HASH_BYTES * records[0])[:]


def last_frame(data: bytes) -> int:
    """Where the last frame begins, by the lengths alone. Raises CutShort, NotLinked (a length that
    is none)."""
    at = ffi.new("size_t *")
    rc = lib.leased_chain_last(ffi.from_buffer(data), len(data), at)
    if rc < 0:
        raise (CutShort if rc == _CUT_SHORT else NotLinked)(at[0])
    return int(at[0])


def extend_tree(size: int, peaks: Sequence[bytes], leaves: bytes | bytearray) -> tuple[bytes, ...]:
    """The peaks of a tree of `size`, extended by leaves that stand one behind the other."""
    count, rest = divmod(len(leaves), HASH_BYTES)
    assert not rest and len(peaks) == size.bit_count()
    room = ffi.new("uint8_t[]", _PEAKS_MAX * HASH_BYTES)
    ffi.memmove(room, b"".join(peaks), len(peaks) * HASH_BYTES)
    held = lib.leased_tree_extend(size, room, ffi.from_buffer(leaves), count)
    raw = ffi.buffer(room, held * HASH_BYTES)[:]
    return tuple(raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES))


class Press:
    """Seals the records of one batch after the other. One for each log: what it needs is made
    once."""

    def __init__(self, prefix: bytes) -> None:
        """`prefix` is what is hashed before each record's own bytes."""
        self._at = ffi.new("struct leased_sealing *")
        self._at.prefix = prefix

    def seal(
        self,
        link: tuple[int, int, bytes],
        stamp: tuple[int, int],
        bodies: Sequence[bytes],
        kinds: Sequence[int],
        schemas: Sequence[int],
        *,
        ends: bool,
    ) -> tuple[bytes, list[bytes]]:
        """Frames and hashes of records of one moment: `link` is the sequence and batch of the first
        of them and the hash before it, `stamp` their wall and boot clock; `ends`: the last of them
        ends the batch."""
        at, count = self._at, len(bodies)
        at.sequence, at.batch, at.head = link
        at.wall_ns, at.boot_ns = stamp
        sizes = array("I", map(len, bodies))
        frames = ffi.new("uint8_t[]", sum(sizes) + count * (_FRAME_BYTES_MIN + 7))
        hashes = ffi.new("uint8_t[]", count * HASH_BYTES)
        written = lib.leased_chain_seal(
            at,
            b"".join(bodies),
            ffi.from_buffer("uint32_t[]", sizes),
            ffi.from_buffer("uint16_t[]", array("H", kinds)),
            bytes(schemas),
            count,
            ends,
            frames,
            hashes,
        )
        raw = ffi.buffer(hashes)[:]
        digests = [raw[begin : begin + HASH_BYTES] for begin in range(0, len(raw), HASH_BYTES)]
        return ffi.buffer(frames, written)[:], digests


class Shapes:
    """How bodies are built, for `plain_bodies`: (what, nil, count, first, members) of each shape,
    and which is that of a kind in a schema."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, bool, int, int, int]],
        roots: Mapping[tuple[int, int], int],
    ) -> None:
        """Shape 0 is that of nothing."""
        self._shapes = ffi.new("struct leased_shape[]", len(shapes))
        for at, (what, nil, count, first, members) in enumerate(shapes):
            shape = self._shapes[at]
            shape.what, shape.nil, shape.count = what, nil, count
            shape.first, shape.members = first, members
        self._roots = ffi.new("uint32_t[]", SCHEMAS * KINDS)
        for (kind, schema), root in roots.items():
            assert 1 <= schema <= SCHEMAS
            self._roots[(schema - 1) * KINDS + kind] = root

    @property
    def raw(self) -> tuple[object, object]:
        """The arrays, as C has them. They live as long as this does."""
        return self._shapes, self._roots

    def plain_bodies(
        self, data: bytes, offsets: Sequence[int], kinds: Sequence[int], start: int
    ) -> int:
        """How many records from the `start`-th on, of frames that were walked, have the one legal
        encoding of their kind, without a doubt. Both sequences are arrays (Q and H)."""
        count = len(offsets) - start
        assert count <= len(kinds) - start
        return int(
            lib.leased_chain_bodies(
                self._shapes,
                self._roots,
                ffi.from_buffer(data),
                len(data),
                ffi.from_buffer("uint64_t[]", offsets) + start,
                ffi.from_buffer("uint16_t[]", kinds) + start,
                count,
            )
        )

    def plain_unframed(
        self, bodies: Sequence[bytes], kinds: Sequence[int], schemas: Sequence[int]
    ) -> int:
        """As `plain_bodies`, of bodies that are in no frame yet: how many, from the first on."""
        return int(
            lib.leased_chain_unframed(
                self._shapes,
                self._roots,
                b"".join(bodies),
                ffi.from_buffer("uint32_t[]", array("I", map(len, bodies))),
                ffi.from_buffer("uint16_t[]", array("H", kinds)),
                bytes(schemas),
                len(bodies),
            )
        )


class Leases:
    """How far each lease is, by its id, followed in C."""

    def __init__(self, stages: Mapping[bytes, int], moves: bytes, closed: int) -> None:
        """`moves[stage * len(LEASE_KINDS) + kind - LEASE_KINDS.start]` is where a record of the
        kind leads, 0 where C must not say; `closed` is the stage that is not kept."""
        assert len(moves) == STAGES * len(LEASE_KINDS)
        made = lib.leased_leases_new()
        if made == ffi.NULL:
            raise MemoryError
        self._leases = ffi.gc(made, lib.leased_leases_free)
        self._moves, self._closed = moves, closed
        self._put(b"".join(stages), bytes(stages.values()))

    def follow(self, data: bytes, offsets: Sequence[int], kinds: Sequence[int], start: int) -> int:
        """Follow the records of frames that were walked, from the `start`-th on; how many of them
        the moves say all about. Both sequences are arrays (Q and H)."""
        count = len(offsets) - start
        assert count <= len(kinds) - start
        return int(
            lib.leased_leases_follow(
                self._leases,
                self._moves,
                self._closed,
                ffi.from_buffer(data),
                len(data),
                ffi.from_buffer("uint64_t[]", offsets) + start,
                ffi.from_buffer("uint16_t[]", kinds) + start,
                count,
            )
        )

    def stage(self, lease_id: bytes) -> int:
        """Of one lease; 0 if it is not there."""
        assert len(lease_id) == ID_BYTES
        return int(lib.leased_leases_stage(self._leases, lease_id))

    def put(self, lease_id: bytes, stage: int) -> None:
        """Set it; 0 forgets the lease."""
        self._put(lease_id, bytes([stage]))

    def stages(self) -> dict[bytes, int]:
        """All of them, sorted."""
        count = lib.leased_leases_count(self._leases)
        ids, stages = ffi.new("uint8_t[]", count * ID_BYTES), ffi.new("uint8_t[]", count)
        lib.leased_leases_list(self._leases, ids, stages)
        raw = ffi.buffer(ids)[:]
        each = (raw[at : at + ID_BYTES] for at in range(0, len(raw), ID_BYTES))
        return dict(sorted(zip(each, ffi.buffer(stages)[:], strict=True)))

    def _put(self, ids: bytes, stages: bytes) -> None:
        assert len(ids) == len(stages) * ID_BYTES
        if lib.leased_leases_put(self._leases, ids, stages, len(stages)):
            raise MemoryError
