# SPDX-License-Identifier: Apache-2.0
"""What a worker does for the RDMA backend.

Rule: a verb finds what it needs by the lease's cgroup and the device's GUID, each time anew, so
that it does not matter which worker is asked, or which run of the agent asks. What failed half-way
is taken back before the failure is told.

Does not decide anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from leased.hardware import cgroup, exclusion, leaves
from leased.hardware.descriptors import close_all
from leased.hardware.instant import now_ns
from leased.hardware.memory import survey_memory
from leased.hardware.rdma import calls, owner, prober, protocol, usage
from leased.hardware.rdma.charges import charged_objects
from leased.hardware.rdma.devices import (
    RdmaDevice,
    find_link,
    get_link,
    is_leaving,
    place_of,
    read_device,
    read_devices,
)
from leased.hardware.rdma.nldev import Link, Nldev
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep

_AGAIN_S: Final = 0.005
_OBJECTS_SLACK: Final = 32
"""Objects that a vendor's library makes for itself: doorbell pages, flow counters."""


# ---- seeing ------------------------------------------------------------------------------------


def see(asked: calls.Look, fds: Sequence[int]) -> calls.Seen:
    """The devices, and what the library says of each: one that it cannot open costs itself only."""
    with Nldev() as nldev:
        devices = read_devices(nldev)
        for device in devices:
            # A kernel that cannot list objects could not be a witness: better known now.
            nldev.objects(device.number)
    program = asked.config.rdma.program
    able = abilities(program, devices, asked.budget_ns)
    memory = survey_memory(asked.config, asked.cgroup).resources
    return calls.Seen(tuple(devices), able, memory)


def abilities(
    program: str, devices: Sequence[RdmaDevice], budget_ns: int
) -> tuple[calls.Ability, ...]:
    """What the library says of each, asked at the same time: those that hang share the wait."""
    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        return tuple(pool.map(lambda device: _ability(program, device, budget_ns), devices))


def _ability(program: str, device: RdmaDevice, budget_ns: int) -> calls.Ability:
    try:
        told = owner.look(owner.find_program(program), device.name, budget_ns=budget_ns)
        return calls.Ability(
            "",
            int(told["region_bytes_max"]),
            told["windows_2b"] == "1" and int(told["windows_max"]) > 0,
            told["atomics"] == "1",
        )
    except DeviceError as error:
        return calls.Ability(f"{error.detail}: {os.strerror(error.errno)}")
    except (KeyError, ValueError) as error:
        return calls.Ability(f"leased-rdma says something else: {error}")


def witness(asked: calls.Witness, fds: Sequence[int]) -> calls.Listed:
    """The objects on a device, by the kernel's own list. Raises DeviceError."""
    with Nldev() as nldev:
        link = find_link(nldev, asked.guid)
        if link is not None:
            return calls.Listed(True, objects_on(nldev, link))
    if is_leaving(asked.guid):
        detail = "the device is being removed, and somebody still holds it open"
        raise DeviceError("rdma_witness", errno.EBUSY, detail)
    return calls.Listed(False, ())


def objects_on(nldev: Nldev, link: Link) -> tuple[calls.Object, ...]:
    """The objects on a device. One that was reset gives the same numbers again, and has another
    itself: with that they are not the same."""

    def apart(number: int) -> int:
        return number if number < 0 else link.number << 32 | number

    return tuple(
        one._replace(
            number=apart(one.number), context=apart(one.context), domain=apart(one.domain)
        )
        for one in nldev.objects(link.number)
    )


# ---- owners ------------------------------------------------------------------------------------


def prepare(asked: calls.Prepare, fds: Sequence[int]) -> calls.Owner:
    """Start an owner and let it register the memory. Raises DeviceError; then none is left."""
    room = leaves.make_room(asked.leaf, f"{owner.PREFIX}{asked.guid}")
    try:
        with Nldev() as nldev:
            link = get_link(nldev, asked.guid)
            where = place_of(read_device(nldev, link), asked.gid_index)
            _limit_objects(asked, link.name)
            # The owner gets opens of its own: the kernel then tells when it has let go of them.
            opened = [exclusion.reopen(fd) for fd in fds]
            try:
                told = _open(asked, room, where, opened)
            finally:
                close_all(opened)
            return _owner(nldev, link, told)
    except (DeviceError, OSError):
        owner.end_owner(room, asked.budget_ns)
        with contextlib.suppress(OSError):
            os.rmdir(room)
        if not leaves.owners(asked.leaf):
            with contextlib.suppress(OSError):
                os.rmdir(f"{asked.leaf}/{leaves.INSIDE}")
        raise


