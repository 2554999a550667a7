# SPDX-License-Identifier: Apache-2.0
"""Rows of the projection as columns, most of them written by C straight from the frames.

Rule: C projects only what is plain and says how far that is (native/verbs/projection.c); every
other record is decoded and projected by `projection.Projector.observe`, whose rows go in between.
That one alone says what a row is, and gives the same rows for the same records: a contract test.

Does not know files or arrow (`blocks`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from leased._native import ffi, lib
from leased.chain.canonical import SHAPES, decode
from leased.chain.record import Record, hash_prefix, parse_frame
from leased.collector.metering.lives import ActRow
from leased.collector.metering.projection import (
    ACT,
    RARE,
    Block,
    Carry,
    Party,
    Projector,
    tag_of,
)
from leased.economics.timeline import BOOT_NS_MAX
from leased.terms.event import (
    KIND,
    Allocated,
    DrainNotified,
    EpochSealed,
    Event,
    Fenced,
    LeaseEvent,
    NodeStarted,
    Renewed,
    Voided,
)
from leased.terms.identity import BootId
from leased.terms.lease import Subject
from leased.terms.moment import Moment
from leased.terms.resource import Allotment

_DEADLINE: Final[dict[type[Event], str]] = {
    Allocated: "deadline_ns",
    Renewed: "deadline_ns",
    DrainNotified: "drain_deadline_ns",
}
_TELLS: Final = {Allocated: lib.LEASED_TELLS, Renewed: lib.LEASED_TELLS_CHANGES}
_JUDGED: Final = frozenset((*RARE, Fenced, Voided))
"""Seldom, and not of one form."""

_HAS: Final = (
    (8, lib.LEASED_ACT_DEADLINE),
    (9, lib.LEASED_ACT_TERMS),
    (10, lib.LEASED_ACT_REF),
)
_packed = msgspec.msgpack.Encoder().encode


class Column(NamedTuple):
    """`raw` numbers in the machine's order. `has`: a byte a row, not 0 where there is a number;
    None where there is one in each."""

    raw: bytes
    has: bytes | None = None


class Columns(NamedTuple):
    """So many rows of one log, by the names of a table of `engine.PROJECTION`."""

    length: int
    log: int
    columns: dict[str, Column]


class ColumnRows:
    """`projection.Rows` in C's columns."""

    def __init__(self) -> None:
        made = lib.leased_projector_new()
        if made == ffi.NULL:
            raise MemoryError
        self.raw = ffi.gc(made, lib.leased_projector_free)
        self._act = ffi.new("struct leased_act *")
        self._held = ffi.new("struct leased_hold *")

    def act(self, row: ActRow) -> None:
        """See `projection.Rows`."""
        act = self._act
        _, act.sequence, act.boot, act.lease_hi, act.lease_lo, act.act, act.at_ns = row[:7]
        act.sealed_ns = row[7]
        act.deadline_ns, act.terms, act.ref = row[8] or 0, row[9] or 0, row[10] or 0
        act.has = sum(bit for at, bit in _HAS if row[at] is not None)
        _check(lib.leased_projector_act(self.raw, act))

    def hold(self, sequence: int, slot: int, party: Party, capacity: int) -> None:
        """See `projection.Rows`."""
        held = self._held
        held.sequence, held.slot, held.capacity = sequence, slot, capacity
        held.kind, held.tier, held.priority = party.kind, party.tier, party.priority
        whose, tagged = party.tenant.encode(), _packed(tag_of(party.tag))
        sizes = (whose, len(whose), tagged, len(tagged))
        _check(lib.leased_projector_hold(self.raw, held, *sizes))

    def turn(self, lease_id: bytes, terms: int) -> bool:
        """See `projection.Rows`."""
        before = lib.leased_projector_terms(self.raw, lease_id)
        _check(lib.leased_projector_turn(self.raw, lease_id, terms))
        return bool(before != terms)

    def settle(self, log: int) -> tuple[Columns, Columns, Columns]:
        """What there is of acts, holds and lives. Nothing is added after."""
        _check(lib.leased_projector_settle(self.raw))
        return self._acts(log), self._holds(log), self._lives(log)

    def parties(self) -> list[bytes]:
        """Whose keys the rows have, encoded."""
        raw, ends = ffi.new("const uint8_t **"), ffi.new("const uint32_t **")
        count = lib.leased_projector_parties(self.raw, raw, ends)
        places = ffi.unpack(ends[0], count) if count else []
        data = _bytes(raw[0], places[-1], 1) if count else b""
        return [data[a:b] for a, b in zip((0, *places), places, strict=False)]

    def _acts(self, log: int) -> Columns:
        acts = lib.leased_projector_acts(self.raw)
        count = acts.count
        has = _bytes(acts.has, count, 1)

        def among(bit: int) -> bytes | None:
            return has.translate(_OF_BIT[bit]) if acts.missing & bit else None

        def wide(column: object, bit: int = 0) -> Column:
            return Column(_bytes(column, count, 8), among(bit) if bit else None)

        columns = {
            "seq": wide(acts.sequence),
            "boot": Column(_bytes(acts.boot, count, 4)),
            "lease_hi": wide(acts.lease_hi),
            "lease_lo": wide(acts.lease_lo),
            "act": Column(_bytes(acts.act, count, 1)),
            "at_ns": wide(acts.at_ns),
            "sealed_ns": wide(acts.sealed_ns),
            "deadline_ns": wide(acts.deadline_ns, lib.LEASED_ACT_DEADLINE),
            "terms": wide(acts.terms, lib.LEASED_ACT_TERMS),
            "ref": wide(acts.ref, lib.LEASED_ACT_REF),
        }
        return Columns(count, log, columns)

    def _holds(self, log: int) -> Columns:
        holds = lib.leased_projector_holds(self.raw)
        return Columns(holds.count, log, _held(holds))

    def _lives(self, log: int) -> Columns:
        lives = lib.leased_projector_lives(self.raw)
        count = lives.count
        released = _bytes(lives.released, count, 1) if lives.missing else None
        columns = {
            "boot": Column(_bytes(lives.boot, count, 4)),
            "granted_ns": Column(_bytes(lives.granted_ns, count, 8)),
            "torn_ns": Column(_bytes(lives.torn_ns, count, 8)),
            "ended_ns": Column(_bytes(lives.ended_ns, count, 8)),
            "released_ns": Column(_bytes(lives.released_ns, count, 8), released),
        }
        return Columns(count, log, columns | _held(lives))


