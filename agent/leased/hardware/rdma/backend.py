# SPDX-License-Identifier: Apache-2.0
"""Memory that remote peers reach by RDMA, as `fittings` drives it.

A lease's owner (`native/rdma`) lives in a room of the lease's cgroup and holds the device, the
registered memory and the connections; the tenant never gets any of it, only what a peer needs to
connect. Because it is in the leaf, the reaper's kill ends it, with the agent alive or dead, and the
kernel ends its objects; `withdraw` lets it end them in order where there is time for that.

Rule: nothing is known of an owner but what it and the kernel say now; the one thing that is
remembered is which contexts were whose (`ledger`), and that is seen again after a restart. Nothing
is granted of which the kernel would not list the objects.

Does not create memory or scrub it: the memfds are made and overwritten like any other lease's, the
latter after this backend's `scrub`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from leased.hardware.backend import Readied, Verdict, Wiped
from leased.hardware.calls import CgroupFacts, Found, Founded, Surveyed
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.failure import failed_step
from leased.hardware.instant import now_ns
from leased.hardware.pieces import memory_pieces
from leased.hardware.rdma import calls
from leased.hardware.rdma.bounds import letting_go_ns
from leased.hardware.rdma.config import Windows
from leased.hardware.rdma.desk import Desk
from leased.hardware.rdma.devices import CLASS, spelled
from leased.hardware.rdma.ledger import Key, Ledger
from leased.hardware.rdma.survey import survey, why_silent
from leased.hardware.remembered import Remembered
from leased.hardware.starting import STARTING_NS
from leased.ports import Access, Holder
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Absence, Allotment, Resource, ResourceKind, Shape, shape_of
from leased.terms.teardown import StepReport, TeardownStep

SURVEYOR: Final = "rdma survey"
SWEEPER: Final = "rdma sweep"
ACCESS_NAME: Final = "LEASE_RDMA"
UNCOUNTED_LIMIT: Final = (
    "cgroup v2 has no rdma controller here: a lease's objects are not limited, and the kernel's"
    " list of them is the only proof"
)
_AGAIN_NS: Final = 20_000_000
_EVIDENCE: Final = struct.Struct("<16sIIQ")


def guid_of(of: Allotment | Resource) -> str:
    """The device that memory is reached through."""
    return of.resource_id.removeprefix("mem:rdma-").partition(":")[0]


class RdmaBackend:
    """See above."""

    kind = ResourceKind.MEM

    def __init__(self, crew: Crew, config: HardwareConfig, place: str = f"/{CLASS}") -> None:
        """`place`: there where the kernel has RDMA."""
        self._crew = crew
        self._desk = Desk(crew, config)
        self._place = place
        self._config = config
        self._ledgers: dict[str, Ledger] = {}
        self._remembered = Remembered()
        self._facts: CgroupFacts | None = None
        crew.defer(SURVEYOR)

    def serves(self, allotment: Allotment) -> bool:
        """Whether the allotment is this backend's."""
        return shape_of(allotment.resource_id) is Shape.RDMA

    # -- seeing ------------------------------------------------------------------------------------

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen, before this one looks."""
        self._remembered.take(sealed)

    async def survey(self) -> Surveyed:
        """What can be leased to remote peers, and why what cannot is not."""
        if not self._config.rdma.offer:
            return _absent("[hardware.rdma] offer = false")
        if not os.path.isdir(self._place):
            return _absent("this kernel has none (ib_core is not loaded)")
        try:
            facts = await self._cgroup()
            if not facts.path:
                return _absent("an owner lives in the lease's cgroup: " + "; ".join(facts.troubles))
            asked = calls.Look(self._config, facts, self._desk.patience_ns)
            seen = await self._crew.task(
                SURVEYOR, "rdma", "see", asked, calls.Seen, extra_ns=STARTING_NS
            )
        except DeviceError as error:
            why = _in_words(error)
            return self._remembered.stand_in(f"rdma: {why}") or _absent(why)
        finally:
            self._crew.dismiss(SURVEYOR)
        limits = () if "rdma" in facts.controllers else (UNCOUNTED_LIMIT,)
        resources, notes = survey(seen, self._config.rdma, limits)
        why = "; ".join(notes) or "no RDMA device"
        absences = () if resources else _absent(why).absences
        silent = why_silent(seen, self._config.rdma)
        return self._remembered.complete(
            Surveyed(resources, absences, notes), lambda one: silent.get(guid_of(one), "")
        )

    # -- the grant ---------------------------------------------------------------------------------

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """One owner per device, each with its regions registered. Raises DeviceError."""
        if not leaf:
            raise DeviceError("rdma_open", errno.ENOENT, "the lease has no cgroup")
        evidence = b""
        done: list[Allotment] = []
        try:
            for guid, part in _by_device(allotments):
                own = [
                    (piece.allotment, fds[piece.index])
                    for piece in memory_pieces(lease)
                    if piece.allotment in part
                ]
                done.extend(part)
                evidence += await self._open(lease, leaf, guid, own)
        except DeviceError:
            await self.abandon(lease, done)
            raise
        return Readied(evidence=evidence)

    async def _open(
        self, lease: Lease, leaf: str, guid: str, own: Sequence[tuple[Allotment, int]]
    ) -> bytes:
        sizes, fds = tuple(allotment.capacity for allotment, _ in own), [fd for _, fd in own]
        rdma = self._config.rdma
        # Pinning touches what is touched already; it is far faster than the slowest touching.
        extra_ns = sum(sizes) * NS_PER_S // self._config.touch_bytes_per_s
        asked = calls.Prepare(
            leaf=leaf,
            guid=guid,
            program=rdma.program,
            sizes=sizes,
            peers_max=rdma.peers_max + bool(rdma.prober),
            windows=rdma.windows is Windows.AUTO,
            gid_index=rdma.gid_index,
            budget_ns=self._desk.patience_ns + extra_ns,
        )
        large = sum(sizes) > self._config.bulk_bytes
        name = f"rdma {lease.lease_id.hex()}" if large else self._desk.worker(guid)
        try:
            await self._crew.stand_ready(name, "rdma")
            owner = await self._crew.task(
                name, "rdma", "prepare", asked, calls.Owner, fds=fds, extra_ns=extra_ns
            )
        finally:
            if large:
                self._crew.dismiss(name)
        self._ledger(guid).claim(lease.lease_id, owner.contexts)
        await self._desk.watch(lease, leaf, guid)
        return _EVIDENCE.pack(guid.encode("ascii"), owner.pid, len(sizes), sum(sizes))

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """What a peer must know beforehand; the rest comes with each connection."""
        found: list[Access] = []
        for guid, part in _by_device(allotments):
            owner = await self._describe(lease, guid)
            if len(owner.regions) != len(part):
                detail = f"the owner says {len(owner.regions)} regions, not {len(part)}"
                raise DeviceError("rdma_answer", errno.EPROTO, detail)
            for allotment, (address, size_bytes) in zip(part, owner.regions, strict=True):
                value = (
                    f"{allotment.resource_id};device={owner.device};gid={spelled(owner.gid)}"
                    f";lid={owner.lid};mtu={owner.mtu_bytes};address={address};length={size_bytes}"
                )
                found.append(Access(allotment.resource_id, ACCESS_NAME, value))
        return tuple(found)

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """Nothing is handed out: whoever could map the memory could keep it."""
        return None

    # -- peers -------------------------------------------------------------------------------------

    async def connect(self, lease: Lease, guid: str, peer: calls.Peer) -> calls.Connection:
        """Connect a remote peer to the lease's regions on one device. Raises DeviceError."""
        asked = calls.Connect(await self._room(lease, guid), peer)
        return await self._desk.ask(guid, "connect", asked, calls.Connection)

    async def disconnect(self, lease: Lease, guid: str, qp_number: int) -> None:
        """Disconnect the peer of that queue pair of ours. Raises DeviceError."""
        asked = calls.Part(await self._room(lease, guid), qp_number)
        await self._desk.ask(guid, "disconnect", asked, calls.Nothing)

    # -- the end -----------------------------------------------------------------------------------

    async def withdraw(
        self, lease: Lease, allotments: Sequence[Allotment]
    ) -> tuple[StepReport, ...]:
        """Before the cut, if there is time: let the owners end everything in order."""
        steps: tuple[StepReport, ...] = ()
        for guid, _ in _by_device(allotments):
            room = await self._room(lease, guid, self._config.rdma.withdraw_budget_ns)
            steps += (await self._desk.ask(guid, "withdraw", room, calls.Steps)).steps
        return steps

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Take back a `prepare`."""
        for guid, _ in _by_device(allotments):
            room = await self._room(lease, guid)
            try:
                told = await self._desk.ask(guid, "end", room, calls.Steps)
                if not any(step.errno for step in told.steps):
                    self._ledger(guid).forget(lease.lease_id, frozenset())
            except DeviceError:
                continue  # what it had is known, and the teardown that follows finds it
            finally:
                await self._desk.unwatch(lease, guid)

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """Nobody is in the owners' rooms any more, and the driver has let go; devices at the same
        time."""
        steps: list[StepReport] = []

        async def one(guid: str) -> None:
            told = await self._end(lease, guid)
            steps.extend(told)
            if any(step.errno for step in told):
                await self._desk.unwatch(lease, guid)

        async with trio.open_nursery() as nursery:
            for guid, _ in _by_device(allotments):
                nursery.start_soon(one, guid)
        return Wiped(0, all(step.errno == 0 for step in steps), tuple(steps))

    async def _end(self, lease: Lease, guid: str) -> tuple[StepReport, ...]:
        began_ns, budget_ns = now_ns(), letting_go_ns(self._config)
        try:
            room = await self._room(lease, guid, budget_ns)
            told = await self._desk.ask_again(guid, "end", room, calls.Steps, extra_ns=budget_ns)
        except DeviceError as error:
            return (failed_step(TeardownStep.RELEASE, error, began_ns),)
        return told.steps

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Whether the kernel lists nothing of the lease any more, and a peer that could read the
        memory no longer can."""
        unproven: dict[Allotment, int] = {}
        steps: list[StepReport] = []

        async def one(guid: str, part: Sequence[Allotment]) -> None:
            told = await self._prove(lease, guid)
            steps.extend(told)
            if any(step.errno for step in told):
                unproven.update({allotment: allotment.capacity for allotment in part})

        async with trio.open_nursery() as nursery:
            for guid, part in _by_device(allotments):
                nursery.start_soon(one, guid, part)
        return Verdict(unproven, tuple(steps))

    async def _prove(self, lease: Lease, guid: str) -> list[StepReport]:
        began_ns = now_ns()
        left, failed = await self._look_for_left(lease, guid)
        steps = [StepReport(TeardownStep.WITNESS, failed, began_ns, now_ns(), len(left))]
        try:
            return steps + await self._desk.probe(lease, guid)
        except DeviceError as error:
            return [*steps, failed_step(TeardownStep.WORKER, error, began_ns)]

    async def _look_for_left(self, lease: Lease, guid: str) -> tuple[frozenset[Key], int]:
        """What is left of the lease on the device when it has had time to settle, and 0 or an
        errno."""
        ledger = self._ledger(guid)
        end_ns = now_ns() + self._config.settle_budget_ns
        while True:
            last = now_ns() >= end_ns
            try:
                listed = await self._ask_witness(guid)
            except DeviceError as error:
                if last or error.verb != "rdma_witness":
                    return frozenset(), error.errno or errno.EIO
            else:
                left = ledger.left(lease.lease_id, listed.objects)
                if not left or last:
                    ledger.forget(lease.lease_id, left)
                    return left, errno.EBUSY if left else 0
            await trio.sleep(_AGAIN_NS / NS_PER_S)

    async def _ask_witness(self, guid: str) -> calls.Listed:
        return await self._desk.ask_again(guid, "witness", calls.Witness(guid), calls.Listed)

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Who uses the device: leases' owners, and whoever else does RDMA through it."""
        asked = calls.Usage(guid_of(allotment), self._crew.ours(), self._desk.patience_ns)
        found = await self._crew.task("rdma usage", "rdma", "users", asked, calls.Users)
        return tuple(
            Holder(one.pid, one.uid, one.name, one.via, None, allotment.resource_id)
            for one in found.users
        )

    # -- restarts ----------------------------------------------------------------------------------

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """See again whose owners live; end those that are nobody's. What cannot be seen keeps no
        agent from starting."""
        leases = tuple(leases)
        root = (await self._cgroup()).path
        kept = {lease.subject.cgroup: lease for lease in leases}
        devices = {
            guid_of(a) for lease in leases for a in lease.subject.allotments if self.serves(a)
        }
        if not devices and not (self._config.rdma.offer and os.path.isdir(self._place)):
            return
        for guid in devices:
            with contextlib.suppress(DeviceError):  # whoever tears down finds its worker there
                await self._desk.stand_ready(guid)
        asked = calls.Sweep(root, tuple(kept), self._desk.patience_ns)
        try:
            found = await self._crew.task(
                SWEEPER, "rdma", "sweep", asked, calls.Found, extra_ns=STARTING_NS
            )
        except DeviceError:
            return  # nobody was seen: each lease answers for every orphan, which is more than its
        finally:
            self._crew.dismiss(SWEEPER)
        seen: dict[str, set[str]] = {}
        for name, owner in found.owners:
            self._ledger(owner.guid).claim(kept[name].lease_id, owner.contexts)
            seen.setdefault(owner.guid, set()).add(name)
            with contextlib.suppress(DeviceError):  # the kernel's list is proof enough
                await self._desk.watch(kept[name], f"{root}/{name}", owner.guid)
        for guid in sorted(devices):
            unseen = [
                lease
                for lease in leases
                if lease.subject.cgroup not in seen.get(guid, ())
                and any(self.serves(a) and guid_of(a) == guid for a in lease.subject.allotments)
            ]
            if not unseen:
                await self._settle(guid)

    async def _settle(self, guid: str) -> None:
        """Every lease of ours on the device is accounted for: what else is there is not ours."""
        try:
            listed = await self._ask_witness(guid)
        except DeviceError:
            return
        self._ledger(guid).settle(listed.objects)

    # -- parts -------------------------------------------------------------------------------------

    def _ledger(self, guid: str) -> Ledger:
        return self._ledgers.setdefault(guid, Ledger())

    async def _describe(self, lease: Lease, guid: str) -> calls.Owner:
        room = await self._room(lease, guid)
        return await self._desk.ask(guid, "describe", room, calls.Owner)

    async def _room(self, lease: Lease, guid: str, budget_ns: int = 0) -> calls.Room:
        leaf = f"{(await self._cgroup()).path}/{lease.subject.cgroup}"
        return calls.Room(leaf, guid, budget_ns or self._desk.patience_ns)

    async def _cgroup(self) -> CgroupFacts:
        if self._facts is None:
            found = Found(self._config.cgroup_root)
            founded = await self._crew.one("grant", found, extra_ns=STARTING_NS)
            assert isinstance(founded, Founded)
            self._facts = founded.facts
        return self._facts


def _by_device(allotments: Sequence[Allotment]) -> list[tuple[str, list[Allotment]]]:
    parts: dict[str, list[Allotment]] = {}
    for allotment in allotments:
        parts.setdefault(guid_of(allotment), []).append(allotment)
    return list(parts.items())


def _absent(why: str) -> Surveyed:
    return Surveyed((), (Absence(ResourceKind.MEM, f"for remote peers (RDMA): {why}"),), ())


def _in_words(error: DeviceError) -> str:
    return f"{error.detail or error.verb}: {os.strerror(error.errno)}"
