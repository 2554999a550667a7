# SPDX-License-Identifier: Apache-2.0
"""Real character devices that stand in for NVIDIA's: opened, filtered and found as those are.

A console N of Linux has four nodes whose opening does nothing: `vcs` 7:N, `vcsu` 7:64+N and `vcsa`
7:128+N (the text on it) and `tty` 4:N. No lease's device filter allows any of them, and each has a
number of its own, so that a filter refuses one GPU and allows another, and a scan by `st_rdev`
finds who has which.

Rule: a console belongs to one machine at a time, by an entry in a directory of this boot; an entry
whose machine has gone is taken over.

Does not work without CAP_MKNOD and virtual terminals: `Unavailable` says which.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONSOLES = range(13, 64)
"""Below are those that a login may be on."""

_REGISTRY = Path("/run/leased-mock-consoles")
_VT_DISALLOCATE = 0x5608
TTY, VCS = 4, 7


class Unavailable(Exception):
    """This host cannot stand in: what it lacks."""


@contextmanager
def _registry() -> Iterator[Path]:
    try:
        _REGISTRY.mkdir(mode=0o755, exist_ok=True)
        lock = os.open(_REGISTRY / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"stand-in nodes: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _REGISTRY
    finally:
        os.close(lock)


def reserve(root: Path, count: int) -> list[int]:
    """So many consoles for the machine at `root`, open-able from now on."""
    with _registry() as registry:
        free = []
        for console in _CONSOLES:
            entry = registry / str(console)
            if not entry.exists() or not (Path(entry.read_text()) / "state").exists():
                free.append(console)
        if len(free) < count:
            raise Unavailable(f"stand-in nodes: {count} consoles wanted, {len(free)} free")
        for console in free[:count]:
            (registry / str(console)).write_text(str(root))
    return free[:count]


def release(root: Path, consoles: list[int]) -> None:
    """Give them back, and their memory to the kernel if nobody has them open. What is another
    machine's by now (this one's root had gone before) is left alone."""
    with _registry() as registry:
        for console in consoles:
            entry = registry / str(console)
            if not entry.exists() or entry.read_text() != str(root):
                continue
            entry.unlink()
            with _terminal(0) as zero:
                try:
                    fcntl.ioctl(zero, _VT_DISALLOCATE, console)
                except OSError:
                    pass  # somebody still has it open: it stays, unused


@contextmanager
def _terminal(console: int) -> Iterator[int]:
    """The console itself, by a node of our own: a container may have no /dev/ttyN."""
    path = Path(f"/dev/.leased-mock-tty{console}-{os.getpid()}")
    make(path, TTY, console)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"stand-in nodes: no virtual terminal {console}: {error}") from error
    finally:
        path.unlink()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wake(consoles: list[int]) -> None:
    """Opening a console makes it, and with it its `vcs` nodes."""
    for console in consoles:
        with _terminal(console):
            pass


def make(path: Path, major: int, minor: int) -> None:
    """A character device that everybody may open, as the driver's are."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(path, 0o666)
    except OSError as error:
        raise Unavailable(f"stand-in nodes: mknod {path}: {error}") from error


def openable(folder: Path) -> bool:
    """Whether nodes in this folder can be opened (not on a `nodev` mount)."""
    probe = folder / ".probe"
    make(probe, 1, 3)
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        probe.unlink()
    return True
