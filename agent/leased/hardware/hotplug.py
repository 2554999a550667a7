# SPDX-License-Identifier: Apache-2.0
"""Hotplug: the kernel's notices that hardware came, went or changed, as they arrive.

Rule: a notice is a reason to look again, never the truth itself: the inventory is read anew. When
the kernel's buffer overflowed, one notice says that notices were lost. Two kinds of notices are no
reason to look. Those of device-mapper's mappings: leases make and end them all the time, and a look
costs more than a teardown; a stranger's mapping over a namespace is found when the namespace is
asked for, and by the next look. And those that udev itself causes after a disk was closed by
somebody who had it open for writing.

Does not look: `devices.Devices.inventory` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence

import msgspec
import pyudev
import trio

LOST = "lost"
SUBSYSTEMS = (
    *("block", "cpu", "cxl", "dax", "drm", "infiniband", "infiniband_verbs"),
    *("memory", "module", "node", "nvme", "pci"),
)
_MAPPINGS = "/devices/virtual/block/dm-"
_BUFFER_BYTES = 4 << 20
"""A hotplugged DIMM sends one notice per 128 MiB; 4 MiB hold thousands."""


class Notice(msgspec.Struct, frozen=True):
    """`action` as the kernel names it (add, remove, change, ...), or LOST. `touched`: somebody
    closed a disk that they could have written to, and most likely it is what it was."""

    action: str
    subsystem: str
    path: str
    touched: bool = False


async def watch(subsystems: Sequence[str] = SUBSYSTEMS) -> AsyncIterator[Notice]:
    """Notices of `subsystems` from here on. After udev's rules where udevd runs, else the
    kernel's own. Raises OSError where none can be heard."""
    try:
        context = pyudev.Context()
    except (ImportError, OSError) as error:
        raise OSError(errno.ELIBACC, f"libudev.so.1 cannot be loaded: {error}") from error
    source = "udev" if os.path.exists("/run/udev/control") else "kernel"
    monitor = pyudev.Monitor.from_netlink(context, source)
    for subsystem in subsystems:
        monitor.filter_by(subsystem)
    monitor.set_receive_buffer_size(_BUFFER_BYTES)
    monitor.start()
    while True:
        await trio.lowlevel.wait_readable(monitor.fileno())
        try:
            device = monitor.poll(timeout=0)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield Notice(LOST, "", "")
            continue
        if device is not None and not device.device_path.startswith(_MAPPINGS):
            action, subsystem = device.action or "", device.subsystem or ""
            # The kernel's own have no such mark, and who triggers one by hand gives it a number.
            asked = device.properties.get("SYNTH_UUID") == "0"
            touched = asked and (action, subsystem) == ("change", "block")
            yield Notice(action, subsystem, device.device_path, touched)
