# SPDX-License-Identifier: Apache-2.0
"""Opening: from a namespace's identity to a descriptor of it, now.

Rule: a name is looked up at each use and checked again when it is open, because it may be another's
by then. What is busy is asked again until the settle budget has passed: udev looks into every
device that changes.

Does not remember anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from leased.hardware.block.namespaces import (
    Controller,
    Namespace,
    find_namespace,
    is_controller,
    is_still,
)
from leased.terms.errors import DeviceError

ADMIN_MS = 60_000
"""The kernel's own patience. An admin command that times out resets its controller, and with it
everybody's I/O: whoever waits for us gives up long before."""

_AGAIN_S = 0.005


def resolve(identity: str, size_bytes: int) -> Namespace:
    """The namespace as it is now. DeviceError(ENODEV): it is not there; ESTALE: it has another
    size."""
    found = find_namespace(identity)
    if found is None:
        raise DeviceError("block_find", errno.ENODEV, f"no one namespace is {identity} now")
    if found.size_bytes != size_bytes:
        detail = f"{identity} has {found.size_bytes} bytes, not {size_bytes}"
        raise DeviceError("block_find", errno.ESTALE, detail)
    return found


@contextlib.contextmanager
def opened(namespace: Namespace, flags: int, *, settle_ns: int = 0) -> Iterator[int]:
    """The namespace, open for the `with`. Raises DeviceError."""
    fd = _open("block_open", f"/dev/{namespace.name}", flags, settle_ns)
    try:
        status = os.fstat(fd)
        number = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if not stat.S_ISBLK(status.st_mode) or not is_still(namespace, number):
            raise DeviceError("block_open", errno.ENODEV, f"{namespace.identity} went away")
        yield fd
    finally:
        os.close(fd)


def exclusively(namespace: Namespace, *, settle_ns: int) -> contextlib.AbstractContextManager[int]:
    """The namespace for us alone, past every cache. DeviceError(EBUSY): somebody has it."""
    flags = os.O_RDWR | os.O_EXCL | os.O_DIRECT
    return opened(namespace, flags, settle_ns=settle_ns)


@contextlib.contextmanager
def controller_of(namespace: Namespace) -> Iterator[int]:
    """A controller of the namespace's drive that answers, for admin commands."""
    alive = namespace.alive
    if alive is None:
        raise DeviceError("nvme_open", errno.ENODEV, f"no controller of {namespace.nqn} is live")
    with controller(alive, namespace.nqn) as fd:
        yield fd


@contextlib.contextmanager
def controller(one: Controller, nqn: str) -> Iterator[int]:
    """A controller of that subsystem, for admin commands. Raises DeviceError: another drive's may
    have its name by now, and has a namespace of the same number."""
    fd = _open("nvme_open", f"/dev/{one.name}", os.O_RDWR, 0)
    try:
        status = os.fstat(fd)
        number = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if not stat.S_ISCHR(status.st_mode) or not is_controller(one, nqn, number):
            raise DeviceError("nvme_open", errno.ENODEV, f"{one.name} is not of {nqn} any more")
        yield fd
    finally:
        os.close(fd)


def _open(verb: str, path: str, flags: int, settle_ns: int) -> int:
    end_ns = time.monotonic_ns() + settle_ns
    while True:
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic_ns() >= end_ns:
                raise DeviceError(verb, error.errno or errno.EIO, path) from error
        time.sleep(_AGAIN_S)
