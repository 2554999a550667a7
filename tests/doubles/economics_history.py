# SPDX-License-Identifier: Apache-2.0
"""Sealed histories for the economics tests: events with their moments, numbered as a chain would
number them.

Rule: what comes out has the shape of verified records, `(sequence, event, Moment)`; nothing here
computes usage.
"""

from __future__ import annotations

from leased.terms.event import (
    AccessCut,
    Allocated,
    ClockStepped,
    DrainNotified,
    Event,
    Expired,
    Fenced,
    HealthChanged,
    InventoryChanged,
    NodeStarted,
    Reclaimed,
    Recovered,
    Released,
    Renewed,
    ResourceFenced,
    Scrubbed,
    TeardownBegun,
    Unfenced,
    Voided,
)
from leased.terms.identity import BootId, CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, Priority, RevocationReason, Subject, Trust
from leased.terms.moment import Moment
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind, TierKind

RATE_HASH = bytes(32)
NODE = b"N" * 16


def boot(number: int) -> BootId:
    """The id of the n-th boot."""
    return BootId(bytes([number]) * 16)


def lease_id(number: int) -> LeaseId:
    """The id of the n-th lease."""
    return LeaseId(number.to_bytes(16, "big"))


def memory(capacity: int, *, name: str = "mem:node0:4096") -> Allotment:
    """An allotment of DRAM."""
    return Allotment(name, ResourceKind.MEM, TierKind.DRAM, capacity)


def subject(
    *allotments: Allotment,
    tenant: str = "acme",
    priority: Priority = Priority.STANDARD,
    tag: AccountingTag | None = None,
    rate_hash: bytes = RATE_HASH,
) -> Subject:
    """A subject of `tenant` that holds `allotments`."""
    return Subject(
        tenant=TenantId(tenant),
        uid=1000,
        gid=1000,
        cgroup="leaf",
        workload=None,
        tag=tag,
        priority=priority,
        trust=Trust.CONFINED,
        allotments=allotments,
        rate_hash=rate_hash,
    )


class History:
    """Appends events at `boot_ns`; `wall_ns` runs `wall_offset_ns` ahead of the boot clock."""

    def __init__(self, *, wall_offset_ns: int = 1_000_000) -> None:
        self.records: list[tuple[int, Event, Moment]] = []
        self.boot_number = 1
        self.boot_ns = 0
        self.wall_offset_ns = wall_offset_ns
        self.subjects: dict[int, Subject] = {}

    def seal(self, event: Event) -> int:
        """Append `event` now and return its sequence."""
        moment = Moment(boot(self.boot_number), self.boot_ns, self.boot_ns + self.wall_offset_ns)
        sequence = len(self.records)
        self.records.append((sequence, event, moment))
        return sequence

    def event_id(self) -> EventId:
        """A fresh event id."""
        return EventId(len(self.records).to_bytes(16, "big"))

    def start(self) -> int:
        """NodeStarted of the current boot."""
        return self.seal(
            NodeStarted(self.event_id(), boot(self.boot_number), NODE, 1, "0", "x", "y")
        )

    def touch(self) -> int:
        """A record that changes nothing but the watermark."""
        return self.seal(HealthChanged(self.event_id(), "mem:node0:4096", "ok", 0))

    def inventory(self, *allotments: Allotment) -> int:
        """InventoryChanged to exactly these capacities."""
        resources = tuple(
            Resource(a.resource_id, a.kind, a.tier, a.capacity, 1) for a in allotments
        )
        return self.seal(InventoryChanged(self.event_id(), Inventory(resources)))

    def step_clock(self, delta_ns: int) -> int:
        """ClockStepped, with the wall clock moved."""
        self.wall_offset_ns += delta_ns
        return self.seal(ClockStepped(self.event_id(), delta_ns))

    def allocate(self, number: int, whose: Subject, deadline_ns: int) -> int:
        """Allocated, effective now."""
        self.subjects[number] = whose
        return self.seal(
            Allocated(
                *self._lease(number, self.boot_ns),
                CommandId(bytes(16)),
                deadline_ns - self.boot_ns,
                deadline_ns,
                0,
                0,
            )
        )

    def renew(self, number: int, deadline_ns: int, whose: Subject | None = None) -> int:
        """Renewed to `deadline_ns`, perhaps on other terms."""
        if whose is not None:
            self.subjects[number] = whose
        head = self._lease(number, self.boot_ns)
        return self.seal(Renewed(*head, deadline_ns - self.boot_ns, deadline_ns))

    def drain(self, number: int, drain_deadline_ns: int) -> int:
        """DrainNotified."""
        reason = RevocationReason.OPERATOR_DRAIN
        return self.seal(
            DrainNotified(*self._lease(number, self.boot_ns), reason, drain_deadline_ns)
        )

    def end(self, number: int, effective_ns: int | None = None) -> int:
        """Expired and TeardownBegun; returns the sequence of the latter."""
        at_ns = self.boot_ns if effective_ns is None else effective_ns
        self.seal(Expired(*self._lease(number, at_ns)))
        return self.seal(TeardownBegun(*self._lease(number, at_ns)))

    def tear_down(self, number: int) -> None:
        """AccessCut and Scrubbed now: what the meter has no eye for, and an auditor misses."""
        head = self._lease(number, self.boot_ns)
        self.seal(AccessCut(*head, True, b""))
        self.seal(Scrubbed(*head, 0, b""))

    def release(self, number: int, effective_ns: int | None = None) -> int:
        """Released alone."""
        at_ns = self.boot_ns if effective_ns is None else effective_ns
        return self.seal(Released(*self._lease(number, at_ns)))

    def begin_teardown(self, number: int) -> int:
        """TeardownBegun now."""
        return self.seal(TeardownBegun(*self._lease(number, self.boot_ns)))

    def reclaim(self, number: int, held: tuple[int, ...] = ()) -> int:
        """Reclaimed now."""
        head = self._lease(number, self.boot_ns)
        return self.seal(Reclaimed(*head, held, 0, 0, None, None, None, 0, 0, b""))

    def fence(self, number: int, *fenced: Allotment) -> int:
        """Fenced now, with these allotments kept back."""
        return self.seal(Fenced(*self._lease(number, self.boot_ns), fenced, 8, 5, (), 0, b""))

    def unfence(self, number: int) -> int:
        """Unfenced now."""
        return self.seal(Unfenced(*self._lease(number, self.boot_ns), 0, b""))

    def fence_resource(self, allotment: Allotment, *, fenced: bool) -> int:
        """ResourceFenced now."""
        return self.seal(ResourceFenced(self.event_id(), allotment, fenced, 0))

    def recover(self) -> int:
        """Recovered: a torn tail was cut off."""
        return self.seal(Recovered(self.event_id(), 0, 1, bytes(32)))

    def void(self, sequence: int) -> int:
        """Voided: the grant in `sequence` never took effect."""
        return self.seal(Voided(self.event_id(), sequence))

    def _lease(self, number: int, at_ns: int) -> tuple[EventId, LeaseId, Subject, int, int]:
        return self.event_id(), lease_id(number), self.subjects[number], 1, at_ns
