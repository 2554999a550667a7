# SPDX-License-Identifier: Apache-2.0
"""The kernel's own devices for losing things: dm-log-writes, which logs what a disk was asked, and
dm-flakey, which drops writes or fails them.

Rule: a mapped device is removed when its `with` ends, also after a failure.

Does not judge (`replaying`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.host import not_proven
from tests.powercut.machine import Layout, again_and_again, run
from tests.powercut.recording import DURABLE, FLUSH, MARK, WRITE
from tests.powercut.replaying import SECTOR, Entry

WHAT = "what dm-log-writes and dm-flakey leave of a log"
_MAGIC, _VERSION = 0x6A736677736872, 1
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_END = b"dm-log-writes-end"
"""The kernel's own mark, when the mapping goes."""


def must_map(*layouts: Layout) -> None:
    """Skip, and say what is not shown, where this kernel has none of it. In the machine of tests/vm
    that is a failure."""
    subprocess.run(["modprobe", "-qa", "dm-flakey", "dm-log-writes", "loop"], check=False)
    missing = "root and dmsetup are needed"
    if os.geteuid() == 0 and shutil.which("dmsetup"):
        told = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True, check=False)
        wanted = [name for name in ("flakey", "log-writes") if name not in told.stdout]
        wanted += [one.make[0] for one in layouts if shutil.which(one.make[0]) is None]
        missing = f"there is no {', '.join(wanted)} here" if wanted else ""
    if missing and os.environ.get("LEASED_VM"):
        pytest.fail(f"{WHAT}: {missing}")
    if missing:
        not_proven(WHAT, missing)


@contextlib.contextmanager
def mapped(name: str, table: str) -> Iterator[str]:
    """A mapped device."""
    run("dmsetup", "create", name, "--table", table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        again_and_again("dmsetup", "remove", name)


def change(name: str, table: str) -> None:
    """Another table, between one request and the next: nothing is flushed before."""
    run("dmsetup", "suspend", "--nolockfs", name)
    run("dmsetup", "load", name, "--table", table)
    run("dmsetup", "resume", name)


def linear(device: str, size: int) -> str:
    """A disk that is well."""
    return f"0 {size // SECTOR} linear {device} 0"


def flakey(device: str, size: int, how: str) -> str:
    """One that is down: `drop_writes` answers and does nothing, `error_writes` fails."""
    return f"0 {size // SECTOR} flakey {device} 0 0 3600 1 {how}"


def read_log_writes(path: Path) -> list[Entry]:
    """What a log device of dm-log-writes tells, in the order in which it was completed."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as raw:
        return list(_entries(raw))


def _entries(raw: mmap.mmap) -> Iterator[Entry]:
    magic, version, count, sector_bytes = _SUPER.unpack_from(raw)
    assert (magic, version) == (_MAGIC, _VERSION), "no log of dm-log-writes"
    at = sector_bytes
    for _ in range(count):
        sector, sectors, flags, length = _ENTRY.unpack_from(raw, at)
        if flags & _MARK:
            text = raw[at + _ENTRY.size : at + _ENTRY.size + length].rstrip(b"\0")
            if text != _END:
                yield Entry(MARK, 0, text + b"\n")
        at += sector_bytes
        if flags & _FLUSH:
            yield Entry(FLUSH, 0, b"")
        if sectors and not flags & (_MARK | _DISCARD):
            data = raw[at : at + sectors * sector_bytes]
            kind = DURABLE if flags & _FUA else WRITE
            yield Entry(kind, sector * sector_bytes, data)
            at += len(data)
