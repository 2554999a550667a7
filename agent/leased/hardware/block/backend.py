# SPDX-License-Identifier: Apache-2.0
"""NVMe namespaces, as `fittings` drives them.

A namespace is leased whole, as a device-mapper device: encrypted with a key that ends with the
lease, or (`raw`) as it is. Either way what the tenant has can be cut: at the deadline the reaper
swaps the mapping's table for `error`, with the agent alive or dead, and every descriptor of it gets
EIO from then on, wherever it is.

Rule: a namespace is found anew by its identity for each step, and a mapping by the uuid that
follows from its lease, so nothing has to be remembered over a restart. What is remembered is what
drives said of themselves, as long as they are the same drives. Drives share a few workers, and what
takes a drive long has one of its own, so one that hangs delays few others.

Does not read sysfs, open a device or ask a drive: its workers do (`carrying`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import trio

from leased.hardware.backend import Readied, Verdict, Wiped
from leased.hardware.block import calls
from leased.hardware.block.asking import ask_clean, ask_prove, ask_ready, mappings_of
from leased.hardware.block.bounds import erase_extra_ns
from leased.hardware.block.calls import Examined
from leased.hardware.block.config import Offer
from leased.hardware.block.desk import CLEANING, EXAMINING, PROOF, SURVEYOR, Desk
from leased.hardware.block.names import (
    identity_in,
    is_raw,
    lease_in,
    mapping_name,
    mapping_path,
    mapping_uuid,
    name_of,
    number_of,
)
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.survey import ERASED, absent, candidates, survey, why_silent
from leased.hardware.block.wanted import Wanted
from leased.hardware.calls import Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.failure import failed_step
from leased.hardware.instant import now_ns
from leased.hardware.remembered import Remembered
from leased.hardware.verbs import ACCESS_READ, ACCESS_WRITE, DEVICE_BLOCK, DeviceRule
from leased.ports import Access, Holder, ObjectKind, Revocable
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.resource import Allotment, Resource, ResourceKind
from leased.terms.teardown import StepReport, TeardownStep

ACCESS_NAME: Final = "LEASE_BLOCK_"
SCAN_BUDGET_NS: Final = 2_000_000_000
_EVIDENCE: Final = struct.Struct("<IIIQI")


class BlockBackend:
    """See above."""

    kind = ResourceKind.BLOCK

    def __init__(self, crew: Crew, config: HardwareConfig) -> None:
        self._crew = crew
        self._desk = Desk(crew)
        self.lines = self._desk.lines  # `hardware.backend.Queues`
        self._hardware = config
        self._config = config.block
        self._remembered = Remembered()
        self._wanted = Wanted(config.block)
        self._known: dict[tuple[str, int, str], Examined] = {}
        self._outcomes: dict[tuple[LeaseId, str], calls.Cleaned] = {}
        self._marked: dict[str, LeaseId] = {}
        self._mapped: dict[str, str] = {}  # by which mapping it is had, until its end has begun
        self._own: set[LeaseId] = set()
        self._swept = True
        self._erased: set[str] = set()
        """What may be had as it is: that it was erased is proven, and sealed with the inventory."""

    def serves(self, allotment: Allotment) -> bool:
        """Every namespace."""
        return allotment.kind is ResourceKind.BLOCK

    # -- seeing ------------------------------------------------------------------------------------

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen, before this one looks."""
        sealed = tuple(sealed)
        self._remembered.take(sealed)
        self._erased = {
            identity_in(one.resource_id) for one in sealed if ERASED in one.attributes
        }

    async def survey(self) -> Surveyed:
        """Which namespaces may be leased, and why the others may not."""
        if self._config.offer is Offer.NONE:
            return absent('not offered: [hardware.block] offer = "none"')
        try:
            mapped = set(self._mapped.items())
            seen, troubles = await self._look()
            mapped &= self._mapped.items()
            offered, notes = candidates(seen, self._config, self._marked, mapped)
            self._desk.learn(seen.namespaces)
            leased = {use.number for use in seen.uses if use.uuid}
            examined = await self._examine(offered, leased)
        except DeviceError as error:
            # A survey that failed is not an empty host.
            failed = f"no namespace: {error}"
            return self._remembered.stand_in(failed) or absent(failed)
        finally:
            self._crew.dismiss(SURVEYOR)
        told = (*notes, *troubles, *await self._sweep())
        found = survey(offered, examined, self._config, told, self._erased)
        why = {one: said for one, said in examined.items() if isinstance(said, str)}
        return self._remembered.complete(found, lambda it: why.get(identity_in(it.resource_id), ""))

    async def _look(self) -> tuple[calls.Seen, tuple[str, ...]]:
        asked = self._wanted.by_drive()
        arranged, silent = await self._desk.apart("arrange", asked, calls.Arranged)
        troubles = (*silent, *self._wanted.learn(arranged))
        # Its worker is a new one each time.
        return await self._desk.look(SURVEYOR, "look", calls.Look(), calls.Seen), troubles

    async def _examine(
        self, offered: dict[str, Namespace], leased: set[tuple[int, int]]
    ) -> dict[str, Examined | str]:
        """What each drive says, asked while nobody leases it; drives at the same time."""
        found: dict[str, Examined | str] = {}

        async def one(namespace: Namespace) -> None:
            ours = namespace.number in leased
            found[namespace.identity] = await self._examined(namespace, ours=ours)

        async with trio.open_nursery() as nursery:
            for namespace in offered.values():
                nursery.start_soon(one, namespace)
        return found

    async def _examined(self, namespace: Namespace, *, ours: bool) -> Examined | str:
        key = (namespace.identity, namespace.diskseq, namespace.firmware)
        known = self._known.get(key)
        # What a lease left there and could not be erased (the drive was away) is nobody's.
        marked = namespace.identity in self._marked
        contents = self._config.offer is Offer.UNUSED and not ours and not marked
        if known is not None and (ours or marked):  # its health is for whoever comes next
            return known
        asked = calls.Examine(namespace.identity, contents)
        worker = self._desk.worker(namespace.identity, EXAMINING)
        try:
            async with self._desk.turn(namespace.identity):
                fresh = await self._desk.look(worker, "examine", asked, Examined)
        except DeviceError as error:
            if known is None:
                return why_silent(error)
            # Whoever has it keeps it: what a drive that hangs does is seen at the teardown.
            return msgspec.structs.replace(known, sick=why_silent(error))
        # It may have been leased since we looked, and then it is our own mapping that has it.
        if ours or namespace.identity in self._marked:
            fresh = msgspec.structs.replace(fresh, busy=False)
        if not fresh.busy:
            self._known[key] = fresh
        return fresh

    # -- the grant ---------------------------------------------------------------------------------

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """One mapping per namespace, for the holder's uid. Raises DeviceError."""
        self._own.add(lease.lease_id)
        rules: list[DeviceRule] = []
        objects: list[Revocable] = []
        evidence = b""
        done: list[Allotment] = []
        try:
            for allotment in allotments:
                made = await self._ready(lease, allotment)
                done.append(allotment)
                rules.append(DeviceRule(DEVICE_BLOCK, ACCESS_READ | ACCESS_WRITE, *made.number))
                objects.append(Revocable(ObjectKind.DM, number_of(lease, allotment)))
                evidence += _EVIDENCE.pack(*made.number, made.nsid, made.diskseq, made.checked)
        except DeviceError:
            await self.abandon(lease, done)
            raise
        await self._desk.stand_ready(allotments)
        return Readied(tuple(rules), evidence, tuple(objects))

    async def _ready(self, lease: Lease, allotment: Allotment) -> calls.Readied:
        asked = ask_ready(self._config, lease, allotment)
        identity = asked.identity
        if asked.raw and identity not in self._erased:
            await self._clear(lease, allotment, asked)
        async with self._desk.turn(identity):
            try:
                worker = self._desk.worker(identity)
                made = await self._desk.ask(worker, "ready", asked, calls.Readied)
            except DeviceError as error:
                if error.verb not in (calls.NOT_BEGUN, "worker_answer"):
                    self._marked[identity] = lease.lease_id
                raise
            self._marked[identity], self._mapped[identity] = lease.lease_id, asked.uuid
        if asked.raw:
            self._erased.discard(identity)  # whatever becomes of its end: it may be broken off
        return made

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """The path of each mapping, in the order of the allotments."""
        return tuple(
            Access(
                allotment.resource_id,
                f"{ACCESS_NAME}{number_of(lease, allotment)}",
                mapping_path(lease.lease_id, number_of(lease, allotment)),
            )
            for allotment in allotments
        )

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """A descriptor of the mapping: worth as much as the lease, and nothing after it."""
        path = mapping_path(lease.lease_id, number_of(lease, allotment))
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Take back mappings that nobody ever had."""
        for allotment in reversed(allotments):
            self._mapped.pop(identity_in(allotment.resource_id), None)
            of, number = lease.lease_id, number_of(lease, allotment)
            asked = calls.Undo(mapping_uuid(of, number), mapping_name(of, number))
            try:
                worker = self._desk.worker(identity_in(allotment.resource_id))
                await self._desk.ask(worker, "undo", asked, calls.Nothing)
            except DeviceError:
                continue  # the teardown that follows finds it, and fences what it cannot end

    # -- the end -----------------------------------------------------------------------------------

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """End each mapping, if the reaper has not, and erase its namespace. Clean in the sense of
        `Wiped` whatever came of it: what failed is kept, and named by `prove` for its own namespace
        alone."""
        done: list[calls.Cleaned] = []

        async def one(allotment: Allotment) -> None:
            self._mapped.pop(identity_in(allotment.resource_id), None)
            if self._is_untouched(lease, allotment):
                await self.abandon(lease, [allotment])
                return
            began_ns = now_ns()
            try:
                outcome = await self._clean(lease, allotment)
            except DeviceError as error:
                failed = failed_step(TeardownStep.SCRUB, error, began_ns)
                outcome = calls.Cleaned(False, 0, "", (failed,))
            self._outcomes[lease.lease_id, allotment.resource_id] = outcome
            done.append(outcome)

        await self._desk.each(allotments, one)
        steps = tuple(step for outcome in done for step in outcome.steps)
        return Wiped(sum(outcome.erased_bytes for outcome in done), clean=True, steps=steps)

    def _is_untouched(self, lease: Lease, allotment: Allotment) -> bool:
        """Whether a grant failed, or was too late, and nothing is known to have been written to
        the namespace: what is on it is not ours to erase, and no tenant's."""
        made = lease.activated and lease.reason is not RevocationReason.GRANT_FAILED
        return not made and self._marked.get(identity_in(allotment.resource_id)) != lease.lease_id

    async def _clean(self, lease: Lease, allotment: Allotment) -> calls.Cleaned:
        asked = ask_clean(self._config, lease, allotment)
        # Not behind a survey that asks the drive about its other namespaces.
        alone = f"block erase {asked.identity}" if asked.ways else ""
        worker = alone or self._desk.worker(asked.identity, CLEANING)
        extra_ns = self._erase_extra_ns(asked)
        try:
            return await self._crew.task_again(
                worker, "block", "clean", asked, calls.Cleaned, extra_ns=extra_ns
            )
        finally:
            if alone:
                self._crew.dismiss(alone)

    def _erase_extra_ns(self, asked: calls.Clean) -> int:
        return asked.settle_ns + erase_extra_ns(self._hardware, asked.size_bytes, raw=asked.raw)

    async def _clear(self, lease: Lease, allotment: Allotment, ready: calls.Ready) -> None:
        """Erase what nobody has proven erased, as far as this log tells, before somebody has the
        namespace as it is. Raises DeviceError; the teardown erases again what was begun."""
        identity, asked = ready.identity, ask_clean(self._config, lease, allotment)
        before, self._marked[identity] = self._marked.get(identity), lease.lease_id
        worker, extra_ns = f"block erase {identity}", self._erase_extra_ns(asked)
        try:
            cleared = calls.Clear(ready, asked)
            done = await self._desk.ask(worker, "clear", cleared, calls.Cleaned, extra_ns)
        except DeviceError as error:
            if error.verb in (calls.NOT_BEGUN, "worker_answer"):
                del self._marked[identity]  # it may be somebody's: tried again with the next lease
                self._marked |= {} if before is None else {identity: before}
            raise
        finally:
            self._crew.dismiss(worker)
        self._outcomes[lease.lease_id, allotment.resource_id] = done
        proven = await self._prove(lease, allotment)
        failed = next((step.errno for step in (*done.steps, *proven.steps) if step.errno), 0)
        if failed or not proven.clean:
            why = f"{identity}: what was there before could not be erased"
            raise DeviceError("block_erase", failed, why)
        self._erased.add(identity)

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Ask the kernel and the drive, in other processes than the scrub's."""
        unproven: dict[Allotment, int] = {}
        steps: list[StepReport] = []

        async def one(allotment: Allotment) -> None:
            began_ns = now_ns()
            try:
                proven = await self._prove(lease, allotment)
            except DeviceError as error:
                proven = calls.Proven(False, (failed_step(TeardownStep.WORKER, error, began_ns),))
            steps.extend(proven.steps)
            identity = identity_in(allotment.resource_id)
            if not proven.clean:
                self._erased.discard(identity)
                unproven[allotment] = allotment.capacity
                return
            if is_raw(allotment) and not self._is_untouched(lease, allotment):
                self._erased.add(identity)
            self._marked.pop(identity, None)

        await self._desk.each(allotments, one)
        if not unproven:
            self._own.discard(lease.lease_id)
        return Verdict(unproven, tuple(steps))

    async def _prove(self, lease: Lease, allotment: Allotment) -> calls.Proven:
        identity, key = identity_in(allotment.resource_id), (lease.lease_id, allotment.resource_id)
        outcome = self._outcomes.get(key)
        if outcome is not None and not outcome.clean:  # however often it is asked
            return calls.Proven(False, tuple(step for step in outcome.steps if step.errno))
        self._outcomes.pop(key, None)
        untouched = self._is_untouched(lease, allotment)
        asked = ask_prove(self._config, lease, allotment, outcome, untouched=untouched)
        worker = self._desk.worker(identity, PROOF)
        return await self._crew.task_again(
            worker, "block", "prove", asked, calls.Proven, extra_ns=asked.settle_ns
        )

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Whoever has the namespace or a mapping of it, and what of the kernel is on top of it."""
        identity = identity_in(allotment.resource_id)
        asked = calls.Ask(identity, self._crew.ours(), SCAN_BUDGET_NS)
        found = await self._desk.ask("block who", "find", asked, calls.Users, SCAN_BUDGET_NS)
        return tuple(
            Holder(one.pid, one.uid, one.name, one.via, resource_id=allotment.resource_id)
            for one in found.users
        )

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Their mappings go on; every other one of ours is ended."""
        self.recall(leases := tuple(leases))
        self._own |= {lease.lease_id for lease in leases}
        self._mapped |= mappings_of(leases)
        self._swept = self._config.offer is Offer.NONE and not self._marked
        await self._sweep()

    def recall(self, leases: Iterable[Lease]) -> None:
        """What is on the namespaces of these, fenced ones too, was left there by them."""
        for lease in leases:
            for allotment in filter(self.serves, lease.subject.allotments):
                identity = identity_in(allotment.resource_id)
                self._marked[identity] = lease.lease_id
                if is_raw(allotment):  # without its key the other is noise
                    self._erased.discard(identity)

    async def _sweep(self) -> list[str]:
        """End the mappings that are no lease's; with each survey until that has been done. What to
        tell of it. Whose they are is asked when they have been listed: a lease is known before its
        mapping is."""
        if self._swept:
            return []
        try:
            found = await self._desk.ask("block 0", "list", calls.Nothing(), calls.Mapped)
        except DeviceError:
            return []  # where there is no device-mapper nothing is left; else the next survey asks
        strays = [uuid for uuid in found.uuids if lease_in(uuid) not in self._own]
        self._swept, left = True, list[str]()
        for uuid in strays:
            try:
                undone = calls.Undo(uuid, name_of(uuid))
                await self._desk.ask("block 0", "undo", undone, calls.Nothing)
            except DeviceError as error:  # one that hangs keeps none of the others
                left.append(f"{name_of(uuid)} is no lease's and was not ended ({error})")
        self._swept = not left
        return left
