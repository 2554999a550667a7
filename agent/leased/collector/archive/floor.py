# SPDX-License-Identifier: Apache-2.0
"""The floor: what stands in the place of records that were removed by the rule of retention.

Rule: `kept/floor.json` is replaced whole, after every file that it names is durable; from then on
records below it do not count, whether their segments are still there or not. Of each log it keeps
the frames that what comes later follows from (`frames`, as they were sealed, with gaps between
them) and the hash of every record (`leaves`), so that the log's tree can still be made, and any
record proven to be in it. Nothing here can be made again from the segments that are left: a
backup has it.

Does not choose what may go (`retention`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.durable.files import DirectoryDisk, make_durably, write_whole
from leased.terms.errors import StateError

KEPT: Final = "kept"
LIST: Final = "floor.json"
VERSION: Final = 1
HASH_BYTES: Final = 32


class KeptFile(msgspec.Struct, frozen=True):
    """A file below `kept/`."""

    name: str
    sha256: str
    bytes: int


class KeptLog(msgspec.Struct, frozen=True):
    """What stands for the first `records` records of a log, the last of which has the hash
    `head`."""

    node: str
    records: int
    head: str
    frames: KeptFile
    leaves: KeptFile


class Floor(msgspec.Struct, frozen=True):
    """The floor. Months that end at `floor_ns` or before are final: their hours are in `frozen`
    (files, and what `metering.frozen` says of them), those before `begin_ns` nowhere any more.
    What these had counted is `carried` (`accounts.tally`). `logs` by their ids; `made_ns` is when
    the rule was carried out."""

    version: int = VERSION
    floor_ns: int = 0
    begin_ns: int = 0
    made_ns: int = 0
    logs: dict[str, KeptLog] = {}
    files: dict[str, KeptFile] = {}
    frozen: dict[str, Any] = {}
    carried: dict[str, Any] = {}

    def records(self, log_id: str) -> int:
        """Up to which record a log's segments are gone, or may be."""
        one = self.logs.get(log_id)
        return 0 if one is None else one.records


NOTHING: Final = Floor()


class Kept:
    """The files below one state directory, and the floor as it stands at each call."""

    def __init__(self, state: Path) -> None:
        self.directory = state / KEPT
        self._read: tuple[object, Floor] = (None, NOTHING)

    def floor(self) -> Floor:
        """As it is now. Raises StateError."""
        path = self.directory / LIST
        try:
            found = path.stat()
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._read[0] != mark:
                self._read = (mark, msgspec.json.decode(path.read_bytes(), type=Floor))
        except FileNotFoundError:
            return NOTHING
        except (OSError, msgspec.DecodeError) as error:
            raise StateError(f"{path}: {error}; restore it from a backup") from error
        if self._read[1].version != VERSION:
            raise StateError(f"{path}: version {self._read[1].version}; this release has {VERSION}")
        return self._read[1]

    def frames(self, log_id: str) -> bytes:
        """What is kept of a log's removed records. Raises StateError."""
        return self.read(self.floor().logs[log_id].frames)

    def leaves(self, log_id: str) -> Iterator[bytes]:
        """The hash of each removed record, in order. Raises StateError."""
        data = self.read(self.floor().logs[log_id].leaves)
        for at in range(0, len(data), HASH_BYTES):
            yield data[at : at + HASH_BYTES]

    def read(self, file: KeptFile) -> bytes:
        """A file, if it is what it was. Raises StateError."""
        path = self.directory / file.name
        try:
            data = path.read_bytes()
        except OSError as error:
            why = error.strerror
            raise StateError(f"{path}: {why}; restore it from a backup") from error
        if sha256(data).hexdigest() != file.sha256:
            raise StateError(f"{path}: was altered; restore it from a backup")
        return data

    def check(self) -> Iterator[StateError]:
        """Read every file; what is wrong."""
        for file in named(self.floor()).values():
            try:
                self.read(file)
            except StateError as error:
                yield error

    def write(self, name: str, data: bytes) -> KeptFile:
        """Put a file in place, durably. It counts when a floor names it."""
        with closing(self._disk()) as disk:
            write_whole(disk, name, data)
        return KeptFile(name, sha256(data).hexdigest(), len(data))

    def replace(self, floor: Floor, seal: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Make `floor` the one that counts, once `seal` has put its digest on record; files that
        no floor names go."""
        data = msgspec.json.format(msgspec.json.encode(floor), indent=1)
        seal(sha256(data).hexdigest(), {one: kept.records for one, kept in floor.logs.items()})
        with closing(self._disk()) as disk:
            write_whole(disk, LIST, data)
            wanted = {LIST, *named(floor)}
            for name in disk.names():
                if name not in wanted:
                    disk.unlink(name)
            disk.sync_names()

    def _disk(self) -> DirectoryDisk:
        return DirectoryDisk(make_durably(self.directory.parent, self.directory.name))


def named(floor: Floor) -> dict[str, KeptFile]:
    """Every file that a floor names, by its name."""
    of_logs = (file for one in floor.logs.values() for file in (one.frames, one.leaves))
    return {file.name: file for file in (*of_logs, *floor.files.values())}
