# SPDX-License-Identifier: Apache-2.0
"""Devices: `ports.Device` on this host, by worker processes.

Who works: one worker prepares small grants and leaves, one scrubs small leases, each hugepage pool
has its own (so that its counters are compared in order), a few take large leases, and two
short-lived ones survey the host. A lease waits for nobody's large one, except in the same pool.

What a tenant gets is `handout`, never the descriptors in `Prepared`: those are for the agent and
the reaper to keep (why: `exclusion`). A lease whose memory was never given out by `handout` is
scrubbed all the same, after a search of the whole host.

Rule: each answer stands in the place of its lease; one that fails spoils no other, and leaves
nothing behind or is reported. Does not decide what is fenced: it names what is unproven.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence

import trio

from leased.hardware.adopting import Adoptions
from leased.hardware.adoption.strays import Stray, Sweep, Swept
from leased.hardware.backend import Backend, Detachable, Watchful
from leased.hardware.backends import make_backends
from leased.hardware.bounds import bounds_of
from leased.hardware.calls import (
    CgroupFacts,
    Found,
    Founded,
    Join,
    Surveyed,
)
from leased.hardware.census import Census
from leased.hardware.cleaning import Cleaner
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.descriptors import close_all
from leased.hardware.fittings import Fittings
from leased.hardware.handing import Openings, open_memory
from leased.hardware.observing import Observer
from leased.hardware.pieces import leaf_call, memory_pieces
from leased.hardware.pools import PoolLedgers
from leased.hardware.preparing import Preparer, leaf_path
from leased.hardware.proving import Prover
from leased.hardware.rdma.backend import RdmaBackend
from leased.hardware.resizing import Resizing
from leased.hardware.sighting import HostSight
from leased.hardware.starting import STARTING_NS
from leased.ports import Access, Holder, Prepared
from leased.terms.bounds import Bounds, publish
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind
from leased.terms.teardown import ProofReport, ScrubReport, StepReport

CUT_BUDGET_NS = 5_000_000_000
"""What the reaper is told where nothing else is configured (`timing.cut`)."""

class Devices:
    """The hardware of this host. Use within one trio run; `close` at its end."""

    def __init__(
        self, config: HardwareConfig | None = None, *, cut_budget_ns: int = CUT_BUDGET_NS
    ) -> None:
        """`cut_budget_ns` is how long the reaper may take for a cut, for the published bounds."""
        self._config = config or HardwareConfig()
        self._cut_budget_ns = cut_budget_ns
        self._resources: dict[str, Resource] = {}
        self._crew = Crew(self._config)
        self._ledgers = PoolLedgers(self._crew)
        self._backends = make_backends(self._crew, self._config)
        self.fittings = Fittings(self._crew, self._config, self._backends, self._bounds)
        self.adoptions = Adoptions(self._crew, self.facts)
        self.census = Census(self._crew, self.fittings)
        self._openings = Openings()
        self._resizing = Resizing(self._resources)
        self._preparer = Preparer(
            *(self._crew, self._ledgers, self._resizing, self.fittings),
            *(self.adoptions, self._openings, self._config),
        )
        self._apart: set[LeaseId] = set()
        self._cleaner = Cleaner(
            *(self._ledgers, self.fittings, self.adoptions, self._openings),
            *(self._apart, self._config),
        )
        self._prover = Prover(self._crew, self._ledgers, self.fittings, self._config)
        self.observer = Observer(self._crew, self._backends, lambda: self._resources.values())
        self._facts: CgroupFacts | None = None
        self._sight = HostSight(self._crew, self._config)
        self._finding = trio.Lock()

    # -- the port ----------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        """What the host offers now. Raises DeviceError while its memory was never seen."""
        facts = await self.facts()
        parts, failed = list[Surveyed](), list[DeviceError]()

        async def host() -> None:
            try:
                parts.append(await self._sight.look(facts))
            except DeviceError as error:
                failed.append(error)

        async def ask(backend: Backend) -> None:
            parts.append(await backend.survey())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(host)
            for backend in self._backends:
                nursery.start_soon(ask, backend)
        if failed:
            raise failed[0]
        resources = [
            publish(one, bounds_of(self._config, self._cut_budget_ns, one))
            for part in parts
            for one in part.resources
        ]
        self._resources.update((one.resource_id, one) for one in resources)
        return Inventory(
            tuple(sorted(resources, key=lambda resource: (resource.kind, resource.resource_id))),
            tuple(sorted((a for p in parts for a in p.absences), key=lambda a: (a.kind, a.why))),
            tuple(sorted(note for part in parts for note in part.notes)),
        )

    async def prepare_many(self, leases: Sequence[Lease]) -> list[Prepared | DeviceError]:
        """Make each lease's allotments ready. All or nothing per lease."""
        try:
            facts = await self.facts()
        except DeviceError as error:
            return [error] * len(leases)
        return await self._preparer.prepare(leases, facts)

    async def scrub_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        """Overwrite, read back and give back what each lease held, after the cut."""
        return await self._cleaner.scrub(leases)

    async def prove_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ProofReport | DeviceError]:
        """Ask the kernel's counters whether everything came back; name what did not."""
        try:
            facts = await self.facts()
        except DeviceError as error:
            return [error] * len(leases)
        reports = await self._prover.prove(leases, facts.path)
        self._apart -= {lease.lease_id for lease, _ in leases}
        return reports

    def forget(self, lease_ids: Sequence[LeaseId]) -> None:
        """Leases are over, proven or (their fence was lifted) not."""
        for lease_id in lease_ids:
            self._openings.shut(lease_id)
        self._apart.difference_update(lease_ids)
        self._ledgers.forget(frozenset(lease_ids))

    # -- beside the port ---------------------------------------------------------------------------

    def handout(self, lease: Lease, fds: Sequence[int]) -> list[tuple[str, int]]:
        """(resource id, descriptor) to pass to the holder of a lease whose memfds are `fds`; the
        caller closes them when they are passed. Raises DeviceError while the lease is being
        scrubbed."""
        self._apart.add(lease.lease_id)
        opened = self._openings.take(lease.lease_id) or open_memory(lease, fds)
        try:
            return [*opened, *self.fittings.open(lease)]
        except DeviceError:
            close_all(fd for _, fd in opened)
            raise

    async def withdraw(self, lease: Lease) -> tuple[StepReport, ...]:
        """Before the cut: end in order what remote peers reach, in a moment or not at all. What
        was done."""
        if self.fittings.withdraws(lease):
            # Where it fails the cut ends it all the same, and the proof looks for what is left.
            budget_s = self._config.rdma.withdraw_budget_ns / NS_PER_S
            with contextlib.suppress(DeviceError), trio.move_on_after(budget_s):
                return await self.fittings.withdraw(lease)
        return ()

    def withdraws(self, lease: Lease) -> bool:
        """Whether `withdraw` has anything to do."""
        return self.fittings.withdraws(lease)

    @property
    def remote(self) -> RdmaBackend:
        """Where remote peers are connected."""
        return next(one for one in self._backends if isinstance(one, RdmaBackend))

    async def access(self, lease: Lease) -> tuple[Access, ...]:
        """What the holder must know to use the lease. Raises DeviceError."""
        return await self.fittings.access(lease)

    async def let_go(self, kind: ResourceKind) -> tuple[Holder, ...]:
        """Have nothing of the kind's drivers open until `take_up`; who else has. Raises
        DeviceError, with ENOTSUP where that can never be said: it is not "nobody"."""
        backends = [one for one in self._backends if one.kind is kind]
        detachable = [one for one in backends if isinstance(one, Detachable)]
        if not detachable or len(detachable) < len(backends):
            detail = f"a running agent cannot let go of the driver of {kind.name.lower()}: stop it"
            raise DeviceError("let_go", errno.ENOTSUP, detail)
        return tuple([holder for one in detachable for holder in await one.let_go()])

    async def take_up(self, kind: ResourceKind) -> None:
        """The kind's drivers may be used again."""
        for backend in self._backends:
            if backend.kind is kind and isinstance(backend, Detachable):
                await backend.take_up()

    def exempt(self, pid: int) -> None:
        """This process holds leases' descriptors by right (the reaper): never an escapee."""
        self._crew.exempt(pid)

    def recall(self, leases: Iterable[Lease], sealed: Inventory) -> None:
        """Leases of an earlier run, fenced ones too, and what it saw. Before the first look."""
        self._sight.remember(sealed.resources)
        self.fittings.recall(leases, sealed)

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Leases of an earlier run, which handed memory out as this one does. Before any grant."""
        await self.fittings.adopt(leases := tuple(leases))
        self._apart |= {lease.lease_id for lease in leases}
        for lease in leases:
            for piece in memory_pieces(lease):
                if piece.pool is not None:
                    ledger = await self._ledgers.of(piece.pool)
                    ledger.adopt((lease.lease_id, piece.index), piece.pages)

    async def end_strays(self, known: Iterable[str]) -> tuple[Stray, ...]:
        """End every lease's leaf but the known ones, and whoever is inside; what was found. Before
        the first grant. Raises DeviceError."""
        root, budget_ns = (await self.facts()).path, self._config.kill_budget_ns
        if not root:
            return ()
        asked, worker = Sweep(root, tuple(known), budget_ns), "adoption"
        swept = await self._crew.task(worker, worker, "sweep", asked, Swept, extra_ns=budget_ns)
        return swept.strays

    async def make_leaf(self, lease: Lease) -> str:
        """The lease's leaf, made if need be; its path. Raises DeviceError."""
        path = leaf_path(lease, await self.facts())
        if not os.path.isdir(path):
            await self._crew.one("grant", leaf_call(lease, path, self._config.lease_pids_max))
            await self.fittings.filter(path)
        return path

    async def join(self, lease: Lease, pid: int, pidfd: int) -> str:
        """Move a process into the lease's leaf, which is made if need be; the leaf's path. The
        pidfd proves who it is. Raises DeviceError."""
        path = await self.make_leaf(lease)
        await self._crew.one("grant", Join(path, pid), (pidfd,))
        return path

    async def watch(self, noticed: Callable[[], None]) -> None:
        """Run until cancelled; `noticed` whenever a backend hears that something has changed."""
        async with trio.open_nursery() as nursery:
            for one in (*self._backends, self._resizing):
                if isinstance(one, Watchful):
                    nursery.start_soon(one.watch, noticed)

    async def warm(self) -> None:
        """Start the workers that small grants and teardowns go to, while there are descriptors and
        processes to be had: a teardown must not fail, or wait, for want of one."""
        for name in ("grant", "reclaim"):
            await self._crew.one(name, Found(self._config.cgroup_root), extra_ns=STARTING_NS)

    async def facts(self) -> CgroupFacts:
        """The cgroup root, found and made once."""
        if self._facts is not None:
            return self._facts
        async with self._finding:
            if self._facts is None:
                found = Found(self._config.cgroup_root)
                founded = await self._crew.one("grant", found, extra_ns=STARTING_NS)
                assert isinstance(founded, Founded)
                self._facts = founded.facts
        return self._facts

    def close(self) -> None:
        """End every worker. Idempotent."""
        self._crew.close()
        self._ledgers.close()
        self._openings.shut_all()

    # -- parts of the port's methods ---------------------------------------------------------------

    def _bounds(self, allotment: Allotment) -> Bounds:
        """How long the teardown of an allotment may take; of one that no survey has seen, as long
        as its like."""
        known = self._resources.get(allotment.resource_id)
        if known is None:
            share = allotment.capacity
            known = Resource(allotment.resource_id, allotment.kind, allotment.tier, share, 1)
        return bounds_of(self._config, self._cut_budget_ns, known)
