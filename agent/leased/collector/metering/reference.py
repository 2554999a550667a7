# SPDX-License-Identifier: Apache-2.0
"""The reference source: a fleet's hourly cells by folding every chain in Python.

Rule: what an SQL engine says must equal this, cell by cell. It holds all intervals in memory and
folds them anew for each window: right before fast. For small fleets, tests and audits.

Does not verify chains: what is in the archive was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from leased.collector.archive.archive import ArchiveReader
from leased.collector.metering.projection import log_number
from leased.collector.metering.sources import (
    Counted,
    Held,
    NodeAmount,
    Quiet,
    added_up,
    cut_quiet,
    summed,
)
from leased.economics.hourly import Hourly, NodeFold, NodeSpan, PeakKey
from leased.economics.meter import UsageKey
from leased.economics.peaks import labelled, steps
from leased.economics.pools import Pool
from leased.terms.event import Allocated
from leased.terms.moment import DAY_NS, HOUR_NS, Moment
from leased.terms.resource import ResourceKind, TierKind

_Spans = list[tuple[int, int, int]]
_LISTED: Final = (Pool.PROVISIONED, Pool.TENANT, Pool.TEARDOWN, Pool.FENCED)


class Chain:
    """One folded chain, by the ids of its node and log."""

    def __init__(self, node_id: str, log_id: str) -> None:
        self.node_id = node_id
        self.log_id = log_id
        self.number = log_number(log_id)
        self.fold = NodeFold()
        self.head = ""
        self._grants: dict[bytes, list[int]] = {}

    def read(self, records: Iterable[tuple[int, object, Moment]], head: str) -> Chain:
        """Fold `records`; `head` is the hash of the last."""
        for sequence, event, moment in records:
            self.fold.observe(sequence, event, moment)
            if isinstance(event, Allocated):
                self._grants.setdefault(event.lease_id, []).append(sequence)
        self.head = head
        return self

    def of_tenant(
        self, tenant: str, window: tuple[int, int]
    ) -> Iterator[tuple[int, UsageKey, list[tuple[int, int, int]]]]:
        """What it had: the record that granted it, what it is counted by, (start, end, capacity)
        in label time."""
        for interval in self.fold.intervals():
            subject, allotment = interval.subject, interval.allotment
            if interval.pool is not Pool.TENANT or subject is None or subject.tenant != tenant:
                continue
            spans = list(labelled(interval, self.fold.ledger.timeline, window))
            if not spans or not allotment.capacity or interval.lease_id is None:
                continue
            grants = self._grants.get(interval.lease_id, [])
            grant = grants[bisect_right(grants, interval.opened_by) - 1]
            what = (allotment.kind, allotment.tier, subject.priority, subject.tag)
            yield grant, UsageKey(Pool.TENANT, tenant, *what, 0), spans

    def span(self) -> NodeSpan:
        """What was folded."""
        ledger = self.fold.ledger
        return NodeSpan(
            self.node_id,
            self.log_id,
            ledger.first_sequence,
            ledger.last_sequence,
            self.head,
            self.fold.watermark_ns(),
        )


class ReferenceSource:
    """`sources.Source` over folded chains."""

    def __init__(self, chains: Iterable[Chain], replaced: frozenset[str] = frozenset()) -> None:
        self._replaced = replaced
        self._chains = [chain for chain in chains if chain.fold.ledger.boot_id is not None]

    def nodes(self) -> tuple[NodeSpan, ...]:
        """See `sources.Source`."""
        return tuple(chain.span() for chain in self._chains)

    def replaced(self) -> frozenset[str]:
        """See `sources.Source`."""
        return self._replaced

    def first_ns(self) -> int:
        """See `sources.Source`."""
        eras = [chain.fold.ledger.timeline.eras[0].label_ns for chain in self._chains]
        return min(eras, default=0)

    def tenants(self) -> tuple[str, ...]:
        """See `sources.Source`."""
        found = {
            interval.subject.tenant
            for chain in self._chains
            for interval in chain.fold.intervals()
            if interval.subject is not None
        }
        return tuple(sorted(found))

    def cells(self, window: tuple[int, int], tenant: str | None = None) -> dict[UsageKey, int]:
        """See `sources.Source`."""
        return {
            key: amount
            for key, amount in self._hourly(window).usage.items()
            if tenant is None or (key.pool is Pool.TENANT and key.tenant == tenant)
        }

    def sums(
        self, window: tuple[int, int], tenant: str | None = None, *, tags: bool = False
    ) -> dict[UsageKey, int]:
        """See `sources.Source`."""
        return summed(self.cells(window, tenant), window, tags=tags)

    def peaks(self, window: tuple[int, int], tenant: str | None = None) -> dict[PeakKey, int]:
        """See `sources.Source`."""
        found = self._hourly(window).peaks()
        return {key: held for key, held in found.items() if tenant in (None, key.tenant)}

    def tasks(
        self, window: tuple[int, int], tenant: str | None = None
    ) -> dict[tuple[str, int], int]:
        """See `sources.Source`."""
        found = self._hourly(window).tasks
        return {cell: count for cell, count in found.items() if tenant in (None, cell[0])}

    def leases(
        self, window: tuple[int, int], tenant: str, bucket_hours: int
    ) -> dict[UsageKey, Counted]:
        """See `sources.Source`."""
        whose: dict[UsageKey, dict[tuple[str, int], None]] = {}
        amounts: dict[UsageKey, int] = {}
        first = -(-window[0] // HOUR_NS)
        for chain in self._chains:
            for grant, key, spans in chain.of_tenant(tenant, window):
                for start_ns, end_ns, capacity in spans:
                    for hour in range(start_ns // HOUR_NS, (end_ns - 1) // HOUR_NS + 1):
                        bucket = hour // bucket_hours * bucket_hours if bucket_hours else first
                        cell = msgspec.structs.replace(key, bucket=max(first, bucket))
                        begin_ns, until_ns = hour * HOUR_NS, (hour + 1) * HOUR_NS
                        part_ns = min(end_ns, until_ns) - max(start_ns, begin_ns)
                        amounts[cell] = amounts.get(cell, 0) + capacity * part_ns
                        whose.setdefault(cell, {})[chain.log_id, grant] = None
        return {cell: Counted(len(whose[cell]), amount) for cell, amount in amounts.items()}

    def node_amounts(self, window: tuple[int, int]) -> list[NodeAmount]:
        """See `sources.Source`."""
        found = []
        for chain in self._chains:
            of: dict[tuple[ResourceKind, TierKind | None], dict[Pool, _Spans]] = {}
            for interval in chain.fold.intervals():
                what = of.setdefault((interval.allotment.kind, interval.allotment.tier), {})
                spans = labelled(interval, chain.fold.ledger.timeline, window)
                what.setdefault(interval.pool, []).extend(spans)
            for (kind, tier), pools in of.items():
                amounts = [_area(pools.get(pool, [])) for pool in _LISTED]
                free = [
                    (start, end, capacity if pool is Pool.PROVISIONED else -capacity)
                    for pool in _LISTED
                    for start, end, capacity in pools.get(pool, [])
                ]
                rest = [(one.start_ns, one.end_ns, one.capacity) for one in steps(free)]
                idle = _area(span for span in rest if span[2] > 0)
                missing = _area(span for span in rest if span[2] < 0)
                if any(amounts):
                    row = (*amounts, idle, missing)
                    found.append(NodeAmount(chain.node_id, kind, tier, *row))
        return found

    def contributing(self, window: tuple[int, int], tenant: str) -> tuple[NodeSpan, ...]:
        """See `sources.Source`."""
        days = (window[0] // DAY_NS * DAY_NS, -(-window[1] // DAY_NS) * DAY_NS)
        found = []
        for chain in self._chains:
            hourly = Hourly(days)
            hourly.add(chain.fold)
            held = any(key.pool is Pool.TENANT and key.tenant == tenant for key in hourly.usage)
            if held or any(whose == tenant for whose, _ in hourly.tasks):
                found.append(chain.span())
        return tuple(found)

    def held(self) -> list[Held]:
        """See `sources.Source`."""
        found = []
        for chain in self._last():
            ledger = chain.fold.ledger
            for interval in ledger.open_intervals():
                if interval.end_ns != ledger.watermark_ns:
                    continue  # the deadline has passed: it is being cleaned
                allotment, subject = interval.allotment, interval.subject
                tenant = "" if subject is None else str(subject.tenant)
                row = (interval.pool, tenant, allotment.kind, allotment.tier, allotment.capacity)
                found.append(Held(chain.node_id, *row))
        return list(added_up(found))

    def draining(self) -> frozenset[str]:
        """See `sources.Source`."""
        return frozenset(chain.node_id for chain in self._last() if chain.fold.cordoned)

    def _last(self) -> list[Chain]:
        """Those that say what is now."""
        return [chain for chain in self._chains if chain.log_id not in self._replaced]

    def quiet(self, window: tuple[int, int]) -> list[Quiet]:
        """See `sources.Source`."""
        found = []
        for chain in self._chains:
            spans: dict[Pool, list[tuple[int, int, int]]] = {}
            timeline = chain.fold.ledger.timeline
            for interval in chain.fold.intervals():
                for start_ns, end_ns, _ in labelled(interval, timeline):
                    spans.setdefault(interval.pool, []).append((start_ns, end_ns, 1))
            there = _covered(spans.get(Pool.PROVISIONED, []))
            held = _covered(spans.get(Pool.TENANT, []))
            for start_ns, end_ns in _without(there, held):
                if end_ns - start_ns >= HOUR_NS:
                    found.append(Quiet(chain.node_id, start_ns, end_ns))
        return cut_quiet(found, window)

    def _hourly(self, window: tuple[int, int]) -> Hourly:
        hourly = Hourly(window)
        for chain in self._chains:
            hourly.add(chain.fold)
        return hourly


def read_archive(archive: ArchiveReader) -> ReferenceSource:
    """Fold everything in an archive."""
    return ReferenceSource(
        (
            Chain(entry.node, entry.log_id).read(
                archive.events(entry.log_id), entry.head.hash.hex()
            )
            for entry in archive.logs()
        ),
        archive.manifest.replaced(),
    )


def _area(spans: Iterable[tuple[int, int, int]]) -> int:
    """Capacity x ns."""
    return sum(capacity * (end_ns - start_ns) for start_ns, end_ns, capacity in spans)


def _covered(spans: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Where at least one span is, as stretches that do not touch."""
    found: list[tuple[int, int]] = []
    for step in steps(spans):
        if found and found[-1][1] == step.start_ns:
            found[-1] = (found[-1][0], step.end_ns)
        else:
            found.append((step.start_ns, step.end_ns))
    return found


def _without(
    stretches: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """`stretches` where no hole is."""
    spans = [(start, end, 1) for start, end in stretches]
    inner = [
        (max(start, low), min(end, high), -1)
        for start, end in stretches
        for low, high in holes
        if max(start, low) < min(end, high)
    ]
    return [(s.start_ns, s.end_ns) for s in steps([*spans, *inner]) if s.capacity > 0]
