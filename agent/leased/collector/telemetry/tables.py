# SPDX-License-Identifier: Apache-2.0
"""The tables of the store, and how a store of a format before is brought to this one.

Tables, for whoever reads them with SQL: `series` (what a number is of, and the hour of its newest
row: a look at the last hour passes over what the leases of months ago have left), `rollups`
(series, beginning of the window in Unix seconds, count, total, most, active, covered_ns; values in
the unit of `leased.terms.series`) and `hosts` (the newest window that each node told of itself).

Does not open a store (`store`).
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 3
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, node TEXT NOT NULL, resource TEXT NOT NULL, lease TEXT NOT NULL,
    tenant TEXT NOT NULL, name TEXT NOT NULL, attributes TEXT NOT NULL,
    newest_s INTEGER NOT NULL DEFAULT 0,
    UNIQUE (node, resource, lease, tenant, name, attributes)
);
CREATE INDEX IF NOT EXISTS series_by_name ON series (name, lease);
CREATE INDEX IF NOT EXISTS series_by_age ON series (name, newest_s);
CREATE TABLE IF NOT EXISTS rollups (
    series INTEGER NOT NULL, begin_s INTEGER NOT NULL, count INTEGER NOT NULL,
    total INTEGER NOT NULL, most INTEGER NOT NULL, active INTEGER NOT NULL,
    covered_ns INTEGER NOT NULL, PRIMARY KEY (series, begin_s)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rollups_by_time ON rollups (begin_s);
CREATE TABLE IF NOT EXISTS hosts (node TEXT PRIMARY KEY, newest_s INTEGER NOT NULL) WITHOUT ROWID;
"""
OF_ITSELF: Final = ("leased.pressure.time", "hw.temperature")
"""What a node tells whether or not somebody has a lease on it."""

FROM: Final = {
    1: """
BEGIN;
ALTER TABLE series ADD COLUMN newest_s INTEGER NOT NULL DEFAULT 0;
UPDATE series SET newest_s =
    coalesce((SELECT max(begin_s) FROM rollups WHERE series = id), 0) / 3600 * 3600;
PRAGMA user_version = 2;
COMMIT;
""",
    2: f"""
BEGIN;
CREATE TABLE hosts (node TEXT PRIMARY KEY, newest_s INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO hosts SELECT s.node, max((SELECT max(begin_s) FROM rollups WHERE series = s.id))
    FROM series s WHERE s.lease = '' AND s.name IN {OF_ITSELF}
    AND EXISTS (SELECT * FROM rollups WHERE series = s.id) GROUP BY s.node;
PRAGMA user_version = 3;
COMMIT;
""",
}
"""By the format before. All of one or nothing: a column that is there of a format that has none
would be refused for good."""
