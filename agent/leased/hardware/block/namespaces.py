# SPDX-License-Identifier: Apache-2.0
"""NVMe namespaces as sysfs tells of them: which there are now, and under what names.

Rule: from the kernel's own files alone; nothing is sent to a drive, so a drive that hangs is listed
like any other. With native multipath only the head of a namespace is listed, never one path to it.
Whoever uses a namespace finds it anew by its identity and takes the name of that moment.

Does not know whether anybody uses it (`users`) nor what the drive can do (`drives`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from leased.hardware.block.names import identity_of
from leased.hardware.block.verbs import SECTOR_BYTES, Number
from leased.hardware.sysfs import list_names, read_int, read_text

_HEAD = re.compile(r"nvme\d+n\d+")
_CONTROLLER = re.compile(r"nvme\d+")
LIVE = "live"


class Controller(msgspec.Struct, frozen=True, array_like=True):
    """One way to a subsystem. `transport` is pcie, tcp, ...; `state` is live, or what else the
    kernel says."""

    name: str
    cntlid: int
    transport: str
    node: int
    state: str


class Namespace(msgspec.Struct, frozen=True, array_like=True):
    """One namespace now. `diskseq` is another one for whatever else comes under the same name."""

    identity: str
    name: str
    number: Number
    nsid: int
    size_bytes: int
    lba_bytes: int
    read_only: bool
    diskseq: int
    nqn: str
    model: str
    serial: str
    firmware: str
    controllers: tuple[Controller, ...]
    parts: tuple[tuple[str, Number], ...] = ()

    @property
    def numbers(self) -> tuple[Number, ...]:
        """The device numbers of the namespace and its partitions."""
        return (self.number, *(number for _, number in self.parts))

    @property
    def node(self) -> int:
        """The NUMA node that it is at, or -1."""
        return next((one.node for one in self.controllers if one.node >= 0), -1)

    @property
    def alive(self) -> Controller | None:
        """A controller that answers, if there is one."""
        return next((one for one in self.controllers if one.state == LIVE), None)


def list_namespaces(root: Path = Path("/")) -> tuple[Namespace, ...]:
    """Every namespace of the host, by name."""
    controllers = _controllers(root)
    return tuple(_namespace(place, _identity(place), controllers) for place in _heads(root))


def find_namespace(identity: str, root: Path = Path("/")) -> Namespace | None:
    """The one that calls itself so now; None if none does, or more than one. One that goes away
    while it is looked at has no size."""
    found = [place for place in _heads(root) if _identity(place) == identity]
    one = _namespace(found[0], identity, _controllers(root)) if len(found) == 1 else None
    return one if one is not None and one.size_bytes else None


def is_still(namespace: Namespace, number: Number, root: Path = Path("/")) -> bool:
    """Whether the device of that number is the namespace, and has been without a break."""
    place = root / "sys/dev/block" / f"{number[0]}:{number[1]}"
    same = (_identity(place), read_int(place / "diskseq") or 0)
    return same == (namespace.identity, namespace.diskseq)


def is_controller(one: Controller, nqn: str, number: Number, root: Path = Path("/")) -> bool:
    """Whether the device of that number is that way to that subsystem, now."""
    place = root / "sys/class/nvme" / one.name
    same = (read_text(place / "subsysnqn") or one.name, read_int(place / "cntlid") or 0)
    return _number(place) == number and same == (nqn, one.cntlid)


def _heads(root: Path) -> Iterator[Path]:
    block = root / "sys/block"
    for name in list_names(block):
        if _HEAD.fullmatch(name) and read_int(block / name / "hidden") in (0, None):
            yield block / name


def _identity(place: Path) -> str:
    return identity_of(lambda name: read_text(place / name))


def list_controllers(nqn: str, root: Path = Path("/")) -> tuple[Controller, ...]:
    """The ways to a subsystem, whether it has a namespace here or not."""
    return tuple(_controllers(root).get(nqn, ()))


def _controllers(root: Path) -> dict[str, list[Controller]]:
    """By the NQN of their subsystem."""
    found: dict[str, list[Controller]] = {}
    folder = root / "sys/class/nvme"
    for name in list_names(folder):
        if _CONTROLLER.fullmatch(name):
            place = folder / name
            node = read_int(place / "numa_node")
            controller = Controller(
                name,
                read_int(place / "cntlid") or 0,
                read_text(place / "transport") or "",
                -1 if node is None else node,
                read_text(place / "state") or "",
            )
            found.setdefault(read_text(place / "subsysnqn") or name, []).append(controller)
    return found


def _namespace(
    place: Path, identity: str, controllers: dict[str, list[Controller]]
) -> Namespace:
    def text(name: str) -> str:
        return (read_text(place / name) or "").strip()

    nqn = text("device/subsysnqn")
    return Namespace(
        identity,
        place.name,
        _number(place),
        read_int(place / "nsid") or 0,
        (read_int(place / "size") or 0) * SECTOR_BYTES,
        read_int(place / "queue/logical_block_size") or SECTOR_BYTES,
        read_int(place / "ro") == 1,
        read_int(place / "diskseq") or 0,
        nqn,
        text("device/model"),
        text("device/serial"),
        text("device/firmware_rev"),
        tuple(controllers.get(nqn, ())),
        tuple(
            (name, _number(place / name))
            for name in list_names(place)
            if (place / name / "partition").exists()
        ),
    )


def _number(place: Path) -> Number:
    major, _, minor = (read_text(place / "dev") or "0:0").partition(":")
    return int(major), int(minor)
