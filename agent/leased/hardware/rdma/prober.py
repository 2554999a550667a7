# SPDX-License-Identifier: Apache-2.0
"""The second proof: a remote peer of our own, which could read the lease's memory over the fabric
at the grant and must not be able to after the cut.

Probers are children of the one worker that this runs in, and end with it: after that worker, or the
agent, has been replaced, a prober is made anew for every lease that goes on; for one that has ended
meanwhile there is none, and the kernel's list is the only witness.

They live in a cgroup beside the leases': our own lets no packet of a software device out.

Rule: only a completion is believed. A read that went through after the cut proves that access has
not ended; one that the fabric or the device refused proves that it has. One that was flushed was
never made: the connection had broken before.

Does not judge (`backend`).
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from leased.hardware import cgroup
from leased.hardware.rdma import calls, owner, protocol
from leased.hardware.rdma.devices import named, place_of, read_devices
from leased.hardware.rdma.nldev import Nldev
from leased.terms.errors import DeviceError

HOME: Final = "probers"
_FLUSHED: Final = 5
"""IBV_WC_WR_FLUSH_ERR."""

_READ_MS: Final = 1000
"""A peer that does not answer is given up by the device within 0.1 s."""


class _Prober(NamedTuple):
    process: subprocess.Popen[bytes]
    door: owner.Door
    address: int
    rkey: int

    def read(self, address: int, rkey: int) -> tuple[int, int]:
        body = protocol.encode_read(address, rkey, 1, _READ_MS)
        answer = self.door.ask(protocol.READ, body, budget_ns=2 * _READ_MS * 1_000_000)
        return protocol.decode_done(answer)

    def end(self) -> None:
        owner.leave(self.process)
        self.door.close()


_probers: dict[tuple[str, str], _Prober] = {}
"""By lease and device."""


def watch(asked: calls.Watch, fds: Sequence[int]) -> calls.Nothing:
    """Connect a prober to an owner and let it read every region. Raises DeviceError: no peer would
    reach the memory either."""
    with Nldev() as nldev:
        device = named(read_devices(nldev), asked.prober)
        if device is None:
            raise DeviceError("rdma_probe", errno.ENODEV, f"no prober {asked.prober}")
        where = place_of(device, -1)
    process, door = owner.start_prober(owner.find_program(asked.program))
    prober = _Prober(process, door, 0, 0)
    try:
        _move_out(process.pid, f"{os.path.dirname(asked.room.leaf)}/{HOME}")
        regions, connection = _meet(asked.room, door, where)
        if not regions:
            # It would read nothing, and what it could never read it could not after the cut.
            raise DeviceError("rdma_probe", errno.EPROTO, "the owner says that it has no region")
        for (address, _), rkey in zip(regions, connection.rkeys, strict=True):
            status, _ = prober.read(address, rkey)
            if status:
                detail = f"a read over the fabric ended with status {status}"
                raise DeviceError("rdma_probe", errno.EIO, detail)
            prober = _Prober(process, door, address, rkey)
    except BaseException:
        prober.end()
        raise
    earlier = _probers.pop((asked.lease, asked.room.guid), None)
    if earlier is not None:
        earlier.end()
    _probers[asked.lease, asked.room.guid] = prober
    return calls.Nothing()


def _move_out(pid: int, home: str) -> None:
    try:
        os.makedirs(home, exist_ok=True)
    except OSError as error:
        raise DeviceError("rdma_probe", error.errno or errno.EIO, home) from error
    cgroup.write(f"{home}/cgroup.procs", str(pid))


def _meet(
    room: calls.Room, door: owner.Door, where: protocol.Where
) -> tuple[tuple[tuple[int, int], ...], protocol.Connection]:
    budget_ns = room.budget_ns
    body = protocol.encode_open(where)
    reached = protocol.decode_reached(door.ask(protocol.REACH, body, budget_ns=budget_ns))
    with owner.door_of(owner.room_of(room.leaf, room.guid)) as theirs:
        state = protocol.decode_state(theirs.ask(protocol.STATE, budget_ns=budget_ns))
        answer = theirs.ask(protocol.CONNECT, protocol.encode_peer(reached), budget_ns=budget_ns)
    connection = protocol.decode_connection(answer, len(state.regions))
    peer = protocol.Peer(
        state.gid,
        state.lid,
        connection.qp_number,
        connection.psn,
        connection.mtu_bytes,
        protocol.MAY_READ,
    )
    door.ask(protocol.MEET, protocol.encode_peer(peer), budget_ns=budget_ns)
    return state.regions, connection


def probe(asked: calls.Probe, fds: Sequence[int]) -> calls.Probed:
    """Read once more; then the prober ends."""
    prober = _probers.pop((asked.lease, asked.guid), None)
    if prober is None:
        return calls.Probed(False)
    try:
        status, took_ns = prober.read(prober.address, prober.rkey)
        return calls.Probed(False) if status == _FLUSHED else calls.Probed(True, status, took_ns)
    except DeviceError:
        # No completion, no proof either way.
        return calls.Probed(False)
    finally:
        prober.end()


def unwatch(asked: calls.Probe, fds: Sequence[int]) -> calls.Nothing:
    """The lease needs no second proof any more. Idempotent."""
    prober = _probers.pop((asked.lease, asked.guid), None)
    if prober is not None:
        prober.end()
    return calls.Nothing()
