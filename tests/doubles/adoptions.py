# SPDX-License-Identifier: Apache-2.0
"""Fake adoptions that argue back: nobody is moved; who would have been is remembered.

Rule: a tree is moved once and put back once; a pidfd that is closed, or of another process, is an
AssertionError. `owner` is whose the process is, `refusal` why it is left alone. A look at who keeps
the killed takes `look_s`.
"""

from __future__ import annotations

import select
from collections.abc import Sequence

import trio

from leased.hardware.adopting import Owner, Request
from leased.hardware.adoption.tree import Process
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease


class FakeAdoptions:
    """What `hardware.adopting.Adoptions` has."""

    def __init__(self) -> None:
        self.owner = Owner(1000, 1000, (), 3)
        self.refusal: DeviceError | None = None
        self.inside: dict[LeaseId, int] = {}
        self.moved: list[tuple[str, int]] = []
        self.put_back_for: list[LeaseId] = []
        self.wanted: dict[Request, tuple[int, int]] = {}
        self.looks: list[tuple[LeaseId, ...]] = []
        self.look_s = 0.0

    async def loosen(self, leases: Sequence[Lease]) -> tuple[str, ...]:
        self.looks.append(tuple(lease.lease_id for lease in leases))
        await trio.sleep(self.look_s)
        return ()

    async def inspect(self, pid: int, pidfd: int) -> Owner:
        await trio.lowlevel.checkpoint()
        self._check(pid, pidfd)
        return self.owner

    def want(self, request: Request, pid: int, pidfd: int) -> None:
        self.wanted[request] = (pid, pidfd)

    def settle(self, request: Request, lease_id: LeaseId | None) -> None:
        self.wanted.pop(request, None)
        if lease_id is not None:
            self.inside.pop(lease_id, None)

    async def move_wanted(self, lease: Lease, leaf: str) -> None:
        wanted = self.wanted.get((lease.subject.uid, lease.command_id))
        if wanted is not None:
            assert leaf and lease.lease_id not in self.inside, "moved twice"
            self.inside[lease.lease_id] = len(await self.move(leaf, *wanted))

    async def move(self, leaf: str, pid: int, pidfd: int) -> tuple[Process, ...]:
        await trio.lowlevel.checkpoint()
        self._check(pid, pidfd)
        self.moved.append((leaf.rpartition("/")[2], pid))
        numbers = range(self.owner.processes)
        return tuple(Process(pid + n, 1, 1, f"p{n}", False, False, "/") for n in numbers)

    def moved_for(self, lease_id: LeaseId) -> int:
        return self.inside.get(lease_id, 0)

    async def put_back(self, lease_id: LeaseId) -> None:
        await trio.lowlevel.checkpoint()
        if self.inside.pop(lease_id, None) is not None:
            self.put_back_for.append(lease_id)

    async def undo(self, leaf: str, processes: tuple[Process, ...]) -> None:
        await trio.lowlevel.checkpoint()
        assert (leaf.rpartition("/")[2], processes[0].pid) in self.moved

    def _check(self, pid: int, pidfd: int) -> None:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
            assert f"Pid:\t{pid}\n" in info.readlines(), "not a pidfd of that process"
        assert not select.select([pidfd], [], [], 0)[0]
        if self.refusal is not None:
            raise self.refusal
