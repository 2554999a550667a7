# SPDX-License-Identifier: Apache-2.0
"""The fleet: the GPUs of this host as the agent knows them, looked at through workers.

Rule: all GPUs are asked in one worker while they answer. When that hangs, each is asked in its own,
so that one sick GPU costs only itself; one that hangs is not asked again before the worker that
hangs on it has gone. A GPU that was seen keeps its last facts while it does not answer, and is sick
or gone meanwhile; one that the driver no longer counts is not there. What was heard or suspected of
a GPU stays until somebody vouches for it (`trust`).

Does not open, close or scrub anything.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from leased.hardware.crew import Crew
from leased.hardware.gpu.calls import Bus, Examine, Examined, Gauge, Listed, Listing, Where
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import Gpu, Instance, Target
from leased.hardware.gpu.health import WELL, Finding, is_silence, judge_fault, judge_gpu
from leased.hardware.gpu.survey import Seen, targets
from leased.hardware.gpu.survey import resource_id as whole_id
from leased.terms.errors import DeviceError
from leased.terms.resource import Health

WORKER: Final = "gpu survey"
_NOBODY_ANSWERS: Final = (errno.ETIMEDOUT, errno.EPIPE, errno.ECONNRESET)


class Fleet:
    """What is known of the GPUs."""

    def __init__(self, crew: Crew, config: GpuConfig, are_kept: Callable[[], bool]) -> None:
        """`are_kept`: whether somebody of ours keeps all GPUs attached."""
        self._crew = crew
        self._config = config
        self._are_kept = are_kept
        self._listing: Listing | None = None
        self._facts: dict[str, Gpu] = {}
        self._targets: dict[str, Target] = {}
        self._hung: dict[str, None] = {}
        self._suspects: dict[str, str] = {}
        self._lost: set[str] = set()
        self._placed: set[str] = set()
        self.seen = Seen()

    @property
    def listed(self) -> tuple[Listed, ...]:
        """The GPUs that the driver counted last."""
        return () if self._listing is None else self._listing.gpus

    def place(self, resource_id: str, instance: Instance | None) -> Target:
        """An instance was made at a resource's place, or is there no more; the target now."""
        changed = msgspec.structs.replace(self.target(resource_id), instance=instance)
        self._targets[resource_id] = changed
        self._placed.add(resource_id)
        return changed

    @property
    def made_places(self) -> tuple[str, ...]:
        """Places at which there is an instance."""
        return tuple(
            resource_id
            for resource_id, target in self._targets.items()
            if target.place is not None and target.instance is not None
        )

    @property
    def resource_ids(self) -> tuple[str, ...]:
        """Everything that could be leased."""
        return tuple(self._targets)

    def target(self, resource_id: str) -> Target:
        """What a resource is, as it was seen last. Raises DeviceError(ENODEV)."""
        try:
            return self._targets[resource_id]
        except KeyError:
            detail = f"{resource_id} has not been seen since the agent started"
            raise DeviceError("gpu_target", errno.ENODEV, detail) from None

    def facts(self, uuid: str) -> Gpu | None:
        """The last there were of a GPU."""
        return self._facts.get(uuid)

    def at(self, pci: str) -> str:
        """The UUID of the GPU at an address; "" if none was seen there."""
        return next((gpu.uuid for gpu in self._facts.values() if gpu.pci == pci), "")

    def suspect(self, uuid: str, why: str) -> None:
        """Grant nothing of it until somebody vouches for it."""
        self._suspects[uuid] = why

    def lose(self, uuid: str, why: str) -> None:
        """The driver told of its end: whatever fails of it from here on is because it is gone."""
        self.suspect(uuid, why)
        self._lost.add(uuid)

    def trust(self, uuid: str) -> None:
        """It was probed, or proven clean: what was suspected is over."""
        self._suspects.pop(uuid, None)
        self._lost.discard(uuid)

    @property
    def suspects(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that answer, seem well, and are not trusted."""
        return tuple(
            gpu.uuid
            for gpu in self.seen.gpus
            if gpu.uuid in self._suspects and judge_gpu(gpu) == WELL
        )

    def gauges(self) -> tuple[Gauge, ...]:
        """How to look at what each GPU does that can be leased, or of which a part can."""
        found: list[Gauge] = []
        for gpu in self.seen.gpus:
            if gpu.pci in self._hung:
                continue
            parts = tuple(
                (resource_id, target.instance.gpu_instance)
                for resource_id, target in self._targets.items()
                if target.uuid == gpu.uuid and target.instance is not None
            )
            name = whole_id(gpu.uuid)
            found.append(Gauge(name, gpu.pci, gpu.uuid, gpu.mig_enabled, parts))
        return tuple(found)

    def indices(self) -> dict[str, int]:
        """The driver's number of the GPU that each resource is of, as of the last listing."""
        order = {one.uuid: index for index, one in enumerate(self.listed) if one.uuid}
        return {
            resource_id: order[target.uuid]
            for resource_id, target in self._targets.items()
            if target.uuid in order
        }

    async def look(self) -> Seen:
        """Everything asked anew. Raises DeviceError where the driver itself says that there is
        nothing, or nobody ever answered."""
        self._placed.clear()
        listing = await self._list()
        calm = [one for one in listing.gpus if not one.errno and one.pci not in self._hung]
        alone = [one for one in listing.gpus if not one.errno and one.pci in self._hung]
        try:
            answers = [await self._examine(WORKER, listing, calm)]
        except DeviceError:
            answers, alone = [], [*calm, *alone]
        finally:
            self._crew.dismiss(WORKER)
        answers += await self._examine_each(listing, alone)
        self.seen = self._put_together(listing, answers)
        found = targets(self.seen.gpus, self._config.mig_layout)
        # What was made or destroyed since this look began it may have seen as it was before.
        kept = {one: self._targets[one] for one in self._placed}
        self._targets.update(found | kept)
        return self.seen

    async def bus(self) -> tuple[str, ...]:
        """The GPUs on the bus, driver or no driver. Raises DeviceError."""
        try:
            where = Where(self._config.root)
            return (await self._crew.task(WORKER, "gpu", "bus", where, Bus)).addresses
        finally:
            self._crew.dismiss(WORKER)

    # -- asking ------------------------------------------------------------------------------------

    def attaching_ns(self) -> int:
        """How much longer a first answer may take: before it the driver initialises every GPU that
        nobody has."""
        gpus = self.seen.gpus
        kept = self._are_kept() or (gpus and all(gpu.persistent for gpu in gpus))
        return 0 if kept else self._config.attach_budget_ns

    async def _list(self) -> Listing:
        try:
            if self._crew.is_stuck(WORKER):
                raise DeviceError("gpu_list", errno.ETIMEDOUT, "an earlier call still hangs")
            await self._crew.stand_ready(WORKER, "gpu")
            where = Where(self._config.root)
            self._listing = await self._crew.task(
                WORKER, "gpu", "list", where, Listing, extra_ns=self.attaching_ns()
            )
        except DeviceError as error:
            if is_silence(error):  # else it is asked what is on the bus
                self._crew.dismiss(WORKER)
            asked = error.verb != "worker_answer" or error.errno in _NOBODY_ANSWERS
            if self._listing is None or not asked or not is_silence(error):
                if not is_silence(error):
                    self._listing = None
                    self.seen = Seen()
                raise
            # It hangs or fails on one of them: each is asked by itself, at the address it had.
            self._hung.update(dict.fromkeys(one.pci for one in self._listing.gpus))
        return self._listing

    async def _examine_each(self, listing: Listing, gpus: Sequence[Listed]) -> list[Examined]:
        answers: list[Examined] = []

        async def one(gpu: Listed) -> None:
            name = f"gpu look {gpu.pci}"
            try:
                if self._crew.is_stuck(name):
                    raise DeviceError("gpu_look", errno.ETIMEDOUT, "an earlier call still hangs")
                answers.append(await self._examine(name, listing, [gpu], self.attaching_ns()))
                self._hung.pop(gpu.pci, None)
            except DeviceError as error:
                if error.errno == errno.ETIMEDOUT:
                    self._hung[gpu.pci] = None
                    self.suspect(gpu.uuid, "a call of the driver did not return")
                fault = Listed(gpu.pci, gpu.uuid, error.errno, error.detail)
                answers.append(Examined((), (fault,)))
            finally:
                self._crew.dismiss(name)

        async with trio.open_nursery() as nursery:
            for gpu in gpus:
                nursery.start_soon(one, gpu)
        return answers

    async def _examine(
        self, name: str, listing: Listing, gpus: Sequence[Listed], extra_ns: int = 0
    ) -> Examined:
        if not gpus:
            return Examined((), ())
        await self._crew.stand_ready(name, "gpu")
        call = Examine(self._config.root, listing.driver, tuple(gpus))
        return await self._crew.task(name, "gpu", "examine", call, Examined, extra_ns=extra_ns)

    # -- putting together --------------------------------------------------------------------------

    def _put_together(self, listing: Listing, answers: Sequence[Examined]) -> Seen:
        fresh = {gpu.uuid: gpu for answer in answers for gpu in answer.gpus}
        self._facts.update(fresh)
        faults = [fault for answer in answers for fault in answer.faults]
        faults += [one for one in listing.gpus if one.errno]
        findings: dict[str, Finding] = {}
        gpus = dict(fresh)
        strangers: list[Listed] = []
        for fault in faults:
            known = self._known(fault, gpus)
            if known is None:
                strangers.append(fault)
                continue
            gpus[known.uuid] = known
            findings[known.uuid] = judge_fault(fault.errno, fault.fault)
            if known.uuid in self._lost and fault.errno != errno.ETIMEDOUT:
                findings[known.uuid] = Finding(Health.GONE, self._suspects[known.uuid])
        for uuid, gpu in fresh.items():
            finding = judge_gpu(gpu)
            if finding == WELL and uuid in self._suspects:
                finding = Finding(Health.SICK, self._suspects[uuid])
            if finding != WELL:
                findings[uuid] = finding
        ordered = tuple(sorted(gpus.values(), key=lambda gpu: gpu.pci))
        return Seen(ordered, findings, tuple(strangers), listing.real)

    def _known(self, fault: Listed, taken: dict[str, Gpu]) -> Gpu | None:
        """The GPU that a fault is of. A lost one may not even tell its address: then it is one of
        those that were seen last and are missing now."""
        for gpu in self.seen.gpus:
            if gpu.uuid in taken:
                continue
            if fault.uuid == gpu.uuid or fault.pci == gpu.pci or not (fault.uuid or fault.pci):
                return gpu
        return None
