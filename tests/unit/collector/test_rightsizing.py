# SPDX-License-Identifier: Apache-2.0
"""What is saved by asking for less is no more than what was held above that."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal
from pathlib import Path

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.collector.planning.capacity import MONTH_H
from leased.collector.planning.rightsizing import rightsizing
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from leased.economics.contracts import Terms
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import Allotment, ResourceKind
from leased.terms.series import KIND
from tests.doubles.accounts import JANUARY_NS, WrittenSource
from tests.doubles.economics_history import History, lease_id, subject

WINDOWS = 24
BEGIN_S = JANUARY_NS // NS_PER_S
USED = Rollup(0, 10, 10 * 140_000, 140_000, 10, 300 * NS_PER_S)
"""All use 14 %: a fifth of what is asked for would do, at a target of 70 %."""


def test_what_is_saved_is_of_each_lease_by_its_size(tmp_path: Path) -> None:
    """One of forty cores and ten of one: 40 x 0.14 / 0.7 = 8 would do, and 32 are spared, once."""
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    sizes = {1: 40_000} | dict.fromkeys(range(2, 12), 1_000)
    for number, cores in sizes.items():
        held = subject(Allotment("cpu:0", ResourceKind.CPU, None, cores))
        history.allocate(number, held, 48 * HOUR_NS)
    fleet = Fleet()
    view = fleet.logs["00"] = NodeView("00")
    for record in history.records:
        view.apply(*record)
    with closing(Store(tmp_path)) as samples:
        for number in sizes:
            whose = (lease_id(number).hex(), "acme")
            key = Key("4e" * 16, "", *whose, "leased.lease.utilization", ((KIND, "cpu"),))
            begins = range(BEGIN_S, BEGIN_S + WINDOWS * WINDOW_S, WINDOW_S)
            samples.append([(key, msgspec.structs.replace(USED, begin_s=at)) for at in begins])
        told = rightsizing(
            Accounts(WrittenSource(), Terms()),
            fleet,
            samples,
            begin_s=BEGIN_S,
            end_s=BEGIN_S + WINDOWS * WINDOW_S,
            period="2h",
            percentile=95,
        )
    [row] = told.recommendations
    assert (row.current, row.recommended) == ({"cpu_request": "40"}, {"cpu_request": "8"})
    assert row.estimated_savings_monthly == told.total_estimated_savings
    assert told.total_estimated_savings == Decimal("7.2") * 32 * MONTH_H
