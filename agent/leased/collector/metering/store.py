# SPDX-License-Identifier: Apache-2.0
"""The store: everything derived from the raw segments, brought up to date, made again, and asked.

Rule: raw segments are the truth; the projection and the rollups below `derived/` follow from them
and nothing else, and made again they have the same bytes. One process at a time writes; who reads
sees the last whole state. A run whose sums do not fit is dropped whole.

Does not pull (`ingest`) and does not price (`accounts`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.floor import Floor
from leased.collector.archive.manifest import LogEntry
from leased.collector.metering import tables
from leased.collector.metering.blocks import PARQUET, Gathered, LogBlocks
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import (
    RESULTS,
    SMALL_TABLES,
    Engine,
    MakeEngine,
    check_engine,
    meter,
)
from leased.collector.metering.frozen import frozen_of, joined, put_back, settled
from leased.collector.metering.projecting import project_logs
from leased.collector.metering.projection import LogShape, log_number
from leased.collector.metering.rollup import LAYOUT, ORDER, Listing, Rollups, Stretch, stretches
from leased.collector.metering.sources import Held, Quiet, added_up
from leased.durable.files import DirectoryDisk
from leased.economics.hourly import NodeSpan
from leased.economics.pools import Pool
from leased.terms.errors import EX_TEMPFAIL, StateError
from leased.terms.moment import DAY_NS
from leased.terms.resource import ResourceKind

DERIVED: Final = "derived"
AGAIN: Final = "again"
DAY_HOURS: Final = 24
_SOURCE: Final = {"peaks": "all_peaks"}
_DAY_OF: Final = dict.fromkeys(ORDER, "idiv(hour, 24)") | {"contributors": "day"}


class StoreBusy(StateError):
    """Another process brings it up to date just now."""

    exit_status = EX_TEMPFAIL


class Refreshed(msgspec.Struct, frozen=True):
    """What a refresh did. `closed` days; `revised`: closed stretches that later records changed, by
    their first day."""

    logs: int
    records: int
    closed: int
    revised: tuple[int, ...]


class Store:
    """The derived state below one state directory."""

    def __init__(self, directory: Path, *, make_engine: MakeEngine | None = None) -> None:
        self.directory = directory / DERIVED
        self.rollups = Rollups(self.directory)
        self._make_engine = make_engine
        self._checked = False

    def refresh(
        self,
        archive: ArchiveReader,
        *,
        retired: Iterable[str] = (),
        progress: Callable[[str], None] = lambda text: None,
    ) -> Refreshed:
        """Bring everything up to date. Raises StateError, StoreBusy."""
        with self.locked():
            return self._refresh(archive, retired, progress)

    def rebuild(
        self,
        archive: ArchiveReader,
        *,
        retired: Iterable[str] = (),
        progress: Callable[[str], None] = lambda text: None,
    ) -> tuple[Refreshed, list[str]]:
        """Make all of it again from the raw segments; also the names of files that are not what
        they were. The old state counts until the new is whole."""
        with self.locked():
            self.settle(archive.kept.floor())
            fresh = self.directory / AGAIN
            again = Store(fresh, make_engine=self._make_engine)
            again.directory = fresh
            again.rollups = Rollups(fresh)
            again.directory.mkdir(mode=0o700)
            done = again._refresh(archive, retired, progress)
            again.rollups.carry_on(self.rollups)
            before, after = _names(self.directory), _names(fresh)
            changed = sorted(
                name for name in before.keys() & after.keys() if before[name] != after[name]
            )
            changed += sorted(name for name in before if name not in after and "rollup/" in name)
            aside = fresh / "before"
            aside.mkdir(mode=0o700)
            for part in (PARQUET, "rollup"):
                # Each is whole or is not there, wherever this ends, and then it is made again.
                if (self.directory / part).exists():
                    (self.directory / part).rename(aside / part)
                if (fresh / part).exists():
                    (fresh / part).rename(self.directory / part)
            return done, changed

    def _refresh(
        self, archive: ArchiveReader, gone: Iterable[str], progress: Callable[[str], None]
    ) -> Refreshed:
        floor = archive.kept.floor()
        retired = archive.manifest.replaced().union(gone)
        self.settle(floor)
        before = self.rollups.listing()
        entries = [entry for entry in archive.logs() if entry.head.size]
        if not self._checked:
            # Once per process: what a power cut took, or somebody changed, is made again.
            bad = frozenset(self.rollups.check(before))
            self.rollups.drop(bad)
            before = _without(before, bad)
            self._checked = True
        projected = all(self._blocks(one.log_id).exists() for one in entries)
        if projected and _is_up_to_date(before, entries, retired):
            return _told(before, ())
        put_back(archive.kept, floor, self.rollups, frozen_of(floor))
        spans: list[NodeSpan] = []
        gathered = Gathered()
        nodes: dict[int, str] = {}
        for entry, blocks, sidecars in project_logs(self.directory, archive, entries, progress):
            gathered.add(blocks, sidecars)
            found = gathered.shapes[blocks.number]
            head = entry.head.hash.hex()
            if found.last_seq + 1 != entry.head.size:  # more came in meanwhile
                head = next(archive.records(entry.log_id, found.last_seq)).hash.hex()
            spans.append(
                NodeSpan(
                    entry.node,
                    entry.log_id,
                    found.first_seq,
                    found.last_seq,
                    head,
                    found.watermark_ns,
                )
            )
            nodes[blocks.number] = entry.node
        progress("metering")
        with closing(self._engine()) as engine:
            check_engine(engine)
            for table, paths, more in gathered.tables():
                engine.load_files(table, paths, more)
            for name, small in tables.small_tables(gathered.shapes).items():
                engine.load(name, SMALL_TABLES[name], small)
            meter(engine)
            with _gathered(engine, self.directory) as whole:
                listing, revised = self._roll_up(
                    whole, before, spans, gathered.shapes, nodes, retired, floor
                )
        self.rollups.replace(listing)
        return _told(listing, revised)

    def _roll_up(
        self,
        engine: DuckEngine,
        before: Listing,
        spans: Sequence[NodeSpan],
        shapes: dict[int, LogShape],
        nodes: dict[int, str],
        retired: frozenset[str],
        floor: Floor,
    ) -> tuple[Listing, tuple[int, ...]]:
        """Write what has closed, or is not what it was, and what is open."""
        waited = [one for one in spans if retired.isdisjoint((one.node_id, one.log_id))]
        watermark_ns = min((span.watermark_ns for span in waited), default=0)
        # A log that another took the place of says nothing of now: its node would be there twice.
        last = {log_number(one.log_id): one.node_id for one in spans if one.log_id not in retired}
        first = max(floor.begin_ns, min(one.first_ns for one in shapes.values()))
        frozen = frozen_of(floor)
        final = {(one.first_day, one.end_day): one for one in frozen.closed}
        end_day = watermark_ns // DAY_NS
        known = {(one.first_day, one.end_day): one for one in before.closed}
        engine.derive("all_peaks", "SELECT * FROM peaks UNION ALL SELECT * FROM fleet_peaks")
        closed: list[Stretch] = []
        revised: list[int] = []
        digests = _digests(engine)
        for days in stretches(first // DAY_NS, end_day):
            if days in final:
                closed.append(final[days])
                continue
            parts = [digests.get(number, "") for number in range(*days)]
            digest = sha256("\n".join(parts).encode()).hexdigest()
            old = known.get(days)
            if old is not None and old.digest == digest:
                closed.append(old)
                continue
            files = self.rollups.write(_rows(engine, *days))
            earlier = () if old is None else (*old.earlier, old.files)
            revised.extend([days[0]] if old is not None else [])
            closed.append(Stretch(*days, digest, files, earlier))
        opened = self.rollups.write(_rows(engine, max(end_day, first // DAY_NS), 1 << 40))
        listing = Listing(
            LAYOUT,
            nodes=tuple(spans),
            first_ns=first,
            closed=tuple(closed),
            open=opened,
            held=added_up(_held(engine, shapes, last)),
            quiet=joined(
                frozen,
                (
                    Quiet(nodes[log], start_ns, end_ns)
                    for log, start_ns, end_ns in engine.query(
                        "SELECT log, s, e FROM quiet ORDER BY ALL"
                    )
                ),
                floor.floor_ns,
            ),
            retired=tuple(sorted(retired)),
            draining=tuple(sorted(node for log, node in last.items() if shapes[log].cordoned)),
        )
        return listing, tuple(revised)

    def _engine(self) -> Engine:
        return self._make_engine() if self._make_engine else DuckEngine(spill=self.directory)

    def _blocks(self, log_id: str) -> Path:
        return LogBlocks(self.directory, log_id).directory

    def settle(self, floor: Floor) -> None:
        """Have the listing say what is over a floor, and no more: a crash may have come between."""
        listing = self.rollups.listing()
        if settled(listing, floor) != listing:
            self.rollups.replace(settled(listing, floor))

    def forget(self, log_id: str) -> None:
        """Drop the projection of a log: the next refresh makes it again."""
        if self._blocks(log_id).exists():
            # At once: what is half there would stay so until more records come.
            aside = self.directory / AGAIN
            aside.mkdir(mode=0o700, exist_ok=True)
            self._blocks(log_id).rename(aside / log_id)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile. Raises StoreBusy where another process does; StateError."""
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            disk = DirectoryDisk(self.directory)
        except OSError as error:
            raise StateError(f"{self.directory}: {error}") from error
        with closing(disk):
            if not disk.lock():
                raise StoreBusy(f"{self.directory}: another process is bringing it up to date")
            self._clear()
            try:
                yield
            finally:
                self._clear()

    def _clear(self) -> None:
        """Of a rebuild that broke off nothing is left: it would keep a full disk full."""
        shutil.rmtree(self.directory / AGAIN, ignore_errors=True)


