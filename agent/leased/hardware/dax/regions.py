# SPDX-License-Identifier: Apache-2.0
"""Regions: taking a device-dax range away from every descriptor and mapping of it, for good.

Unbinding the range from its driver (`device_dax`) ends every mapping with SIGBUS, but binds the
same device again afterwards: descriptors of before come back to life with it, and on Linux 6.1,
which links them into a list that the second probe begins anew, closing one then ends in "list_del
corruption" and a dead kernel. Taking the *region* from its driver (`dax_pmem`, `cxl_region`,
`hmem`) removes the range itself, and giving it back makes another: what was open stays ENXIO and
SIGBUS for ever.

Rule: never bind a range again; only its region. What comes back is looked up by identity.

May block for as long as the kernel waits for whoever uses the pages; runs in a worker. Does not
wait for pinned pages where the kernel does not (`survey.PIN_LIMIT`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from leased.hardware.dax.ranges import DEVICE_MODE, Range, read_ranges
from leased.hardware.sysfs import read_int, write_text
from leased.terms.errors import DeviceError

_BUS = "sys/bus/dax"
_DRIVER = f"{_BUS}/drivers/device_dax"
_AUTOPROBE = f"{_BUS}/drivers_autoprobe"
_ROOTS_OWN = f"{_BUS}/drivers_probe"
"""Open to root alone: what a tenant can open it can lock, and keep teardowns waiting with."""

_APPEARS_NS = 2_000_000_000
_AGAIN_S = 0.01


def find_all(identity: str, root: Path) -> list[Range]:
    """Every range that calls itself so: one, or none."""
    return [one for one in read_ranges(root) if one.identity == identity]


def find_range(identity: str, root: Path) -> Range:
    """The range as it is now. Raises DeviceError(ENODEV)."""
    found = find_all(identity, root)
    if len(found) != 1:
        what = "is not there" if not found else f"is there {len(found)} times"
        raise DeviceError("dax_find", errno.ENODEV, f"mem:dax-{identity} {what}")
    return found[0]


def recreate(one: Range, root: Path) -> Range:
    """Take the region away and give it back; the range as it is then, bound and with a node of its
    own. Raises DeviceError; then it may have no driver, and nobody can open it. `one` may be what
    is remembered of it: a call that was ended half-way is ended by the next."""
    region = Path(one.region)
    if not one.keeper:
        detail = f"{one.resource_id}: it is not known which driver {region.name} was of"
        raise DeviceError("dax_recreate", errno.ENXIO, detail)
    if (region / "driver").exists():
        _tell(region / "driver/unbind", region.name)
    with _nobody_else_probes(one, root):
        _tell(Path(one.keeper) / "bind", region.name)
        return _settle(one.identity, root)


def _settle(identity: str, root: Path) -> Range:
    """The new range, with `device_dax` as its driver and a node."""
    end_ns = time.monotonic_ns() + _APPEARS_NS
    offered = False
    while True:
        try:
            one = find_range(identity, root)
            if one.driver == DEVICE_MODE and (root / one.path.lstrip("/")).exists():
                return one
            if not one.driver and not offered:
                # A range that the kernel would make ordinary memory is ours only by name.
                _tell(root / _DRIVER / "new_id", one.name)
                offered = True
            failed = DeviceError("dax_recreate", errno.ENODEV, f"{one.name} has no node yet")
        except DeviceError as error:
            failed = error
        if time.monotonic_ns() >= end_ns:
            detail = f"mem:dax-{identity} did not come back with its region: {failed.detail}"
            raise DeviceError("dax_recreate", failed.errno, detail)
        time.sleep(_AGAIN_S)


@contextlib.contextmanager
def _nobody_else_probes(one: Range, root: Path) -> Iterator[None]:
    """Of a CXL region the kernel would make ordinary memory at once, and not give it back. There is
    one switch for the whole host: two ranges at a time would turn it on for each other."""
    if one.is_persistent:
        yield
        return
    try:
        lock = os.open(root / _ROOTS_OWN, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError("dax_recreate", error.errno or errno.EIO, _ROOTS_OWN) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with whoever has it, however that ends
        _tell(root / _AUTOPROBE, "0")
        try:
            yield
        finally:
            _tell(root / _AUTOPROBE, "1")
    finally:
        os.close(lock)


def restore_probing(root: Path) -> bool:
    """Have the kernel probe again, if somebody of ours was ended before he could say so; whether
    that was the case. Nothing where somebody of ours is at it now."""
    switch = root / _AUTOPROBE
    try:
        lock = os.open(root / _ROOTS_OWN, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DeviceError("dax_recreate", error.errno or errno.EIO, _ROOTS_OWN) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if read_int(switch) != 0:
            return False
        _tell(switch, "1")
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _tell(path: Path, text: str) -> None:
    write_text(path, text, "dax_recreate")
