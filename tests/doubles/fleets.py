# SPDX-License-Identifier: Apache-2.0
"""A fleet as the collector sees it, from histories of its nodes.

Does not verify: the histories are the test's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from tests.doubles.economics_history import History


def fleet_of(histories: Mapping[str, History]) -> Fleet:
    """The fleet of these nodes, by their names."""
    fleet = Fleet()
    for number, (node, history) in enumerate(histories.items()):
        log_id = f"{number:032x}"
        view = fleet.logs[log_id] = NodeView(log_id)
        for record in history.records:
            view.apply(*record)
        view.node = view.name = node
    return fleet
