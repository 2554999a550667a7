# SPDX-License-Identifier: Apache-2.0
"""Backup and restore of a state directory, beside a collector that runs.

Rule: what is copied is one state that was: bills, keys and evidence first, then the databases by
SQLite's own snapshots, then exactly the segments that the snapshot of the manifest names. One that
several collectors share has its manifest in PostgreSQL: what that says at one moment is written as
the manifest of one, so a backup needs no other program, and no database to be read. The list of
files with their hashes is written last: without it there is no backup. What is derived is left out,
and made again. A restore takes nothing in that does not have its hash, puts the manifest in place
last, and gives a collector's own log another name: a log that goes back is not continued.

Does not know what a bill or a record says, and writes to no PostgreSQL (`manifests.share`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import file_digest
from pathlib import Path
from typing import Final

import msgspec

from leased import __version__
from leased.collector.accounts.invoices import Invoices
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.floor import Kept
from leased.collector.archive.manifest import DATABASE, Manifest
from leased.collector.archive.manifests import COLLECTORS, POINTER, export, is_shared, is_there
from leased.collector.archive.segments import SEGMENTS
from leased.collector.governance.directory import DIRECTORY as GOVERNANCE
from leased.collector.governance.register import DATABASE as REGISTER
from leased.collector.governance.register import Register
from leased.collector.heads import DATABASE as HEADS
from leased.collector.heads import write_heads
from leased.collector.metering.store import DERIVED
from leased.collector.telemetry.store import NAME as TELEMETRY
from leased.collector.witness import LOG
from leased.durable.files import DirectoryDisk, write_whole
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

FORMAT: Final = "leased-backup/1"
LIST: Final = "backup.json"
ATTEMPTS: Final = 16
"""Segments are put together while they are copied: then the manifest is read anew."""

_LEFT_OUT: Final = (DERIVED, SEGMENTS)
_SQLITE: Final = ".sqlite"
_ALTERED: Final = "was altered; put it back from the backup before, and make this one again"
_PASSING: Final = (".new", "-wal", "-shm", "-journal", ".lock", ".sock")
Progress = Callable[[str], None]


class Copied(msgspec.Struct, frozen=True):
    """One file of a backup."""

    sha256: str
    bytes: int


class Listing(msgspec.Struct, frozen=True):
    """What a backup holds."""

    format: str
    version: str
    made_ns: int
    files: dict[str, Copied]


class Checked(msgspec.Struct, frozen=True):
    """What was looked at after a restore."""

    files: int
    bytes: int
    segments: int
    changes: int
    bills: int


def back_up(
    state: Path,
    directory: Path,
    *,
    now_ns: int,
    before: Path | None = None,
    telemetry: bool = True,
    progress: Progress = lambda text: None,
) -> Listing:
    """Copy a state into a new directory; segments that the backup `before` has, by links to it.
    Raises StateError."""
    if not is_there(state):
        raise StateError(f"{state}: no collector's state directory")
    if state.resolve() in directory.resolve().parents:
        raise StateError(f"{directory}: within what it is to be a backup of; take it elsewhere")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise StateError(f"{directory}: there is something in it; give a new directory")
        known = read_listing(before) if before is not None else None
        files: dict[str, Copied] = {}
        # Databases after plain files: a bill rests on what was said before it.
        for path in sorted(_files(state), key=lambda path: (path.endswith(_SQLITE), path)):
            if path == TELEMETRY and not telemetry:
                continue
            progress(path)
            take = _snapshot if path.endswith(_SQLITE) else _copy
            take(state / path, directory / path)
            files[path] = _kept(directory / path)
        files |= _segments(state, directory, before, known, progress)
        for path in (DATABASE, HEADS):
            if (directory / path).exists():
                files[path] = _kept(directory / path)
        if Kept(state).floor() != Kept(directory).floor():
            raise StateError(f"{state}: records were removed meanwhile: make the backup again")
        listing = Listing(FORMAT, __version__, now_ns, dict(sorted(files.items())))
        _sync(directory)
        with closing(DirectoryDisk(directory)) as disk:
            write_whole(disk, LIST, msgspec.json.format(msgspec.json.encode(listing), indent=1))
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{directory}: {error}; it is no backup") from error
    return listing


def restore(directory: Path, state: Path, progress: Progress = lambda text: None) -> Checked:
    """Put a backup in place of nothing, and look at all of it. Raises StateError."""
    listing = read_listing(directory)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(state.iterdir()):
            raise StateError(f"{state}: there is something in it; a restore begins with nothing")
        try:
            _take_all(directory, listing, state, progress)
        except BaseException:
            _clear(state)
            raise
        return check(state, listing)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{state}: {error}; empty it, and restore again") from error


def check(state: Path, listing: Listing) -> Checked:
    """Read what a state rests on: segments, the seals of changes, bills. Raises LeasedError."""
    segments = changes = bills = 0
    with closing(ArchiveReader(state)) as archive:
        for _, damage in archive.check():
            if damage is not None:
                raise damage
            segments += 1
        for error in archive.kept.check():
            raise error
    if (state / GOVERNANCE / REGISTER).exists():
        with closing(Register(state / GOVERNANCE)) as register:
            changes = register.check()
    invoices = Invoices(state)
    for bill in (one for tenant in invoices.tenants() for one in invoices.of_tenant(tenant)):
        invoices.hours(bill)
        bills += 1
    total = sum(one.bytes for one in listing.files.values())
    return Checked(len(listing.files), total, segments, changes, bills)


def read_listing(directory: Path) -> Listing:
    """What a backup says it holds. Raises StateError."""
    try:
        found = msgspec.json.decode((directory / LIST).read_bytes(), type=Listing)
    except FileNotFoundError:
        raise StateError(f"{directory}: no {LIST}: no backup, or one that was not finished") from (
            None
        )
    except (OSError, msgspec.DecodeError) as error:
        raise StateError(f"{directory / LIST}: {error}") from error
    if found.format != FORMAT:
        raise StateError(f"{directory}: of format {found.format}; this release reads {FORMAT}")
    for path in found.files:
        if path.startswith("/") or ".." in path.split("/"):
            raise StateError(f"{directory / LIST}: {path} leads out of it")
    return found


# ---- inside --------------------------------------------------------------------------------------


def _files(state: Path) -> Iterator[str]:
    """Everything but the manifest, segments, and what is derived or passing."""
    for place, names, files in os.walk(state):
        below = Path(place).relative_to(state)
        if below == Path("."):
            names[:] = [name for name in names if name not in _LEFT_OUT]
        for name in sorted(files):
            path = (below / name).as_posix()
            if path not in (DATABASE, POINTER) and not name.endswith(_PASSING):
                yield path


def _segments(
    state: Path,
    directory: Path,
    before: Path | None,
    known: Listing | None,
    progress: Progress,
) -> dict[str, Copied]:
    """The manifest, and the segments that it names."""
    have: dict[str, Copied] = {}
    for attempt in range(ATTEMPTS):
        named = _named(state, directory)
        try:
            for number, (path, kept) in enumerate(sorted(named.items()), 1):
                if path not in have:
                    progress(f"segment {number} of {len(named)}")
                    same = known is not None and known.files.get(path) == kept
                    if not (same and before and _link(before / path, directory / path)):
                        _copy_whole(state / path, directory / path, kept)
                    have[path] = kept
            break
        except FileNotFoundError:  # put together with others since: the manifest names those now
            if attempt + 1 == ATTEMPTS:
                raise
    for path in have.keys() - named.keys():
        (directory / path).unlink()
        del have[path]
    return have


def _named(state: Path, directory: Path) -> dict[str, Copied]:
    """Copy the manifest as it is now; the segments that it names."""
    if is_shared(state):
        (directory / HEADS).unlink(missing_ok=True)
        write_heads(directory / HEADS, export(state, directory))
    else:
        _snapshot(state / DATABASE, directory / DATABASE)
    with closing(Manifest(directory, read_only=True)) as manifest:
        return {one.path: Copied(one.sha256, one.bytes) for one in manifest.segments()}


def _copy_whole(source: Path, target: Path, kept: Copied) -> None:
    """Copy a segment that is as the manifest says. Raises OSError, StateError."""
    _copy(source, target)
    if _kept(target) != kept:
        raise StateError(f"{source}: {_ALTERED}")


def _snapshot(source: Path, target: Path) -> None:
    """A database as it is at one moment, whoever writes it meanwhile."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
        other.execute("PRAGMA journal_mode = DELETE")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _link(source: Path, target: Path) -> bool:
    """Whether the same file could be had under another name."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _take_all(directory: Path, listing: Listing, state: Path, progress: Progress) -> None:
    aside = f"{LOG}.of-{listing.made_ns // NS_PER_S}"
    # The manifest last: what has none is no state that a collector would start with.
    for path in sorted(listing.files, key=lambda path: (path == DATABASE, path)):
        progress(path)
        own = path.split("/")
        at = 2 if own[0] == COLLECTORS else 0
        if own[at : at + 1] == [LOG] and len(own) > at + 1:
            own[at] = aside
        _take(directory, path, listing.files[path], state / "/".join(own))
    _sync(state)


def _clear(state: Path) -> None:
    """Half a state is in the way of the next restore, and there was nothing before."""
    for path in state.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _take(directory: Path, path: str, kept: Copied, target: Path) -> None:
    """Copy one file of a backup. Raises StateError if it is not what it was."""
    try:
        _copy(directory / path, target)
    except FileNotFoundError:
        raise StateError(f"{directory / path}: missing; take another backup") from None
    if _kept(target) != kept:
        target.unlink()
        raise StateError(f"{directory / path}: not what was backed up; take another backup")


def _kept(path: Path) -> Copied:
    with path.open("rb") as file:
        return Copied(file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _sync(directory: Path) -> None:
    """Everything below is durable, and belongs to whom the directory belongs."""
    owner = directory.stat()
    is_root = os.geteuid() == 0
    for place, _, files in os.walk(directory):
        for path in (Path(place), *(Path(place) / name for name in files)):
            if is_root:
                os.chown(path, owner.st_uid, owner.st_gid)
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
