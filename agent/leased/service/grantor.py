# SPDX-License-Identifier: Apache-2.0
"""The grantor: between a sealed grant or renewal and its answer.

Rule: a grant is answered only when its hardware is prepared and the reaper holds it; a renewal only
when its deadline at the reaper has moved. Grants work in batches of whatever has gathered, so that
64 clients share one trip to the worker and one to the reaper, and so do renewals where the reaper's
board is not to be had. A lease with much memory to touch goes its own way, so that it delays
nobody.

If preparing or arming fails, the caller gets a typed refusal and the sealed grant is ended by
`GrantFailed`, which tears down whatever was begun. Does not decide anything and does not tear down.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec
import trio

from leased.ports import Arming, Device, Prepared, Reaper, Submit
from leased.service.api.outbox import Outbox
from leased.service.batch import Held
from leased.service.custody import Custodian
from leased.service.evidence import NO_COMMAND, hash_report
from leased.service.gathering import Gathering
from leased.service.holders import Holders
from leased.terms.command import Activate, CutEnded, GrantFailed
from leased.terms.effect import MoveDeadline, Prepare
from leased.terms.errors import DeviceError, Shortage
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState
from leased.terms.reply import Granted, Refusal, RefusalReason, Reply
from leased.terms.resource import ResourceKind, Shape, shape_of

BATCH_MAX = 64
"""Renewals per trip."""

TRIP_MAX = 64
"""Grants per trip: as many as a worker takes at once. What a trip costs by itself is a fifth of a
grant's own cost with sixteen to share it, and a twentieth with sixty."""

TRIPS_AT_ONCE_MAX = 2
"""One in the worker or at the reaper, one being answered; what comes meanwhile gathers. A third
makes all of them smaller."""

QUICK_BYTES_MAX = 16 << 20
"""Touching 16 MiB takes about 5 ms, the most that one grant may delay the others of its batch."""

SLOW_AT_ONCE_MAX = 4
"""Page touching is bound by memory bandwidth; more at once only makes each of them later."""

_GPU, _BLOCK = ResourceKind.GPU, ResourceKind.BLOCK


class Pace(Enum):
    """How a grant is prepared: with others, beside others, or as one of a few."""

    QUICK = 0
    DEVICE = 1
    SLOW = 2


Moves = Sequence[tuple[LeaseId, int, int]]
Ready = tuple[Arming, Prepared]


class Board(Protocol):
    """A reaper whose deadlines can be moved without asking it. `service.reaper.link` is one."""

    def renew_at_once(self, moves: Moves) -> list[bool] | None:
        """As `Reaper.renew_many`; None: it is to be asked by that."""
        ...

    def renew_ahead(self, moves: Moves) -> None:
        """Let the reaper know now what it will be asked by `renew_many`."""
        ...