def _open(
    asked: calls.Prepare, room: str, where: protocol.Where, fds: Sequence[int]
) -> protocol.State:
    body = protocol.encode_open(
        where, peers_max=asked.peers_max, windows=asked.windows, sizes=asked.sizes
    )
    program = owner.find_program(asked.program)
    with owner.start_owner(program, room, sum(asked.sizes), budget_ns=asked.budget_ns) as door:
        answer = door.ask(protocol.OPEN, body, fds=fds, budget_ns=asked.budget_ns)
        return check_regions(protocol.decode_state(answer), asked.sizes)


def check_regions(told: protocol.State, sizes: Sequence[int]) -> protocol.State:
    """An owner has what it was asked to have, or it is not believed. Raises DeviceError."""
    had = tuple(size_bytes for _, size_bytes in told.regions)
    if had != tuple(sizes):
        detail = f"leased-rdma registered {len(had)} regions of {sum(had)} bytes,"
        detail = f"{detail} not {len(sizes)} of {sum(sizes)}"
        raise DeviceError("rdma_answer", errno.EPROTO, detail)
    return told


def _owner(nldev: Nldev, link: Link, told: protocol.State) -> calls.Owner:
    contexts = tuple(
        one.number
        for one in objects_on(nldev, link)
        if one.kind == "context" and one.pid == told.pid
    )
    if not contexts:
        detail = "the kernel does not list the owner's objects: they could not be witnessed"
        raise DeviceError("rdma_witness", errno.ENOTSUP, detail)
    return calls.Owner(
        link.guid,
        link.name,
        told.pid,
        told.windows,
        told.gid.hex(),
        told.lid,
        told.mtu_bytes,
        told.regions,
        contexts,
    )


def _limit_objects(asked: calls.Prepare, device: str) -> None:
    """Nobody in the leaf has more of the device than the owner needs, where the kernel counts."""
    path = f"{asked.leaf}/rdma.max"
    if os.path.exists(path):
        regions = len(asked.sizes)
        objects = 2 + regions + asked.peers_max * (1 + regions) + _OBJECTS_SLACK
        cgroup.write(path, f"{device} hca_handle=1 hca_object={objects}")


def describe(asked: calls.Room, fds: Sequence[int]) -> calls.Owner:
    """The owner as it is. Raises DeviceError(ESRCH) where none lives."""
    with Nldev() as nldev, owner.door_of(owner.room_of(asked.leaf, asked.guid)) as door:
        state = protocol.decode_state(door.ask(protocol.STATE, budget_ns=asked.budget_ns))
        return _owner(nldev, get_link(nldev, asked.guid), state)


def connect(asked: calls.Connect, fds: Sequence[int]) -> calls.Connection:
    """Connect a remote peer. Raises DeviceError."""
    room, peer = asked.room, asked.peer
    theirs = protocol.Peer(
        bytes.fromhex(peer.gid),
        peer.lid,
        peer.qp_number,
        peer.psn,
        peer.mtu_bytes,
        peer.access,
    )
    with Nldev() as nldev, owner.door_of(owner.room_of(room.leaf, room.guid)) as door:
        state = protocol.decode_state(door.ask(protocol.STATE, budget_ns=room.budget_ns))
        # Before: a peer that is connected and not told of would keep its place to the lease's end.
        told = _owner(nldev, get_link(nldev, room.guid), state)
        body = protocol.encode_peer(theirs)
        answer = door.ask(protocol.CONNECT, body, budget_ns=room.budget_ns)
        return calls.Connection(told, *protocol.decode_connection(answer, len(state.regions)))


