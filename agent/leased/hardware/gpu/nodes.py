# SPDX-License-Identifier: Apache-2.0
"""Nodes: which device nodes reach a GPU, which of them a lease may open, and which an escapee might
still have open.

Rule: by number, and read when they are needed: majors of the driver's modules are given out anew at
each load, MIG capabilities at each change of the layout. A lease opens the GPU's own node, the two
that all GPUs share (the driver authorises each client there), and of a MIG device its two access
capabilities; never the tools', the display's or the configuration's nodes.

Does not open anything, and makes no node but those of capabilities, as the driver's tools do. Where
`root` is not "/", nodes are stand-ins below it, and their numbers are what stat says.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import msgspec

from leased.hardware.gpu.facts import Target
from leased.hardware.openers import Node, Sought
from leased.hardware.sysfs import list_names
from leased.hardware.verbs import ACCESS_READ, ACCESS_WRITE, DEVICE_CHAR, DeviceRule, char_device
from leased.terms.errors import DeviceError

_FRONT = ("nvidia", "nvidia-frontend")
_CONTROL_MINOR = 255
_UVM_MINOR = 0
_CAPABILITY_MODE = 0o444
"""As the driver wants its access capabilities; who may open one says the lease's filter."""

READ_WRITE = ACCESS_READ | ACCESS_WRITE


class Majors(msgspec.Struct, frozen=True):
    """Majors of the driver's modules; None where a module is not loaded."""

    front: int | None = None
    uvm: int | None = None
    caps: int | None = None


def parse_majors(text: str) -> Majors:
    """From /proc/devices."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        number, _, name = line.strip().partition(" ")
        if line.startswith("Block"):
            break
        if number.isdecimal():
            found.setdefault(name, int(number))
    front = next((found[name] for name in _FRONT if name in found), None)
    return Majors(front, found.get("nvidia-uvm"), found.get("nvidia-caps"))


def driver_majors(text: str) -> dict[str, int]:
    """From /proc/devices: of every module of the driver, by name; switches and links, too."""
    found: dict[str, int] = {}
    for line in text.partition("Block devices")[0].splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdecimal() and name.startswith("nvidia"):
            found[name] = int(number)
    return found


def parse_capabilities(text: str) -> dict[str, int]:
    """From /proc/driver/nvidia-caps/mig-minors: "gpu0/gi1/ci0/access" -> minor."""
    pairs = (line.rpartition(" ") for line in text.splitlines())
    return {name: int(minor) for name, _, minor in pairs if minor.isdecimal()}


def capability_names(target: Target) -> tuple[str, ...]:
    """What a MIG device's two access capabilities are called; none of a whole GPU."""
    one = target.instance
    if one is None:
        return ()
    gpu_instance = f"gpu{target.minor}/gi{one.gpu_instance}"
    return f"{gpu_instance}/access", f"{gpu_instance}/ci{one.compute_instance}/access"


class Nodes(msgspec.Struct, frozen=True):
    """The nodes that reach one target: its GPU's, the shared ones, its MIG capabilities."""

    gpu: Node
    shared: tuple[Node, ...]
    capabilities: tuple[Node, ...]
    other: tuple[Node, ...]

    def rules(self) -> tuple[DeviceRule, ...]:
        """What the lease's leaf may open."""
        opened = (self.gpu, *self.shared)
        return (
            *(DeviceRule(DEVICE_CHAR, READ_WRITE, *node) for node in opened),
            *(DeviceRule(DEVICE_CHAR, ACCESS_READ, *node) for node in self.capabilities),
        )

    def sought(self, target: Target) -> Sought:
        """What nobody may have open when the target is free; the shared ones are everybody's."""
        named = f"nvidia{target.minor}", *(f"nvidia-cap{minor}" for _, minor in self.capabilities)
        return Sought((self.gpu, *self.capabilities, *self.other), named)


