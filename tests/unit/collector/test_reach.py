# SPDX-License-Identifier: Apache-2.0
"""How far the records reach stands in every answer that follows from them (G7): how it is told
what is behind."""

from __future__ import annotations

from leased.collector.accounts.reaching import BEHIND_NS, reach_now, reach_of, reach_of_fleet
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from tests.doubles.economics_history import History

SECOND = 10**9
def test_a_period_waits_for_every_node_and_now_for_who_is_two_epochs_late() -> None:
    at_ns = 1_000 * SECOND
    last = {"a": at_ns, "b": at_ns - 1, "c": at_ns - BEHIND_NS, "d": at_ns - BEHIND_NS - 1}
    assert reach_of(last, at_ns, at_ns).nodes_behind == ["b", "c", "d"]
    now = reach_now(last, at_ns)
    assert now.nodes_behind == ["d"] and now.provisional
    assert now.as_of == "1970-01-01T00:16:40Z" and now.watermark == "1970-01-01T00:14:39Z"
    assert not reach_now({"a": at_ns}, at_ns).provisional


def test_a_node_without_a_record_is_behind_and_no_watermark() -> None:
    found = reach_now({"a": 500 * SECOND, "b": 0}, 500 * SECOND)
    assert (found.nodes_behind, found.watermark) == (["b"], "1970-01-01T00:08:20Z")
    assert reach_now({}, 5).watermark == "1970-01-01T00:00:00Z"


def test_of_a_fleet_the_last_log_of_each_node_counts_and_who_is_retired_does_not() -> None:
    fleet = Fleet()
    for log_id, node, seconds in (("1", "a", 10), ("2", "a", 900), ("3", "b", 300)):
        history = History()
        history.start()
        history.boot_ns = seconds * SECOND
        history.touch()
        view = fleet.logs[log_id] = NodeView(log_id)
        view.node = view.name = node
        for record in history.records:
            view.apply(*record)
    wall_ns = History().wall_offset_ns + 900 * SECOND
    assert reach_of_fleet(fleet, wall_ns).nodes_behind == ["b"]
    fleet.retired = frozenset(("b",))
    assert reach_of_fleet(fleet, wall_ns).nodes_behind == []
