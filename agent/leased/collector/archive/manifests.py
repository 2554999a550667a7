# SPDX-License-Identifier: Apache-2.0
"""Which manifest a state directory has: SQLite in it, or, for several collectors that share the
directory, PostgreSQL.

Rule: the directory itself says so (`manifest.postgres`, a libpq connection string without a
password), so that no program can open the one while the other counts.

Does not read or write either (`manifest`, `manifest_postgres`).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Final

from leased.collector.archive.manifest import DATABASE, Manifest, ManifestTables
from leased.collector.archive.segments import OpenDisk
from leased.collector.extras import how_to_have
from leased.durable.files import DirectoryDisk, write_whole
from leased.durable.filesystem import may_span_hosts
from leased.terms.errors import InvalidParameter, StateError

POINTER: Final = "manifest.postgres"
COLLECTORS: Final = "collectors"
OWN: Final = ("cosign.key", "log", "heads.sqlite")
"""What is one collector's, and not the fleet's. Heads that wait in there go to the manifest at the
next start."""


def is_there(directory: Path) -> bool:
    """Whether a state directory has a manifest."""
    return (directory / POINTER).exists() or (directory / DATABASE).exists()


def is_shared(directory: Path) -> bool:
    """Whether it is for several collectors."""
    return (directory / POINTER).exists()


def own_directory(directory: Path, name: str) -> Path:
    """Where the collector of a name keeps what is its own: its key, its log, its lock."""
    return directory / COLLECTORS / name if is_shared(directory) else directory


def open_manifest(
    directory: Path, *, read_only: bool = False, open_disk: OpenDisk = DirectoryDisk
) -> ManifestTables:
    """The manifest of a state directory. Raises StateError; also where several collectors share a
    directory that is not of one host alone."""
    try:
        database = (directory / POINTER).read_text("utf-8").strip()
    except FileNotFoundError:
        return Manifest(directory, read_only=read_only)
    except OSError as error:
        raise StateError(f"{directory / POINTER}: {error}") from error
    _see_one_host(directory, open_disk)
    return open_shared(database, read_only=read_only)


def _see_one_host(directory: Path, open_disk: OpenDisk) -> None:
    """Raises StateError where others than this host's processes may have the directory."""
    with closing(open_disk(directory)) as disk:
        name = disk.filesystem().name
    if may_span_hosts(name):
        raise StateError(
            f"{directory}: on {name}, which other hosts may have, too. Collectors that share a "
            "directory run on one host, each its own process: the register and the telemetry are "
            "SQLite, whose write-ahead log needs one memory. Move it to a disk of this host"
        )


def open_shared(database: str, *, read_only: bool = False) -> ManifestTables:
    """A manifest in PostgreSQL. Raises StateError."""
    try:
        from leased.collector.archive.manifest_postgres import PostgresManifest
    except ModuleNotFoundError as error:
        raise StateError(how_to_have(error, "shared")) from error
    return PostgresManifest(database, read_only=read_only)


def share(
    directory: Path, database: str, name: str = "", *, open_disk: OpenDisk = DirectoryDisk
) -> int:
    """Move a state directory's manifest to PostgreSQL; how many logs it has. The key and the log of
    the collector that had it alone go on as those of `name`. Nobody else may have it open. May be
    asked again after it was cut short. Raises InvalidParameter, StateError."""
    if "password" in database or "://" in database and "@" in database.partition("://")[2]:
        raise InvalidParameter(
            "database", "no password in it: use ~/.pgpass or peer authentication"
        )
    if is_shared(directory):
        raise StateError(f"{directory}: is shared already ({POINTER})")
    if any((directory / one).exists() for one in OWN) and not name:
        raise InvalidParameter("name", "whose key and log are there, as nodes know it (pull.name)")
    _see_one_host(directory, open_disk)
    with closing(DirectoryDisk(directory)) as disk:
        if not disk.lock():
            raise StateError(f"{directory}: a collector has it open; stop that first")
        with closing(Manifest(directory)) as old, closing(open_shared(database)) as new:
            if new.logs() not in ([], old.logs()):
                raise StateError("the database has a manifest in it that is another fleet's")
            if not new.logs():
                with new.transaction():
                    _copy(old, new)
            own = directory / COLLECTORS / name
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            for one in OWN:
                if (directory / one).exists():
                    (directory / one).rename(own / one)
            write_whole(disk, POINTER, database.encode() + b"\n")
            return len(new.logs())


def export(shared: Path, directory: Path) -> list[Any]:
    """Write a manifest that is in PostgreSQL, as it is at one moment, into a directory, where it is
    one collector's; the heads that wait there to be compared. Who has which part is left out: that
    lasts for seconds. Raises StateError."""
    opened: Any = open_manifest(shared, read_only=True)
    with closing(opened) as old:
        (directory / DATABASE).unlink(missing_ok=True)
        with closing(Manifest(directory)) as new:
            with old.still(), new.transaction():
                _copy(old, new)
                heads: list[Any] = old.heads()
            new.connection.execute("PRAGMA journal_mode = DELETE")
            return heads


def _copy(old: ManifestTables, new: ManifestTables) -> None:
    for entry in old.logs():
        new.add_log(entry)
    for name, url, log_id in old.nodes():
        new.follow(name, url, log_id)
    for entry in old.logs():
        for _, note in old.resolutions(entry.log_id):
            new.add_resolution(entry.log_id, note)
    for segment in old.segments():
        ManifestTables.add_segment(new, segment)
