# SPDX-License-Identifier: Apache-2.0
"""Lost: regions of device-dax ranges that were taken from their driver and never given back.

A range is taken back by taking its region from its driver and giving it back (`regions`). Whoever
does that may be ended in between, with the agent or by it. Then there is no range to be seen, or
one that no driver has, and the next run of the agent knows nothing of it but its identity.

Rule: a region is known by what its range is known by, where that can be read of it; the kernel's
own spare devices have no identity, and are nobody's. What cannot be known is named with the command
that gives it back, and left alone: an operator may have meant it so.

Does not give anything back (`handling.mend`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leased.hardware.dax.ranges import Range, identify_region
from leased.hardware.nodes import dax_origin
from leased.hardware.sysfs import list_names, read_int

_KEEPERS: Final = (
    ("nd", re.compile(r"dax\d+\.\d+"), "dax_pmem"),
    ("cxl", re.compile(r"region\d+"), "cxl_region"),
    ("platform", re.compile(r"hmem\.\d+"), "hmem"),
)
"""Bus, device and driver of everything that a range is made on."""

_NOT_YET: Final = 0
"""What a CXL region says of being committed while somebody makes it."""


def read_lost(root: Path) -> tuple[Range, ...]:
    """Every region that its driver does not have. Its range has no name and no size; `identity` is
    "" where the region alone does not tell it."""
    return tuple(_lost(root))


def _lost(root: Path) -> Iterator[Range]:
    for bus, named, driver in _KEEPERS:
        devices = root / "sys/bus" / bus / "devices"
        keeper = root / "sys/bus" / bus / "drivers" / driver
        for name in list_names(devices):
            if not named.fullmatch(name):
                continue
            region = Path(os.path.realpath(devices / name))
            if (region / "driver").exists() or not keeper.is_dir():
                continue
            if read_int(region / "commit") == _NOT_YET:
                continue
            identity = identify_region(region, root)
            if identity or bus == "platform":  # of those there are no spare ones
                origin = dax_origin(str(region))
                said = "" if origin is None else origin.name
                yield Range(
                    "", identity, 0, 0, -1, "", str(region), str(keeper), True, said
                )


def why_lost(one: Range) -> str:
    """What has become of a range that nobody can open, and the command that gives it back."""
    region = os.path.basename(one.region)
    if not one.name:
        return f"its region {region} has no driver; as root: echo {region} > {one.keeper}/bind"
    return (
        f"no driver has {one.name}: nobody can open it; as root:"
        f" echo {one.name} > /sys/bus/dax/drivers/device_dax/new_id"
    )
