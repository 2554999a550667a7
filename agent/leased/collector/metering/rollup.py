# SPDX-License-Identifier: Apache-2.0
"""Rollups: hourly rows kept as Parquet, and a list that says which files count.

Rule: a day is closed when it has ended before every node's last record. Months that are closed have
one set of files each, closed days of the running month too; files are written once, named by their
SHA-256, and never changed. Where records that came later say otherwise (a node that nobody waited
for came back), a stretch gets new files and the old stay: what a bill was made from can always be
read again. Hours that are not closed are in files that the next refresh replaces. The list is
replaced whole.

Does not compute rows (`engine`) and does not price.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import date as Date
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.metering.blocks import fields_of, parquet_bytes, put
from leased.collector.metering.sources import Held, Quiet
from leased.durable.files import DirectoryDisk, write_whole
from leased.economics.hourly import NodeSpan
from leased.terms.errors import StateError

ROLLUP: Final = "rollup"
LIST: Final = "rollup.json"
VERSION: Final = 2
"""Of what a row means. Changed by hand; which columns there are is in LAYOUT anyway."""

_EPOCH: Final = Date(1970, 1, 1)
ORDER: Final[dict[str, str]] = {
    "usage": "hour, pool, tenant, kind, tier, priority, tag, cap_ns",
    "peaks": "hour, tenant, kind, tier, held",
    "tasks": "hour, tenant, done",
    "contributors": "day, log, tenant",
}
"""Of each kind of row its columns, in the order in which rows are sorted."""


class Stretch(msgspec.Struct, frozen=True):
    """Closed days [first_day, end_day) since 1970 (UTC): a month that is over, or a day of the
    running one. `files` by kind; `digest` is that of their rows, by the engine; `earlier` are the
    files that it had before."""

    first_day: int
    end_day: int
    digest: str
    files: dict[str, str]
    earlier: tuple[dict[str, str], ...] = ()


class Listing(msgspec.Struct, frozen=True):
    """Which files count, and what of each chain they were computed from. `retired` are the nodes,
    and the logs that others replaced, that nobody waits for."""

    layout: str
    nodes: tuple[NodeSpan, ...] = ()
    first_ns: int = 0
    closed: tuple[Stretch, ...] = ()
    open: dict[str, str] = {}
    held: tuple[Held, ...] = ()
    quiet: tuple[Quiet, ...] = ()
    draining: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()


LAYOUT: Final = sha256(
    repr((VERSION, ORDER, fields_of(Listing, Stretch, NodeSpan, Held, Quiet))).encode()
).hexdigest()[:16]
"""What the files and the list look like. Those of another release are made again."""


class Rollups:
    """The files below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / ROLLUP

    def listing(self) -> Listing:
        """What counts now; nothing if there is nothing, or another release made it."""
        try:
            found = msgspec.json.decode((self.directory / LIST).read_bytes(), type=Listing)
        except (FileNotFoundError, msgspec.DecodeError):
            return Listing(LAYOUT)
        except OSError as error:
            raise StateError(f"{self.directory / LIST}: {error}") from error
        return found if found.layout == LAYOUT else Listing(LAYOUT)

    def is_foreign(self) -> bool:
        """Whether there is a list that says nothing here: of another release, or damaged."""
        return (self.directory / LIST).exists() and not self.listing().nodes

    def paths(self, listing: Listing, kind: str) -> list[Path]:
        """The files of one kind of row."""
        names = [one.files[kind] for one in listing.closed]
        names.extend([listing.open[kind]] if kind in listing.open else [])
        return [self.directory / name for name in names]

    def write(self, tables: Mapping[str, Any]) -> dict[str, str]:
        """Put the tables of a day in place; their names by kind."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names: dict[str, str] = {}
        with closing(DirectoryDisk(self.directory)) as disk:
            there = frozenset(disk.names())
            for kind, table in tables.items():
                data = parquet_bytes(table)
                names[kind] = f"{kind}-{sha256(data).hexdigest()}.parquet"
                if names[kind] not in there:
                    put(disk, names[kind], data)
        return names

    def replace(self, listing: Listing) -> None:
        """Make `listing` the one that counts; what no longer does is removed."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(DirectoryDisk(self.directory)) as disk:
            write_whole(disk, LIST, msgspec.json.format(msgspec.json.encode(listing), indent=1))
            named = {name for one in listing.closed for name in one.files.values()}
            named |= {n for one in listing.closed for old in one.earlier for n in old.values()}
            named |= set(listing.open.values())
            for name in disk.names():
                if name.endswith(".parquet") and name not in named:
                    disk.unlink(name)
            disk.sync_names()

    def carry_on(self, before: Rollups) -> None:
        """Have what stretches had earlier, as `before` has it, and as far as it is whole: no record
        says it."""
        known = {(one.first_day, one.end_day): one.earlier for one in before.listing().closed}
        listing, closed = self.listing(), []
        for one in listing.closed:
            earlier = known.get((one.first_day, one.end_day), ())
            whole = tuple(files for files in earlier if self._take(before, files.values()))
            closed.append(msgspec.structs.replace(one, earlier=whole))
        self.replace(msgspec.structs.replace(listing, closed=tuple(closed)))

    def _take(self, before: Rollups, names: Iterable[str]) -> bool:
        with closing(DirectoryDisk(self.directory)) as disk:
            for name in names:
                data = before.read(name)
                if data is None:
                    return False
                put(disk, name, data)
        return True

    def drop(self, names: Iterable[str]) -> None:
        """Remove files that are not what their name says."""
        for name in names:
            (self.directory / name).unlink(missing_ok=True)

    def check(self, listing: Listing) -> list[str]:
        """The names of files that are missing or are not what their name says."""
        names = [name for one in listing.closed for name in one.files.values()]
        return [name for name in (*names, *listing.open.values()) if self.read(name) is None]

    def read(self, name: str) -> bytes | None:
        """A file; None: it is missing or is not what its name says."""
        try:
            data = (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None
        return data if sha256(data).hexdigest() in name else None


def stretches(first_day: int, end_day: int) -> Iterator[tuple[int, int]]:
    """[first_day, end_day) as whole months and, of the last, days."""
    day = first_day
    while day < end_day:
        date = _EPOCH + timedelta(day)
        month_end = (date.replace(day=28) + timedelta(4)).replace(day=1)
        until = (month_end - _EPOCH).days
        if until <= end_day:
            yield day, until
            day = until
        else:
            yield from ((one, one + 1) for one in range(day, end_day))
            return
