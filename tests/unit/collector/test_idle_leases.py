# SPDX-License-Identifier: Apache-2.0
"""What is held and not used: since when, for how long, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.holdings import Holdings
from leased.collector.planning import idle_leases
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from leased.economics.contracts import Terms
from leased.economics.rates import DEFAULT_CARD, Rate
from leased.terms.resource import Allotment, ResourceKind, TierKind
from leased.terms.series import KIND
from tests.doubles.accounts import WrittenSource
from tests.doubles.economics_history import History, lease_id, memory, subject
from tests.doubles.fleets import fleet_of

NODE, OTHER = "a1" * 16, "b2" * 16
WEEK_S = 7 * 24 * 3600
END_S = 1_767_225_600
GIB = 1 << 30
HOUR = 12
"""Windows."""

TERMS = Terms(infrastructure=msgspec.structs.replace(DEFAULT_CARD, decimals=2))


def looked_at(
    store: Store, lease: str, windows: Iterable[tuple[int, int]], *, kind: str = "gpu"
) -> None:
    """A lease of two devices, in these windows before the end, each active in so many of ten
    looks."""
    attributes = ((KIND, kind),)
    for name in ("leased.lease.utilization", "leased.lease.capacity"):
        key = Key(NODE, "", lease, "acme", name, attributes)
        for back, active in windows:
            begin_s = END_S - back * WINDOW_S
            most = 2_000 if name.endswith("capacity") else active * 100_000
            store.append([(key, Rollup(begin_s, 10, most * 10, most, active, 10**9))])


def heard(store: Store, node: str, back: int = 1) -> None:
    key = Key(node, "", "", "", "leased.pressure.time", ())
    store.append([(key, Rollup(END_S - back * WINDOW_S, 1, 0, 0, 0, 1))])


def told(store: Store) -> idle_leases.Idle:
    heard(store, NODE)
    return idle_leases.idle(Accounts(WrittenSource(), TERMS), store)


def test_an_idle_lease_is_told_with_what_it_costs(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        looked_at(store, "aa", [(back, 0) for back in range(1, 3 * HOUR + 1)])
        found = told(store)
    (row,) = found.idle_resources
    # Two devices for three hours at 36 an hour.
    assert (row.resource, row.type, row.idle_hours) == ("aa", "lease", 3)
    assert row.wasted_cost == found.total_waste_last_7d == Decimal("216.00")
    assert (row.node, row.tenant, row.kind) == (NODE, "acme", "gpu")
    assert row.idle_since == "2025-12-31T21:00:00Z"


def test_a_tenth_of_the_time_is_not_idle_and_an_hour_is_the_least(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        looked_at(store, "aa", [(back, 1) for back in range(1, 3 * HOUR)])
        looked_at(store, "bb", [(back, 0) for back in range(1, HOUR)])
        looked_at(store, "cc", [(back, 0) for back in range(1, HOUR + 1)])
        found = told(store)
    assert [row.resource for row in found.idle_resources] == ["cc"]


def test_what_was_not_seen_is_not_called_idle(tmp_path: Path) -> None:
    """Fifty minutes, a gap, fifty minutes."""
    with closing(Store(tmp_path)) as store:
        looked_at(store, "aa", [(back, 0) for back in (*range(1, 11), *range(12, 22))])
        found = told(store)
    assert (found.idle_resources, found.total_waste_last_7d) == ([], 0)


def test_what_ended_counts_and_is_not_listed_and_the_week_is_a_week(tmp_path: Path) -> None:
    week = WEEK_S // WINDOW_S
    with closing(Store(tmp_path)) as store:
        # Idle for two hours, then busy; and another, idle since two hours before the week.
        looked_at(store, "aa", [(back, 0 if back > HOUR else 9) for back in range(1, 3 * HOUR + 1)])
        looked_at(store, "bb", [(back, 0) for back in range(1, week + 2 * HOUR)], kind="cpu")
        found = told(store)
    (row,) = found.idle_resources
    # Two cores for a week, at 7.2 an hour each.
    assert (row.resource, row.idle_hours) == ("bb", 168)
    assert row.wasted_cost == Decimal(168) * 2 * Decimal("7.2")
    assert found.total_waste_last_7d == row.wasted_cost + Decimal("144.00")


def test_a_node_that_fell_silent_is_idle_as_far_as_it_was_heard(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        looked_at(store, "aa", [(back, 0) for back in range(HOUR + 1, 3 * HOUR + 1)])
        heard(store, OTHER)
        heard(store, NODE, HOUR + 1)
        found = idle_leases.idle(Accounts(WrittenSource(), TERMS), store)
    assert [row.idle_hours for row in found.idle_resources] == [2]


def test_a_lease_costs_what_each_of_its_tiers_costs(tmp_path: Path) -> None:
    """Memory of one lease, half of it in a tier with a price of its own."""
    hbm = Allotment("mem:node4:4096", ResourceKind.MEM, TierKind.HBM, GIB)
    rates = (Rate(ResourceKind.MEM, 10**9), Rate(ResourceKind.MEM, 10**11, TierKind.HBM))
    terms = Terms(infrastructure=msgspec.structs.replace(DEFAULT_CARD, rates=rates, decimals=2))
    history = History()
    history.allocate(0xAA, subject(hbm, memory(GIB)), 1 << 60)
    lease = lease_id(0xAA).hex()
    with closing(Store(tmp_path)) as store:
        looked_at(store, lease, [(back, 0) for back in range(1, HOUR + 1)], kind="mem")
        heard(store, NODE)
        known = Holdings(fleet_of({NODE: history}))
        found = idle_leases.idle(Accounts(WrittenSource(), terms), store, known)
    (row,) = found.idle_resources
    assert row.wasted_cost == Decimal(3600) + Decimal(360_000)


def test_without_telemetry_there_are_nodes_alone() -> None:
    accounts = Accounts(WrittenSource(), TERMS)
    assert idle_leases.idle(accounts).idle_resources == []
