# SPDX-License-Identifier: Apache-2.0
"""RDMA devices: which there are, and which of their addresses peers connect to.

Rule: a device is known by its node GUID, never by its name, which moves. One that the kernel does
not list as registered is not there, whatever is left of it in sysfs: it is on its way out.

Does not open a device and loads no library: netlink and sysfs alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from leased.hardware.rdma.nldev import Link, Nldev, PortState
from leased.hardware.rdma.protocol import Where
from leased.hardware.sysfs import list_names, read_int, read_text
from leased.terms.errors import DeviceError

CLASS: Final = "sys/class/infiniband"
ACTIVE: Final = 4
PORT_STATES: Final = ("?", "down", "init", "armed", "active", "deferred")
DRIVERS: Final = (
    *("unknown", "mlx5", "mlx4", "cxgb3", "cxgb4", "mthca", "bnxt_re", "ocrdma", "nes", "irdma"),
    *("vmw_pvrdma", "qedr", "hns", "usnic", "rxe", "hfi1", "qib", "efa", "siw", "erdma", "mana"),
)
"""enum rdma_driver_id."""

SOFTWARE: Final = ("rxe", "siw")
_ROCE_V2: Final = "RoCE v2"
_MAPPED: Final = "0000:0000:0000:0000:0000:ffff:"
_LINK_LOCAL: Final = "fe80:"
_EMPTY_MAX: Final = 32
_NOBODY: Final = "0" * 16


class Gid(msgspec.Struct, frozen=True, array_like=True):
    """One address of a port."""

    index: int
    text: str
    kind: str

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is better: what is routed (an IPv4 or global IPv6 address by RoCE v2) first."""
        if self.kind != _ROCE_V2:
            return 3, self.index
        if self.text.startswith(_MAPPED):
            return 0, self.index
        return (2 if self.text.startswith(_LINK_LOCAL) else 1), self.index


class Port(msgspec.Struct, frozen=True, array_like=True):
    """One port. `state` is the InfiniBand number."""

    number: int
    state: int
    netdev: str
    gids: tuple[Gid, ...]

    def gid(self, wanted: int) -> Gid | None:
        """The address of that index; -1: the best."""
        if wanted >= 0:
            return next((gid for gid in self.gids if gid.index == wanted), None)
        return min(self.gids, key=lambda gid: gid.rank, default=None)


class RdmaDevice(msgspec.Struct, frozen=True, array_like=True):
    """One device. `node` is its NUMA node or -1; `protocol` ib, roce, iw."""

    number: int
    name: str
    guid: str
    firmware: str
    protocol: str
    driver: str
    node: int
    ports: tuple[Port, ...]

    @property
    def port(self) -> Port | None:
        """The port that peers come through: the first that is active, else the first."""
        active = (port for port in self.ports if port.state == ACTIVE)
        return next(active, next(iter(self.ports), None))

    @property
    def software(self) -> bool:
        """Whether the kernel does in software what a card does in hardware."""
        return self.driver in SOFTWARE


def read_devices(nldev: Nldev, root: Path = Path("/")) -> list[RdmaDevice]:
    """Every registered device. Raises DeviceError."""
    return [read_device(nldev, link, root) for link in sorted(nldev.links())]


def find_link(nldev: Nldev, guid: str) -> Link | None:
    """The registered device of that GUID; None when there is none, or more than one."""
    found = [link for link in nldev.links() if link.guid == guid]
    return found[0] if len(found) == 1 and guid != _NOBODY else None


def get_link(nldev: Nldev, guid: str) -> Link:
    """As `find_link`; raises DeviceError where there is none."""
    link = find_link(nldev, guid)
    if link is None:
        raise DeviceError("rdma_find", errno.ENODEV, f"no RDMA device {guid}")
    return link


def read_device(nldev: Nldev, link: Link, root: Path = Path("/")) -> RdmaDevice:
    """Everything about a registered device. Raises DeviceError."""
    directory = root / CLASS / link.name
    number, _ = nldev.verbs_device(link.number)
    driver = DRIVERS[number] if 0 <= number < len(DRIVERS) else f"driver {number}"
    node = read_int(directory / "device/numa_node")
    ports = tuple(_port(directory, state) for state in sorted(nldev.ports(link.number)))
    return RdmaDevice(
        link.number,
        link.name,
        link.guid,
        link.firmware,
        link.protocol,
        driver,
        -1 if node is None else node,
        ports,
    )


def named(devices: Iterable[RdmaDevice], name: str) -> RdmaDevice | None:
    """The device of that node GUID (with or without colons) or that name."""
    guid = name.replace(":", "")
    return next((one for one in devices if name == one.name or guid == one.guid), None)


def place_of(device: RdmaDevice, gid_index: int) -> Where:
    """Where peers connect to. Raises DeviceError where the device has no such address."""
    port = device.port
    gid = port.gid(gid_index) if port is not None else None
    if port is None or gid is None:
        raise DeviceError("rdma_find", errno.EADDRNOTAVAIL, f"{device.name} has no address")
    return Where(device.name, port.number, gid.index)


def is_leaving(guid: str, root: Path = Path("/")) -> bool:
    """Whether sysfs still has a device of that GUID: one that is not registered any more is being
    removed, and waits for somebody to let go of it."""
    return any(
        (read_text(root / CLASS / name / "node_guid") or "").replace(":", "") == guid
        for name in list_names(root / CLASS)
    )


def ambiguous(devices: list[RdmaDevice]) -> frozenset[str]:
    """GUIDs that name no device, or more than one."""
    guids = [device.guid for device in devices]
    return frozenset(guid for guid in guids if guid == _NOBODY or guids.count(guid) > 1)


def spelled(gid: str) -> str:
    """An address of 32 hex digits as people write it."""
    return ":".join(gid[at : at + 4] for at in range(0, 32, 4))


def _port(directory: Path, state: PortState) -> Port:
    return Port(
        state.number,
        state.state,
        state.netdev,
        tuple(_gids(directory / "ports" / str(state.number))),
    )


def _gids(directory: Path) -> list[Gid]:
    """The addresses that are there: of an empty place the kernel tells no type. A table has a
    thousand places, and the kernel fills the first one that is free."""
    found: list[Gid] = []
    empty = 0
    for number in range(len(list_names(directory / "gids"))):
        text = read_text(directory / "gids" / str(number)) or ""
        kind = read_text(directory / "gid_attrs/types" / str(number)) if _is_set(text) else None
        empty = empty + 1 if kind is None else 0
        if kind is not None:
            found.append(Gid(number, text, kind))
        elif empty == _EMPTY_MAX:
            break
    return found


def _is_set(gid: str) -> bool:
    return bool(gid.replace(":", "").strip("0"))