def find_nodes(target: Target, root: Path = Path("/")) -> Nodes:
    """The nodes of `target` as they are now. Raises DeviceError when one that it needs is not
    there."""
    return by_number(target, root) if root == Path("/") else by_path(target, root)


def by_number(target: Target, root: Path) -> Nodes:
    """From what the driver registered with the kernel."""
    majors = parse_majors(_read(root / "proc/devices"))
    front = _needed(majors.front, "nvidia is not in /proc/devices: the driver is not loaded")
    uvm = _needed(majors.uvm, "nvidia-uvm is not loaded, and CUDA needs it: nvidia-modprobe -u")
    capabilities: tuple[Node, ...] = ()
    if target.instance is not None:
        caps = _needed(majors.caps, "nvidia-caps is not in /proc/devices: no MIG on this driver")
        minors = parse_capabilities(_read(root / "proc/driver/nvidia-caps/mig-minors"))
        capabilities = tuple(
            (caps, _needed(minors.get(name), f"{name} is not in mig-minors"))
            for name in capability_names(target)
        )
    shared = (front, _CONTROL_MINOR), (uvm, _UVM_MINOR)
    return Nodes((front, target.minor), shared, capabilities, target.other_nodes)


def by_path(target: Target, root: Path) -> Nodes:
    """From what the nodes below `root` really are."""
    capabilities: tuple[Node, ...] = ()
    if target.instance is not None:
        minors = parse_capabilities(_read(root / "proc/driver/nvidia-caps/mig-minors"))
        capabilities = tuple(
            _stand_in(root / f"dev/nvidia-caps/nvidia-cap{_needed(minors.get(name), f'no {name}')}")
            for name in capability_names(target)
        )
    shared = _stand_in(root / "dev/nvidiactl"), _stand_in(root / "dev/nvidia-uvm")
    own = _stand_in(root / f"dev/nvidia{target.minor}")
    return Nodes(own, shared, capabilities, target.other_nodes)


def make_capabilities(nodes: Nodes, folder: Path) -> None:
    """Have the nodes of a MIG device's capabilities in `folder`. The driver registers numbers
    alone; its tools make a node for whoever wants it first, and inside a lease nobody can. Raises
    DeviceError."""
    for node in nodes.capabilities:
        path = folder / f"nvidia-cap{node[1]}"
        try:
            if path.is_char_device() and char_device(os.fspath(path)) == node:
                continue
            folder.mkdir(mode=0o755, exist_ok=True)
            path.unlink(missing_ok=True)  # of a driver that had other numbers
            os.mknod(path, stat.S_IFCHR, os.makedev(*node))
            path.chmod(_CAPABILITY_MODE)
        except FileExistsError:
            continue  # one of its tools was faster
        except OSError as error:
            detail = f"{path} is not there and cannot be made: {error.strerror}"
            raise DeviceError("gpu_node", error.errno or errno.EIO, detail) from error


def drm_nodes(pci: str, root: Path = Path("/")) -> tuple[Node, ...]:
    """The display nodes that reach the GPU at `pci` (/dev/dri/cardN, renderDN)."""
    folder = root / "sys/bus/pci/devices" / pci / "drm"
    found: list[Node] = []
    for name in list_names(folder):
        try:
            major, _, minor = (folder / name / "dev").read_text("ascii").strip().partition(":")
            found.append((int(major), int(minor)))
        except (OSError, ValueError):
            continue  # no node: version files, connectors
    return tuple(sorted(found))


def _stand_in(path: Path) -> Node:
    node = char_device(os.fspath(path))
    if node is None:
        raise DeviceError("gpu_node", errno.ENODEV, f"{path} is no character device")
    return node


def _needed(number: int | None, why: str) -> int:
    if number is None:
        raise DeviceError("gpu_node", errno.ENODEV, why)
    return number


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError as error:
        raise DeviceError("gpu_node", error.errno or errno.EIO, str(path)) from error
