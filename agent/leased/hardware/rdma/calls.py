# SPDX-License-Identifier: Apache-2.0
"""What is said between the RDMA backend and its workers.

Rule: a lease's owner is named by its room in the lease's cgroup, never by a pid: the room outlives
the worker that started the owner, and the agent.

Does not encode (`worker`).
"""

from __future__ import annotations

import msgspec

from leased.hardware.answers import Nothing as Nothing
from leased.hardware.answers import Steps as Steps
from leased.hardware.answers import User as User
from leased.hardware.answers import Users as Users
from leased.hardware.calls import CgroupFacts
from leased.hardware.config import HardwareConfig
from leased.hardware.rdma.devices import RdmaDevice
from leased.hardware.rdma.nldev import Object as Object
from leased.terms.resource import Resource


class Look(msgspec.Struct, frozen=True, array_like=True):
    """Say what devices there are, and what memory they could reach."""

    config: HardwareConfig
    cgroup: CgroupFacts
    budget_ns: int


class Ability(msgspec.Struct, frozen=True, array_like=True):
    """What the library says that a device can; `trouble` is why it says nothing."""

    trouble: str = ""
    region_bytes_max: int = 0
    windows: bool = False
    atomics: bool = False


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """The registered devices, and what each can, in the same order; and the host's memory."""

    devices: tuple[RdmaDevice, ...]
    abilities: tuple[Ability, ...]
    memory: tuple[Resource, ...]


class Prepare(msgspec.Struct, frozen=True, array_like=True):
    """Start the owner of a lease's regions on one device. The memfds come along, in the order of
    `sizes`."""

    leaf: str
    guid: str
    program: str
    sizes: tuple[int, ...]
    peers_max: int
    windows: bool
    gid_index: int
    budget_ns: int


class Room(msgspec.Struct, frozen=True, array_like=True):
    """An owner that is there already."""

    leaf: str
    guid: str
    budget_ns: int


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """An owner as it answers for itself, and the contexts that the kernel lists for its process.
    `gid` is 32 hex digits."""

    guid: str
    device: str
    pid: int
    windows: bool
    gid: str
    lid: int
    mtu_bytes: int
    regions: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """A remote peer's end of a connection. `gid` is 32 hex digits; `mtu_bytes` 0: it does not say;
    `access` as in `protocol`."""

    gid: str
    lid: int
    qp_number: int
    psn: int
    mtu_bytes: int
    access: int


class Connect(msgspec.Struct, frozen=True, array_like=True):
    """Connect a remote peer to an owner."""

    room: Room
    peer: Peer


class Connection(msgspec.Struct, frozen=True, array_like=True):
    """Our end of that connection, and its keys, region by region."""

    owner: Owner
    qp_number: int
    psn: int
    mtu_bytes: int
    access: int
    rkeys: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Connection({self.owner.device!r}, {self.qp_number}, ...)"


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Disconnect the peer of that queue pair of ours."""

    room: Room
    qp_number: int


class Witness(msgspec.Struct, frozen=True, array_like=True):
    """List the objects on a device."""

    guid: str


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """The objects on a device. `there` False: the device is gone, and its objects with it."""

    there: bool
    objects: tuple[Object, ...]


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Say who uses a device. `exempt` are our own processes, by pid and start time."""

    guid: str
    exempt: tuple[tuple[int, int], ...]
    budget_ns: int


class Sweep(msgspec.Struct, frozen=True, array_like=True):
    """Find the owners below the cgroup root; end those in leaves that are not in `kept`."""

    root: str
    kept: tuple[str, ...]
    budget_ns: int


class Found(msgspec.Struct, frozen=True, array_like=True):
    """(name of the leaf, owner) of each that lives, and how many were ended."""

    owners: tuple[tuple[str, Owner], ...]
    ended: int


class Watch(msgspec.Struct, frozen=True, array_like=True):
    """Connect the prober to an owner and let it read once."""

    room: Room
    program: str
    lease: str
    prober: str


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """Let the prober read once more, which must fail now; then it ends."""

    lease: str
    guid: str


class Probed(msgspec.Struct, frozen=True, array_like=True):
    """What the prober's read came to. `ran` False: there is no prober for the lease. `status` is
    that of the completion: 0 went through."""

    ran: bool
    status: int = 0
    took_ns: int = 0
