# SPDX-License-Identifier: Apache-2.0
"""Reclaiming: a device from the end of access to the proof that nothing of the lease is left there.

    release   the driver lets go of what the killed processes had; escapees are ended
    scrub     the whole device taken exclusively, overwritten, read back; closed
    witness   a second look, by a worker with no part in it; health, XIDs since the release began

Rule: a step that fails ends the device's teardown and says why; the device is closed all the same.
Every answer is a step report, also that of a driver that did not answer. How much memory was in use
before the lease is known from its grant; where it is not (the agent was restarted), the driver's
own share is all that may be.

Does not decide what is fenced: it names what failed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

import msgspec

from leased.hardware.calls import Surveyed
from leased.hardware.failure import failed_step
from leased.hardware.gpu import calls, verdict
from leased.hardware.gpu.bounds import overwrite_extra_ns, release_extra_ns, witness_extra_ns
from leased.hardware.gpu.desk import Desk, scrubber_of, worker_of
from leased.hardware.gpu.ear import Ear
from leased.hardware.gpu.facts import ComputeMode, Question, Target, Usage
from leased.hardware.gpu.fleet import Fleet
from leased.hardware.gpu.places import Places, health_step
from leased.hardware.gpu.survey import is_place, mark_later
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError
from leased.terms.identity import TenantId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.teardown import StepReport, TeardownStep

_NOBODY_KNOWS = TenantId("")


class Outcome(msgspec.Struct, frozen=True):
    """What the release and the scrub of one device came to."""

    steps: tuple[StepReport, ...]
    began_ns: int
    used_max_bytes: int
    quiet_ns: int = 0
    """When the driver had let go of everything."""

    scrubbed_bytes: int = 0

    @property
    def clean(self) -> bool:
        """Whether every step succeeded."""
        return verdict.is_clean(self.steps)


class Reclaimer:
    """Takes devices back."""

    def __init__(self, desk: Desk, fleet: Fleet, ear: Ear) -> None:
        self._desk = desk
        self._fleet = fleet
        self._ear = ear
        self.places = Places(desk, fleet)
        self._baselines: dict[str, int] = {}
        self._owed: dict[str, TenantId | None] = {}
        """What is to be overwritten before the next lease: nothing (None), or what this tenant
        left. Of what is not here nobody knows."""
        self.dirty: dict[str, int] = {}
        """Bytes that a scrub found and the driver should have cleared, by GPU."""

    def trust(self, resource_ids: Iterable[str]) -> None:
        """The log knows that these were overwritten after their last lease. Of places nobody's word
        is taken: an end that found no instance there overwrote nothing."""
        self._owed.update(dict.fromkeys(one for one in resource_ids if not is_place(one)))

    def distrust(self, *resource_ids: str) -> None:
        """Somebody may have left something there."""
        for one in resource_ids:
            self._owed.pop(one, None)

    def note_baseline(self, resource_id: str, usage: Usage) -> None:
        """So much is in use while nobody has the device."""
        self._baselines[resource_id] = usage.used_bytes

    # -- release and scrub -------------------------------------------------------------------------

    async def reclaim(self, lease: Lease, resource_id: str, target: Target) -> Outcome:
        """Release and scrub, within the device's turn."""
        began_ns = now_ns()
        self.distrust(resource_id)  # whatever becomes of this, and should it be broken off
        if target.place is not None and target.instance is None:
            # No MIG device is there; a GPU instance that was made half-way may be.
            gone = await self.places.unmake(resource_id, target, halves=True)
            return Outcome((gone,), began_ns, 0)
        used_max_bytes = self._used_max(resource_id, target)
        at = TeardownStep.RELEASE
        steps: tuple[StepReport, ...] = ()
        scrubbed, later = None, False
        quiet_ns = 0
        try:
            released = await self._release(lease, resource_id, target, used_max_bytes)
            steps = verdict.judge_release(released, used_max_bytes)
            quiet_ns = released.sight.seen_ns
            at = TeardownStep.SCRUB
            if verdict.is_clean(steps):
                later = (
                    resource_id in self._baselines
                    and target.place is None
                    and lease.subject.priority in self._desk.config.scrub_later
                )
                usage = released.sight.usage
                scrubbed = await self.scrub(target, usage, writes=not later, lingers=True)
                steps += scrubbed.steps
                if target.place is not None:
                    steps += (await self.places.unmake(resource_id, target),)
        except DeviceError as error:
            steps += (failed_step(at, error, began_ns),)
            self._note_hang(target, error)
        if scrubbed is not None and verdict.is_clean(steps):
            self._owed[resource_id] = lease.subject.tenant if later else None
        if scrubbed is None:
            await self.close(target)
        overwritten = scrubbed.taken_bytes if scrubbed is not None else 0
        return Outcome(steps, began_ns, used_max_bytes, quiet_ns, overwritten)

    async def scrub(
        self, target: Target, usage: Usage, *, writes: bool, lingers: bool = False
    ) -> calls.Scrubbed:
        """Take the whole device; overwrite it. It is closed afterwards, and left but for what
        `lingers`. Raises DeviceError."""
        config = self._desk.config
        expected = usage.total_bytes - usage.reserved_bytes - usage.used_bytes
        expected = max(0, expected - config.overhead_bytes)
        call = calls.Scrub(target, expected, writes, self.closes(target), lingers)
        extra_ns = overwrite_extra_ns(self._desk.hardware, usage.total_bytes)
        done = await self._desk.ask(
            scrubber_of(target), "scrub", call, calls.Scrubbed, extra_ns=extra_ns
        )
        if done.found_bytes:
            self.dirty[target.uuid] = done.found_bytes
        return done

    def owes(self, lease: Lease, resource_id: str) -> bool:
        """Whether an earlier lease, of this log or of another, may have left there what this one
        must not see."""
        return self._owed.get(resource_id, _NOBODY_KNOWS) not in (None, lease.subject.tenant)

    async def pay_debt(self, resource_id: str, target: Target, usage: Usage) -> None:
        """Overwrite it; `usage` is that of the device while nobody has it. Raises DeviceError."""
        try:
            done = await self.scrub(target, usage, writes=True)
        except DeviceError as error:
            self._note_hang(target, error)
            raise
        failed = next((step.errno for step in done.steps if step.errno), 0)
        if failed:
            if target.place is None:
                why = "what an earlier tenant left could not be overwritten"
                self._fleet.suspect(target.uuid, why)
            raise DeviceError("gpu_scrub", failed, f"{target.visible} is not clean")
        self._owed[resource_id] = None

    def take_stock(self, found: Surveyed) -> Surveyed:
        """Say of what was found where something may have been left for the next grant to overwrite;
        with `scrub_later` that is everywhere but on places, for a lease may end so before the next
        look. What is known of anything else is forgotten: what is not there (MIG was turned on or
        off, another layout, a GPU that is away) may come back with what others had left."""
        there = {one.resource_id for one in found.resources}
        self._owed = {one: owner for one, owner in self._owed.items() if one in there}
        always = bool(self._desk.config.scrub_later)
        owing = {
            one
            for one in there
            if (always and not is_place(one)) or self._owed.get(one, _NOBODY_KNOWS) is not None
        }
        return mark_later(found, owing)

    def without_holders(self, resource_id: str, target: Target, seen: Usage) -> Usage:
        """The usage of a device that nobody has, from one that was `seen` when somebody may have
        had it: what he had is to be taken, too."""
        used_bytes = min(seen.used_bytes, self._used_max(resource_id, target))
        return msgspec.structs.replace(seen, used_bytes=used_bytes)

    def used_before_max(self, target: Target) -> int:
        """How much memory may be in use before anybody is let in: what a driver needs for itself.
        Where it is a node of the host's, the host may use what it likes."""
        facts = self._fleet.facts(target.uuid)
        if facts is not None and facts.memory_node >= 0:
            return facts.memory.total_bytes
        return self._desk.config.overhead_bytes

    def closes(self, target: Target) -> bool:
        """Whether the device can be closed while nobody has it: a MIG device cannot."""
        facts = self._fleet.facts(target.uuid)
        can = facts is None or Question.COMPUTE_MODE not in facts.unanswered
        return target.is_whole and can and self._desk.config.close_free

    async def close(self, target: Target) -> None:
        """Let nobody make a context, as far as the driver still listens: the device has failed
        already if it does not."""
        if self.closes(target):
            guard = calls.Guard(target, ComputeMode.PROHIBITED)
            try:
                await self._desk.ask(worker_of(target), "guard", guard, calls.Guarded)
            except DeviceError as error:
                self._note_hang(target, error)

    async def _release(
        self, lease: Lease, resource_id: str, target: Target, used_max_bytes: int
    ) -> calls.Released:
        config = self._desk.config
        # Nobody was ever let in by a grant that failed: whoever is there is no escapee of it.
        had_holder = lease.reason is not RevocationReason.GRANT_FAILED
        call = calls.Release(
            root=config.root,
            target=target,
            guests=self._desk.guests(resource_id, target),
            used_max_bytes=used_max_bytes,
            budget_ns=config.release_budget_ns,
            scan_budget_ns=config.scan_budget_ns,
            kill=self._desk.kills and had_holder,
            kill_budget_ns=self._desk.hardware.kill_budget_ns,
        )
        extra_ns = release_extra_ns(self._desk.hardware)
        return await self._desk.ask(
            worker_of(target), "release", call, calls.Released, extra_ns=extra_ns
        )

    # -- the witness -------------------------------------------------------------------------------

    async def witness(
        self, resource_id: str, target: Target, outcome: Outcome
    ) -> tuple[StepReport, ...]:
        """What somebody sees who had no part in it."""
        config = self._desk.config
        began_ns = now_ns()
        if target.place is not None:
            return await self._witness_place(target, outcome)
        asks_mode = self.closes(target)
        not_before_ns = outcome.quiet_ns + config.settle_apart_ns
        call = calls.Witness(
            root=config.root,
            target=target,
            guests=self._desk.guests(resource_id, target),
            used_max_bytes=outcome.used_max_bytes,
            budget_ns=config.release_budget_ns,
            not_before_ns=not_before_ns,
            scan_budget_ns=config.scan_budget_ns,
            asks_mode=asks_mode,
        )
        extra_ns = witness_extra_ns(self._desk.hardware)
        try:
            seen = await self._desk.ask(
                worker_of(target), "witness", call, calls.Witnessed, extra_ns=extra_ns
            )
        except DeviceError as error:
            self._note_hang(target, error)
            return (failed_step(TeardownStep.WITNESS, error, began_ns),)
        xids, heard_all, lacking = self._heard(target, outcome)
        return verdict.judge_witness(
            seen,
            used_max_bytes=outcome.used_max_bytes,
            not_before_ns=not_before_ns,
            xids=xids,
            heard_all=heard_all,
            lacking=lacking,
            closed_mode=ComputeMode.PROHIBITED if asks_mode else None,
        )

    async def _witness_place(self, target: Target, outcome: Outcome) -> tuple[StepReport, ...]:
        steps, seen = await self.places.witness(target)
        if seen is not None:
            xids, heard_all, lacking = self._heard(target, outcome)
            steps += (health_step(seen, xids, heard_all=heard_all, lacking=lacking),)
        return steps

    def _heard(
        self, target: Target, outcome: Outcome
    ) -> tuple[tuple[int, ...], bool, tuple[str, ...]]:
        """XIDs since the release began, whether all would have been heard, and what the driver does
        not say."""
        facts = self._fleet.facts(target.uuid)
        gpu = calls.Listed(target.pci, target.uuid)
        return (
            self._ear.xids(target.pci, outcome.began_ns),
            self._ear.heard_since(gpu, outcome.began_ns),
            () if facts is None else facts.unanswered,
        )

    # -- what is remembered ------------------------------------------------------------------------

    def _used_max(self, resource_id: str, target: Target) -> int:
        config = self._desk.config
        known = self._baselines.get(resource_id)
        if known is not None:
            return known + config.used_slack_bytes
        facts = self._fleet.facts(target.uuid)
        lumped = facts is not None and Question.RESERVED in facts.unanswered
        return config.overhead_bytes if lumped else config.used_slack_bytes

    def _note_hang(self, target: Target, error: DeviceError) -> None:
        if error.errno == errno.ETIMEDOUT:
            self._fleet.suspect(target.uuid, "a call of the driver did not return")
