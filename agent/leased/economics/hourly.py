# SPDX-License-Identifier: Apache-2.0
"""Hourly usage of a fleet: the reference that every engine must equal, cell by cell.

Rule: a cell is (pool, tenant, kind, tier, priority, tag, hour) and an exact integer of raw unit x
ns; nodes add up. Hours are those of label time in UTC, so days, whole-hour months and versions of
prices are sums of cells. Peaks are swept over all nodes at once: the most of a (kind, tier) that a
tenant held at one instant of the hour, wherever it held it. A task is a lease that ended in
`Released`, counted once, in the hour in which it was released.

Does not read a chain (it is fed verified records) and does not price.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from leased.economics.intervals import Ledger
from leased.economics.meter import Sums, UsageKey
from leased.economics.peaks import labelled, steps
from leased.economics.pools import Interval, Pool
from leased.terms.event import Allocated, CordonChanged, Reclaimed, Released, Unfenced
from leased.terms.identity import BootId, LeaseId
from leased.terms.lease import is_probe
from leased.terms.moment import HOUR_NS, Moment
from leased.terms.resource import ResourceKind, TierKind


class PeakKey(msgspec.Struct, frozen=True, order=True):
    """What peaks are told by; an empty `tenant` is all of them together."""

    tenant: str
    kind: ResourceKind
    tier: TierKind | None
    hour: int


class NodeSpan(msgspec.Struct, frozen=True):
    """What of one chain numbers were computed from: the records first..last and the hash of the
    last; and the label of its last record."""

    node_id: str
    log_id: str
    first_sequence: int
    last_sequence: int
    head: str
    watermark_ns: int


class NodeFold:
    """One chain, folded record by record: intervals as they close, and tasks."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.closed: list[Interval] = []
        self._released: list[tuple[str, BootId, int]] = []
        self.cordoned = False
        self._tenants: dict[LeaseId, str] = {}

    def observe(self, sequence: int, event: object, moment: Moment) -> None:
        """Fold one record in. Raises ChainError."""
        self.closed.extend(self.ledger.observe(sequence, event, moment))
        if isinstance(event, Allocated):
            self._tenants.pop(event.lease_id, None)
            if not is_probe(event.subject.tag):
                self._tenants[event.lease_id] = event.subject.tenant
        elif isinstance(event, Released):
            tenant = self._tenants.pop(event.lease_id, None)
            if tenant is not None:
                assert self.ledger.boot_id is not None, "a record was folded"
                self._released.append((tenant, self.ledger.boot_id, self.ledger.watermark_ns))
        elif isinstance(event, (Reclaimed, Unfenced)):
            self._tenants.pop(event.lease_id, None)
        elif isinstance(event, CordonChanged) and not event.resource_id:
            self.cordoned = event.cordoned

    def released(self) -> Iterator[tuple[str, int]]:
        """(tenant, label) of every lease that was released, once."""
        for tenant, boot_id, boot_ns in self._released:
            yield tenant, self.ledger.timeline.label(boot_id, boot_ns)

    def watermark_ns(self) -> int:
        """The label of the last moment of this chain; 0 of an empty one."""
        ledger = self.ledger
        if ledger.boot_id is None:
            return 0
        return ledger.timeline.label(ledger.boot_id, ledger.watermark_ns)

    def intervals(self) -> list[Interval]:
        """Everything, the provisional part last."""
        return [*self.closed, *self.ledger.open_intervals()]


class Hourly:
    """Cells, peaks and tasks of a fleet, within `window` of label time if one is given."""

    def __init__(self, window: tuple[int, int] | None = None) -> None:
        self.window = window
        self.tasks: dict[tuple[str, int], int] = {}
        self._sums = Sums(HOUR_NS, window)
        self._spans: dict[tuple[str, ResourceKind, TierKind | None], list[tuple[int, int, int]]]
        self._spans = {}

    @property
    def usage(self) -> dict[UsageKey, int]:
        """Every cell that is not zero."""
        return {key: amount for key, amount in self._sums.usage.items() if amount}

    def add(self, fold: NodeFold) -> None:
        """Add one node."""
        timeline = fold.ledger.timeline
        for interval in fold.intervals():
            self._sums.add(interval, timeline)
            subject, allotment = interval.subject, interval.allotment
            if interval.pool is Pool.TENANT and subject is not None:
                for whose in (subject.tenant, ""):
                    key = (whose, allotment.kind, allotment.tier)
                    spans = self._spans.setdefault(key, [])
                    spans.extend(labelled(interval, timeline, self.window))
        for tenant, at_ns in fold.released():
            if self.window is None or self.window[0] <= at_ns < self.window[1]:
                cell = (tenant, at_ns // HOUR_NS)
                self.tasks[cell] = self.tasks.get(cell, 0) + 1

    def peaks(self) -> dict[PeakKey, int]:
        """The most held at once, per hour."""
        found: dict[PeakKey, int] = {}
        for (tenant, kind, tier), spans in self._spans.items():
            for hour, capacity in hourly_peaks(spans):
                key = PeakKey(tenant, kind, tier, hour)
                found[key] = max(capacity, found.get(key, 0))
        return found


def hourly_peaks(spans: Iterable[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    """(hour, held) for every step of `spans` and every hour that it touches."""
    for step in steps(spans):
        first, last = step.start_ns // HOUR_NS, (step.end_ns - 1) // HOUR_NS
        for hour in range(first, last + 1):
            yield hour, step.capacity
