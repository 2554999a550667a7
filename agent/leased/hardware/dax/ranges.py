# SPDX-License-Identifier: Apache-2.0
"""Ranges: the device-dax ranges of this host, as sysfs tells them, each by an identity that stays.

Rule: names move (dax1.0 may come back as dax0.0), so a range is known by what it is made of: the
UUID of its namespace or region; else the serial numbers of the CXL devices that it is made of, and
where in them it begins; else where in physical memory it begins. Everything is read below one root.

A range is leased only if it is all of its region, because only a region can be taken away from
every descriptor for good (`regions`).

Does not open a device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from leased.hardware.nodes import Origin, dax_origin
from leased.hardware.sysfs import list_names, read_int, read_text

DEVICES = "sys/bus/dax/devices"
CXL_DEVICES = "sys/bus/cxl/devices"
DEVICE_MODE = "device_dax"
MEMORY_MODE = "kmem"
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_ID_CHARACTERS_MAX = 100
_BETWEEN = re.compile(r"dax_region\d+")


class Range(msgspec.Struct, frozen=True, array_like=True):
    """One range. `driver` is "" where it has none; `region` the path in sysfs of the device that is
    taken away to take the range, `keeper` that of its driver, `whole` whether the range is the only
    one there; `node` the NUMA node that its memory belongs to, or would; `birth`
    is another one for whatever else comes under the same name."""

    name: str
    identity: str
    size_bytes: int
    align_bytes: int
    node: int
    driver: str
    region: str
    keeper: str
    whole: bool
    origin: str
    birth: int = 0

    @property
    def resource_id(self) -> str:
        """The lease's name of it."""
        return f"mem:dax-{self.identity}"

    @property
    def path(self) -> str:
        """Its device node."""
        return f"/dev/{self.name}"

    @property
    def is_persistent(self) -> bool:
        """Whether what is on it may be meant to stay."""
        return self.origin == Origin.PMEM.name


def read_ranges(root: Path) -> tuple[Range, ...]:
    """Every range, by name."""
    found: list[Range] = []
    for name in list_names(root / DEVICES):
        device = Path(os.path.realpath(root / DEVICES / name))
        size_bytes = read_int(device / "size") or 0
        if size_bytes:
            found.append(_range(name, device, size_bytes, root))
    return tuple(found)


def _range(name: str, device: Path, size_bytes: int, root: Path) -> Range:
    parent, region = device.parent, _region_of(device)
    origin = dax_origin(str(device))
    target = read_int(device / "target_node")
    siblings = [other for other in list_names(parent) if (parent / other / "target_node").exists()]
    return Range(
        name=name,
        identity=identify(device, root),
        size_bytes=size_bytes,
        align_bytes=read_int(device / "align") or size_bytes,
        node=-1 if target is None else target,
        driver=_driver_of(device),
        region=str(region),
        keeper=os.path.realpath(region / "driver") if (region / "driver").exists() else "",
        whole=siblings == [name],
        origin="" if origin is None else origin.name,
        birth=os.stat(device).st_ino,
    )


def _region_of(device: Path) -> Path:
    """What the range is all of: mostly what it hangs on. Of CXL memory that has a driver which lets
    nobody unbind, and it comes and goes with the region itself (as `cxl disable-region` does)."""
    parent = device.parent
    return parent.parent if _BETWEEN.fullmatch(parent.name) else parent


def identify(device: Path, root: Path) -> str:
    """What the range is made of, in a word."""
    where = int(read_text(device / "resource") or "0", 16)
    return _made_of(device.parents, root) or f"phys-{where:x}"


def identify_region(region: Path, root: Path) -> str:
    """What the range that is all of a region would be called; "" if only the range tells."""
    return _made_of((region, *region.parents), root)


def _made_of(places: Iterable[Path], root: Path) -> str:
    parents = [parent for parent in places if len(parent.parts) > len(root.parts) + 2]
    for parent in parents:
        uuid = (read_text(parent / "uuid") or "").strip()
        if uuid and uuid != _NO_UUID:
            return uuid
    for parent in parents:
        serials = _serials(parent, root)
        if serials:
            return f"cxl-{serials}"[:_ID_CHARACTERS_MAX]
    return ""


def _serials(region: Path, root: Path) -> str:
    """Serial numbers of the CXL devices behind a region, and where in the first it begins; "" if
    any of them has none."""
    serials: list[str] = []
    start = ""
    for name in list_names(region):
        if not (name.startswith("target") and name[6:].isdigit()):
            continue
        decoder = Path(os.path.realpath(root / CXL_DEVICES / (read_text(region / name) or "")))
        serial = int(read_text(decoder.parent / "uport" / "serial") or "0", 0)
        if not serial:
            return ""
        start = start or (read_text(decoder / "dpa_resource") or "0x0").removeprefix("0x")
        serials.append(f"{serial:x}")
    return "-".join((*serials, start)) if serials else ""


def _driver_of(device: Path) -> str:
    link = device / "driver"
    return os.path.basename(os.path.realpath(link)) if link.exists() else ""
