# SPDX-License-Identifier: Apache-2.0
"""Which manifest a state directory has: SQLite in it, or, for several collectors that share the
directory, PostgreSQL.

Rule: the directory itself says so (`manifest.postgres`, a libpq connection string without a
password), so that no program can open the one while the other counts.

Does not read or write either (`manifest`, `manifest_postgres`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from leased.collector.archive.manifest import DATABASE, Manifest, ManifestTables
from leased.durable.files import DirectoryDisk, write_whole
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


def open_manifest(directory: Path, *, read_only: bool = False) -> ManifestTables:
    """The manifest of a state directory. Raises StateError."""
    try:
        database = (directory / POINTER).read_text("utf-8").strip()
    except FileNotFoundError:
        return Manifest(directory, read_only=read_only)
    except OSError as error:
        raise StateError(f"{directory / POINTER}: {error}") from error
    return open_shared(database, read_only=read_only)


def open_shared(database: str, *, read_only: bool = False) -> ManifestTables:
    """A manifest in PostgreSQL. Raises StateError."""
    try:
        from leased.collector.archive.manifest_postgres import PostgresManifest
    except ModuleNotFoundError as error:
        raise StateError(f"{error.name} is not installed: pip install 'leased[shared]'") from error
    return PostgresManifest(database, read_only=read_only)


def share(directory: Path, database: str, name: str = "") -> int:
    """Move a state directory's manifest to PostgreSQL; how many logs it has. The key and the log of
    the collector that had it alone go on as those of `name`. Nobody else may have it open. May be
    asked again after it was cut short. Raises InvalidParameter, StateError."""
    if "password" in database or "://" in database and "@" in database.partition("://")[2]:
        raise InvalidParameter(
            "database", "no password in it: use ~/.pgpass or peer authentication"
        )
    if is_shared(directory):
        raise StateError(f"{directory}: is shared already ({POINTER})")
    if (directory / OWN[0]).exists() and not name:
        raise InvalidParameter("name", "whose key and log are there, as nodes know it (pull.name)")
    disk = DirectoryDisk(directory)
    if not disk.lock():
        disk.close()
        raise StateError(f"{directory}: a collector has it open; stop that first")
    old, new = Manifest(directory), open_shared(database)
    try:
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
    finally:
        old.close()
        new.close()
        disk.close()


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
