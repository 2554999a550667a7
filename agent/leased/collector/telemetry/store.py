# SPDX-License-Identifier: Apache-2.0
"""The store: rollups in SQLite, one row for each series and window, bounded by age and by number.

Rule: a row is only ever added to, by what came since. Nothing here is evidence or is billed from,
so a crash may lose the last seconds. The oldest rows go first, after `keep_ns` or when there are
more than `rows_max`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from leased.collector.telemetry.decoding import FUTURE_NS_MAX, Key
from leased.collector.telemetry.rollup import SUM_MAX, WINDOW_S, Rollup
from leased.collector.telemetry.tables import FORMAT, FROM, OF_ITSELF, SCHEMA
from leased.terms.errors import StateError
from leased.terms.moment import DAY_NS, HOUR_S, NS_PER_S
from leased.terms.series import KIND

NAME: Final = "telemetry.sqlite"
KEEP_NS: Final = 90 * DAY_NS
ROWS_MAX: Final = 50_000_000
"""Some 3 GB: 1 000 nodes with 170 series each for a day, 30 nodes for a month."""

CAPACITY: Final = "leased.lease.capacity"
UTILIZATION: Final = "leased.lease.utilization"
BUSY_S: Final = 10
PRUNED_AT_ONCE: Final = 100_000
_ADD: Final = f"""
INSERT INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (series, begin_s) DO UPDATE SET
    count = count + excluded.count, total = min(total + excluded.total, {SUM_MAX}),
    most = max(most, excluded.most), active = active + excluded.active,
    covered_ns = covered_ns + excluded.covered_ns
