# SPDX-License-Identifier: Apache-2.0
"""The small tables that a metering run starts from, and its results as the pure rooms know them.

Rule: what an engine gave is converted and nothing more: no sum, no rounding.

Does not run SQL (`engine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

from leased.collector.metering.engine import Rows
from leased.collector.metering.projection import LogShape, tag_of
from leased.economics.hourly import PeakKey
from leased.economics.meter import UsageKey
from leased.economics.pools import Pool
from leased.terms.lease import Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind

_NO_PRIORITY = -1
_tag = lru_cache(maxsize=65_536)(tag_of)
_pool = lru_cache(maxsize=None)(Pool)
_kind = lru_cache(maxsize=None)(ResourceKind)
_priority = lru_cache(maxsize=None)(Priority)


def small_tables(shapes: Mapping[int, LogShape]) -> dict[str, list[tuple[int, ...]]]:
    """`engine.SMALL_TABLES` of logs by their numbers."""
    boots: list[tuple[int, ...]] = []
    eras: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    for log, one in sorted(shapes.items()):
        last = len(one.boots) - 1
        boots.extend((log, n, *span, int(n == last)) for n, span in enumerate(one.boots))
        eras.extend((log, *era[:4], int(era[4])) for era in one.eras)
        others.extend((log, *row) for row in one.others)
    first = min((one.first_ns for one in shapes.values()), default=0) // HOUR_NS
    last_hour = max((one.watermark_ns for one in shapes.values()), default=0) // HOUR_NS
    hours: list[tuple[int, ...]] = [(hour,) for hour in range(first, last_hour + 1)]
    return {"boots": boots, "eras": eras, "others": others, "hours": hours}


def cells(rows: Rows) -> dict[UsageKey, int]:
    """Rows of `usage` as cells."""
    return {
        UsageKey(
            _pool(row[1]),
            row[2],
            _kind(row[3]),
            tier_of(row[4]),
            None if row[5] == _NO_PRIORITY else _priority(row[5]),
            _tag(row[6]),
            row[0],
        ): int(row[7])
        for row in rows
    }


def peak_cells(rows: Rows) -> dict[PeakKey, int]:
    """Rows of `peaks` and `fleet_peaks`."""
    return {
        PeakKey(row[0], _kind(row[1]), tier_of(row[2]), row[3]): int(row[4])
        for row in rows
    }


def task_cells(rows: Rows) -> dict[tuple[str, int], int]:
    """Rows of `tasks`."""
    return {(row[0], row[1]): int(row[2]) for row in rows}


@cache
def tier_of(number: int) -> TierKind | None:
    """Undo `projection.tier_number`."""
    return None if number < 0 else TierKind(number)
