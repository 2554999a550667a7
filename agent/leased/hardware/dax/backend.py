# SPDX-License-Identifier: Apache-2.0
"""Device-dax ranges as a backend: whole ranges, one lease each, root's alone while nobody has them.

A range is given to its lease's user, reached by its node from inside the leaf or by a descriptor,
and taken back by taking its region from its driver (`regions`), which no descriptor survives.

Rule: a range that this run of the agent has not proven clean is overwritten before anybody gets
it. While a call hangs in a range, it is not offered, and nobody else is sent there: the kernel
holds its lock. What a scrub came to is kept for the proof; a proof without a scrub in this run
proves nothing.

Does not look at anything itself: workers do (`handling`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
import trio

from leased.hardware.backend import Readied, Verdict, Wiped
from leased.hardware.calls import Surveyed
from leased.hardware.config import EscapeePolicy, HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.dax import calls
from leased.hardware.dax.lost import why_lost
from leased.hardware.dax.ranges import Range
from leased.hardware.dax.survey import NOT_OFFERED, describe
from leased.hardware.failure import failed_step
from leased.hardware.instant import now_ns
from leased.hardware.remembered import Remembered
from leased.hardware.verbs import ACCESS_READ, ACCESS_WRITE, DEVICE_CHAR, DeviceRule
from leased.ports import Access, Holder
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.resource import (
    Absence,
    Allotment,
    Health,
    Resource,
    ResourceKind,
    Shape,
    shape_of,
)
from leased.terms.teardown import StepReport, TeardownStep

T = TypeVar("T")
ROOT = "/"
PREFIX = "mem:dax-"
PASSES_OVER_RANGE = 2
"""Overwriting, and reading back."""

_LIST = "dax list"
_HELD = (LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING)


class DaxBackend:
    """`hardware.backend.Backend` for device-dax ranges."""

    kind = ResourceKind.MEM

    def __init__(self, crew: Crew, hardware: HardwareConfig, root: str = ROOT) -> None:
        self._crew = crew
        self._root = root
        self._hardware = hardware
        self._config = hardware.dax
        self._remembered = Remembered()
        self._ranges: dict[str, Range] = {}
        self._broken: dict[str, Range] = {}
        self._held: dict[str, LeaseId] = {}
        self._given: dict[str, int] = {}
        """How what a lease has was born: a range that was away meanwhile is another."""
        self._clean: set[str] = set()
        self._outcomes: dict[tuple[LeaseId, str], tuple[StepReport, ...]] = {}
        self._turns: dict[str, trio.Lock] = {}
        self._there: frozenset[str] = frozenset()
        self._looks: list[set[str]] = []
        crew.defer(_LIST)

    def serves(self, allotment: Allotment) -> bool:
        """Every device-dax range."""
        return shape_of(allotment.resource_id) is Shape.DAX

    # -- what there is -----------------------------------------------------------------------------

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen, before this one looks."""
        self._remembered.take(sealed)

    async def survey(self) -> Surveyed:
        """Every range as it is now; while a call hangs in one, as it was before."""
        if not self._config.offer:
            return Surveyed((), (Absence(ResourceKind.MEM, NOT_OFFERED),), ())
        stuck = [f"{PREFIX}{identity}" for identity in self._ranges if self._is_stuck(identity)]
        if stuck and self._remembered.last is not None:
            self._remembered.last = _mark_sick(self._remembered.last, stuck)
            return self._remembered.last
        try:
            seen = await self._look()
        except DeviceError as error:
            why = f"device-dax: {error}"
            absence = Absence(ResourceKind.MEM, why)
            return self._remembered.stand_in(why) or Surveyed((), (absence,), ())
        away = [one.identity for one in seen.ranges if self._was_away(one)]
        found = describe(seen.ranges, seen.nodes, seen.speeds, self._config, seen.lost, away)
        # Whoever holds one has lost it: it is gone, and the teardown of the lease puts it back.
        broken = (one for one in self._broken.values() if one.identity not in self._held)
        silent = {one.resource_id: why_lost(one) for one in broken}
        return self._remembered.complete(found, lambda one: silent.get(one.resource_id, ""))

    async def _look(self) -> calls.Seen:
        """List the ranges, and remember what each is called now."""
        handled = {identity for identity, turn in self._turns.items() if turn.locked()}
        self._looks.append(handled)
        try:
            seen = await self._ask(_LIST, "look", calls.Look(self._root), calls.Seen)
        finally:
            self._looks = [one for one in self._looks if one is not handled]
            self._crew.dismiss(_LIST)
        # A region that is taken away and given back has no range meanwhile: it is as it was.
        kept = tuple(self._ranges[one] for one in sorted(handled & self._there))
        by_identity = {one.identity: one for one in (*seen.ranges, *kept)}
        self._there = frozenset(by_identity)
        # What is not there just now is remembered: it may have to be given back.
        self._ranges.update(by_identity)
        lost = tuple(one for one in seen.lost if one.identity not in handled)
        bare = (one for one in by_identity.values() if not one.driver and one.whole)
        self._broken = {one.identity: one for one in (*bare, *lost) if one.identity}
        return msgspec.structs.replace(seen, ranges=tuple(by_identity.values()), lost=lost)

    def _is_stuck(self, identity: str) -> bool:
        return any(self._crew.is_stuck(f"dax {verb} {identity}") for verb in ("use", "witness"))

    # -- grants ------------------------------------------------------------------------------------

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """Give every range to the lease's user; all or none."""
        rules: list[DeviceRule] = []
        evidence = b""
        try:
            for allotment in allotments:
                readied = await self._ready(lease, allotment)
                number = (readied.major, readied.minor)
                rules.append(DeviceRule(DEVICE_CHAR, ACCESS_READ | ACCESS_WRITE, *number))
                evidence += (
                    f"{allotment.resource_id} {number} {readied.overwritten_bytes}\n".encode()
                )
        except DeviceError:
            await self.abandon(lease, allotments)
            raise
        return Readied(tuple(rules), evidence)

    async def _ready(self, lease: Lease, allotment: Allotment) -> calls.Readied:
        identity = _identity(allotment)
        async with self._turn(identity):
            clean = identity in self._clean
            call = calls.Ready(
                self._root, identity, self._search(), lease.subject.uid, lease.subject.gid, clean
            )
            passes = 0 if clean else PASSES_OVER_RANGE
            readied = await self._use(identity, "ready", call, calls.Readied, passes, allotment)
            self._clean.add(identity)
            self._held[identity] = lease.lease_id
            self._given[identity] = readied.birth
            self._note(identity, name=readied.name, birth=readied.birth)
            return readied

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """LEASE_DAX_0 and so on: the device nodes."""
        if any(_identity(allotment) not in self._ranges for allotment in allotments):
            await self._look()
        return tuple(
            Access(allotment.resource_id, f"LEASE_DAX_{at}", self._range_of(allotment).path)
            for at, allotment in enumerate(allotments)
        )

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """The node, opened for whoever the lease is."""
        known = self._ranges.get(_identity(allotment))
        if known is None:
            raise OSError(errno.ENODEV, allotment.resource_id)
        return os.open(known.path, os.O_RDWR | os.O_CLOEXEC)

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Root's alone again. One that cannot be closed is overwritten before the next lease."""
        for allotment in allotments:
            identity = _identity(allotment)
            if self._is_anothers(identity, lease):
                continue
            self._held.pop(identity, None)
            async with self._turn(identity):
                try:
                    call = calls.Close(self._root, identity)
                    await self._use(identity, "close", call, calls.Nothing, 0, allotment)
                except DeviceError:
                    self._clean.discard(identity)

    # -- teardown ----------------------------------------------------------------------------------

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """Take every range back, all at the same time. Clean in the sense of `Wiped` whatever came
        of it: what failed is kept, and named by `prove` for its own range alone."""
        done: list[calls.Released] = []

        async def one(allotment: Allotment) -> None:
            released = await self._release(lease, allotment)
            self._outcomes[lease.lease_id, allotment.resource_id] = released.steps
            done.append(released)

        async with trio.open_nursery() as nursery:
            for allotment in allotments:
                nursery.start_soon(one, allotment)
        steps = tuple(step for released in done for step in released.steps)
        return Wiped(sum(one.overwritten_bytes for one in done), clean=True, steps=steps)

    async def _release(self, lease: Lease, allotment: Allotment) -> calls.Released:
        identity = _identity(allotment)
        kills = self._hardware.escapees is EscapeePolicy.KILL
        async with self._turn(identity):
            began_ns = now_ns()
            if self._is_anothers(identity, lease):  # an operator lifted the fence
                failed = StepReport(TeardownStep.RELEASE, errno.EBUSY, began_ns, began_ns)
                return calls.Released("", 0, (failed,))
            self._held.pop(identity, None)
            self._clean.discard(identity)
            known = self._ranges.get(identity) or self._broken.get(identity)
            call = calls.Release(
                self._root, identity, known, self._search(), kills, self._hardware.kill_budget_ns
            )
            try:
                released = await self._use(
                    identity, "release", call, calls.Released, PASSES_OVER_RANGE, allotment
                )
                self._note(identity, name=released.name)
                return released
            except DeviceError as error:
                return calls.Released("", 0, (failed_step(TeardownStep.RELEASE, error, began_ns),))

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Each range by itself: what its scrub came to, and what a witness sees."""
        unproven: dict[Allotment, int] = {}
        steps: list[StepReport] = []

        async def one(allotment: Allotment) -> None:
            told = await self._prove(lease, allotment)
            steps.extend(told)
            if any(step.errno for step in told):
                unproven[allotment] = allotment.capacity
            else:
                self._clean.add(_identity(allotment))

        async with trio.open_nursery() as nursery:
            for allotment in allotments:
                nursery.start_soon(one, allotment)
        return Verdict(unproven, tuple(steps))

    async def _prove(self, lease: Lease, allotment: Allotment) -> tuple[StepReport, ...]:
        outcome = self._outcomes.pop((lease.lease_id, allotment.resource_id), None)
        began_ns = now_ns()
        if outcome is None:
            # Not scrubbed in this run of the agent.
            return (StepReport(TeardownStep.WITNESS, errno.ENODATA, began_ns, began_ns),)
        failed = tuple(step for step in outcome if step.errno)
        if failed:
            return failed
        identity = _identity(allotment)
        call = calls.Witness(self._root, identity, self._search(), allotment.capacity)
        async with self._turn(identity):
            try:
                worker = f"dax witness {identity}"
                extra_ns = self._touching_ns(1, allotment)
                seen = await self._ask(worker, "witness", call, calls.Steps, extra_ns)
            except DeviceError as error:
                return (failed_step(TeardownStep.WITNESS, error, began_ns),)
            finally:
                for name in (f"dax use {identity}", f"dax witness {identity}"):
                    self._crew.dismiss(name)
        return seen.steps

    # -- beside grants -----------------------------------------------------------------------------

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Whoever has the node open or mapped."""
        if not self._config.offer:
            return ()
        identity = _identity(allotment)
        if self._is_stuck(identity):
            raise DeviceError("dax_who", errno.EBUSY, "a call hangs in the kernel with it")
        call = calls.Who(self._root, identity, self._search())
        try:
            seen = await self._ask(f"dax who {identity}", "who", call, calls.Present)
        finally:
            self._crew.dismiss(f"dax who {identity}")
        return tuple(Holder(one.pid, one.uid, one.name, one.via) for one in seen.openers)

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Nothing is clean that this run has not proven: there is nothing to take over but the
        names. What an earlier run was ended in the middle of is put back, unless a lease has it:
        its teardown does that."""
        if not self._config.offer:
            return
        had = [(one, a) for one in leases for a in one.subject.allotments if self.serves(a)]
        known = {one.resource_id for one in (await self.survey()).resources}
        known -= {allotment.resource_id for _, allotment in had}
        self._held |= {_identity(a): one.lease_id for one, a in had if one.state in _HELD}
        self._given = {one.identity: one.birth for one in self._ranges.values()}
        mended = [one for one in self._broken.values() if one.resource_id in known]
        if any(not one.is_persistent for one in (*self._ranges.values(), *mended)):
            with suppress(DeviceError):  # whoever recreates a range switches it on again
                await self._ask(_LIST, "mend", calls.Mend(self._root, None), calls.Nothing)
            self._crew.dismiss(_LIST)
        async with trio.open_nursery() as nursery:
            for one in mended:
                nursery.start_soon(self._mend, one)
        if mended:
            await self.survey()

    async def _mend(self, one: Range) -> None:
        async with self._turn(one.identity):
            call = calls.Mend(self._root, one)
            extra_ns = self._config.rebind_budget_ns
            with suppress(DeviceError):  # it stays sick, and says what mends it
                await self._ask(f"dax use {one.identity}", "mend", call, calls.Nothing, extra_ns)

    # -- parts -------------------------------------------------------------------------------------

    async def _use(
        self,
        identity: str,
        verb: str,
        call: msgspec.Struct,
        returns: type[T],
        passes: int,
        allotment: Allotment,
    ) -> T:
        """One verb that changes something, with the time it may take."""
        extra_ns = self._config.rebind_budget_ns + self._touching_ns(passes, allotment)
        return await self._ask(f"dax use {identity}", verb, call, returns, extra_ns)

    async def _ask(
        self, worker: str, verb: str, call: msgspec.Struct, returns: type[T], extra_ns: int = 0
    ) -> T:
        """One verb by one worker; every verb may be repeated."""
        if self._crew.is_stuck(worker):
            raise DeviceError(f"dax_{verb}", errno.ETIMEDOUT, "an earlier call still hangs")
        extra_ns += self._config.scan_budget_ns + self._hardware.kill_budget_ns
        return await self._crew.task_again(worker, "dax", verb, call, returns, extra_ns=extra_ns)

    def _touching_ns(self, passes: int, allotment: Allotment) -> int:
        return passes * allotment.capacity * NS_PER_S // self._hardware.touch_bytes_per_s

    def _is_anothers(self, identity: str, lease: Lease) -> bool:
        return self._held.get(identity, lease.lease_id) != lease.lease_id

    def _search(self) -> calls.Search:
        return calls.Search(self._crew.ours(), self._config.scan_budget_ns)

    def _turn(self, identity: str) -> trio.Lock:
        for handled in self._looks:
            handled.add(identity)
        return self._turns.setdefault(identity, trio.Lock())

    def _note(self, identity: str, **changed: str | int) -> None:
        """A region that was given back may have given its range another name."""
        known = self._ranges.get(identity)
        if known is not None and changed["name"]:
            self._ranges[identity] = msgspec.structs.replace(known, **changed)

    def _was_away(self, one: Range) -> bool:
        """Whether it is leased, and is not what its lease was given."""
        identity = one.identity
        return identity in self._held and self._given.get(identity, one.birth) != one.birth

    def _range_of(self, allotment: Allotment) -> Range:
        known = self._ranges.get(_identity(allotment))
        if known is None:
            raise DeviceError("dax_find", errno.ENODEV, allotment.resource_id)
        return known


def _identity(allotment: Allotment) -> str:
    return allotment.resource_id.removeprefix(PREFIX)


def _mark_sick(surveyed: Surveyed, resource_ids: Sequence[str]) -> Surveyed:
    """The same, but what a call hangs in is not granted."""
    resources = tuple(
        msgspec.structs.replace(one, health=Health.SICK) if one.resource_id in resource_ids else one
        for one in surveyed.resources
    )
    return msgspec.structs.replace(surveyed, resources=resources)
