# SPDX-License-Identifier: Apache-2.0
"""The meter: capacity x time, added up exactly, as it happens or afterwards.

Rule: sums are integers of raw unit x ns. Fed one record at a time or all at once, the meter says
the same; what is still open is added on top as provisional and never stored. Per resource, tenant +
teardown + fenced + idle = provisioned x time, to the nanosecond.

Does not price (`rates`) and does not keep intervals: its memory is one number per key, whatever the
length of the chain.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from leased.economics.intervals import Ledger
from leased.economics.peaks import labelled
from leased.economics.pools import Interval, Pool
from leased.economics.timeline import Timeline
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import Moment
from leased.terms.resource import ResourceKind, TierKind, capacity_id


class UsageKey(msgspec.Struct, frozen=True):
    """What usage is added up by. `tenant` is empty where no lease is behind it; `bucket` is 0
    without buckets.
    """

    pool: Pool
    tenant: str
    kind: ResourceKind
    tier: TierKind | None
    priority: Priority | None
    tag: AccountingTag | None
    bucket: int


class ResourceTotals(msgspec.Struct):
    """Capacity x ns of one resource, by pool."""

    kind: ResourceKind
    tenant: int = 0
    teardown: int = 0
    fenced: int = 0
    provisioned: int = 0

    @property
    def idle(self) -> int:
        """What is left: conserved by definition here, and checked against the sweep of `peaks.idle`
        by test.
        """
        return self.provisioned - self.tenant - self.teardown - self.fenced


class Sums:
    """Totals per key and per resource. `bucket_ns` > 0 also splits at every multiple of it in label
    time; `window` counts only what lies in [window[0], window[1]) of label time.
    """

    def __init__(self, bucket_ns: int = 0, window: tuple[int, int] | None = None) -> None:
        self.bucket_ns = bucket_ns
        self.window = window
        self.usage: dict[UsageKey, int] = {}
        self.resources: dict[str, ResourceTotals] = {}

    def copy(self) -> Sums:
        """An independent copy."""
        twin = Sums(self.bucket_ns, self.window)
        twin.usage = dict(self.usage)
        twin.resources = {
            name: ResourceTotals(t.kind, t.tenant, t.teardown, t.fenced, t.provisioned)
            for name, t in self.resources.items()
        }
        return twin

    def add(self, interval: Interval, timeline: Timeline) -> None:
        """Count one interval."""
        if not self.bucket_ns and self.window is None:
            self._count(interval, 0, interval.capacity_ns)
            return
        for start_ns, end_ns, capacity in labelled(interval, timeline, self.window):
            if not self.bucket_ns:
                self._count(interval, 0, capacity * (end_ns - start_ns))
                continue
            at_ns = start_ns
            while at_ns < end_ns:
                bucket = at_ns // self.bucket_ns
                until_ns = min(end_ns, (bucket + 1) * self.bucket_ns)
                self._count(interval, bucket, capacity * (until_ns - at_ns))
                at_ns = until_ns

    def _count(self, interval: Interval, bucket: int, amount: int) -> None:
        self._add_resource(interval, amount)
        key = self._key(interval, bucket)
        self.usage[key] = self.usage.get(key, 0) + amount

    def _add_resource(self, interval: Interval, amount: int) -> None:
        allotment = interval.allotment
        counted_by = capacity_id(allotment.resource_id)
        totals = self.resources.get(counted_by)
        if totals is None:
            totals = self.resources[counted_by] = ResourceTotals(allotment.kind)
        if interval.pool is Pool.TENANT:
            totals.tenant += amount
        elif interval.pool is Pool.TEARDOWN:
            totals.teardown += amount
        elif interval.pool is Pool.FENCED:
            totals.fenced += amount
        else:
            totals.provisioned += amount

    def _key(self, interval: Interval, bucket: int) -> UsageKey:
        subject = interval.subject
        allotment = interval.allotment
        if subject is None:
            return UsageKey(interval.pool, "", allotment.kind, allotment.tier, None, None, bucket)
        return UsageKey(
            interval.pool,
            subject.tenant,
            allotment.kind,
            allotment.tier,
            subject.priority,
            subject.tag,
            bucket,
        )


class Meter:
    """Incremental form: observe every record, ask at any time."""

    def __init__(self, bucket_ns: int = 0) -> None:
        self.ledger = Ledger()
        self._closed = Sums(bucket_ns)

    def observe(self, sequence: int, event: object, moment: Moment) -> None:
        """Count one record."""
        for interval in self.ledger.observe(sequence, event, moment):
            self._closed.add(interval, self.ledger.timeline)

    def closed(self) -> Sums:
        """What can no longer change."""
        return self._closed.copy()

    def totals(self) -> Sums:
        """Everything up to the watermark, the provisional part included."""
        sums = self._closed.copy()
        for interval in self.ledger.open_intervals():
            sums.add(interval, self.ledger.timeline)
        return sums


def measure(
    intervals: Iterable[Interval],
    timeline: Timeline,
    bucket_ns: int = 0,
    window: tuple[int, int] | None = None,
) -> Sums:
    """Batch form: the totals of `intervals`."""
    sums = Sums(bucket_ns, window)
    for interval in intervals:
        if interval.pool is not Pool.IDLE:
            sums.add(interval, timeline)
    return sums