"""
_TOTAL: Final = "CAST(total(total) AS INTEGER)"
"""A sum that ends at 64 bits, where `sum` refuses the whole question; exact below 2^53."""


class LeaseRow(NamedTuple):
    """What a lease held, or used, of a kind ("": which, is not said)."""

    node: str
    lease: str
    tenant: str
    kind: str
    is_use: bool
    rollup: Rollup


class Spread(msgspec.Struct, frozen=True):
    """How a share was spread over windows: how many windows had a mean within each hundredth
    (`counts`, by the hundredth), and the most that was ever seen, in ppm."""

    node: str
    lease: str
    kind: str
    windows: int
    most_ppm: int
    counts: dict[int, int]


class IdleStretch(msgspec.Struct, frozen=True):
    """Windows without a gap, in Unix s, in which what a lease holds of a kind was active in less
    than a tenth of the looks. `capacity` in the raw unit."""

    node: str
    lease: str
    tenant: str
    kind: str
    capacity: int
    begin_s: int
    end_s: int


class Store:
    """One database. One writer; readers beside it."""

    def __init__(
        self,
        directory: Path,
        *,
        reading: bool = False,
        keep_ns: int = KEEP_NS,
        rows_max: int = ROWS_MAX,
    ) -> None:
        """Open it; `reading`: beside whoever writes it, else made if need be. Raises StateError."""
        self._keep_ns, self._rows_max = keep_ns, rows_max
        self._ids: dict[Key, int] = {}
        self._newest_s: dict[int, int] = {}
        path = directory / NAME
        if reading and not path.exists():
            raise StateError(f"{path}: no telemetry was received yet")
        try:
            self._base = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if reading and not version:  # whoever was to make it did not come so far
                raise StateError(f"{path}: no telemetry was received yet")
            if version not in (0, FORMAT) and (reading or version not in FROM):
                hint = ", and brings it there when a collector starts"
                which = f"{path} is of format {version}; this version reads {FORMAT}"
                raise StateError(which + (hint if version in FROM else ""))
            if not reading:
                self._make(version)
        except sqlite3.Error as error:
            raise StateError(f"{path}: {error}; what is in it can be thrown away") from error

    def _make(self, version: int) -> None:
        self._base.execute("PRAGMA journal_mode=WAL")
        # Not FULL: what a power cut loses here, nobody is billed for.
        self._base.execute("PRAGMA synchronous=NORMAL")
        with self._base:
            while version in FROM:
                self._base.executescript(FROM[version])
                version += 1
            self._base.executescript(SCHEMA)
            self._base.execute(f"PRAGMA user_version={FORMAT}")

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._base.close()

    def append(self, rows: Iterable[tuple[Key, Rollup]], *, now_ns: int = 2**62) -> None:
        """Add these to what there is, all of them or none. Raises StateError."""
        try:
            with self._base:
                told = list(rows)
                added = [(self._id(key), *msgspec.structs.astuple(one)) for key, one in told]
                self._base.executemany(_ADD, added)
                self._note_newest(added)
                self._note_hosts(told, (now_ns + FUTURE_NS_MAX) // NS_PER_S)
        except sqlite3.Error as error:
            self._ids.clear()  # what was made within the transaction is gone
            self._newest_s.clear()
            raise StateError(f"{NAME}: {error}") from error

    def _note_newest(self, added: Iterable[tuple[int, ...]]) -> None:
        """By the hour: not every row is to write its series, too."""
        later: dict[int, int] = {}
        for series, begin_s, *_ in added:
            hour_s = begin_s // HOUR_S * HOUR_S
            if hour_s > max(self._newest_s.get(series, 0), later.get(series, 0)):
                later[series] = hour_s
        self._base.executemany(
            "UPDATE series SET newest_s = max(newest_s, ?) WHERE id = ?",
            [(hour_s, series) for series, hour_s in later.items()],
        )
        self._newest_s |= later

    def _note_hosts(self, told: Iterable[tuple[Key, Rollup]], latest_s: int) -> None:
        """What is noted beyond `latest_s` is from when our own clock was ahead, and gives way."""
        newest: dict[str, int] = {}
        for key, one in told:
            if key.name in OF_ITSELF and not key.lease:
                newest[key.node] = max(newest.get(key.node, 0), one.begin_s)
        self._base.executemany(
            "INSERT INTO hosts VALUES (?1, ?2) ON CONFLICT (node) DO UPDATE SET"
            " newest_s = max(iif(newest_s > ?3, 0, newest_s), ?2)",
            [(node, at_s, latest_s) for node, at_s in newest.items()],
        )

    def prune(self, now_ns: int) -> int:
        """Take away what is too old or too much, so much at a time; how many rows went."""
        oldest_s = (now_ns - self._keep_ns) // NS_PER_S
        try:
            with self._base:
                gone = self._base.execute(
                    "DELETE FROM rollups WHERE (series, begin_s) IN"
                    " (SELECT series, begin_s FROM rollups WHERE begin_s < ? LIMIT ?)",
                    (oldest_s, PRUNED_AT_ONCE),
                ).rowcount
                (rows,) = self._base.execute("SELECT count(*) FROM rollups").fetchone()
                excess = min(rows - self._rows_max, PRUNED_AT_ONCE)
                if excess > 0:
                    gone += self._base.execute(
                        "DELETE FROM rollups WHERE (series, begin_s) IN"
                        " (SELECT series, begin_s FROM rollups ORDER BY begin_s LIMIT ?)",
                        (excess,),
                    ).rowcount
                if gone:
                    self._base.execute(
                        "DELETE FROM series WHERE id NOT IN (SELECT series FROM rollups)"
                    )
                    self._base.execute(
                        "DELETE FROM hosts WHERE node NOT IN (SELECT node FROM series)"
                    )
                    self._ids.clear()
                    self._newest_s.clear()
        except sqlite3.Error as error:
            raise StateError(f"{NAME}: {error}") from error
        return gone

    def read(
        self, names: Sequence[str], begin_s: int, end_s: int
    ) -> Iterator[tuple[Key, Rollup]]:
        """Each series of these names in the windows that begin in [begin_s, end_s), added up."""
        marks = ",".join("?" * len(names))
        first_s = begin_s // WINDOW_S * WINDOW_S
        values = (*names, first_s // HOUR_S * HOUR_S, first_s, end_s)
        # Numbers first, in the order of their key: what they are of is long, and is looked up once.
        found = self._ask(
            "SELECT s.node, s.resource, s.lease, s.tenant, s.name, s.attributes, t.*"
            f" FROM (SELECT min(begin_s), sum(count), {_TOTAL}, max(most), sum(active),"
            " sum(covered_ns), series FROM rollups WHERE series IN (SELECT id FROM series s"
            f" WHERE s.name IN ({marks}) AND s.newest_s >= ?)"
            " AND begin_s >= ? AND begin_s < ? GROUP BY series) t JOIN series s ON s.id = t.series"
            " ORDER BY s.node, s.lease, s.resource, s.name, s.attributes",
            values,
        )
        for row in found:
            node, resource, lease, tenant, name, attributes, *window, _ = row
            key = Key(node, resource, lease, tenant, name, _pairs(attributes))
            yield key, Rollup(*window)

    def leases(self, begin_s: int, end_s: int, *, node: str = "") -> Iterator[LeaseRow]:
        """What leases held and used in the windows that begin in [begin_s, end_s), added up: of
        each a row for what it held of a kind and one for what it used. A look at all leases of the
        fleet: nothing is read that it does not need."""
        held = "max(most), sum(covered_ns), sum(count), 0, 0"
        used = f"max(most), sum(covered_ns), sum(count), {_TOTAL}, sum(active)"
        first_s = begin_s // WINDOW_S * WINDOW_S
        for name, sums in ((CAPACITY, held), (UTILIZATION, used)):
            rows = self._ask(
                "SELECT s.node, s.lease, s.tenant, s.attributes, t.* FROM"
                f" (SELECT {sums}, series FROM rollups WHERE series IN (SELECT id FROM series"
                " WHERE name = ? AND newest_s >= ? AND (? = '' OR node = ?))"
                " AND begin_s >= ? AND begin_s < ? GROUP BY series) t"
                " JOIN series s ON s.id = t.series",
                (name, first_s // HOUR_S * HOUR_S, node, node, first_s, end_s),
            )
            for where, lease, tenant, attributes, most, covered, count, total, active, _ in rows:
                rollup = Rollup(begin_s, count, total, most, active, covered)
                yield LeaseRow(where, lease, tenant, _kind(attributes), name == UTILIZATION, rollup)

    def spreads(self, name: str, begin_s: int, end_s: int) -> list[Spread]:
        """How a share of each lease and kind was spread over the windows in [begin_s, end_s)."""
        found: dict[tuple[str, str, str], dict[int, int]] = {}
        most: dict[tuple[str, str, str], int] = {}
        rows = self._ask(
            "SELECT s.node, s.lease, s.attributes, r.total / r.count / 10000, count(*), max(r.most)"
            " FROM series s JOIN rollups r ON r.series = s.id WHERE s.name = ? AND s.lease != ''"
            " AND r.begin_s >= ? AND r.begin_s < ? AND r.count > 0 GROUP BY s.id, 4",
            (name, begin_s // WINDOW_S * WINDOW_S, end_s),
        )
        for node, lease, attributes, bucket, count, high in rows:
            place = (node, lease, _kind(attributes))
            counts = found.setdefault(place, {})
            counts[bucket] = counts.get(bucket, 0) + count
            most[place] = max(most.get(place, 0), high)
        return [
            Spread(*place, sum(counts.values()), most[place], counts)
            for place, counts in found.items()
        ]

    def idle(self, begin_s: int, end_s: int, least_s: int) -> list[IdleStretch]:
        """The stretches of windows in [begin_s, end_s) that are at least so long."""
        rows = self._ask(
            "SELECT s.node, s.lease, s.tenant, s.attributes, max(i.begin_s), min(i.begin_s),"
            " (SELECT max(h.most) FROM series o JOIN rollups h ON h.series = o.id"
            "  WHERE o.name = 'leased.lease.capacity' AND o.lease = s.lease AND o.node = s.node"
            "  AND o.attributes = s.attributes AND h.begin_s BETWEEN min(i.begin_s)"
            "  AND max(i.begin_s))"
            " FROM (SELECT r.series, r.begin_s, r.begin_s / ? - row_number() OVER"
            "  (PARTITION BY r.series ORDER BY r.begin_s) AS island"
            "  FROM series u JOIN rollups r ON r.series = u.id"
            "  WHERE u.name = 'leased.lease.utilization' AND u.lease != ''"
            "  AND r.begin_s >= ? AND r.begin_s < ? AND r.count > 0 AND r.active * 10 < r.count) i"
            " JOIN series s ON s.id = i.series GROUP BY i.series, i.island"
            " HAVING count(*) * ? >= ? ORDER BY s.node, s.lease, s.attributes, 6",
            (WINDOW_S, begin_s // WINDOW_S * WINDOW_S, end_s, WINDOW_S, least_s),
        )
        return [
            IdleStretch(node, lease, tenant, _kind(attributes), held or 0, first, last + WINDOW_S)
            for node, lease, tenant, attributes, last, first, held in rows
        ]

    def shares_by(
        self, kind: str, begin_s: int, end_s: int, step_s: int
    ) -> dict[int, tuple[int, int]]:
        """By step from `begin_s`: what leases used of a kind and what they held of it while that
        was seen, both in raw unit x windows x ppm: of bytes that is more than 64 bits hold."""
        rows = self._ask(
            "SELECT (r.begin_s - ?) / ?, total(r.total / r.count * h.most), total(1000000 * h.most)"
            " FROM series s JOIN rollups r ON r.series = s.id"
            " JOIN series o ON o.name = 'leased.lease.capacity' AND o.lease = s.lease"
            " AND o.node = s.node AND o.attributes = s.attributes"
            " JOIN rollups h ON h.series = o.id AND h.begin_s = r.begin_s"
            " WHERE s.name = 'leased.lease.utilization' AND s.attributes LIKE ?"
            " AND r.begin_s >= ? AND r.begin_s < ? AND r.count > 0 GROUP BY 1",
            (begin_s, step_s, f'%"{KIND}","{kind}"%', begin_s, end_s),
        )
        return {step: (int(used), int(held)) for step, used, held in rows}

    def last_s(self) -> int:
        """The beginning of the newest window that there is; 0 without any."""
        [(newest,)] = self._ask("SELECT max(begin_s) FROM rollups")
        return newest or 0

    def heard(self) -> dict[str, int]:
        """Of each node, the beginning of the newest window that it told of itself, in Unix s."""
        return dict(self._ask("SELECT node, newest_s FROM hosts"))

    def _ask(self, text: str, values: Sequence[object] = ()) -> Iterator[Any]:
        """Rows. Raises StateError, also for a page that the disk has changed."""
        try:
            yield from self._base.execute(text, values)
        except sqlite3.Error as error:
            raise StateError(f"{NAME}: {error}") from error

    def _id(self, key: Key) -> int:
        known = self._ids.get(key)
        if known is None:
            told = (
                *msgspec.structs.astuple(key)[:-1],
                msgspec.json.encode(key.attributes).decode(),
            )
            self._base.execute(
                "INSERT OR IGNORE INTO series (node, resource, lease, tenant, name, attributes)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                told,
            )
            (known,) = self._base.execute(
                "SELECT id FROM series WHERE node = ? AND resource = ? AND lease = ?"
                " AND tenant = ? AND name = ? AND attributes = ?",
                told,
            ).fetchone()
            self._ids[key] = known
        return int(known)


@lru_cache(maxsize=4096)
def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The few that there are are the same in every node."""
    return msgspec.json.decode(text, type=tuple[tuple[str, str], ...])


@lru_cache(maxsize=4096)
def _kind(attributes: str) -> str:
    return dict(_pairs(attributes)).get(KIND, "")


@contextmanager
def recorded(state: Path) -> Iterator[Store | None]:
    """What telemetry there is in a state directory, to read; None where there is none."""
    try:
        store = Store(state, reading=True)
    except StateError:
        yield None
        return
    with closing(store):
        yield store
