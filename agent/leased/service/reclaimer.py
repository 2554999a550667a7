# SPDX-License-Identifier: Apache-2.0
"""The reclaimer: carries a lease from the end of its right to the proof that its capacity is clean.

Rule: cut -> scrub -> prove, each reported by a command as soon as it is known; a step that fails or
overruns its budget fences what it could not finish. The teardown never waits for the log: a report
is left on the channel and the next step begins. The cut is the reaper's (`revoke` returns the
report of the cut it made at the deadline, or cuts now); the scrub and the proof are the device
workers', and the proof asks another source than the scrub did.

Leases that fall together are torn down together; much memory goes its own way, a few at once. Does
not decide what the outcome means: `lessor.lifecycle` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from leased.ports import Device, Reaper, Sampler, Submit
from leased.service.custody import Custodian
from leased.service.evidence import NO_COMMAND, hash_report
from leased.service.gathering import Gathering
from leased.service.grantor import QUICK_BYTES_MAX, SLOW_AT_ONCE_MAX, Grantor, touched_bytes
from leased.service.holders import Holders
from leased.terms.command import CutEnded, ProofEnded, ScrubEnded, TeardownFailed
from leased.terms.effect import Effect, Forget, Teardown
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Ending, Lease, LeaseState
from leased.terms.teardown import TeardownStep

BATCH_MAX = 64


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
    ) -> None:
        self._devices = devices
        self._reaper = reaper
        self._custodian = custodian
        self._grantor = grantor
        self._holders = holders
        self._sampler = sampler
        self._submit = submit
        self._teardowns: Gathering[Lease] = Gathering()
        self._closed: Gathering[LeaseId] = Gathering()

    def start(self, effect: Effect) -> None:
        """Take an effect of a committed batch."""
        if isinstance(effect, Teardown):
            self._holders.forget(effect.lease.lease_id)
            self._teardowns.put(effect.lease)
        elif isinstance(effect, Forget):
            self._closed.put(effect.lease_id)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_closed)
            slots = trio.Semaphore(SLOW_AT_ONCE_MAX)
            while True:
                gathered = await self._teardowns.take(BATCH_MAX)
                quick = [lease for lease in gathered if touched_bytes(lease) <= QUICK_BYTES_MAX]
                for lease in gathered:
                    if touched_bytes(lease) > QUICK_BYTES_MAX:
                        nursery.start_soon(self._reclaim_slowly, lease, slots)
                if quick:
                    # Not awaited: a lease whose holder will not die must not delay those that end
                    # after it.
                    nursery.start_soon(self._reclaim, quick)

    async def _reclaim_slowly(self, lease: Lease, slots: trio.Semaphore) -> None:
        [cut] = await self._cut([lease])
        if cut is not None:
            async with slots:
                await self._clean([lease])

    async def _reclaim(self, leases: Sequence[Lease]) -> None:
        cut = await self._cut(leases)
        await self._clean([lease for lease in cut if lease is not None])

    # -- the three steps ---------------------------------------------------------------------------

    async def _cut(self, leases: Sequence[Lease]) -> list[Lease | None]:
        """End access; the leases whose access has ended, None in place of the others."""
        for lease in leases:
            await self._grantor.settled(lease.lease_id)
        # Who gave a lease back by itself may live on; whoever runs in the leaf is killed.
        spare = frozenset(lease.lease_id for lease in leases if lease.ended is Ending.RELEASED)
        outcomes = await self._reaper.revoke_many([lease.lease_id for lease in leases], spare=spare)
        cut: list[Lease | None] = []
        for lease, outcome in zip(leases, outcomes, strict=True):
            if isinstance(outcome, DeviceError):
                self._fail(lease, TeardownStep.KILL, outcome)
                cut.append(None)
                continue
            if lease.state <= LeaseState.REVOKING:
                self._submit(CutEnded(NO_COMMAND, outcome, hash_report(outcome)))
            cut.append(lease if outcome.clean else None)
        return cut

    async def _clean(self, leases: Sequence[Lease]) -> None:
        """Scrub and prove. A lease found past a step at boot goes through it again: repeating is
        harmless."""
        if not leases:
            return
        scrubs = await self._devices.scrub_many(
            [(lease, self._custodian.of(lease.lease_id).fds) for lease in leases]
        )
        scrubbed: list[Lease] = []
        for lease, scrub in zip(leases, scrubs, strict=True):
            if isinstance(scrub, DeviceError):
                self._fail(lease, TeardownStep.SCRUB, scrub)
                continue
            if lease.state <= LeaseState.SCRUBBING:
                self._submit(ScrubEnded(NO_COMMAND, scrub, hash_report(scrub)))
            if scrub.clean:
                scrubbed.append(lease)
        if not scrubbed:
            return
        proofs = await self._devices.prove_many(
            [(lease, self._custodian.of(lease.lease_id).fds) for lease in scrubbed]
        )
        for lease, proof in zip(scrubbed, proofs, strict=True):
            if isinstance(proof, DeviceError):
                self._fail(lease, TeardownStep.COUNTERS, proof)
            else:
                used = self._sampler.utilization(lease)
                self._submit(ProofEnded(NO_COMMAND, proof, hash_report(proof), used))

    def _fail(self, lease: Lease, step: TeardownStep, error: DeviceError) -> None:
        self._submit(TeardownFailed(NO_COMMAND, lease.lease_id, step, error.errno, bytes(32)))

    # -- the end -----------------------------------------------------------------------------------

    async def _run_closed(self) -> None:
        while True:
            closed = await self._closed.take(BATCH_MAX)
            await self._reaper.disarm_many(closed)
            for lease_id in closed:
                self._custodian.drop(lease_id)