@contextmanager
def _gathered(engine: Engine, spill: Path) -> Iterator[DuckEngine]:
    """The results in this process: files are written by one hand, so that they have the same bytes
    whoever computed their rows."""
    if isinstance(engine, DuckEngine):
        yield engine
        return
    with closing(DuckEngine(spill=spill)) as here:
        for table, paths, more in Gathered().tables():
            here.load_files(table, paths, more)
        for name, columns in SMALL_TABLES.items():
            here.load(name, columns, [])
        meter(here)  # of nothing: for the types of its columns
        for name, columns in RESULTS.items():
            here.add_to(name, engine.arrow(f"SELECT {', '.join(columns)} FROM {name}"))
        yield here


def _is_up_to_date(listing: Listing, entries: list[LogEntry], retired: frozenset[str]) -> bool:
    """Whether no record is newer than what was rolled up."""
    there = {(span.log_id, span.last_sequence + 1, span.head) for span in listing.nodes}
    now = {(entry.log_id, entry.head.size, entry.head.hash.hex()) for entry in entries}
    return there == now and listing.retired == tuple(sorted(retired))


def _without(listing: Listing, bad: frozenset[str]) -> Listing:
    """What counts of a listing without these files; as if no node had been read, if any is."""
    if not bad:
        return listing
    closed = tuple(one for one in listing.closed if bad.isdisjoint(one.files.values()))
    return msgspec.structs.replace(listing, closed=closed, nodes=(), open={})