class FrameProjector(Projector):
    """A projector that is fed frames."""

    def __init__(self, log: int, carry: Carry, log_id: bytes) -> None:
        self._columns = ColumnRows()
        super().__init__(log, carry, self._columns)
        self._prefix = hash_prefix(log_id)
        self._at = ffi.new("struct leased_projecting *")

    @property
    def next_seq(self) -> int:
        """The sequence that comes next."""
        return self._next_seq

    def take(self, frames: bytes, offset: int, end_seq: int) -> int:
        """Project records from `offset` on, before `end_seq`; where it ended. There may be gaps:
        records that were removed. Raises ChainError."""
        data, at = ffi.from_buffer(frames), self._at
        while offset < len(frames):
            if self._boot >= 0:
                at.offset, at.sequence, at.boot = offset, self._next_seq, self._boot
                at.watermark_ns, at.sealed_ns = self._watermark_ns, self._sealed_ns
                raw = self._columns.raw
                _check(lib.leased_projector_take(raw, _PLAN, at, data, len(frames), end_seq))
                self._next_seq, self._sealed_ns = at.sequence, at.sealed_ns
                self._watermark_ns = at.watermark_ns
                offset = at.offset
            if offset < len(frames):
                record = parse_frame(frames, offset, self._prefix)
                if record.sequence >= end_seq:
                    break
                self._judge(record)
                offset += record.frame_bytes
        return offset

    def block(self, full_seq: int | None = None) -> Block:
        """See `Projector`. `full_seq`: no record before that one comes any more."""
        if full_seq is not None:
            self._next_seq = full_seq
        settled = self._columns.settle(self._log)
        return Block(*settled, self._columns.parties(), self._rare, self._carry())

    def _judge(self, record: Record) -> None:
        """Project a record by itself."""
        event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
        boot_id = self._boot_id if self._boot >= 0 else bytes(16)
        boot_ns = record.boot_ns
        if isinstance(event, EpochSealed):
            # It may have been written by the boot that the next NodeStarted names.
            boot_ns = self._sealed_ns
        if isinstance(event, NodeStarted):
            boot_id = event.boot_id
        self.observe(record.sequence, event, Moment(BootId(boot_id), boot_ns, record.wall_ns))


def _held(rows: Any) -> dict[str, Column]:
    """What holds and lives both say."""
    count = rows.count
    return {
        "seq": Column(_bytes(rows.sequence, count, 8)),
        "slot": Column(_bytes(rows.slot, count, 2)),
        "party_hi": Column(_bytes(rows.party_hi, count, 8)),
        "party_lo": Column(_bytes(rows.party_lo, count, 8)),
        "capacity": Column(_bytes(rows.capacity, count, 8)),
    }


def _check(rc: int) -> None:
    if rc < 0:
        raise MemoryError


def _bytes(column: object, count: int, width: int) -> bytes:
    return ffi.buffer(column, count * width)[:] if count else b""


def _at(cls: type[msgspec.Struct], name: str) -> int:
    """Where a field stands."""
    return cls.__struct_fields__.index(name)


def _make_plan() -> object:
    """What C must know of events, made of their classes."""
    plan = ffi.new("struct leased_plan *")
    plan.shapes, plan.roots = SHAPES.raw
    plan.boot_ns_max = BOOT_NS_MAX
    for kind in range(lib.LEASED_KINDS):
        plan.act[kind] = lib.LEASED_ACT_JUDGED
    for event, kind in KIND.items():
        if event not in _JUDGED:
            plan.act[kind] = ACT.get(event, 0)
        plan.deadline[kind] = _at(event, _DEADLINE[event]) if event in _DEADLINE else 0
        plan.tells[kind] = _TELLS.get(event, 0)
    plan.act[KIND[EpochSealed]] = lib.LEASED_ACT_TIMELESS
    plan.effective, plan.subject = _at(LeaseEvent, "effective_ns"), _at(LeaseEvent, "subject")
    for name in ("tenant", "tag", "priority", "allotments"):
        setattr(plan, name, _at(Subject, name))
    for name in ("kind", "tier", "capacity"):
        setattr(plan, name, _at(Allotment, name))
    return plan


_PLAN: Final = _make_plan()
_OF_BIT: Final = {bit: bytes(int(bool(value & bit)) for value in range(256)) for _, bit in _HAS}
