# SPDX-License-Identifier: Apache-2.0
"""A source of hourly cells that a test writes by hand.

Rule: it says exactly what it was given, cut to the window that it is asked about; it computes
nothing.
"""

from __future__ import annotations

from leased.collector.metering.sources import (
    Counted,
    Held,
    NodeAmount,
    Quiet,
    cut_quiet,
    summed,
)
from leased.economics.hourly import NodeSpan, PeakKey
from leased.economics.meter import UsageKey
from leased.economics.pools import Pool
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind

JANUARY_NS = 1_704_067_200 * 10**9
"""2024-01-01T00:00:00Z, the month of the source document's samples."""

JANUARY_HOURS = 31 * 24
GIB = 1 << 30
NODE = NodeSpan("4e" * 16, "1d" * 16, 0, 99, "ab" * 32, JANUARY_NS + 40 * 24 * HOUR_NS)


class WrittenSource:
    """See the module. `hold` writes cells."""

    def __init__(self, *, since_ns: int = JANUARY_NS, node: NodeSpan = NODE) -> None:
        self.written: dict[UsageKey, int] = {}
        self.peak_cells: dict[PeakKey, int] = {}
        self.done: dict[tuple[str, int], int] = {}
        self.now: list[Held] = []
        self.by_node: list[NodeAmount] = []
        self.stretches: list[Quiet] = []
        self.cordoned: frozenset[str] = frozenset()
        self.spans: tuple[NodeSpan, ...] = (node,)
        self.since_ns = since_ns

    def hold(
        self,
        tenant: str,
        kind: ResourceKind,
        capacity: int,
        hours: range,
        *,
        pool: Pool = Pool.TENANT,
        tier: TierKind | None = None,
        priority: Priority = Priority.STANDARD,
        tag: AccountingTag | None = None,
    ) -> None:
        """`capacity` raw units for whole hours, counted from the beginning of January 2024."""
        held_by = priority if pool is Pool.TENANT else None
        for hour in hours:
            at = self.since_ns // HOUR_NS + hour
            key = UsageKey(pool, tenant, kind, tier, held_by, tag, at)
            self.written[key] = self.written.get(key, 0) + capacity * HOUR_NS
            if pool is Pool.TENANT:
                for whose in (tenant, ""):
                    peak = PeakKey(whose, kind, tier, at)
                    self.peak_cells[peak] = self.peak_cells.get(peak, 0) + capacity

    def nodes(self) -> tuple[NodeSpan, ...]:
        return self.spans

    def replaced(self) -> frozenset[str]:
        return frozenset()

    def first_ns(self) -> int:
        return self.since_ns

    def tenants(self) -> tuple[str, ...]:
        found = {key.tenant for key in self.written if key.tenant} | {who for who, _ in self.done}
        return tuple(sorted(found))

    def cells(self, window: tuple[int, int], tenant: str | None = None) -> dict[UsageKey, int]:
        return {
            key: amount
            for key, amount in self.written.items()
            if _inside(key.bucket, window)
            and (tenant is None or (key.pool is Pool.TENANT and key.tenant == tenant))
        }

    def sums(
        self, window: tuple[int, int], tenant: str | None = None, *, tags: bool = False
    ) -> dict[UsageKey, int]:
        return summed(self.cells(window, tenant), window, tags=tags)

    def peaks(self, window: tuple[int, int], tenant: str | None = None) -> dict[PeakKey, int]:
        return {
            key: held
            for key, held in self.peak_cells.items()
            if _inside(key.hour, window) and tenant in (None, key.tenant)
        }

    def tasks(
        self, window: tuple[int, int], tenant: str | None = None
    ) -> dict[tuple[str, int], int]:
        return {
            cell: count
            for cell, count in self.done.items()
            if _inside(cell[1], window) and tenant in (None, cell[0])
        }

    def leases(
        self, window: tuple[int, int], tenant: str, bucket_hours: int
    ) -> dict[UsageKey, Counted]:
        return {}

    def node_amounts(self, window: tuple[int, int]) -> list[NodeAmount]:
        return self.by_node

    def contributing(self, window: tuple[int, int], tenant: str) -> tuple[NodeSpan, ...]:
        return self.spans if self.cells(window, tenant) else ()

    def held(self) -> list[Held]:
        return self.now

    def draining(self) -> frozenset[str]:
        return self.cordoned

    def quiet(self, window: tuple[int, int]) -> list[Quiet]:
        return cut_quiet(self.stretches, window)


def _inside(hour: int, window: tuple[int, int]) -> bool:
    return window[0] <= hour * HOUR_NS < window[1]