def _told(listing: Listing, revised: tuple[int, ...]) -> Refreshed:
    records = sum(span.last_sequence - span.first_sequence + 1 for span in listing.nodes)
    days = sum(one.end_day - one.first_day for one in listing.closed)
    return Refreshed(len(listing.nodes), records, days, revised)


def _digests(engine: DuckEngine) -> dict[int, str]:
    """Of each day, what tells whether any row of it changed."""
    found: dict[int, list[str]] = {}
    for kind in ORDER:
        source = _SOURCE.get(kind, kind)
        rows = engine.query(
            f"SELECT {_DAY_OF[kind]} AS d, COUNT(*),"
            f" CAST(SUM(CAST(hash(({ORDER[kind]})) AS DECIMAL(38,0))) AS VARCHAR)"
            f" FROM {source} GROUP BY d ORDER BY d"
        )
        for number, count, total in rows:
            found.setdefault(number, []).append(f"{kind}:{count}:{total}")
    return {number: " ".join(parts) for number, parts in found.items()}


def _rows(engine: DuckEngine, first: int, end: int) -> dict[str, Any]:
    """The results of days [first, end), sorted."""
    found = {}
    for kind, order in ORDER.items():
        unit, many = ("day", 1) if kind == "contributors" else ("hour", DAY_HOURS)
        found[kind] = engine.arrow(
            f"SELECT {order} FROM {_SOURCE.get(kind, kind)}"
            f" WHERE {unit} >= {first * many} AND {unit} < {end * many} ORDER BY {order}"
        )
    return found


def _held(engine: DuckEngine, shapes: dict[int, LogShape], nodes: dict[int, str]) -> Iterator[Held]:
    """What is held by leases of these logs, and what there is otherwise."""
    names = ", ".join(RESULTS["held"])
    for log, pool, tenant, kind, tier, capacity in engine.query(
        f"SELECT {names} FROM held ORDER BY ALL"
    ):
        if log in nodes:
            where = tables.tier_of(tier)
            yield Held(nodes[log], Pool(pool), tenant, ResourceKind(kind), where, capacity)
    for log in sorted(nodes):
        for pool, kind, tier, capacity in shapes[log].there:
            if pool in (Pool.PROVISIONED, Pool.FENCED):
                what = (Pool(pool), "", ResourceKind(kind), tables.tier_of(tier), capacity)
                yield Held(nodes[log], *what)


def _names(directory: Path) -> dict[str, bytes]:
    """Every derived file by its name, with the digest of its bytes."""
    return {
        str(path.relative_to(directory)): sha256(path.read_bytes()).digest()
        for part in (PARQUET, "rollup")
        for path in sorted((directory / part).rglob("*"))
        if path.is_file()
    }
