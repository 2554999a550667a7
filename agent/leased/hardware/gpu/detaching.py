# SPDX-License-Identifier: Apache-2.0
"""Detaching: who has anything of the driver open, asked without opening any of it, in a worker.

Rule: every node that the driver's modules registered counts, the shared ones and the tools' too:
one that stays open keeps the module loaded. No library of the vendor's is called. Nobody is a
guest: a monitoring daemon holds the driver as everybody does.

Does not close anything: `leave` has closed ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from leased.hardware import openers
from leased.hardware.gpu.calls import Anybody, Present
from leased.hardware.gpu.nodes import driver_majors, drm_nodes
from leased.hardware.openers import Node, Sought
from leased.hardware.sysfs import list_names
from leased.hardware.verbs import char_device

_MINORS = 256
"""The front has its GPUs, modeset and control in the minors of one byte; the others have fewer."""

_CHANNELS, _CHANNELS_MAX = "nvidia-caps-imex-channels", 1 << 12
_PCI_DRIVER = "sys/bus/pci/drivers/nvidia"

_FOLDERS = ("dev", "dev/nvidia-caps", "dev/nvidia-caps-imex-channels")


def anybody(call: Anybody, fds: list[int]) -> Present:
    """Everybody who has a node of the driver. Raises DeviceError."""
    root = Path(call.root)
    nodes = tuple(nodes_of_driver(root) if root == Path("/") else _by_path(root))
    if not nodes:
        return Present((), ())  # no module of it is loaded
    deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + call.scan_budget_ns
    sought = Sought(nodes, _names(root))
    return Present(openers.scan(sought, exempt={}, deadline_ns=deadline_ns), ())


def nodes_of_driver(root: Path) -> Iterator[Node]:
    """Every number that a node of the driver can have."""
    try:
        majors = driver_majors((root / "proc/devices").read_text("ascii"))
    except OSError:
        return
    for name, major in majors.items():
        count = _CHANNELS_MAX if name == _CHANNELS else _MINORS
        yield from ((major, minor) for minor in range(count))
    for address in list_names(root / _PCI_DRIVER):
        yield from drm_nodes(address, root)  # the display's module keeps the driver, too


def _by_path(root: Path) -> Iterator[Node]:
    """Stand-ins below `root`: their numbers are what stat says."""
    for folder in _FOLDERS:
        for name in _nvidia_in(root / folder):
            node = char_device(str(root / folder / name))
            if node is not None:
                yield node


def _names(root: Path) -> tuple[str, ...]:
    return tuple(name for folder in _FOLDERS for name in _nvidia_in(root / folder))


def _nvidia_in(folder: Path) -> list[str]:
    return [name for name in list_names(folder) if name.startswith(("nvidia", "channel"))]
