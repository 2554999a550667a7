# SPDX-License-Identifier: Apache-2.0
"""Users: what of this host is on top of a block device: mounts, swap, arrays, mappings, loops.

Rule: devices are compared by their numbers, never by their names. Mounts are read of every mount
namespace that there is time for, the host's first: any user may have namespaces with gigabytes of
mounts. They are read for their names; who mounts a device has it exclusively, so whoever asks
whether it is used opens it so, too. Of what is not a file of the kernel nothing is believed: a loop
device is asked what is behind it (an exclusive open does not see it).

Does not see processes that merely have the device open (`openers` does), nor judge.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from leased.hardware.block import verbs
from leased.hardware.block.names import lease_in
from leased.hardware.block.verbs import Number
from leased.hardware.instant import now_ns
from leased.hardware.sysfs import list_names, read_text
from leased.terms.errors import DeviceError

MOUNTS_BUDGET_NS = 1_000_000_000
_OF_SEVERAL = ("btrfs", "bcachefs")
"""File systems that may be on several devices."""

_FIRST_BYTES = 4096
_CHUNK_BYTES = 256 << 10
_LINE_BYTES_MAX = 64 << 10
"""Two paths, each of whose bytes may be four."""


class Use(msgspec.Struct, frozen=True, array_like=True):
    """One thing on top of a device, in words. `uuid` is the mapping's if it is one of ours."""

    number: Number
    what: str
    uuid: str = ""


def find_uses(
    numbers: Collection[Number], root: Path = Path("/"), *, mounts_ns: int = MOUNTS_BUDGET_NS
) -> tuple[Use, ...]:
    """Everything that is on top of the devices. Raises DeviceError where that cannot be read."""
    sought = frozenset(numbers)
    uses = (
        *_mounts(sought, root, now_ns() + mounts_ns),
        *_swaps(sought, root),
        *_above(sought, root),
        *_loops(sought, root),
    )
    return tuple(dict.fromkeys(uses))


def find_ours(root: Path = Path("/")) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Our mappings, by uuid; and those of them whose device has gone, though one of the same
    identity may be there: a drive that was away for a moment."""
    ours, lost = list[str](), list[str]()
    for name in list_names(root / "sys/block"):
        uuid = read_text(root / "sys/block" / name / "dm/uuid") or ""
        below = root / "sys/block" / name / "slaves"
        if lease_in(uuid) is None:
            continue
        ours.append(uuid)
        if not all((below / lower).exists() for lower in list_names(below)):
            lost.append(uuid)
    return tuple(ours), tuple(lost)


# ---- mounts ------------------------------------------------------------------------------------


def _mounts(sought: frozenset[Number], root: Path, end_ns: int) -> Iterable[Use]:
    seen: set[bytes] = set()
    folder = os.fspath(root / "proc")
    of_interest = [b" %d:%d " % number for number in sought]
    of_interest += [b" - %s " % kind.encode() for kind in _OF_SEVERAL]
    for pid in _pids(root):
        first = b""
        # Of thousands of processes: no Path for each.
        for lines in _pieces(f"{folder}/{pid}/mountinfo"):
            if lines and not first:
                # A mount is of one namespace. The link that names that waits for whoever hangs in
                # an exec (`execs`).
                first = lines.partition(b" ")[0]
                if first in seen:
                    break
                seen.add(first)
            if any(word in lines for word in of_interest):
                yield from _mounted(lines.decode("utf-8", "replace"), sought, root)
            if now_ns() > end_ns:
                return


def _pieces(path: str) -> Iterator[bytes]:
    """Whole lines, some at a time; none where whoever it was has gone."""
    rest, size_bytes = b"", _FIRST_BYTES
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(size_bytes):
                size_bytes = _CHUNK_BYTES
                lines, _, rest = (rest + chunk).rpartition(b"\n")
                rest = rest[-_LINE_BYTES_MAX:]
                yield lines
        yield rest
    except OSError as error:
        if not _has_gone(error):
            raise DeviceError("users", error.errno or errno.EIO, path) from error


def _mounted(mountinfo: str, sought: frozenset[Number], root: Path) -> Iterable[Use]:
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 2:
            continue
        number = _parse(fields[2])
        # A file system of several devices has a number of its own, and names one of them. What is
        # on no device names what whoever mounted it liked, and that may be anybody.
        if number not in sought and kind[0] in _OF_SEVERAL:
            number = _number_of(root, _plain(kind[1]))
        if number in sought:
            yield Use(number, f"mounted at {_plain(fields[4])} ({kind[0]})")


def _swaps(sought: frozenset[Number], root: Path) -> Iterable[Use]:
    for line in (_text_of(root / "proc/swaps") or "").splitlines()[1:]:
        number = _number_of(root, _plain(line.split()[0]))
        if number in sought:
            yield Use(number, "swap")


# ---- what the block layer stacks ---------------------------------------------------------------


def _above(sought: frozenset[Number], root: Path) -> Iterable[Use]:
    for number in sorted(sought):
        place = root / "sys/dev/block" / f"{number[0]}:{number[1]}"
        for name in list_names(place / "holders"):
            upper = root / "sys/block" / name
            uuid = read_text(upper / "dm/uuid")
            if uuid is not None:
                called = read_text(upper / "dm/name") or name
                ours = uuid if lease_in(uuid) is not None else ""
                kind = uuid.partition("-")[0] or "device-mapper"
                yield Use(number, f"under the mapping {called} ({kind})", ours)
            elif (upper / "md").exists():
                yield Use(number, f"in the array {name}")
            else:
                yield Use(number, f"under {name}")


def _loops(sought: frozenset[Number], root: Path) -> Iterable[Use]:
    for name in list_names(root / "sys/block"):
        backing = root / "sys/block" / name / "loop/backing_file"
        path = read_text(backing) if name.startswith("loop") else None
        if path is None:
            continue
        number = _behind_loop(root, name)
        if number is None:
            number = _number_of(root, path)
        if number in sought:
            yield Use(number, f"behind {name}")


def _behind_loop(root: Path, name: str) -> Number | None:
    try:
        fd = os.open(root / "dev" / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError("loop_open", error.errno or errno.EIO, name) from error
    try:
        return verbs.device_behind_loop(fd)
    except DeviceError as error:
        if error.errno == errno.ENOTTY:  # a tree that was captured has files for devices
            return None
        raise
    finally:
        os.close(fd)


# ---- small readings ----------------------------------------------------------------------------


def _pids(root: Path) -> list[str]:
    """Ours first: what is read of it need not be read of anybody else. Then the host's."""
    own = str(os.getpid())
    names = [name for name in list_names(root / "proc") if name.isdecimal()]
    return sorted(names, key=lambda name: (name != own, name != "1"))


def _text_of(path: Path) -> str | None:
    """None: whoever it was has gone."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        if _has_gone(error):
            return None
        raise DeviceError("users", error.errno or errno.EIO, str(path)) from error


def _has_gone(error: OSError) -> bool:
    """EINVAL: a process without a mount namespace is on its way out."""
    return error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.EINVAL)


def _plain(text: str) -> str:
    """Without the kernel's octal escapes."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, plain)
    return text


def _parse(text: str) -> Number | None:
    major, colon, minor = text.partition(":")
    return (int(major), int(minor)) if colon and major.isdecimal() and minor.isdecimal() else None


def _number_of(root: Path, path: str) -> Number | None:
    """The number of a block device by a name that somebody used for it."""
    if not path.startswith("/dev/"):
        return None
    try:
        status = os.stat(root / path.lstrip("/"))
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return os.major(status.st_rdev), os.minor(status.st_rdev)
