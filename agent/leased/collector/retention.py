# SPDX-License-Identifier: Apache-2.0
"""Retention: what may go after so many months, and its removal.

Rule: nothing goes that somebody may still need. A month's records go when every node that is waited
for has passed it, every bill of it, and of every month before, was issued, and it is older than any
tenant's quota `log_retention_days` (records of all tenants are one chain); of one log when it
has no verdict that an operator must see to, and what goes was cosigned (a node prunes what its
collectors acknowledged, and may have nothing but that). Months are counted by this host's clock, or
by the nodes' records where most of these say that it is ahead. Then the months are frozen
(`metering.frozen`), what later records rest on is kept (`archive.floor`), the removal is sealed
among the collector's changes, and only then segments go. A crash leaves the state before or a
floor whose segments the next start removes. Rebuilt, what remains has the same bytes.

Where several collectors share a fleet, the one that has `RETENTION_PART` lays the floor, and holds
that part while it does; each removes the segments of its own logs. Who takes over goes on from what
counts: the floor of before, or the new one. What takes long only reads, and is done beside the
thread that has the archive, which would be thought dead meanwhile (`Do`).

Issued bills are never removed. Does not run by itself (`pulling`) and does not prune nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.tally import Tally
from leased.collector.accounts.terms_file import load_terms_for
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.floor import Floor, KeptFile
from leased.collector.archive.manifest import CursorMoved, LogEntry
from leased.collector.archive.parts import RETENTION_PART
from leased.collector.archive.prefix import stand_in
from leased.collector.archive.segments import Segment
from leased.collector.governance.directory import DIRECTORY as GOVERNANCE
from leased.collector.governance.register import Register
from leased.collector.metering.engines import load_store, maker
from leased.collector.metering.frozen import Frozen
from leased.collector.metering.rollup import Stretch
from leased.collector.metering.sources import Quiet
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.reconcile import Verdict
from leased.collector.retention_rule import FOREVER, Rule, load_rule
from leased.collector.retention_waits import asked_for, back, known_ns, usage_begin, waits
from leased.durable.files import make_durably
from leased.economics.contracts import Terms
from leased.terms.moment import DAY_NS
from leased.terms.quantity import print_instant

T = TypeVar("T")
Do = Callable[[Callable[[], Any]], Any]
"""Has a short piece of work done by whoever has the archive, and waits for it."""


def at_once(work: Callable[[], T]) -> T:
    """The `Do` of whoever has the archive itself."""
    return work()


class Cut(msgspec.Struct, frozen=True):
    """What goes of a log: records up to `records`, in so many segments."""

    log_id: str
    node: str
    name: str
    records: int
    segments: int
    bytes: int


class Plan(msgspec.Struct, frozen=True):
    """What the rule says now. `waits` is why nothing may go yet; `held` why a log keeps all."""

    floor: str
    cuts: list[Cut]
    held: dict[str, str]
    waits: str = ""


class Removed(msgspec.Struct, frozen=True):
    """As the removal is sealed: the digest of the floor, and what went of each log."""

    floor_sha256: str
    floor: str
    records: Mapping[str, Any]


# ---- what may go ---------------------------------------------------------------------------------


def plan(state: Path, rule: Rule, terms: Terms, now_ns: int) -> Plan:
    """What may go by the records at hand. Raises StateError."""
    with closing(ArchiveReader(state)) as archive:
        now_ns = known_ns(archive, terms, now_ns)
        floor_ns = back(now_ns, rule.raw_months)
        if floor_ns is None:
            return Plan(FOREVER, [], {}, "raw_months keeps everything")
        label = periods.day(floor_ns)
        begin_ns = usage_begin(rule, terms, now_ns)
        why_not = waits(state, terms, floor_ns, begin_ns) or asked_for(state, floor_ns, now_ns)
        if why_not:
            return Plan(label, [], {}, why_not)
        cuts, held = [], {}
        for entry in archive.logs():
            why = _held(entry)
            if why:
                held[entry.name] = why
                continue
            gone = _before(archive, entry, floor_ns)
            if gone:
                size = sum(one.bytes for one in gone)
                upto = gone[-1].last_seq + 1
                cut = Cut(entry.log_id, entry.node, entry.name, upto, len(gone), size)
                cuts.append(cut)
    return Plan(label, cuts, held)


def _held(entry: LogEntry) -> str:
    if Verdict(entry.verdict).sticky:
        return f"{entry.verdict} since {print_instant(entry.since_ns)}: its records are evidence"
    if not entry.cosigned_size:
        return "nothing of it was cosigned yet"
    return ""


def _before(archive: ArchiveReader, entry: LogEntry, floor_ns: int) -> list[Segment]:
    """The segments that end before the floor, from the first that counts on, never the last. Those
    below the last floor are on their way already: who has the log removes them."""
    gone: list[Segment] = []
    begin = archive.kept.floor().records(entry.log_id)
    for segment in archive.manifest.segments(entry.log_id, begin)[:-1]:
        if segment.last_seq >= entry.cosigned_size:
            break
        last = next(archive.records(entry.log_id, segment.last_seq))
        if last.wall_ns >= floor_ns - DAY_NS:
            break
        gone.append(segment)
    return gone


# ---- removal -------------------------------------------------------------------------------------


def carry_out(
    archive: Archive,
    rule: Rule,
    terms: Terms,
    *,
    config: Path | None,
    now_ns: int,
    change_id: str,
    do: Do = at_once,
) -> Plan:
    """Remove what may go. Whoever has the archive open does it; `do` is how it is asked from
    another thread. Raises StateError, also where usage is being brought up to date, and PartLost
    where another has taken over meanwhile: nothing counts then."""
    state = archive.directory
    do(lambda: finish(archive))
    if not do(lambda: _is_its_turn(archive)):
        return Plan(FOREVER, [], {}, "another collector of the fleet says what goes")
    store = Store(state, make_engine=maker(*load_store(config)))
    with store.locked():
        # Once: records that come in meanwhile must not move the floor away from what was planned.
        with closing(ArchiveReader(state)) as reader:
            counted_ns = known_ns(reader, terms, now_ns)
        found = plan(state, rule, terms, counted_ns)
        old = archive.kept.floor()
        floor_ns = back(counted_ns, rule.raw_months)
        begin_ns = max(old.begin_ns, usage_begin(rule, terms, counted_ns))
        if found.waits or floor_ns is None:
            return found
        if floor_ns <= old.floor_ns and not found.cuts and begin_ns == old.begin_ns:
            return found
        at = (max(floor_ns, old.floor_ns), begin_ns, now_ns)
        with closing(ArchiveReader(state)) as reader:
            made = _laid(reader, store, found, old, at)
        if begin_ns > old.begin_ns:
            made = _carrying(made, store, terms, old)

        def seal(digest: str, records: Mapping[str, Any]) -> None:
            _seal(state, Removed(digest, found.floor, records), change_id, now_ns)

        # Before the floor counts: a projection of records that are gone cannot be told from one.
        for cut in found.cuts:
            store.forget(cut.log_id)
        do(lambda: _count_from_now_on(archive, made, seal))
        store.settle(made)
    do(lambda: finish(archive))
    return found


def _is_its_turn(archive: Archive) -> bool:
    """Whether it is for this collector to say what goes."""
    try:
        with archive.manifest.transaction():
            archive.manifest.hold(RETENTION_PART)
    except CursorMoved:
        return False
    return True


def _count_from_now_on(
    archive: Archive, made: Floor, seal: Callable[[str, Mapping[str, Any]], None]
) -> None:
    """Make a floor the one that counts. Raises PartLost."""
    with archive.manifest.transaction():
        archive.manifest.hold(RETENTION_PART)
        archive.kept.replace(made, seal)


def finish(archive: Archive) -> int:
    """Remove the segments below the floor, of logs that are this collector's; how many."""
    count = 0
    for log_id, one in archive.kept.floor().logs.items():
        found = archive.manifest.segments(log_id)
        gone = [segment for segment in found if segment.last_seq < one.records]
        if not gone:
            continue
        try:
            with archive.manifest.transaction():
                archive.manifest.forget_segments(gone)
        except CursorMoved:
            continue  # who has the log removes them
        for segment in gone:
            with suppress(FileNotFoundError):  # by whoever took the log over
                archive.files.remove(segment.path)
        archive.files.sync(gone[0].node)
        count += len(gone)
    return count


