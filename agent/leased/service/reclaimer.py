# SPDX-License-Identifier: Apache-2.0
"""The reclaimer: carries a lease from the end of its right to the proof that its capacity is clean.

Rule: cut -> scrub -> prove, each reported by a command as soon as it is known; a step that fails or
overruns its budget fences what it could not finish. The teardown never waits for the log: a report
is left on the channel and the next step begins. The cut is the reaper's (`revoke` returns the
report of the cut it made at the deadline, or cuts now); the scrub and the proof are the device
workers', and the proof asks another source than the scrub did.

Leases that fall together are torn down together; much memory goes its own way, a few at once. What
may be broken off and asked again tells nobody. A budget of which something is missing is asked for
again for some minutes: what a tenant wrote to a file system is charged to it until the file
system's journal lets go. Does not decide what the outcome means: `lessor.lifecycle` does.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import trio

from leased.ports import Device, Reaper, Sampler, Submit
from leased.service.custody import Custodian
from leased.service.evidence import NO_COMMAND, Report, encode_report, hash_report
from leased.service.gathering import Gathering
from leased.service.grantor import QUICK_BYTES_MAX, SLOW_AT_ONCE_MAX, Grantor
from leased.service.holders import Holders
from leased.terms.command import CutEnded, ProofEnded, ScrubEnded, TeardownFailed
from leased.terms.effect import Effect, Forget, Teardown
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Ending, Lease, LeaseState
from leased.terms.resource import ResourceKind, Shape, shape_of
from leased.terms.teardown import CutReport, ScrubReport, StepReport, TeardownStep

BATCH_MAX = 64

TOGETHER_S = 0.25
"""How long leases that fall together are waited for together: a cut takes a few milliseconds."""

STUCK_AFTER_S = 1
LOOKS_MAX = 4
"""Who does not die for so long is looked at, and again: somebody may keep him. The reaper has ended
tracers by then, and gives up after five seconds."""

LATE_AFTER_S = 5
LATE_ASKED_MAX = 6
"""A budget that was not given back whole is proven again after this long, then after twice as long,
and so on: five minutes in all."""


TellReport = Callable[[LeaseId, str, bytes, bytes], None]
"""Takes (lease, step, report, evidence) for people to read. Must not block."""


STUCK_MAX = 4096
"""Leases that are looked at together: who keeps the killed is looked for once for all of them."""


Loosen = Callable[[Sequence[Lease]], Awaitable[Sequence[str]]]
"""Have whoever keeps the killed of these leases waiting let go; what was done, in words."""


async def _let_nobody_go(_: Sequence[Lease]) -> Sequence[str]:
    return ()


Outcomes = Sequence[CutReport | DeviceError]


class Withdrawal(Protocol):
    """What can end a lease's access in order, if it is asked before the cut, and what keeps
    something for leases until they are over."""

    def withdraws(self, lease: Lease) -> bool:
        """Whether there is anything to end."""
        ...

    async def withdraw(self, lease: Lease) -> tuple[StepReport, ...]:
        """End it, in a moment or not at all; what was done."""
        ...

    def forget(self, lease_ids: Sequence[LeaseId]) -> None:
        """These are over, proven or (their fence was lifted) not: nothing is kept for them."""
        ...


class Reclaimer:
    """Carries out Teardown and Forget."""

    def __init__(
        self,
        *,
        devices: Device,
        reaper: Reaper,
        custodian: Custodian,
        grantor: Grantor,
        holders: Holders,
        sampler: Sampler,
        submit: Submit,
        tell_report: TellReport = lambda _lease_id, _step, _report, _evidence: None,
        withdrawal: Withdrawal | None = None,
        loosen: Loosen = _let_nobody_go,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._devices = devices
        self._reaper = reaper
        self._custodian = custodian
        self._grantor = grantor
        self._holders = holders
        self._sampler = sampler
        self._submit = submit
        self._tell_report = tell_report
        self._withdrawal = withdrawal
        self._loosen = loosen
        self._say = say
        self._teardowns: Gathering[Lease] = Gathering()
        self._closed: Gathering[LeaseId] = Gathering()
        self._stragglers: Gathering[tuple[Lease, CutReport]] = Gathering()
        self._stuck: Gathering[tuple[Lease, bool]] = Gathering()
        """Whose holders do not die, and whether the cut is over all the same."""
        self._late: Gathering[tuple[Lease, int]] = Gathering()
        self._begun: dict[LeaseId, Lease | None] = {}
        """What is torn down, and how it was when that was asked for again meanwhile."""
        self._under_way = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def quiet(self) -> None:
        """Return when nothing is torn down."""
        while self._under_way:
            await self._ended.park()

    def start(self, effect: Effect) -> None:
        """Take an effect of a committed batch."""
        if isinstance(effect, Teardown):
            self._grantor.overtake(effect.lease.lease_id)
            self._holders.forget(effect.lease.lease_id)
            self._begin(effect.lease)
        elif isinstance(effect, Forget):
            self._begun.pop(effect.lease_id, None)
            self._closed.put(effect.lease_id)

    def _begin(self, lease: Lease) -> None:
        """Once at a time: a second one beside it would go on when the first has proven the lease
        clean, and end whoever has its devices by then."""
        if lease.lease_id in self._begun:
            self._begun[lease.lease_id] = lease
        else:
            self._begun[lease.lease_id] = None
            self._teardowns.put(lease)

    def _break_off(self, lease: Lease) -> None:
        """A step failed, and was the last. One that proves the lease clean is over when the lease
        is forgotten."""
        again = self._begun.pop(lease.lease_id, None)
        if again is not None:
            self._begin(again)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_closed)
            nursery.start_soon(self._run_stragglers)
            nursery.start_soon(self._run_stuck)
            nursery.start_soon(self._run_late)
            slots = trio.Semaphore(SLOW_AT_ONCE_MAX)
            while True:
                gathered = await self._teardowns.take(BATCH_MAX)
                # Not awaited: a lease whose holder will not die must not delay those that end after
                # it.
                quick: list[Lease] = []
                for lease in gathered:
                    if _memory_bytes(lease) > QUICK_BYTES_MAX:
                        nursery.start_soon(self._attend, [lease], slots)
                    elif self._goes_alone(lease):
                        nursery.start_soon(self._attend, [lease])
                    else:
                        quick.append(lease)
                if quick:
                    nursery.start_soon(self._attend, quick)

    def _goes_alone(self, lease: Lease) -> bool:
        """What would keep others waiting: a grant that is not finished, an end in order, a drive
        that may have to erase itself."""
        drives = any(a.kind is ResourceKind.BLOCK for a in lease.subject.allotments)
        return drives or self._grantor.preparing(lease.lease_id) or self._withdraws(lease)

    async def _attend(self, leases: Sequence[Lease], slots: trio.Semaphore | None = None) -> None:
        """Tear down, much memory (with `slots`) a few at once."""
        self._under_way += 1
        try:
            if slots is None:
                await self._reclaim(leases)
            else:
                cut = self._tell_cut(leases, await self._cut(leases))
                async with slots:
                    await self._clean(cut)
        finally:
            self._under_way -= 1
            self._ended.unpark_all()

    async def _reclaim(self, leases: Sequence[Lease]) -> None:
        outcomes: Outcomes | None = None
        with trio.move_on_after(TOGETHER_S if len(leases) > 1 else math.inf):
            outcomes = await self._cut(leases)
        if outcomes is not None:
            await self._clean(self._tell_cut(leases, outcomes))
            return
        # Somebody takes long to die. Whoever has gone must not wait for that: each goes alone
        # (asking for a cut again tells of the one already begun).
        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(self._cut_alone, lease)

    async def _cut_alone(self, lease: Lease) -> None:
        for cut in self._tell_cut([lease], await self._cut([lease])):
            self._stragglers.put(cut)

    async def _run_stragglers(self) -> None:
        """Clean what was cut alone, together again: a scrub may search the whole host, once for all
        that it is asked for."""
        while True:
            await self._clean(await self._stragglers.take(BATCH_MAX))

    async def _run_stuck(self) -> None:
        """Look for who keeps the killed, of all that are stuck at the time: nobody's teardown waits
        for as many looks as somebody else has leases."""
        while True:
            stuck = await self._stuck.take(STUCK_MAX)
            leases = {lease.lease_id: lease for lease, _ in stuck}
            for done in await self._loosen(tuple(leases.values())):
                self._say(done)
            for lease, is_over in stuck:
                if is_over:
                    self._break_off(lease)

    async def _run_late(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                for lease, asked in await self._late.take(BATCH_MAX):
                    nursery.start_soon(self._prove_late, lease, asked)

    async def _prove_late(self, lease: Lease, asked: int) -> None:
        await trio.sleep(LATE_AFTER_S << asked)
        await self._prove([lease], asked + 1)

    # -- the three steps ---------------------------------------------------------------------------

    async def _cut(self, leases: Sequence[Lease]) -> Outcomes:
        """End access, and say how that went to nobody else."""
        for lease in leases:
            await self._grantor.settled(lease.lease_id)
        withdrawn = {
            lease.lease_id: await self._withdrawal.withdraw(lease)
            for lease in leases
            if self._withdrawal is not None and self._withdraws(lease)
        }
        # Who gave a lease back by itself may live on; whoever runs in the leaf is killed.
        spare = frozenset(lease.lease_id for lease in leases if lease.ended is Ending.RELEASED)
        return [
            msgspec.structs.replace(one, steps=(*withdrawn[one.lease_id], *one.steps))
            if isinstance(one, CutReport) and withdrawn.get(one.lease_id)
            else one
            for one in await self._revoke(leases, spare)
        ]

    async def _revoke(self, leases: Sequence[Lease], spare: frozenset[LeaseId]) -> Outcomes:
        lease_ids = [lease.lease_id for lease in leases]
        for _ in range(LOOKS_MAX):
            with trio.move_on_after(STUCK_AFTER_S):
                return await self._reaper.revoke_many(lease_ids, spare=spare)
            for lease in leases:
                self._stuck.put((lease, False))
        return await self._reaper.revoke_many(lease_ids, spare=spare)

    def _tell_cut(
        self, leases: Sequence[Lease], outcomes: Outcomes
    ) -> list[tuple[Lease, CutReport]]:
        """Say how it went; the leases whose access has ended, and how."""
        cut: list[tuple[Lease, CutReport]] = []
        for lease, outcome in zip(leases, outcomes, strict=True):
            if isinstance(outcome, DeviceError):
                self._fail(lease, TeardownStep.KILL, outcome)
                continue
            evidence = self._publish("cut", outcome)
            if lease.state <= LeaseState.REVOKING:
                self._submit(CutEnded(NO_COMMAND, outcome, evidence))
            elif not outcome.clean:
                self._take_back(lease, TeardownStep.KILL, evidence)
            if outcome.clean:
                cut.append((lease, outcome))
            else:
                self._stuck.put((lease, True))
        return cut

    def _withdraws(self, lease: Lease) -> bool:
        """Not a lease that has run out: the reaper has cut it, or is about to."""
        ended_early = lease.ended is not Ending.EXPIRED
        return self._withdrawal is not None and ended_early and self._withdrawal.withdraws(lease)

    async def _clean(self, cut: Sequence[tuple[Lease, CutReport]]) -> None:
        """Scrub and prove. A lease found past a step at boot goes through it again: repeating is
        harmless. One whose fence an operator has lifted meanwhile has nothing any more."""
        cut = [(lease, how) for lease, how in cut if lease.lease_id in self._begun]
        if not cut:
            return
        fds_of = self._custodian.of
        scrubs = await self._devices.scrub_many(
            [(lease, fds_of(lease.lease_id).fds) for lease, _ in cut]
        )
        scrubbed: list[Lease] = []
        for (lease, how), scrub in zip(cut, scrubs, strict=True):
            if isinstance(scrub, DeviceError):
                self._fail(lease, TeardownStep.SCRUB, scrub)
                continue
            told = _with_backstop(scrub, how)
            evidence = self._publish("scrub", told)
            if lease.state <= LeaseState.SCRUBBING:
                self._submit(ScrubEnded(NO_COMMAND, told, evidence))
            elif not scrub.clean:
                self._take_back(lease, TeardownStep.SCRUB, evidence)
            if scrub.clean:
                scrubbed.append(lease)
            else:
                self._break_off(lease)
        if scrubbed:
            await self._prove(scrubbed)

    async def _prove(self, leases: Sequence[Lease], asked: int = 0) -> None:
        """Ask the other source, for the first time or after `asked` proofs that missed a part."""
        fds_of = self._custodian.of
        proofs = await self._devices.prove_many(
            [(lease, fds_of(lease.lease_id).fds) for lease in leases]
        )
        for lease, proof in zip(leases, proofs, strict=True):
            if isinstance(proof, DeviceError):
                self._fail(lease, TeardownStep.COUNTERS, proof)
            else:
                used = self._sampler.utilization(lease)
                evidence = self._publish("proof", proof)
                self._submit(ProofEnded(NO_COMMAND, proof, evidence, used))
                if proof.unproven:
                    self._break_off(lease)
                if proof.unproven and asked < LATE_ASKED_MAX and _comes_late(lease):
                    self._late.put((lease, asked))

    def _publish(self, step: str, report: Report) -> bytes:
        """Copy a report to the journal; the hash that stands for it in the chain."""
        evidence = hash_report(report)
        self._tell_report(report.lease_id, step, encode_report(report), evidence)
        return evidence

    def _take_back(self, lease: Lease, step: TeardownStep, evidence: bytes) -> None:
        """What was well once, and is not when it is repeated after a restart: it cannot be told as
        the step's end a second time, and nothing that comes after it may be believed."""
        self._submit(TeardownFailed(NO_COMMAND, lease.lease_id, step, errno.EBUSY, evidence))

    def _fail(self, lease: Lease, step: TeardownStep, error: DeviceError) -> None:
        self._submit(TeardownFailed(NO_COMMAND, lease.lease_id, step, error.errno, bytes(32)))
        self._break_off(lease)

    # -- the end -----------------------------------------------------------------------------------

    async def _run_closed(self) -> None:
        while True:
            closed = await self._closed.take(BATCH_MAX)
            # Out of custody first: what is in custody may still be armed again (a late Join).
            for lease_id in closed:
                self._custodian.drop(lease_id)
            if self._withdrawal is not None:
                self._withdrawal.forget(closed)
            await self._reaper.disarm_many(closed)


def _memory_bytes(lease: Lease) -> int:
    """How much memory is overwritten, or taken back by the kernel."""
    return sum(a.capacity for a in lease.subject.allotments if a.kind is ResourceKind.MEM)


def _comes_late(lease: Lease) -> bool:
    """Whether the leaf alone says what is missing of the lease, whoever has the rest by now."""
    return all(
        a.kind is ResourceKind.CPU or shape_of(a.resource_id) is Shape.BUDGET
        for a in lease.subject.allotments
    )


def _with_backstop(scrub: ScrubReport, cut: CutReport) -> ScrubReport:
    """What the reaper overwrote while no agent was there belongs to the scrub, too."""
    before = tuple(step for step in cut.steps if step.step is TeardownStep.SCRUB)
    if not before:
        return scrub
    overwritten = scrub.scrubbed_bytes + sum(step.measured for step in before)
    return msgspec.structs.replace(scrub, scrubbed_bytes=overwritten, steps=(*before, *scrub.steps))