class Grantor:
    """Carries out Prepare and MoveDeadline and lets the held answers go."""

    def __init__(
        self,
        *,
        devices: Device,
        reaper: Reaper,
        custodian: Custodian,
        holders: Holders,
        submit: Submit,
        board: Board | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._devices = devices
        self._reaper = reaper
        self._custodian = custodian
        self._holders = holders
        self._submit = submit
        self._board = board
        self._outbox = outbox or Outbox()
        self._grants: Gathering[Held] = Gathering()
        self._renewals: Gathering[Held] = Gathering()
        self._late: Gathering[LeaseId] = Gathering()
        self._preparing: dict[LeaseId, list[Held]] = {}
        self._early: dict[LeaseId, list[Held]] = {}
        """Moves of leases that the reaper does not hold yet: they were told to leave already."""
        self._overtaken: set[LeaseId] = set()
        self._failed: dict[LeaseId, Refusal] = {}
        """Grants that failed, until that is sealed."""
        self._settling = trio.lowlevel.ParkingLot()

    def hold(self, held: Sequence[Held]) -> None:
        """Take what a batch of the sequencer left to be done before its answers may leave."""
        renewals: list[Held] = []
        for one in held:
            if isinstance(one.effect, MoveDeadline):
                if one.effect.lease_id in self._preparing:
                    self._early.setdefault(one.effect.lease_id, []).append(one)
                else:
                    renewals.append(one)
            elif one.effect is not None:
                lease = one.effect.lease
                self._preparing[lease.lease_id] = [one]
                self._holders.expect(lease.lease_id, lease.pid)
                self._grants.put(one)
            else:
                self._attach(one)
        if renewals:
            outcomes = self._board.renew_at_once(_moves(renewals)) if self._board else None
            if outcomes is not None:
                self._settle_renewals(renewals, outcomes)
            else:
                ends = [one for one in renewals if not one.delivers]
                if self._board is not None and ends:
                    # No answer waits for the end of a notice, and it must hold though we die
                    # before our next turn.
                    self._board.renew_ahead(_moves(ends))
                for one in renewals:
                    self._renewals.put(one)

    def _attach(self, held: Held) -> None:
        """A retry of a grant that is still being prepared is answered together with it."""
        assert isinstance(held.reply, Granted)
        begun = self._preparing.get(held.reply.lease.lease_id)
        if begun is not None:
            begun.append(held)
        else:
            _let_go(held, self._failed.get(held.reply.lease.lease_id, held.reply))

    def overtake(self, lease_id: LeaseId) -> None:
        """The lease has ended; if it is still being prepared, nobody is to be told that it is
        there."""
        self._failed.pop(lease_id, None)
        if lease_id in self._preparing:
            self._overtaken.add(lease_id)

    def preparing(self, lease_id: LeaseId) -> bool:
        """Whether something is still being prepared for the lease."""
        return lease_id in self._preparing

    async def settled(self, lease_id: LeaseId) -> None:
        """Return when nothing is being prepared for the lease: its teardown may begin."""
        while lease_id in self._preparing:
            await self._settling.park()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_renewals)
            nursery.start_soon(self._run_late)
            slots = trio.Semaphore(SLOW_AT_ONCE_MAX)
            for _ in range(TRIPS_AT_ONCE_MAX):
                nursery.start_soon(self._run_trips, nursery, slots)

    # -- grants ------------------------------------------------------------------------------------

    async def _run_trips(self, nursery: trio.Nursery, slots: trio.Semaphore) -> None:
        """One trip after the other; several such tasks make them overlap."""
        while True:
            quick: list[Held] = []
            for one in await self._grants.take(TRIP_MAX):
                pace = pace_of(_lease_of(one))
                if pace is Pace.QUICK:
                    quick.append(one)
                elif pace is Pace.SLOW:
                    nursery.start_soon(self._grant_slowly, one, slots)
                else:  # as many at once as there are devices
                    nursery.start_soon(self._grant, [one])
            if quick:
                await self._grant(quick)

    async def _grant_slowly(self, held: Held, slots: trio.Semaphore) -> None:
        async with slots:
            await self._grant([held])

    async def _grant(self, batch: list[Held]) -> None:
        leases = [_lease_of(one) for one in batch]
        prepared = await self._devices.prepare_many(leases)
        ready: list[Ready] = []
        for lease, outcome in zip(leases, prepared, strict=True):
            if isinstance(outcome, DeviceError):
                self._fail(lease, outcome)
            else:
                self._keep(lease, outcome, ready)
        if ready:
            await self._arm(ready)
        self._settling.unpark_all()

    def _keep(self, lease: Lease, made: Prepared, ready: list[Ready]) -> None:
        self._holders.expect(lease.lease_id, lease.pid)  # it may be known only by now
        try:
            pidfd = self._holders.pidfd_for(lease.pid)
        except OSError as error:  # out of descriptors
            self._custodian.keep(lease.lease_id, made.fds, made.cgroup, None, made.access)
            self._fail(lease, DeviceError("pidfd", error.errno or 0))
            return
        self._custodian.keep(lease.lease_id, made.fds, made.cgroup, pidfd, made.access)
        ready.append((Arming(lease, made.cgroup, made.fds, pidfd, made.objects), made))

    async def _arm(self, ready: list[Ready]) -> None:
        outcomes = await self._reaper.arm_many([arming for arming, _ in ready])
        with self._outbox:
            for ((lease, *_), made), outcome in zip(ready, outcomes, strict=True):
                self._activate(lease, made, outcome)

    def _activate(self, lease: Lease, made: Prepared, outcome: DeviceError | None) -> None:
        """The reaper has answered: the lease is its holder's, or is refused."""
        if isinstance(outcome, DeviceError):
            self._fail(lease, outcome)
            return
        if lease.lease_id in self._overtaken:
            limit_ns = lease.deadline_ns
            self._refuse(lease, Refusal(RefusalReason.DEADLINE_PASSED, "ns", limit=limit_ns))
            return
        error = self._watch_owners(lease, made)
        if error is not None:
            self._fail(lease, error)
            return
        self._submit(Activate(NO_COMMAND, lease.lease_id, made.evidence))
        self._holders.bind(lease.lease_id, lease.pid)
        active = msgspec.structs.replace(lease, state=LeaseState.ACTIVE)
        for held in self._preparing.pop(lease.lease_id):
            assert isinstance(held.reply, Granted)
            reply = held.reply
            _let_go(held, msgspec.structs.replace(reply, lease=active))
        self.hold(self._early.pop(lease.lease_id, ()))

    def _watch_owners(self, lease: Lease, made: Prepared) -> DeviceError | None:
        """What of ours keeps something for the lease is watched from here on; why not, if not."""
        allotments = lease.subject.allotments
        if not made.cgroup or all(shape_of(a.resource_id) is not Shape.RDMA for a in allotments):
            return None
        try:
            self._holders.watch_owners(lease.lease_id, made.cgroup)
        except OSError as error:  # out of descriptors
            return DeviceError("watch", error.errno or 0)
        except DeviceError as error:
            return error
        return None

    def _fail(self, lease: Lease, error: DeviceError) -> None:
        refusal = refusal_of(error)
        if lease.lease_id not in self._overtaken:
            self._failed[lease.lease_id] = refusal
        self._submit(GrantFailed(NO_COMMAND, lease.lease_id, refusal))
        self._refuse(lease, refusal)

    def _refuse(self, lease: Lease, refusal: Refusal) -> None:
        self._overtaken.discard(lease.lease_id)
        self._holders.forget(lease.lease_id)
        for held in (*self._preparing.pop(lease.lease_id), *self._early.pop(lease.lease_id, ())):
            _let_go(held, refusal)

    # -- renewals ----------------------------------------------------------------------------------

    async def _run_renewals(self) -> None:
        while True:
            batch = await self._renewals.take(BATCH_MAX)
            try:
                outcomes = await self._reaper.renew_many(_moves(batch))
            except DeviceError as error:
                self._doubt(batch, error)
            else:
                self._settle_renewals(batch, outcomes)

    def _settle_renewals(self, batch: list[Held], outcomes: list[bool]) -> None:
        with self._outbox:
            for held, in_time in zip(batch, outcomes, strict=True):
                if in_time:
                    _let_go(held, held.reply)
                else:
                    # The reaper began to cut before the renewal reached it: the cut goes on.
                    move = held.effect
                    assert isinstance(move, MoveDeadline)
                    limit_ns = move.deadline_ns
                    _let_go(held, Refusal(RefusalReason.DEADLINE_PASSED, "ns", limit=limit_ns))
                    self._late.put(move.lease_id)

    def _doubt(self, batch: list[Held], error: DeviceError) -> None:
        """Nobody knows whether the reaper moved the deadlines: the caller must not count on it."""
        for held in batch:
            _let_go(held, refusal_of(error))

    async def _run_late(self) -> None:
        """Let the table know of the cuts that renewals came too late for."""
        while True:
            late = await self._late.take(BATCH_MAX)
            for report in await self._reaper.revoke_many(late):
                # An error is found again, and fenced, by the teardown that the expiry begins.
                if not isinstance(report, DeviceError):
                    self._submit(CutEnded(NO_COMMAND, report, hash_report(report)))


