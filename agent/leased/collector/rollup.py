# SPDX-License-Identifier: Apache-2.0
"""Rollups: hourly rows kept as Parquet, one set of files per day, and a list that says which count.

Rule: a day is closed when it has ended before every node's last record; its files are written once,
named by their SHA-256, and never changed. Where records that came later say otherwise (a node that
nobody waited for came back), the day gets new files and the old stay: what a bill was made from can
always be read again. Days that are not closed are in files that the next refresh replaces. The list
is replaced whole.

Does not compute rows (`engine`) and does not price.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.blocks import parquet_bytes
from leased.collector.sources import Held, Quiet
from leased.durable.files import DirectoryDisk, write_whole
from leased.economics.hourly import NodeSpan
from leased.terms.errors import StateError

ROLLUP: Final = "rollup"
LIST: Final = "rollup.json"
VERSION: Final = 1
ORDER: Final[dict[str, str]] = {
    "usage": "hour, pool, tenant, kind, tier, priority, tag, cap_ns",
    "peaks": "hour, tenant, kind, tier, held",
    "tasks": "hour, tenant, done",
    "contributors": "day, log, tenant",
}
"""Of each kind of row its columns, in the order in which rows are sorted."""


class Day(msgspec.Struct, frozen=True):
    """A closed day (since 1970, UTC). `files` by kind; `digest` is that of their rows, by the
    engine; `earlier` are the files that it had before."""

    day: int
    digest: str
    files: dict[str, str]
    earlier: tuple[dict[str, str], ...] = ()


class Listing(msgspec.Struct, frozen=True):
    """Which files count, and what of each chain they were computed from."""

    version: int = VERSION
    nodes: tuple[NodeSpan, ...] = ()
    first_ns: int = 0
    closed: tuple[Day, ...] = ()
    open: dict[str, str] = {}
    held: tuple[Held, ...] = ()
    quiet: tuple[Quiet, ...] = ()
    draining: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()


class Rollups:
    """The files below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / ROLLUP

    def listing(self) -> Listing:
        """What counts now; nothing if there is nothing, or another release made it."""
        try:
            found = msgspec.json.decode((self.directory / LIST).read_bytes(), type=Listing)
        except FileNotFoundError:
            return Listing()
        except msgspec.DecodeError as error:
            raise StateError(f"{self.directory / LIST}: {error}; rebuild the store") from error
        return found if found.version == VERSION else Listing()

    def paths(self, listing: Listing, kind: str) -> list[Path]:
        """The files of one kind of row."""
        names = [day.files[kind] for day in listing.closed]
        names.extend([listing.open[kind]] if kind in listing.open else [])
        return [self.directory / name for name in names]

    def write(self, tables: Mapping[str, Any]) -> dict[str, str]:
        """Put the tables of a day in place; their names by kind."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = DirectoryDisk(self.directory)
        names: dict[str, str] = {}
        try:
            there = frozenset(disk.names())
            for kind, table in tables.items():
                data = parquet_bytes(table)
                names[kind] = f"{kind}-{sha256(data).hexdigest()}.parquet"
                if names[kind] not in there:
                    write_whole(disk, names[kind], data)
        finally:
            disk.close()
        return names

    def replace(self, listing: Listing) -> None:
        """Make `listing` the one that counts; what no longer does is removed."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = DirectoryDisk(self.directory)
        try:
            write_whole(disk, LIST, msgspec.json.format(msgspec.json.encode(listing), indent=1))
            named = {name for day in listing.closed for name in day.files.values()}
            named |= {n for day in listing.closed for old in day.earlier for n in old.values()}
            named |= set(listing.open.values())
            for name in disk.names():
                if name.endswith(".parquet") and name not in named:
                    disk.unlink(name)
            disk.sync_names()
        finally:
            disk.close()

    def check(self, listing: Listing) -> list[str]:
        """The names of files that are missing or are not what their name says."""
        bad = []
        names = [name for day in listing.closed for name in day.files.values()]
        for name in [*names, *listing.open.values()]:
            try:
                data = (self.directory / name).read_bytes()
            except FileNotFoundError:
                bad.append(name)
                continue
            if sha256(data).hexdigest() not in name:
                bad.append(name)
        return bad
