# SPDX-License-Identifier: Apache-2.0
"""Idle: what is done with GPUs while nobody leases them: closed, probed where they are suspected,
and not granted while somebody uses them all the same.

Rule: a device whose turn it is, or that a lease has, is left alone. What fails is tried again at
the next look.

Does not look by itself (`fleet`).
"""

from __future__ import annotations

import msgspec
import trio

from leased.hardware.gpu.desk import Desk
from leased.hardware.gpu.facts import ComputeMode, Gpu, Usage, target_of
from leased.hardware.gpu.fleet import Fleet
from leased.hardware.gpu.health import Finding
from leased.hardware.gpu.reclaiming import Reclaimer
from leased.hardware.gpu.survey import PREFIX, Seen
from leased.hardware.gpu.verdict import is_clean
from leased.terms.errors import DeviceError
from leased.terms.resource import Health


class Idle:
    """Looks after what nobody has."""

    def __init__(self, desk: Desk, fleet: Fleet, reclaimer: Reclaimer) -> None:
        self._desk = desk
        self._fleet = fleet
        self._reclaimer = reclaimer

    async def close(self) -> None:
        """Close what nobody has and is open (the driver was loaded anew, or somebody did), and
        take away the MIG devices that were made for leases that are no more."""

        async def close(resource_id: str) -> None:
            async with self._desk.turn(resource_id):
                if not self._desk.leaf_of(resource_id):  # nobody was faster
                    await self._reclaimer.close(self._fleet.target(resource_id))

        async def unmake(resource_id: str) -> None:
            async with self._desk.turn(resource_id):
                target = self._fleet.target(resource_id)
                if not self._desk.leaf_of(resource_id) and target.instance is not None:
                    self._reclaimer.distrust(resource_id)
                    await self._reclaimer.places.unmake(resource_id, target)

        async with trio.open_nursery() as nursery:
            for gpu in self._fleet.seen.gpus:
                resource_id = f"{PREFIX}{gpu.uuid}"
                closed = gpu.mig_enabled or gpu.compute_mode == ComputeMode.PROHIBITED
                if not closed and not self._desk.is_occupied(resource_id):
                    nursery.start_soon(close, resource_id)
            for resource_id in self._fleet.made_places:
                if not self._desk.is_occupied(resource_id):
                    nursery.start_soon(unmake, resource_id)

    async def probe_suspects(self) -> bool:
        """Take whole what nobody has and is suspected; whether anything is trusted again."""
        trusted = False
        for uuid in self._fleet.suspects:
            facts, resource_id = self._fleet.facts(uuid), f"{PREFIX}{uuid}"
            assert facts is not None
            if facts.mig_enabled:
                # It answers and seems well, and its MIG devices are taken one by one at each end.
                self._fleet.trust(uuid)
                trusted = True
            elif not self._desk.is_occupied(resource_id):
                async with self._desk.turn(resource_id):
                    trusted |= await self._probe(resource_id, facts.memory)
        return trusted

    async def _probe(self, resource_id: str, seen: Usage) -> bool:
        """Whether all of it can be had. Directly after a worker was killed in a driver's call that
        may still be too soon: what the worker had is let go of in the driver's own time."""
        target = self._fleet.target(resource_id)
        usage = self._reclaimer.without_holders(resource_id, target, seen)
        try:
            done = await self._reclaimer.scrub(target, usage, writes=False)
        except DeviceError as error:
            self._fleet.suspect(target.uuid, f"a probe failed: {error.detail}")
            return False
        if is_clean(done.steps):
            self._fleet.trust(target.uuid)
        return is_clean(done.steps)

    def occupied(self) -> frozenset[str]:
        """What a lease has now, or is being ended on."""
        return frozenset(filter(self._desk.is_occupied, self._fleet.resource_ids))

    def mark_squatters(self, seen: Seen, had: frozenset[str]) -> Seen:
        """A GPU that somebody uses without a lease is not granted while he does. `had` is what was
        occupied when the look began: who was seen there was the lease's, though it is over now."""
        findings = dict(seen.findings)
        for gpu in seen.gpus:
            resource_id = f"{PREFIX}{gpu.uuid}"
            why = "" if gpu.mig_enabled or gpu.uuid in findings else self._who_uses(gpu)
            if why and not self._desk.is_occupied(resource_id) and resource_id not in had:
                findings[gpu.uuid] = Finding(Health.BUSY, why)
        return msgspec.structs.replace(seen, findings=findings)

    def _who_uses(self, gpu: Gpu) -> str:
        """In words; "" if nobody does."""
        if gpu.processes:
            return "in use by processes without a lease"
        if gpu.memory.used_bytes > self._reclaimer.used_before_max(target_of(gpu)):
            return "memory of it is in use, and nobody is seen to have it: a reset gives it back"
        return ""