def _laid(
    archive: ArchiveReader, store: Store, found: Plan, old: Floor, at: tuple[int, int, int]
) -> Floor:
    """Everything that the new floor names, in place; the floor."""
    floor_ns, begin_ns, now_ns = at
    listing = store.rollups.listing()
    closed = tuple(
        one
        for one in listing.closed
        if one.end_day * DAY_NS <= floor_ns and one.end_day * DAY_NS > begin_ns
    )
    files: dict[str, KeptFile] = {}
    for stretch in closed:
        for name in _files_of(stretch):
            if name in old.files:
                files[name] = old.files[name]
            else:
                data = (store.rollups.directory / name).read_bytes()
                files[name] = archive.kept.write(name, data)
    quiet = [
        Quiet(one.node_id, one.from_ns, min(one.to_ns, floor_ns))
        for one in listing.quiet
        if one.from_ns < floor_ns and one.to_ns > begin_ns
    ]
    logs = dict(old.logs)
    for cut in found.cuts:
        logs[cut.log_id] = stand_in(archive, cut.log_id, cut.records, cut.node, floor_ns)
    frozen = msgspec.to_builtins(Frozen(closed=closed, quiet=tuple(quiet)))
    return Floor(
        floor_ns=floor_ns,
        begin_ns=begin_ns,
        made_ns=now_ns,
        logs=logs,
        files=files,
        frozen=frozen,
        carried=old.carried,
    )


def _carrying(made: Floor, store: Store, terms: Terms, old: Floor) -> Floor:
    """A floor that goes on counting from what the hours had that are nowhere from now on."""
    with closing(StoreSource(store.rollups)) as source:
        tally = Tally(source, terms, old, made.begin_ns)
    return msgspec.structs.replace(made, carried=tally.carried())


def _files_of(stretch: Stretch) -> Iterator[str]:
    yield from stretch.files.values()
    for one in stretch.earlier:
        yield from one.values()


def _seal(state: Path, removed: Removed, change_id: str, now_ns: int) -> None:
    directory = make_durably(state, GOVERNANCE)
    with closing(Register(directory)) as register, register.transaction():
        register.record(
            id=change_id,
            wall_ns=now_ns,
            actor="retention",
            action="records.removed",
            tenant="",
            reason=f"[retention]: months that end by {removed.floor}",
            left=removed,
        )


def upkeep(
    archive: Archive,
    config: Path | None,
    now_ns: int,
    change_id: str,
    do: Do = at_once,
) -> str:
    """Carry the rule out, if there is one; what to tell, or "". Raises LeasedError."""
    rule = load_rule(config)
    if rule.raw_months is None:
        return ""
    terms = load_terms_for(config)
    found = carry_out(
        archive, rule, terms, config=config, now_ns=now_ns, change_id=change_id, do=do
    )
    if not found.cuts:
        return ""
    octets = sum(one.bytes for one in found.cuts)
    return f"{octets} bytes of {len(found.cuts)} logs went: what ended before {found.floor}"
