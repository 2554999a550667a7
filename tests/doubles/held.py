# SPDX-License-Identifier: Apache-2.0
"""Fakes that hold still: a journal, devices and a reaper with a gate before every step.

Rule: a gate only delays; what happens behind it is the fake's own business. The reaper keeps
duplicates of what it is handed, as another process does, so that an agent may end and come back.

Does not decide and does not fail by itself: faults are ordered, one lease at a time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import msgspec
import trio

from leased.durable.journal import FileJournal
from leased.ports import Arming, Journal, Prepared
from leased.service.reaper.link import RosterEntry
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import Moment
from leased.terms.resource import Inventory
from leased.terms.teardown import (
    CutReport,
    ProofReport,
    ScrubReport,
    StepReport,
    TeardownStep,
)
from tests.doubles.clock import FakeClock
from tests.doubles.devices import FakeDevices
from tests.doubles.reaper import FakeReaper

_RESIDUE = (StepReport(TeardownStep.READ_BACK, 5, 0, 0),)


class Gate:
    """Open, until a test shuts it; `reached` is set when something waits before it."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self.reached = trio.Event()

    def shut(self) -> None:
        """From here on, wait."""
        self._open, self.reached = trio.Event(), trio.Event()

    def open(self) -> None:
        """Let everybody pass."""
        self._open.set()

    @property
    def is_shut(self) -> bool:
        """Whether somebody would wait."""
        return not self._open.is_set()

    async def passed(self) -> None:
        """Pass, when it is open."""
        self.reached.set()
        await self._open.wait()


class HeldJournal:
    """`ports.Journal` whose commits wait before a gate."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.gate = Gate()
        self.commits: list[int] = []
        self.at_once = 0
        self.read_error: OSError | None = None
        self.commit_error: OSError | None = None
        self.short = False

    async def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        await self.gate.passed()
        if self.commit_error is not None:
            raise self.commit_error
        await self._journal.commit(frames, count, head, moment)
        self.commits.append(count)

    def commit_at_once(self, frames: bytes, count: int, head: bytes, moment: Moment) -> bool:
        """A shut gate is a disk that is not quick."""
        if self.gate.is_shut:
            return False
        assert isinstance(self._journal, FileJournal)
        done = self._journal.commit_at_once(frames, count, head, moment)
        self.commits.append(count)
        self.at_once += done
        return done

    def frames(self, first_seq: int) -> Iterator[bytes]:
        if self.read_error is not None:
            raise self.read_error
        return self._journal.frames(first_seq)

    def reserve_ok(self, live_leases: int) -> bool:
        """`short`: what is left is for the ends of leases."""
        return not self.short and self._journal.reserve_ok(live_leases)

    def close(self) -> None:
        self._journal.close()


class HeldDevices(FakeDevices):
    """FakeDevices with a gate before each verb, and workers that hang for some leases.

    A call with a lease in `hangs` answers after so many ns, that lease with ETIMEDOUT: what the
    crew makes of a worker that it had to abandon.
    """

    def __init__(self, inventory: Inventory | None = None) -> None:
        super().__init__(inventory)
        self.gates = {
            verb: Gate() for verb in ("inventory", "prepare", "access", "scrub", "prove", "leaf")
        }
        self.hangs: dict[tuple[str, LeaseId], float] = {}
        self.unclean: set[LeaseId] = set()

    async def prepare_many(self, leases: Sequence[Lease]) -> list[Prepared | DeviceError]:
        return await self._late("prepare", leases, await super().prepare_many(leases))

    async def scrub_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        done = [
            msgspec.structs.replace(report, clean=False, steps=_RESIDUE)
            if isinstance(report, ScrubReport) and report.lease_id in self.unclean
            else report
            for report in await super().scrub_many(leases)
        ]
        return await self._late("scrub", [lease for lease, _ in leases], done)

    async def prove_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ProofReport | DeviceError]:
        done = await super().prove_many(leases)
        return await self._late("prove", [lease for lease, _ in leases], done)

    async def make_leaf(self, lease: Lease) -> str:
        """The leaf's path."""
        await self.gates["leaf"].passed()
        return self.leaves.setdefault(lease.lease_id, f"/fake/{lease.subject.cgroup}")

    async def _enter(self, verb: str, leases: Sequence[Lease]) -> None:
        await super()._enter(verb, leases)
        await self.gates[verb].passed()

    async def _late(self, verb: str, leases: Sequence[Lease], done: list) -> list:
        seconds = [self.hangs.get((verb, lease.lease_id), 0.0) for lease in leases]
        if not any(seconds):
            return done
        await trio.sleep(max(seconds))
        return [
            DeviceError(verb, 110, "the worker did not answer") if late else answer
            for late, answer in zip(seconds, done, strict=True)
        ]


class HoldingReaper(FakeReaper):
    """FakeReaper that keeps duplicates of what it is handed, as another process does."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.gates = {verb: Gate() for verb in ("arm", "renew", "revoke", "disarm")}
        self.renew_error: DeviceError | None = None
        self.revoke_errors: dict[LeaseId, DeviceError] = {}
        self.kept: dict[LeaseId, tuple[int, ...]] = {}
        self.pidfds: dict[LeaseId, int] = {}

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        outcomes = await super().arm_many(leases)
        for (lease, _, fds, pidfd, _), outcome in zip(leases, outcomes, strict=True):
            if outcome is None and lease.lease_id not in self.kept:
                self.kept[lease.lease_id] = tuple(map(os.dup, fds))
                if pidfd is not None:
                    self.pidfds[lease.lease_id] = os.dup(pidfd)
        return outcomes

    async def renew_many(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        outcomes = await super().renew_many(moves)
        if self.renew_error is not None:
            raise self.renew_error
        return outcomes

    async def revoke_many(
        self, lease_ids: Sequence[LeaseId], *, spare: Collection[LeaseId] = ()
    ) -> list[CutReport | DeviceError]:
        reports = await super().revoke_many(lease_ids, spare=spare)
        return [
            self.revoke_errors.get(one, report)
            for one, report in zip(lease_ids, reports, strict=True)
        ]

    async def disarm_many(self, lease_ids: Sequence[LeaseId]) -> None:
        await super().disarm_many(lease_ids)
        for lease_id in lease_ids:
            self._drop(lease_id)

    async def _asked(self, verb: str, leases: int) -> None:
        await super()._asked(verb, leases)
        await self.gates[verb].passed()

    def _drop(self, lease_id: LeaseId) -> None:
        for fd in self.kept.pop(lease_id, ()):
            os.close(fd)
        if lease_id in self.pidfds:
            os.close(self.pidfds.pop(lease_id))

    def close(self) -> None:
        """It has ended."""
        for lease_id in (*self.kept, *self.pidfds):
            self._drop(lease_id)

    def roster(self) -> list[RosterEntry]:
        """What it tells an agent that starts."""
        entries = []
        for lease_id, slot in self.slots.items():
            pidfd = self.pidfds.get(lease_id)
            entries.append(
                RosterEntry(
                    lease_id=lease_id,
                    generation=slot.generation,
                    deadline_ns=slot.deadline_ns,
                    cgroup="",
                    fds=tuple(map(os.dup, self.kept.get(lease_id, ()))),
                    pidfd=None if pidfd is None else os.dup(pidfd),
                    pid=0,
                    memfds_missing=0,
                    cut=slot.cut,
                )
            )
        return entries
