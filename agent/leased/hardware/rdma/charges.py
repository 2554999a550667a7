# SPDX-License-Identifier: Apache-2.0
"""Charges: what the kernel's rdma controller counts in a leaf, device by device.

The kernel charges an object to the cgroup of whoever makes it and to all above, and gives it back
when the object goes, wherever its maker, or the cgroup, is by then. So a leaf's count holds what
was made in cgroups below it, of those that were removed, too; nobody makes it smaller than what
lives. What it does not hold is an object that somebody outside made through a descriptor that was
handed to him: the kernel's list has that (`ledger`), because the descriptor's context is the
owner's. Neither stands for the other.

Rule: a count that cannot be read or understood is a failure, never 0. Where there is no controller,
or no leaf, nobody counts.

Does not wait.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from leased.hardware.sysfs import read_text
from leased.terms.errors import DeviceError

CURRENT: Final = "rdma.current"
_MOST: Final = (1 << 31) - 1
"""What the kernel writes as "max"."""


def charged_objects(leaf: str, device: str = "") -> int:
    """Objects and handles of a device that are charged to the leaf; "": of every device. Raises
    DeviceError."""
    counts = [_parse(line) for line in (read_text(Path(leaf, CURRENT)) or "").splitlines()]
    # Every registered device has a line: one that is not found was given another name just now.
    every = device not in [name for name, _ in counts]
    return sum(count for name, count in counts if every or name == device)


def _parse(line: str) -> tuple[str, int]:
    """"rxe0 hca_handle=1 hca_object=4 ", as kernel/cgroup/rdma.c writes it, with a space behind
    each count: the device and the sum."""
    words = line.split()
    counts = [word.partition("=")[2] for word in words[1:]]
    if not counts or not all(one.isdecimal() or one == "max" for one in counts):
        raise DeviceError("rdma_charges", errno.EBADMSG, f"{CURRENT} says {line!r}")
    return words[0], sum(_MOST if one == "max" else int(one) for one in counts)
