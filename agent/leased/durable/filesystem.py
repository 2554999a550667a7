# SPDX-License-Identifier: Apache-2.0
"""Which file system a directory lies on, and whether a barrier means there what the log needs it to
mean.

Rule: an allow-list of what was power-cut tested (FORMAT.md section 9): ext4, xfs, and btrfs where
copy-on-write is off (else the reserve is worth nothing: every overwrite needs a new block).
Anything else is best effort and has to be asked for.

Does not decide what follows (`log.open_log` refuses).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

STRICT: Final = "strict"
BEST_EFFORT: Final = "best-effort"

_MOUNTS = Path("/proc/self/mountinfo")
_FS_IOC_GETFLAGS = 0x80086601
_FS_NOCOW_FL = 0x00800000
_ALLOWED = frozenset({"ext4", "xfs"})
NETWORK: Final = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre"),
        *("afs", "beegfs", "gfs2", "gpfs", "ocfs2", "orangefs"),
    )
)
"""What several hosts may have mounted. What is mapped from it is not one memory of theirs."""


class Filesystem(msgspec.Struct, frozen=True):
    """A type name as the kernel gives it; `why` says why barriers are not trusted there, "" if
    they are."""

    name: str
    why: str


def examine(directory: Path, directory_fd: int) -> Filesystem:
    """Return what `directory` lies on."""
    name = mounted_type(os.fsdecode(_MOUNTS.read_bytes()), directory.resolve())
    if name in _ALLOWED:
        return Filesystem(name, "")
    if name == "btrfs":
        if _copy_on_write_off(directory_fd):
            return Filesystem(name, "")
        return Filesystem(
            name, f"copy-on-write is on: run `chattr +C {directory}` while it is empty"
        )
    return Filesystem(
        name, f"{name} is not on the list of tested file systems (ext4, xfs, btrfs with chattr +C)"
    )


def may_span_hosts(name: str) -> bool:
    """Whether another host may have the same file system mounted: what a program of FUSE serves
    is taken for it, too, as nobody can say."""
    return name in NETWORK or name == "fuse" or name.startswith("fuse.")


def mounted_type(mountinfo: str, path: Path) -> str:
    """Return the type of the file system that `path` is on: the longest, and of equals the last,
    mount point."""
    best, found = -1, "unknown"
    for line in filter(None, mountinfo.split("\n")):
        fields, _, rest = line.partition(" - ")
        point = Path(_unescape(fields.split()[4]))
        depth = len(point.parts)
        if depth >= best and path.is_relative_to(point):
            best, found = depth, rest.split()[0]
    return found


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _copy_on_write_off(directory_fd: int) -> bool:
    """Whether new files of the directory are overwritten in place."""
    flags = array.array("L", [0])
    try:
        fcntl.ioctl(directory_fd, _FS_IOC_GETFLAGS, flags, True)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return bool(flags[0] & _FS_NOCOW_FL)
