# SPDX-License-Identifier: Apache-2.0
"""Raw segments as files: frames exactly as a node sealed them, one after the other, nothing else.

Rule: a file is written once, whole (write, sync, rename, sync of the names), and read whole with
its SHA-256 compared; what does not match is named and nothing of it is used. Where several
collectors write, what is half written has a name of its writer's: one that was thought dead may go
on beside who took its nodes over. `segments/node=<node id>/<first>-<last>-<head8>.seg`: the
directory is what DuckDB and Spark call a hive partition.

Does not know which files count (`manifest`) and does not verify records (`ingest` has).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Final

import msgspec

from leased.durable.files import DirectoryDisk, Disk, write_aside
from leased.terms.errors import StateError

SEGMENTS: Final = "segments"
_NAME: Final = re.compile(r"(\d{20})-(\d{20})-([0-9a-f]{8})\.seg\Z")
_NODE: Final = re.compile(r"node=[0-9a-f]{32}\Z")

OpenDisk = Callable[[Path], Disk]


class Segment(msgspec.Struct, frozen=True):
    """One file: records `first_seq` to `last_seq`, the last with the hash `head`. `path` is
    relative to the state directory; ids and hashes are in hex."""

    node: str
    log_id: str
    first_seq: int
    last_seq: int
    head: str
    path: str
    sha256: str
    bytes: int


class SegmentDamaged(StateError):
    """A file that the manifest names is missing, short or altered. Restore it from a copy, or let
    the node serve it again if it has not pruned it."""


class SegmentFiles:
    """The files below one state directory."""

    def __init__(
        self, directory: Path, open_disk: OpenDisk = DirectoryDisk, *, writer: str = ""
    ) -> None:
        """`writer` is whose files these are, where others write, too."""
        mark = blake2b(writer.encode(), digest_size=8).hexdigest()
        self._aside = f".{mark}" if writer else ""
        self._directory = directory
        self._open_disk = open_disk
        self._disks: dict[str, Disk] = {}

    def write(
        self, node: str, log_id: str, first_seq: int, last_seq: int, head: str, frames: bytes
    ) -> Segment:
        """Put a segment in place, durably."""
        name = f"{first_seq:020d}-{last_seq:020d}-{head[:8]}.seg"
        disk = self._disk(node)
        write_aside(disk, name + self._aside, frames)
        disk.rename(f"{name}{self._aside}.new", name)
        disk.sync_names()
        path = f"{SEGMENTS}/node={node}/{name}"
        digest = sha256(frames).hexdigest()
        return Segment(node, log_id, first_seq, last_seq, head, path, digest, len(frames))

    def read(self, segment: Segment) -> bytes:
        """The frames of a segment. Raises SegmentDamaged."""
        path = self._directory / segment.path
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise _damaged(path, segment, "is missing") from None
        if len(data) != segment.bytes:
            raise _damaged(path, segment, f"has {len(data)} bytes and not {segment.bytes}")
        if sha256(data).hexdigest() != segment.sha256:
            raise _damaged(path, segment, "was altered: its SHA-256 is not that of the manifest")
        return data

    def check_size(self, segment: Segment) -> None:
        """The cheap check of every start. Raises SegmentDamaged."""
        path = self._directory / segment.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise _damaged(path, segment, "is missing") from None
        if size != segment.bytes:
            raise _damaged(path, segment, f"has {size} bytes and not {segment.bytes}")

    def remove(self, path: str) -> None:
        """Unlink a file that does not count (any more)."""
        _, partition, name = path.split("/")
        self._disk(partition.removeprefix("node=")).unlink(name)

    def sync(self, node: str) -> None:
        """Make removals durable."""
        self._disk(node).sync_names()

    def remove_all(self, left: Iterable[tuple[str, str]]) -> None:
        """Remove files, each of a node; durable on return."""
        for path, node in left:
            self.remove(path)
            self.sync(node)

    def found(
        self, nodes: frozenset[str] | None = None, *, besides: Collection[str] = ()
    ) -> list[tuple[str, str, int, int]]:
        """(path, node, first_seq, last_seq) of every segment file that is there `besides` those, of
        all nodes or of these. Half-written ones are removed: nothing ever named them."""
        listed = []
        root = self._directory / SEGMENTS
        for partition in sorted(path.name for path in root.iterdir() if _NODE.match(path.name)):
            node = partition.removeprefix("node=")
            if nodes is not None and node not in nodes:
                continue
            disk = self._disk(node)
            for name in disk.names():
                match = _NAME.match(name)
                if match is not None:
                    path = f"{SEGMENTS}/{partition}/{name}"
                    if path not in besides:
                        listed.append((path, node, int(match[1]), int(match[2])))
                elif ".seg." in name and name.endswith(".new"):
                    disk.unlink(name)
        return listed

    def close(self) -> None:
        """Let go of the directories."""
        for disk in self._disks.values():
            disk.close()
        self._disks.clear()

    def _disk(self, node: str) -> Disk:
        disk = self._disks.get(node)
        if disk is None:
            with closing(self._open_disk(self._directory / SEGMENTS)) as root:
                root.make_directory(f"node={node}")
                root.sync_names()
            disk = self._open_disk(self._directory / SEGMENTS / f"node={node}")
            self._disks[node] = disk
        return disk


def _damaged(path: Path, segment: Segment, what: str) -> SegmentDamaged:
    records = f"records {segment.first_seq} to {segment.last_seq} of log {segment.log_id}"
    return SegmentDamaged(f"{path}: {what}; it holds {records}: restore it from a copy")
