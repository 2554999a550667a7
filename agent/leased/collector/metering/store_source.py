# SPDX-License-Identifier: Apache-2.0
"""The store as a source of cells: rollups in memory, asked by window and tenant.

Rule: it says what the listing says that it was opened with, and no more, until it is opened again:
an answer never mixes two states. Safe from several threads: each question has a cursor of its own.

Does not bring the store up to date (`store`).
"""

from __future__ import annotations

from typing import Final

from leased.collector.metering import tables
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import RESULTS, Rows
from leased.collector.metering.lease_counts import count_leases
from leased.collector.metering.node_amounts import node_amounts
from leased.collector.metering.projection import log_number, tag_text
from leased.collector.metering.rollup import ORDER, Listing, Rollups
from leased.collector.metering.sources import (
    PROBE,
    Counted,
    Held,
    NodeAmount,
    Quiet,
    cut_quiet,
)
from leased.economics.hourly import NodeSpan, PeakKey
from leased.economics.meter import UsageKey
from leased.terms.errors import StateError
from leased.terms.moment import DAY_NS, HOUR_NS

_WIDE: Final = ("cap_ns", "held")
_TEXT: Final = ("tenant", "tag")
_PROBE: Final = (
    "CASE WHEN right(tag, 2) IN ('1]', '3]', '5]', '7]', '9]')"
    f" THEN '{tag_text(PROBE)}' ELSE '' END"
)
"""Of a tag as text whether it is a probe's: its flags are the last of the array, and odd."""


class StoreSource:
    """`sources.Source` over the rollups."""

    def __init__(self, rollups: Rollups) -> None:
        """Raises StateError if a file is missing."""
        self._listing: Listing = rollups.listing()
        self._derived = rollups.directory.parent
        self._engine = DuckEngine(spill=self._derived)
        for kind in ORDER:
            paths = rollups.paths(self._listing, kind)
            missing = [path for path in paths if not path.exists()]
            if missing:
                raise StateError(f"{missing[0]}: is missing; rebuild the store")
            nothing = self._engine.arrow(_nothing(kind))
            self._engine.load_files(f"{kind}_files", paths, nothing, once=True)
            self._engine.derive(kind, f"SELECT * FROM {kind}_files ORDER BY ALL")
        self._logs = {log_number(span.log_id): span for span in self._listing.nodes}
        rows = self._engine.query("SELECT DISTINCT tenant FROM contributors ORDER BY tenant")
        self._tenants = tuple(str(row[0]) for row in rows)

    def nodes(self) -> tuple[NodeSpan, ...]:
        """See `sources.Source`."""
        return self._listing.nodes

    def replaced(self) -> frozenset[str]:
        """See `sources.Source`."""
        return frozenset(self._listing.retired) & {span.log_id for span in self._listing.nodes}

    def first_ns(self) -> int:
        """See `sources.Source`."""
        return self._listing.first_ns

    def tenants(self) -> tuple[str, ...]:
        """See `sources.Source`."""
        return self._tenants

    def cells(self, window: tuple[int, int], tenant: str | None = None) -> dict[UsageKey, int]:
        """See `sources.Source`."""
        return tables.cells(self._rows("usage", window, tenant))

    def sums(
        self, window: tuple[int, int], tenant: str | None = None, *, tags: bool = False
    ) -> dict[UsageKey, int]:
        """See `sources.Source`."""
        where, values = _where("usage", window, tenant)
        rows = self._engine.query(
            f"SELECT {window[0] // HOUR_NS}, pool, tenant, kind, tier, priority,"
            f" {'tag' if tags else _PROBE} AS charged, SUM(cap_ns) FROM usage WHERE {where}"
            " GROUP BY pool, tenant, kind, tier, priority, charged",
            values,
        )
        return tables.cells(rows)

    def peaks(self, window: tuple[int, int], tenant: str | None = None) -> dict[PeakKey, int]:
        """See `sources.Source`."""
        return tables.peak_cells(self._rows("peaks", window, tenant))

    def tasks(
        self, window: tuple[int, int], tenant: str | None = None
    ) -> dict[tuple[str, int], int]:
        """See `sources.Source`."""
        return tables.task_cells(self._rows("tasks", window, tenant))

    def leases(
        self, window: tuple[int, int], tenant: str, bucket_hours: int
    ) -> dict[UsageKey, Counted]:
        """See `sources.Source`."""
        chains = self.contributing(window, tenant)
        return count_leases(self._derived, chains, tenant, window, bucket_hours, self._engine)

    def node_amounts(self, window: tuple[int, int]) -> list[NodeAmount]:
        """See `sources.Source`."""
        return node_amounts(self._derived, self._listing.nodes, window, self._engine)

    def contributing(self, window: tuple[int, int], tenant: str) -> tuple[NodeSpan, ...]:
        """See `sources.Source`."""
        rows = self._engine.query(
            "SELECT DISTINCT log FROM contributors WHERE tenant = ? AND day >= ? AND day < ?",
            [tenant, window[0] // DAY_NS, -(-window[1] // DAY_NS)],
        )
        logs = frozenset(row[0] for row in rows)
        return tuple(span for number, span in self._logs.items() if number in logs)

    def held(self) -> list[Held]:
        """See `sources.Source`."""
        return list(self._listing.held)

    def draining(self) -> frozenset[str]:
        """See `sources.Source`."""
        return frozenset(self._listing.draining)

    def quiet(self, window: tuple[int, int]) -> list[Quiet]:
        """See `sources.Source`."""
        return cut_quiet(self._listing.quiet, window)

    def close(self) -> None:
        """Let go of the engine. Idempotent."""
        self._engine.close()

    def _rows(self, kind: str, window: tuple[int, int], tenant: str | None) -> Rows:
        where, values = _where(kind, window, tenant)
        names = ", ".join(RESULTS[kind])
        return self._engine.query(f"SELECT {names} FROM {kind} WHERE {where}", values)


def _where(kind: str, window: tuple[int, int], tenant: str | None) -> tuple[str, list[object]]:
    """The hours that begin in a window; of a tenant's usage what it held itself."""
    hours, values = "hour >= ? AND hour < ?", [-(-window[0] // HOUR_NS), -(-window[1] // HOUR_NS)]
    if tenant is None:
        return hours, list(values)
    pool = " AND pool = 0" if kind == "usage" else ""
    return f"{hours} AND tenant = ?{pool}", [*values, tenant]


def _nothing(kind: str) -> str:
    """No rows, of the right columns: what a store without files holds."""
    columns = []
    for name in ORDER[kind].split(", "):
        of = "VARCHAR" if name in _TEXT else "DECIMAL(38,0)" if name in _WIDE else "BIGINT"
        columns.append(f"CAST(NULL AS {of}) AS {name}")
    return f"SELECT {', '.join(columns)} WHERE false"
