# SPDX-License-Identifier: Apache-2.0
"""GPUs and MIG devices as a backend: whole devices, one lease each, closed while nobody has them.

A device is opened for its lease (nobody else there, contexts allowed), reached through the leaf's
filter and by UUID, and taken back by `reclaiming`. Each device has its own worker, its own turn and
its own answer.

Rule: what the scrub of a device came to is kept for the proof, which names it together with what it
saw itself, so that one device that is not clean fences that one; a proof without a scrub in this
run of the agent proves nothing. Whatever is nobody's is closed: at the start, and again at every
look, because a driver that is loaded anew opens all.

Does not reset GPUs and does not turn MIG on or off: operators do.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec
import trio

from leased.hardware.backend import Readied, Verdict, Wiped
from leased.hardware.calls import Surveyed
from leased.hardware.cgroup import is_populated
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.failure import failed_step
from leased.hardware.gpu import calls
from leased.hardware.gpu.desk import Desk, worker_of
from leased.hardware.gpu.ear import Ear
from leased.hardware.gpu.facts import Target
from leased.hardware.gpu.fleet import Fleet
from leased.hardware.gpu.health import is_silence
from leased.hardware.gpu.idle import Idle
from leased.hardware.gpu.leave import Leave
from leased.hardware.gpu.mps import make_pipe, remove_empty
from leased.hardware.gpu.reclaiming import Outcome, Reclaimer
from leased.hardware.gpu.survey import LATER, PREFIX, Seen, describe, why_silent
from leased.hardware.gpu.verdict import is_clean
from leased.hardware.gpu.xids import Meaning, meaning_of
from leased.hardware.gpu.xids import describe as describe_xid
from leased.hardware.instant import now_ns
from leased.hardware.remembered import Remembered
from leased.hardware.verbs import DeviceRule
from leased.ports import Access, Holder
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Absence, Allotment, Resource, ResourceKind
from leased.terms.teardown import StepReport, TeardownStep


class GpuBackend:
    """`hardware.backend.Backend` for GPUs. Hears of errors by itself (`watch`)."""

    kind = ResourceKind.GPU

    def __init__(self, crew: Crew, hardware: HardwareConfig) -> None:
        self._config = hardware.gpu
        self._ear = Ear(crew)
        self._fleet = Fleet(crew, self._config, lambda: self._ear.hears)
        self._ear.attaching_ns = self._fleet.attaching_ns
        self._desk = Desk(crew, hardware, self._fleet.attaching_ns)
        self._reclaimer = Reclaimer(self._desk, self._fleet, self._ear)
        self._idle = Idle(self._desk, self._fleet, self._reclaimer)
        self._remembered = Remembered()
        self._adopted = False
        self._leave = Leave(self._desk, self._ear)
        self._outcomes: dict[tuple[LeaseId, str], Outcome] = {}
        self._untouched: set[tuple[LeaseId, str]] = set()

    def serves(self, allotment: Allotment) -> bool:
        """Every GPU and MIG device."""
        return allotment.kind is ResourceKind.GPU

    def is_held(self, allotment: Allotment) -> bool:
        """Whether a lease has it, or is being ended on it."""
        return self._desk.is_occupied(allotment.resource_id)

    @property
    def remembered(self) -> int:
        """What is kept between the steps of teardowns that go on."""
        return len(self._outcomes) + len(self._untouched)

    # -- telemetry ---------------------------------------------------------------------------------

    def gauges(self) -> tuple[calls.Gauge, ...]:
        """What telemetry may look at: GPUs that answer, while the driver may be used."""
        return () if self._leave.taken else self._fleet.gauges()

    def indices(self) -> dict[str, int]:
        """The driver's number of the GPU that each resource is of: other programs go by it."""
        return self._fleet.indices()

    @property
    def listens(self) -> bool:
        """Whether GPUs may be kept attached."""
        return self._config.listen

    # -- what there is -----------------------------------------------------------------------------

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen, before this one looks."""
        sealed = tuple(sealed)
        self._remembered.take(sealed)
        self._reclaimer.trust(one.resource_id for one in sealed if LATER not in one.attributes)

    def recall(self, leases: Iterable[Lease]) -> None:
        """What these have, fenced ones too, is not as it was seen before them."""
        self._reclaimer.distrust(*(a.resource_id for one in leases for a in one.subject.allotments))

    async def survey(self) -> Surveyed:
        """Every GPU as it is now."""
        if not self._config.offer:
            absence = Absence(ResourceKind.GPU, "not offered: [hardware.gpu] offer = false")
            return Surveyed((), (absence,), ())
        async with self._leave.looking:
            return await self._survey()

    async def _survey(self) -> Surveyed:
        if self._leave.taken:
            why = "the driver is let go until `leasectl resume gpu`"
            absence = Absence(ResourceKind.GPU, why)
            return self._remembered.stand_in(why) or Surveyed((), (absence,), ())
        try:
            seen = await self._look()
        except DeviceError as error:
            last = self._remembered.stand_in(f"gpu: {error}")
            if last is not None and is_silence(error):
                # A survey that failed is not an empty host, and no reason to hear of nothing.
                return last
            self._ear.hear(())
            if not is_silence(error):
                self._remembered.forget()
            return await self._nothing(error)
        described = self._reclaimer.take_stock(describe(seen, self._config, self._reclaimer.dirty))
        return self._remembered.complete(described, why_silent(seen))

    async def _look(self) -> Seen:
        had = self._idle.occupied()
        seen = await self._fleet.look()
        self._ear.hear(self._fleet.listed if self._config.listen else ())
        if not self._adopted:
            return seen
        await self._idle.close()
        if await self._idle.probe_suspects():
            had |= self._idle.occupied()
            seen = await self._fleet.look()
        return self._idle.mark_squatters(seen, had)

    async def _nothing(self, error: DeviceError) -> Surveyed:
        try:
            on_bus = await self._fleet.bus()
        except DeviceError:
            on_bus = ()
        none = "not known yet" if is_silence(error) else "no GPU"
        why = f"{len(on_bus)} GPU seen on the bus; {error}" if on_bus else f"{none}: {error}"
        notes = tuple(f"gpu at {address}: on the bus, driver not usable" for address in on_bus)
        return Surveyed((), (Absence(ResourceKind.GPU, why),), notes)

    # -- grants ------------------------------------------------------------------------------------

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """Open every device; all or none."""
        rules: dict[DeviceRule, None] = {}
        evidence = hashlib.sha256()
        adopted = bool(leaf) and is_populated(leaf)
        try:
            make_pipe(self._pipe_path(lease), lease.subject.uid, lease.subject.gid)
            for allotment in allotments:
                readied = await self._open(lease, allotment.resource_id, adopted)
                rules.update(dict.fromkeys(DeviceRule(*rule) for rule in readied.rules))
                evidence.update(f"{allotment.resource_id} {readied.usage}\n".encode())
        except DeviceError:
            await self.abandon(lease, allotments)
            raise
        return Readied(tuple(rules), evidence.digest())

    async def _open(self, lease: Lease, resource_id: str, adopted: bool) -> calls.Readied:
        """`adopted`: work that was running before is in the leaf, and may have the device already;
        what an earlier tenant left there it has seen, but for a place, which is made now."""
        target = self._fleet.target(resource_id)
        async with self._desk.turn(resource_id):
            self._desk.occupy(resource_id, target, lease)
            if target.place is not None:
                target = await self._reclaimer.places.make(resource_id, target)
            call = calls.Ready(
                self._config.root,
                target,
                self._desk.guests(resource_id, target),
                self._reclaimer.closes(target),
                self._config.scan_budget_ns,
                self._reclaimer.used_before_max(target),
                self._config.settle_apart_ns,
                self._desk.leaf_of(resource_id) if adopted else "",
            )
            has_seen = adopted and target.place is None
            if not has_seen and self._reclaimer.owes(lease, resource_id):
                # Whoever is there is told by name, and not by what could not be taken.
                alone = await self._ask_ready(msgspec.structs.replace(call, sets_mode=False))
                await self._reclaimer.pay_debt(resource_id, target, alone.usage)
            readied = await self._ask_ready(call)
            if not adopted:
                self._reclaimer.note_baseline(resource_id, readied.usage)
            return readied

    async def _ask_ready(self, call: calls.Ready) -> calls.Readied:
        extra_ns = 2 * call.scan_budget_ns + call.apart_ns
        worker = worker_of(call.target)
        return await self._desk.ask(worker, "ready", call, calls.Readied, extra_ns=extra_ns)

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """CUDA's names for what was leased, container runtimes' too, and the lease's own MPS
        directory."""
        found: list[Access] = []
        for allotment in allotments:
            target = self._target_or_none(allotment)
            uuid = allotment.resource_id.removeprefix(PREFIX)
            if target is not None and target.place is not None:
                uuid = target.visible
            for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
                found.append(Access(allotment.resource_id, name, uuid))
        if allotments:
            first, pipe = allotments[0].resource_id, self._pipe_path(lease)
            found.append(Access(first, "CUDA_MPS_PIPE_DIRECTORY", pipe))
            found.append(Access(first, "CUDA_MPS_LOG_DIRECTORY", pipe))
        return tuple(found)

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """No descriptor: the holder opens the nodes itself, from inside its leaf."""
        return None

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Close what was opened. The lease's end will find nothing to do: nobody was there."""
        for allotment in allotments:
            resource_id = allotment.resource_id
            self._untouched.add((lease.lease_id, resource_id))
            async with self._desk.turn(resource_id):
                target = self._target_or_none(allotment)
                if target is not None and self._desk.holds(resource_id, lease):
                    if target.place is not None:
                        await self._reclaimer.places.unmake(resource_id, target)
                    await self._reclaimer.close(target)
                    self._desk.vacate(resource_id, lease)
        await self._remove_pipe(lease)

    # -- teardown ----------------------------------------------------------------------------------

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """Release and overwrite every device. Clean in the sense of `Wiped` whatever came of it:
        what failed is kept, and named by `prove` for its own device alone."""
        outcomes: list[Outcome] = []

        async def one(resource_id: str) -> None:
            outcome = await self._reclaim(lease, resource_id)
            self._outcomes[lease.lease_id, resource_id] = outcome
            outcomes.append(outcome)

        async with trio.open_nursery() as nursery:
            for allotment in allotments:
                nursery.start_soon(one, allotment.resource_id)
        await self._remove_pipe(lease)
        steps = tuple(step for outcome in outcomes for step in outcome.steps)
        return Wiped(sum(one.scrubbed_bytes for one in outcomes), clean=True, steps=steps)

    async def _reclaim(self, lease: Lease, resource_id: str) -> Outcome:
        began_ns = now_ns()
        if (lease.lease_id, resource_id) in self._untouched:
            return Outcome((StepReport(TeardownStep.PREPARE, 0, began_ns, began_ns),), began_ns, 0)
        try:
            target = self._fleet.target(resource_id)
            async with self._desk.turn(resource_id):
                self._desk.keep(resource_id, target, lease)
                return await self._reclaimer.reclaim(lease, resource_id, target)
        except DeviceError as error:
            failed = failed_step(TeardownStep.RELEASE, error, began_ns)
            return Outcome((failed,), began_ns, 0)

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Each device by itself: what its scrub came to, and what a witness sees."""
        unproven: dict[Allotment, int] = {}
        steps: list[StepReport] = []

        async def one(allotment: Allotment) -> None:
            told = await self._prove(lease, allotment.resource_id)
            steps.extend(told)
            if not is_clean(told):
                unproven[allotment] = allotment.capacity

        async with trio.open_nursery() as nursery:
            for allotment in allotments:
                nursery.start_soon(one, allotment)
        return Verdict(unproven, tuple(steps))

    async def _prove(self, lease: Lease, resource_id: str) -> tuple[StepReport, ...]:
        outcome = self._outcomes.pop((lease.lease_id, resource_id), None)
        if (lease.lease_id, resource_id) in self._untouched and outcome is not None:
            self._untouched.discard((lease.lease_id, resource_id))
            return outcome.steps
        try:
            if outcome is None:
                raise DeviceError("gpu_prove", errno.ENODATA, "not scrubbed in this run")
            if not outcome.clean:
                return outcome.steps
            target = self._fleet.target(resource_id)
            async with self._desk.turn(resource_id):
                told = await self._reclaimer.witness(resource_id, target, outcome)
            if is_clean(told):
                self._fleet.trust(target.uuid)
            return told
        except DeviceError as error:
            return (failed_step(TeardownStep.WITNESS, error, now_ns()),)
        finally:
            self._desk.vacate(resource_id, lease)

    # -- beside grants -----------------------------------------------------------------------------

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Whoever has a node open or mapped, and whoever the driver lists."""
        if not self._config.offer:
            return ()
        if self._leave.taken:
            return await self._leave.anybody()
        target = self._fleet.target(allotment.resource_id)
        guests = self._desk.guests(allotment.resource_id, target)
        budget_ns = self._config.scan_budget_ns
        call = calls.Who(self._config.root, target, guests.exempt, budget_ns)
        worker = f"gpu who {target.visible}"
        present = await self._desk.ask(worker, "who", call, calls.Present, extra_ns=budget_ns)
        found = [Holder(one.pid, one.uid, one.name, one.via) for one in present.openers]
        named = {one.pid: one for one in present.openers}
        for pid in present.contexts:
            known = named.get(pid)
            uid, name = (known.uid, known.name) if known is not None else (-1, "")
            found.append(Holder(pid, uid, name, "driver"))
        return tuple(found)

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Their devices stay open; every other one is closed."""
        for lease in leases:
            for allotment in lease.subject.allotments:
                if self.serves(allotment):
                    self._desk.occupy(allotment.resource_id, self._target_or_none(allotment), lease)
        self._adopted = True
        if self._config.offer and not self._leave.taken:
            await self._idle.close()

    async def let_go(self) -> tuple[Holder, ...]:
        """Nothing of ours has the driver from here on; who else has."""
        return await self._leave.begin()

    async def take_up(self) -> None:
        """Look again, and hear again, from the next look on."""
        self._leave.end()

    async def watch(self, noticed: Callable[[], None]) -> None:
        """Hear of errors until cancelled."""

        def tell(pci: str, xid: int) -> None:
            uuid = self._fleet.at(pci)
            why = describe_xid(xid) if xid else "the driver reported an error of the hardware"
            if uuid and xid and meaning_of(xid) is Meaning.LOST:
                self._fleet.lose(uuid, why)
            elif uuid:
                self._fleet.suspect(uuid, f"{why}; it is probed when it is free")
            noticed()

        if self._config.offer and self._config.listen:
            await self._ear.run(tell)

    # -- parts -------------------------------------------------------------------------------------

    def _target_or_none(self, allotment: Allotment) -> Target | None:
        with suppress(DeviceError):
            return self._fleet.target(allotment.resource_id)
        return None

    def _pipe_path(self, lease: Lease) -> str:
        return f"{self._config.mps_dir}/{lease.lease_id.hex()}"

    async def _remove_pipe(self, lease: Lease) -> None:
        path = self._pipe_path(lease)
        if not remove_empty(path):
            with suppress(DeviceError):  # it is nobody else's to enter, and its owner is gone
                await self._desk.ask(f"gpu pipe {path}", "remove", calls.Pipe(path), calls.Nothing)
