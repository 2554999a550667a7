# SPDX-License-Identifier: Apache-2.0
"""What each node had, and who had it: asked of the projection when somebody wants to know.

Rule: idle is what there was less all that was held, from instant to instant, by kind and tier of a
node. Where more was held than there was (a device vanished under a lease) that is `missing`, below
zero, and makes no idle time elsewhere smaller: it is never clamped, and never netted either.

Does not meter: hours have no column for the node, so that they stay as few as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from leased.collector.metering import tables
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.projected import projected
from leased.collector.metering.projection import log_number
from leased.collector.metering.sources import NodeAmount
from leased.economics.hourly import NodeSpan
from leased.terms.resource import ResourceKind

_POOLS: Final = {"there": 4, "tenant": 0, "teardown": 1, "fenced": 2}
_SWEPT: Final = """
whole AS (
    SELECT p.log, p.pool, o.kind, o.tier, h.capacity,
           e.label_ns + (GREATEST(p.start_ns, e.start_ns) - e.start_ns) AS s,
           e.label_ns + (LEAST(p.end_ns, e.end_ns) - e.start_ns) AS e
    FROM pieces p
    JOIN holds h ON h.log = p.log AND h.seq = p.hold_seq
    JOIN parties o ON o.party_hi = h.party_hi AND o.party_lo = h.party_lo
    JOIN eras e ON e.log = p.log AND e.boot = p.boot
    WHERE p.end_ns > p.start_ns AND p.start_ns < e.end_ns AND p.end_ns > e.start_ns
    UNION ALL
    SELECT l.log, k.pool, o.kind, o.tier, l.capacity,
           e.label_ns + (GREATEST(CASE WHEN k.pool = 0 THEN l.granted_ns ELSE l.torn_ns END,
                                  e.start_ns) - e.start_ns),
           e.label_ns + (LEAST(CASE WHEN k.pool = 0 THEN l.torn_ns ELSE l.ended_ns END,
                               e.end_ns) - e.start_ns)
    FROM lives l
    JOIN parties o ON o.party_hi = l.party_hi AND o.party_lo = l.party_lo
    JOIN eras e ON e.log = l.log AND e.boot = l.boot
    CROSS JOIN (SELECT 0 AS pool UNION ALL SELECT 1) k
    WHERE CASE WHEN k.pool = 0
               THEN l.torn_ns > l.granted_ns AND l.granted_ns < e.end_ns AND l.torn_ns > e.start_ns
               ELSE l.ended_ns > l.torn_ns AND l.torn_ns < e.end_ns AND l.ended_ns > e.start_ns END
    UNION ALL
    SELECT log, pool, kind, tier, capacity, s, e FROM others
), cut AS (
    SELECT log, pool, kind, tier, CAST(capacity AS DECIMAL(38,0)) AS capacity,
           GREATEST(s, {begin_ns}) AS s, LEAST(e, {end_ns}) AS e
    FROM whole WHERE capacity > 0 AND s < e AND s < {end_ns} AND e > {begin_ns}
), totals AS (
    SELECT log, kind, tier, {totals}
    FROM (SELECT log, kind, tier, pool, capacity * CAST(e - s AS DECIMAL(38,0)) AS cap_ns
          FROM cut) c
    GROUP BY log, kind, tier
), steps AS (
    SELECT log, kind, tier, t, SUM(dl) AS dl
    FROM (SELECT log, kind, tier, s AS t, CASE WHEN pool = 4 THEN capacity ELSE -capacity END AS dl
          FROM cut
          UNION ALL
          SELECT log, kind, tier, e, CASE WHEN pool = 4 THEN -capacity ELSE capacity END FROM cut) d
    GROUP BY log, kind, tier, t
), levels AS (
    SELECT log, kind, tier,
           CAST(SUM(dl) OVER (PARTITION BY log, kind, tier ORDER BY t) AS DECIMAL(38,0)) AS free,
           CAST(LEAD(t) OVER (PARTITION BY log, kind, tier ORDER BY t) - t
                AS DECIMAL(38,0)) AS for_ns
    FROM steps WHERE dl <> 0
), rests AS (
    SELECT log, kind, tier, SUM(GREATEST(free, 0) * for_ns) AS idle,
           SUM(LEAST(free, 0) * for_ns) AS missing
    FROM levels WHERE for_ns IS NOT NULL GROUP BY log, kind, tier
)
SELECT t.log, t.kind, t.tier, {names}, COALESCE(r.idle, 0), COALESCE(r.missing, 0)
FROM totals t LEFT JOIN rests r ON r.log = t.log AND r.kind = t.kind AND r.tier = t.tier
ORDER BY t.log, t.kind, t.tier
"""


def node_amounts(
    directory: Path, chains: Iterable[NodeSpan], window: tuple[int, int], engine: DuckEngine
) -> list[NodeAmount]:
    """What `Source.node_amounts` says. `directory` is that of what is derived."""
    spans = tuple(chains)
    found = projected(directory, spans)
    if found is None:
        return []
    names = {log_number(span.log_id): span.node_id for span in spans}
    return ask(engine, found.parts, names, window, found.more)


def ask(
    engine: DuckEngine,
    parts: Iterable[str],
    names: Mapping[int, str],
    window: tuple[int, int],
    more: Mapping[str, Any] | None = None,
) -> list[NodeAmount]:
    """The same, where `parts` make what the statements read, or it is there as tables. `names` are
    the ids of nodes by the numbers of their logs."""
    swept = _SWEPT.format(
        begin_ns=window[0],
        end_ns=window[1],
        totals=", ".join(
            f"SUM(CASE WHEN pool = {pool} THEN cap_ns ELSE 0 END) AS {name}"
            for name, pool in _POOLS.items()
        ),
        names=", ".join(f"t.{name}" for name in _POOLS),
    )
    rows = engine.query(f"WITH {', '.join((*parts, swept.strip()))}", more=more)
    return [
        NodeAmount(
            names[log],
            ResourceKind(kind),
            tables.tier_of(tier),
            *map(int, amounts),
        )
        for log, kind, tier, *amounts in rows
    ]
