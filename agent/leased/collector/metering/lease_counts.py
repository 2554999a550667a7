# SPDX-License-Identifier: Apache-2.0
"""How many leases a tenant's usage is made of, asked of the projection when somebody wants to know.

Rule: the statements of metering say who paid for what, over the records of the chains that the
tenant is on, and each lease counts once in each row that it has a part in. Beside each count stands
what those leases held: where that is not what the hours say (records were removed, or a block is
written just now) the count is of other records, and whoever asked leaves it out.

Does not meter: that nobody asks about is not counted, so metering takes as long as without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from leased.collector.metering import tables
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.projected import projected, values
from leased.collector.metering.sources import Counted
from leased.economics.hourly import NodeSpan
from leased.economics.meter import UsageKey
from leased.terms.moment import HOUR_NS

_HELD: Final = """
terms AS (
    SELECT log, seq, granted_seq FROM marks WHERE act IN (1, 2, 6)
), had AS (
    SELECT p.log, COALESCE(t.granted_seq, p.hold_seq) AS lease,
           o.kind, o.tier, o.priority, o.tag, h.capacity,
           e.label_ns + (GREATEST(p.start_ns, e.start_ns) - e.start_ns) AS s,
           e.label_ns + (LEAST(p.end_ns, e.end_ns) - e.start_ns) AS e
    FROM pieces p
    JOIN holds h ON h.log = p.log AND h.seq = p.hold_seq
    JOIN parties o ON o.party_hi = h.party_hi AND o.party_lo = h.party_lo AND o.tenant = $tenant
    JOIN eras e ON e.log = p.log AND e.boot = p.boot
    LEFT JOIN terms t ON t.log = p.log AND t.seq = p.hold_seq
    WHERE p.pool = 0 AND p.end_ns > p.start_ns AND p.start_ns < e.end_ns AND p.end_ns > e.start_ns
    UNION ALL
    SELECT l.log, l.seq, o.kind, o.tier, o.priority, o.tag, l.capacity,
           e.label_ns + (GREATEST(l.granted_ns, e.start_ns) - e.start_ns),
           e.label_ns + (LEAST(l.torn_ns, e.end_ns) - e.start_ns)
    FROM lives l
    JOIN parties o ON o.party_hi = l.party_hi AND o.party_lo = l.party_lo AND o.tenant = $tenant
    JOIN eras e ON e.log = l.log AND e.boot = l.boot
    WHERE l.torn_ns > l.granted_ns AND l.granted_ns < e.end_ns AND l.torn_ns > e.start_ns
), cut AS (
    SELECT h.*, w.first, w.s AS from_ns, w.e AS to_ns
    FROM had h JOIN buckets w ON h.s < w.e AND h.e > w.s
    WHERE h.capacity > 0
)
SELECT first, kind, tier, priority, tag, COUNT(DISTINCT (log, lease)) AS leases,
       SUM(CAST(capacity AS DECIMAL(38,0))
           * CAST(LEAST(e, to_ns) - GREATEST(s, from_ns) AS DECIMAL(38,0))) AS cap_ns
FROM cut GROUP BY first, kind, tier, priority, tag
"""


def count_leases(
    directory: Path,
    chains: Iterable[NodeSpan],
    tenant: str,
    window: tuple[int, int],
    bucket_hours: int,
    engine: DuckEngine,
) -> dict[UsageKey, Counted]:
    """What `Source.leases` says, of the chains that the tenant is on. `directory` is that of what
    is derived."""
    found = projected(directory, chains)
    if found is None:
        return {}
    return ask(engine, found.parts, tenant, window, bucket_hours, found.more)


def ask(
    engine: DuckEngine,
    parts: Iterable[str],
    tenant: str,
    window: tuple[int, int],
    bucket_hours: int,
    more: Mapping[str, Any] | None = None,
) -> dict[UsageKey, Counted]:
    """The same, where `parts` make what the statements read, of the arrow tables `more` by their
    names among others; or it is there as tables."""
    buckets = values("buckets", ("first", "s", "e"), list(_buckets(window, bucket_hours)))
    sql = f"WITH {', '.join((*parts, buckets))}, {_HELD}"
    rows = engine.query(sql, {"tenant": tenant}, more)
    found: dict[UsageKey, Counted] = {}
    for first, kind, tier, priority, tag, leases, cap_ns in rows:
        (key,) = tables.cells([(first, 0, tenant, kind, tier, priority, tag, 0)])
        found[key] = Counted(leases, int(cap_ns))
    return found


def _buckets(window: tuple[int, int], hours: int) -> Iterable[tuple[int, int, int]]:
    """(first hour, from, to) of every row's time within a window; `hours` 0: it is one."""
    first, end = -(-window[0] // HOUR_NS), -(-window[1] // HOUR_NS)
    while first < end:
        until = min(end, (first // hours + 1) * hours) if hours else end
        yield first, first * HOUR_NS, until * HOUR_NS
        first = until