def _moves(batch: Sequence[Held]) -> list[tuple[LeaseId, int, int]]:
    moves = []
    for held in batch:
        move = held.effect
        assert isinstance(move, MoveDeadline)
        moves.append((move.lease_id, move.generation, move.deadline_ns))
    return moves


def refusal_of(error: DeviceError) -> Refusal:
    """What whoever asked is told of it."""
    if isinstance(error, Shortage):
        numbers = (error.resource_id, error.limit, error.usage, error.requested, error.again_ns)
        return Refusal(RefusalReason.NO_CAPACITY, *numbers)
    return Refusal(RefusalReason.DEVICE_FAILED, what=error.verb, usage=error.errno)


def _lease_of(held: Held) -> Lease:
    """What a grant is to be prepared for."""
    assert isinstance(held.effect, Prepare)
    return held.effect.lease


def _let_go(held: Held, reply: Reply) -> None:
    for deliver in held.delivers:
        deliver(reply)


def pace_of(lease: Lease) -> Pace:
    """How preparing the lease goes: a budget and a device are granted untouched; a device's driver
    is asked, or it is erased first if nobody knows that it is."""
    touched, pace = 0, Pace.QUICK
    for one in lease.subject.allotments:
        shape = shape_of(one.resource_id)
        if shape is Shape.MEMFD or shape is Shape.RDMA:
            touched += one.capacity
        elif shape is Shape.DAX or one.kind is _GPU or one.kind is _BLOCK:
            pace = Pace.DEVICE
    return Pace.SLOW if touched > QUICK_BYTES_MAX else pace
