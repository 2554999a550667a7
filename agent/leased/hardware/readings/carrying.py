# SPDX-License-Identifier: Apache-2.0
"""Carrying: what a worker can be asked to read for telemetry.

Rule: one drive or leaf that fails is named beside the others' readings. The asker bounds how many
are asked for at once.

Does not remember anything from one look to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leased.hardware.block.namespaces import list_namespaces
from leased.hardware.readings.drives import read_smart, read_stat
from leased.hardware.readings.host import read_host
from leased.hardware.readings.leaf import read_leaf
from leased.hardware.readings.ports import read_ports
from leased.terms.errors import DeviceError
from leased.terms.sample import Reading, Readings


class Host(msgspec.Struct, frozen=True, array_like=True):
    """The host's counters; these cores one by one."""

    cores: tuple[int, ...]
    root: str = "/"


class Leaves(msgspec.Struct, frozen=True, array_like=True):
    """Leaves, as (what the answer calls it, path)."""

    leaves: tuple[tuple[str, str], ...]


class Drives(msgspec.Struct, frozen=True, array_like=True):
    """Namespaces, as (what the answer calls it, identity). `smart`: the drives are asked, too."""

    namespaces: tuple[tuple[str, str], ...]
    smart: bool
    root: str = "/"


class Ports(msgspec.Struct, frozen=True, array_like=True):
    """The ports of so many RDMA devices."""

    devices_max: int
    root: str = "/"


def host(call: Host, fds: Sequence[int]) -> Readings:
    """The host."""
    del fds
    return _told(read_host(call.cores, Path(call.root)))


def leaves(call: Leaves, fds: Sequence[int]) -> Readings:
    """Every leaf that was asked for."""
    del fds
    found: list[Reading] = []
    for subject, path in call.leaves:
        found.extend(read_leaf(subject, Path(path)))
    return _told(found)


def drives(call: Drives, fds: Sequence[int]) -> Readings:
    """Every namespace that was asked for and is there."""
    del fds
    root = Path(call.root)
    there = {one.identity: one for one in list_namespaces(root)}
    found: list[Reading] = []
    failed: list[tuple[str, str]] = []
    for subject, identity in call.namespaces:
        namespace = there.get(identity)
        if namespace is None:
            failed.append((subject, "not there"))
            continue
        found.extend(read_stat(subject, namespace.name, root))
        if call.smart:
            try:
                found.extend(read_smart(subject, namespace))
            except DeviceError as error:
                failed.append((subject, str(error)))
    return _told(found, tuple(failed))


def ports(call: Ports, fds: Sequence[int]) -> Readings:
    """Every port."""
    del fds
    return _told(list(read_ports(call.devices_max, Path(call.root))))


def _told(found: list[Reading], failed: tuple[tuple[str, str], ...] = ()) -> Readings:
    return Readings(time.clock_gettime_ns(time.CLOCK_BOOTTIME), tuple(found), failed)


VERBS = {
    "host": (Host, host),
    "leaves": (Leaves, leaves),
    "drives": (Drives, drives),
    "ports": (Ports, ports),
}