def disconnect(asked: calls.Part, fds: Sequence[int]) -> calls.Nothing:
    """Disconnect a remote peer. Raises DeviceError."""
    body = protocol.DISCONNECT_BODY.pack(asked.qp_number, 0)
    with owner.door_of(owner.room_of(asked.room.leaf, asked.room.guid)) as door:
        door.ask(protocol.DISCONNECT, body, budget_ns=asked.room.budget_ns)
    return calls.Nothing()


# ---- the end -----------------------------------------------------------------------------------


def withdraw(asked: calls.Room, fds: Sequence[int]) -> calls.Steps:
    """Let the owner end everything in order. Where none lives there is nothing to do."""
    try:
        with owner.door_of(owner.room_of(asked.leaf, asked.guid)) as door:
            told = protocol.decode_closed(door.ask(protocol.CLOSE, budget_ns=asked.budget_ns))
    except DeviceError as error:
        if error.errno in (errno.ESRCH, errno.EPIPE):
            return calls.Steps(())
        raise
    revoke = TeardownStep.OBJECT_REVOKE
    return calls.Steps(
        tuple(
            StepReport(
                TeardownStep.RELEASE if one.step == protocol.DEVICE else revoke,
                one.errno,
                one.began_ns,
                one.ended_ns,
                one.measured,
            )
            for one in told
        )
    )


def end(asked: calls.Room, fds: Sequence[int]) -> calls.Steps:
    """After the cut: nobody is in the room, and the driver has let go of everything of the device
    that was charged to the leaf. What is late is waited for. Raises DeviceError when somebody will
    not die, or nobody can say what is charged."""
    began_ns = now_ns()
    owner.end_owner(owner.room_of(asked.leaf, asked.guid), asked.budget_ns)
    end_ns = began_ns + asked.budget_ns
    device = _name_of(asked.guid)
    left = charged_objects(asked.leaf, device)
    while left and now_ns() < end_ns:
        time.sleep(_AGAIN_S)
        left = charged_objects(asked.leaf, device)
    failed = errno.EBUSY if left else 0
    return calls.Steps((StepReport(TeardownStep.RELEASE, failed, began_ns, now_ns(), left),))


def _name_of(guid: str) -> str:
    """What the device is called now; "" where it is on its way out, or cannot be told from another:
    then every device's objects count."""
    with contextlib.suppress(DeviceError), Nldev() as nldev:
        link = find_link(nldev, guid)
        return "" if link is None else link.name
    return ""


def sweep(asked: calls.Sweep, fds: Sequence[int]) -> calls.Found:
    """Every owner that lives, and the end of those that are nobody's. One that neither answers nor
    dies costs the others nothing but its share of the time."""
    rooms = [
        (leaf, room)
        for leaf in _subdirectories(asked.root)
        for room in leaves.owners(leaf)
        if owner.guid_of(room)
    ]
    share_ns = asked.budget_ns // max(len(rooms), 1)
    found: list[tuple[str, calls.Owner]] = []
    ended = 0
    for leaf, room in rooms:
        name = os.path.basename(leaf)
        with contextlib.suppress(DeviceError):
            if name not in asked.kept:
                ended += bool(owner.members(room))
                owner.end_owner(room, share_ns)
            else:
                one = describe(calls.Room(leaf, owner.guid_of(room), share_ns), ())
                found.append((name, one))
    return calls.Found(tuple(found), ended)


def _subdirectories(root: str) -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
    except FileNotFoundError:
        return []


VERBS: Final[dict[str, tuple[type[msgspec.Struct], Callable[[Any, Sequence[int]], Any]]]] = {
    "see": (calls.Look, see),
    "witness": (calls.Witness, witness),
    "users": (calls.Usage, usage.users),
    "prepare": (calls.Prepare, prepare),
    "describe": (calls.Room, describe),
    "connect": (calls.Connect, connect),
    "disconnect": (calls.Part, disconnect),
    "withdraw": (calls.Room, withdraw),
    "end": (calls.Room, end),
    "sweep": (calls.Sweep, sweep),
    "watch": (calls.Watch, prober.watch),
    "probe": (calls.Probe, prober.probe),
    "unwatch": (calls.Probe, prober.unwatch),
}
