# SPDX-License-Identifier: Apache-2.0
"""The projection: records of one log as rows that SQL engines read (sql/metering.sql says what each
column is).

Rule: a row follows from its record, and from no more of what was before than `Carry` holds; so a
log is projected block by block, and a block always has the same rows; what a block has of a lease
from its grant to its end is put together (`lives`). What is rare (starts, clock steps, inventories,
operators' fences) is kept as it is and folded by `economics.intervals` itself: boots, eras, and
what no lease is behind come from there.

Does not read or write files (`blocks`). Frames in bulk are projected natively (`columns`), by what
is written here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from leased.chain.canonical import decode, encode
from leased.collector.metering.lives import ActRow, HoldRow, settle
from leased.economics.intervals import Ledger
from leased.economics.peaks import labelled
from leased.economics.pools import Interval, Pool
from leased.economics.timeline import BOOT_NS_MAX
from leased.terms.event import (
    KIND,
    Allocated,
    ClockStepped,
    CordonChanged,
    DrainNotified,
    Fenced,
    InventoryChanged,
    LeaseEvent,
    NodeStarted,
    Reclaimed,
    Released,
    Renewed,
    ResourceFenced,
    TeardownBegun,
    Unfenced,
    Voided,
)
from leased.terms.identity import BootId
from leased.terms.lease import AccountingTag, Subject, is_probe
from leased.terms.moment import Moment
from leased.terms.resource import Allotment, TierKind

ACT: Final[dict[type, int]] = {
    Allocated: 1,
    Renewed: 2,
    DrainNotified: 3,
    TeardownBegun: 4,
    Reclaimed: 5,
    Fenced: 6,
    Unfenced: 7,
    Voided: 8,
    Released: 9,
}
RARE: Final = (NodeStarted, ClockStepped, InventoryChanged, ResourceFenced, CordonChanged)
NEVER_NS: Final = (1 << 63) - 1
"""Later than any deadline that can come; what SQL has for "no deadline". No record has it for its
sequence either."""

_PARTY: Final = struct.Struct("<BbBI")
_KEY: Final = struct.Struct(">qq")
_packed = msgspec.msgpack.Encoder().encode
_unpacked_tag = msgspec.msgpack.Decoder(AccountingTag | None).decode
_json = msgspec.json.Encoder().encode


class Rare(msgspec.Struct, frozen=True, array_like=True):
    """A rare record as it was sealed, and the last moment of its boot before it."""

    sequence: int
    kind: int
    body: bytes
    boot_id: bytes
    boot_ns: int
    wall_ns: int
    before_ns: int

    def event(self) -> object:
        """What was sealed; nothing where only the time counts."""
        return decode(self.kind, 1, self.body) if self.kind else None


class Carry(msgspec.Struct, frozen=True, array_like=True):
    """What the next block of a log needs to know of those before."""

    next_seq: int = 0
    boot: int = -1
    boot_id: bytes = b""
    watermark_ns: int = 0
    sealed_ns: int = 0


class Party(NamedTuple):
    """Who holds something, and as what: all that a price and a bill ask of it but how much. `tier`
    is -1 for none, `tag` as `tag_text` has it, empty for none."""

    kind: int
    tier: int
    priority: int
    tenant: str
    tag: str

    def encoded(self) -> bytes:
        """As its key is made of it (native/verbs/projection.c)."""
        tenant = self.tenant.encode()
        numbers = (self.kind, self.tier, self.priority, len(tenant))
        return _PARTY.pack(*numbers) + tenant + _packed(tag_of(self.tag))


def party_key(encoded: bytes) -> tuple[int, int]:
    """What stands for a party in rows, the same in every block and log: party_hi and party_lo."""
    high, low = _KEY.unpack_from(sha256(encoded).digest())
    return high, low


def party_row(encoded: bytes) -> tuple[int | str, ...]:
    """Undo `Party.encoded`: `engine.PARTY_COLUMNS`."""
    kind, tier, priority, size = _PARTY.unpack_from(encoded)
    end = _PARTY.size + size
    tag = _unpacked_tag(encoded[end:])
    probe = int(is_probe(tag))
    whose = (encoded[_PARTY.size : end].decode(), tag_text(tag))
    return *party_key(encoded), kind, tier, priority, probe, *whose


class Block(msgspec.Struct, frozen=True):
    """The rows of consecutive records of one log, lives put together: lists of ActRow, HoldRow and
    LifeRow, or `columns.Columns` of the same; and the parties in them, encoded, as they came."""

    acts: Any
    holds: Any
    lives: Any
    parties: list[bytes]
    rare: list[Rare]
    carry: Carry


def log_number(log_id: str) -> int:
    """What stands for a log in rows: the first eight bytes of its id, signed."""
    return int.from_bytes(bytes.fromhex(log_id)[:8], "big", signed=True)


class Rows(Protocol):
    """Where the rows of a block go."""

    def act(self, row: ActRow) -> None:
        """One more."""
        ...

    def hold(self, sequence: int, slot: int, party: Party, capacity: int) -> None:
        """One more."""
        ...

    def turn(self, lease_id: bytes, terms: int) -> bool:
        """A lease has these terms now; whether the block saw it with others, or not at all."""
        ...


class ListRows:
    """`Rows` of one log as lists."""

    def __init__(self, log: int) -> None:
        self._log = log
        self.acts: list[ActRow] = []
        self.holds: list[HoldRow] = []
        self.parties: dict[bytes, tuple[int, int]] = {}
        self._terms: dict[bytes, int] = {}

    def act(self, row: ActRow) -> None:
        """See `Rows`."""
        self.acts.append(row)

    def hold(self, sequence: int, slot: int, party: Party, capacity: int) -> None:
        """See `Rows`."""
        encoded = party.encoded()
        key = self.parties.setdefault(encoded, party_key(encoded))
        self.holds.append((self._log, sequence, slot, *key, capacity))

    def turn(self, lease_id: bytes, terms: int) -> bool:
        """See `Rows`."""
        before = self._terms.get(lease_id)
        self._terms[lease_id] = terms
        return before != terms


class Projector:
    """Feed it records in order; take the block."""

    def __init__(self, log: int, carry: Carry, rows: Rows | None = None) -> None:
        self._log = log
        self._rows = ListRows(log) if rows is None else rows
        self._rare: list[Rare] = []
        self._next_seq = carry.next_seq
        self._boot, self._boot_id = carry.boot, carry.boot_id
        self._watermark_ns = carry.watermark_ns
        self._sealed_ns = carry.sealed_ns

    def observe(self, sequence: int, event: object, moment: Moment) -> None:
        """Project one record."""
        if moment.boot_ns > BOOT_NS_MAX:
            moment = Moment(moment.boot_id, BOOT_NS_MAX, moment.wall_ns)
        kind = type(event)
        self._next_seq, self._sealed_ns = sequence + 1, moment.boot_ns
        if self._boot < 0 or kind in RARE:
            self._keep(sequence, event, moment)
        if moment.boot_id == self._boot_id and moment.boot_ns > self._watermark_ns:
            self._watermark_ns = moment.boot_ns
        act = ACT.get(kind)
        if act is None:
            return
        if isinstance(event, Voided):
            at_ns = self._watermark_ns
            row = (self._log, sequence, self._boot, 0, 0, act, at_ns, at_ns)
            self._rows.act((*row, None, None, min(event.sequence, NEVER_NS)))
        elif isinstance(event, LeaseEvent):
            self._act(sequence, event, act)

    def block(self) -> Block:
        """Everything so far."""
        rows = self._rows
        assert isinstance(rows, ListRows)
        settled = settle(rows.acts, rows.holds)
        return Block(*settled, list(rows.parties), self._rare, self._carry())

    def _carry(self) -> Carry:
        """What the next block needs to know."""
        place = (self._boot, self._boot_id, self._watermark_ns, self._sealed_ns)
        return Carry(self._next_seq, *place)

    def _keep(self, sequence: int, event: object, moment: Moment) -> None:
        """Keep a rare record; a start in another boot begins it."""
        kind, body = (KIND[type(event)], encode(event)) if isinstance(event, RARE) else (0, b"")
        fields = (moment.boot_id, moment.boot_ns, moment.wall_ns, self._watermark_ns)
        self._rare.append(Rare(sequence, kind, body, *fields))
        boot_id = event.boot_id if isinstance(event, NodeStarted) else moment.boot_id
        if self._boot < 0:
            self._boot, self._boot_id = 0, moment.boot_id
            self._watermark_ns = moment.boot_ns
        if isinstance(event, NodeStarted) and boot_id != self._boot_id:
            self._boot, self._boot_id = self._boot + 1, boot_id
            self._watermark_ns = moment.boot_ns

    def _act(self, sequence: int, event: LeaseEvent, act: int) -> None:
        lease_id, sealed_ns = event.lease_id, self._watermark_ns
        deadline_ns: int | None = None
        terms: int | None = None
        if isinstance(event, (Allocated, Renewed)):
            deadline_ns = min(event.deadline_ns, NEVER_NS)
            terms = _digest(event.subject)
            turned = self._rows.turn(lease_id, terms)
            if isinstance(event, Allocated) or turned:
                self._hold(sequence, event.subject, event.subject.allotments)
        elif isinstance(event, DrainNotified):
            deadline_ns = min(event.drain_deadline_ns, NEVER_NS)
        elif isinstance(event, Fenced):
            self._hold(sequence, event.subject, event.fenced)
        self._rows.act(
            (
                self._log,
                sequence,
                self._boot,
                int.from_bytes(lease_id[:8], "big", signed=True),
                int.from_bytes(lease_id[8:], "big", signed=True),
                act,
                min(event.effective_ns, sealed_ns),
                sealed_ns,
                deadline_ns,
                terms,
                None,
            )
        )

    def _hold(self, sequence: int, whose: Subject, allotments: tuple[Allotment, ...]) -> None:
        tag = tag_text(whose.tag)
        for slot, held in enumerate(allotments):
            tier = tier_number(held.tier)
            party = Party(int(held.kind), tier, int(whose.priority), whose.tenant, tag)
            self._rows.hold(sequence, slot, party, held.capacity)


class LogShape(msgspec.Struct, frozen=True):
    """What the rare records of a log say. `boots` are (start, end) in order, `eras` (boot, start,
    end, label, whether it is the last of its boot), `others` (pool, kind, tier, capacity, start,
    end) with labels, `there` what there is now: (pool, kind, tier, capacity)."""

    boots: list[tuple[int, int]]
    eras: list[tuple[int, int, int, int, bool]]
    others: list[tuple[int, int, int, int, int, int]]
    there: list[tuple[int, int, int, int]]
    cordoned: bool
    first_seq: int
    last_seq: int
    first_ns: int
    watermark_ns: int


def shape(rare: Iterable[Rare], carry: Carry) -> LogShape:
    """Fold the rare records of one log, from its first on."""
    ledger = Ledger()
    found: list[Interval] = []
    boots: list[tuple[int, int]] = []
    boot_ids: list[bytes] = []
    start_ns, cordoned = 0, False
    for one in rare:
        if ledger.boot_id is not None:
            ledger.pass_by(one.before_ns)
        before_id, before_ns = ledger.boot_id, ledger.watermark_ns
        event = one.event()
        moment = Moment(BootId(one.boot_id), one.boot_ns, one.wall_ns)
        found.extend(ledger.observe(one.sequence, event, moment))
        if ledger.boot_id != before_id:
            if before_id is not None:
                boots.append((start_ns, before_ns))
            boot_ids.append(bytes(ledger.boot_id or b""))
            start_ns = one.boot_ns
        if isinstance(event, CordonChanged) and not event.resource_id:
            cordoned = event.cordoned
    ledger.pass_by(carry.watermark_ns)
    boots.append((start_ns, ledger.watermark_ns))
    opened = ledger.open_intervals()
    assert ledger.boot_id is not None, "a log has a first record"
    return LogShape(
        boots,
        _eras(ledger, boot_ids, boots),
        [row for one in (*found, *opened) for row in _other_rows(one, ledger)],
        [_there(one) for one in opened],
        cordoned,
        ledger.first_sequence,
        carry.next_seq - 1,
        ledger.timeline.eras[0].label_ns,
        ledger.timeline.label(ledger.boot_id, ledger.watermark_ns),
    )


def tag_text(tag: AccountingTag | None) -> str:
    """A tag as rows have it: a JSON array of its five fields; empty for none."""
    return "" if tag is None else _json(tag).decode()


def tag_of(text: str) -> AccountingTag | None:
    """Undo `tag_text`."""
    return msgspec.json.decode(text, type=AccountingTag) if text else None


def tier_number(tier: TierKind | None) -> int:
    """A tier as rows have it."""
    return -1 if tier is None else int(tier)


def _digest(whose: Subject) -> int:
    """Stands for who holds what: two of one lease are compared, never more."""
    return int.from_bytes(sha256(_packed(whose)).digest()[:8], "big", signed=True)


def _eras(
    ledger: Ledger, boot_ids: list[bytes], boots: list[tuple[int, int]]
) -> list[tuple[int, int, int, int, bool]]:
    eras = ledger.timeline.eras
    found = []
    for index, era in enumerate(eras):
        boot = boot_ids.index(bytes(era.boot_id))
        same = index + 1 < len(eras) and eras[index + 1].boot_id == era.boot_id
        end_ns = eras[index + 1].start_ns if same else boots[boot][1]
        found.append((boot, era.start_ns, end_ns, era.label_ns, not same))
    return found


def _other_rows(
    interval: Interval, ledger: Ledger
) -> Iterable[tuple[int, int, int, int, int, int]]:
    if interval.lease_id is not None or interval.pool is Pool.TENANT:
        return
    held = interval.allotment
    tier = tier_number(held.tier)
    for start_ns, end_ns, capacity in labelled(interval, ledger.timeline):
        yield int(interval.pool), int(held.kind), tier, capacity, start_ns, end_ns


def _there(interval: Interval) -> tuple[int, int, int, int]:
    held = interval.allotment
    tier = tier_number(held.tier)
    return int(interval.pool), int(held.kind), tier, held.capacity
