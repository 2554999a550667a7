# SPDX-License-Identifier: Apache-2.0
"""The shelf: documents that records refer to by their hash, kept whole, one file each.

Rule: a document is durable before the record that names it is sealed, and stays until a later
record names another; so what the log says is in force can always be read again. A document is
trusted only if whoever takes it finds the hash that it was asked for by.

Does not know what is in a document, and makes no hashes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from leased.durable.files import DirectoryDisk, write_whole

SUFFIX = ".json"
DOCUMENT_BYTES_MAX = 16 << 20


class Shelf:
    """Documents in `directory`, which is made when the first is put there. Every call blocks as
    long as the disk does, and raises OSError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, document: bytes) -> None:
        """Keep a document: it is durable when this returns."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        disk = DirectoryDisk(self._directory)
        try:
            if name + SUFFIX not in disk.names() or disk.read(name + SUFFIX) != document:
                write_whole(disk, name + SUFFIX, document)
        finally:
            disk.close()

    def get(self, name: str) -> bytes | None:
        """The document of that name; None if there is none."""
        try:
            disk = DirectoryDisk(self._directory)
        except FileNotFoundError:
            return None
        try:
            if disk.size(name + SUFFIX) > DOCUMENT_BYTES_MAX:
                return None
            return disk.read(name + SUFFIX)
        except FileNotFoundError:
            return None
        finally:
            disk.close()

    def keep(self, names: Collection[str]) -> None:
        """Remove what is not among `names`."""
        try:
            disk = DirectoryDisk(self._directory)
        except FileNotFoundError:
            return
        try:
            for name in disk.names():
                if name.removesuffix(SUFFIX) not in names:
                    disk.unlink(name)
        finally:
            disk.close()
