# SPDX-License-Identifier: Apache-2.0
"""The kernel's text files: lists, numbers and names that they say, and values that they take.

Rule: a file that is not there is None, never 0; a file that says something unexpected raises
DeviceError naming it. Every reader takes the root of the tree, so that a captured tree reads like
the live one.

Does not know what the values mean.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from leased.terms.errors import DeviceError

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL)
_READ_BYTES = 1 << 16


def read_text(path: Path) -> str | None:
    """The file's text without its last newline, or None if there is no such file or no value."""
    try:
        return _read_all(path).decode("utf-8", "replace").rstrip("\n")
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise DeviceError("sysfs_read", error.errno or errno.EIO, str(path)) from error


def _read_all(path: Path) -> bytes:
    """A look at a host reads hundreds of files of a few bytes: no buffers, no decoder for each."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def write_text(path: str | Path, text: str, verb: str) -> None:
    """Write one value, by one call: the error of that is the driver's answer. Raises DeviceError of
    that verb, with the kernel's errno."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(verb, error.errno or errno.EIO, f"{path}: {text}") from error


def read_int(path: Path) -> int | None:
    """The file's number, or None."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise DeviceError("sysfs_read", errno.EINVAL, f"{path}: {text!r}") from error


def parse_list(text: str) -> tuple[int, ...]:
    """A kernel list such as "0-3,8,10-11", ascending. Raises ValueError."""
    members: dict[int, None] = {}
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if low < 0 or high < low:
            raise ValueError(f"not a list of numbers: {text!r}")
        members.update(dict.fromkeys(range(low, high + 1)))
    return tuple(sorted(members))


def format_list(numbers: tuple[int, ...]) -> str:
    """The shortest kernel list of ascending `numbers`."""
    parts: list[str] = []
    for at, number in enumerate(numbers):
        if at and numbers[at - 1] == number - 1:
            continue
        last = number
        while last + 1 in numbers[at:]:
            last += 1
        parts.append(str(number) if last == number else f"{number}-{last}")
    return ",".join(parts)


def read_list(path: Path) -> tuple[int, ...]:
    """The file's list; empty if there is no such file."""
    text = read_text(path)
    if text is None:
        return ()
    try:
        return parse_list(text)
    except ValueError as error:
        raise DeviceError("sysfs_read", errno.EINVAL, f"{path}: {text!r}") from error


def list_names(path: Path) -> tuple[str, ...]:
    """The directory's entries in order; empty if there is no such directory."""
    try:
        return tuple(sorted(os.listdir(path)))
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise DeviceError("sysfs_read", error.errno or errno.EIO, str(path)) from error
