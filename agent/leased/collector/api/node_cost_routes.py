# SPDX-License-Identifier: Apache-2.0
"""What each node cost, over HTTP.

Rule: an answer is the accounts' own value, unchanged. It tells what the operator's hosts cost, so
who may see some tenants only is not told.

Does not compute (`accounts.node_costs`).
"""

from __future__ import annotations

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.node_costs import NodeCosts, node_costs
from leased.collector.api.report_queries import Day, Period
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope


class NodeCostsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which time."""

    period: Period = "30d"
    start: Day | None = None
    end: Day | None = None


class ByNode:
    """The handler."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def show(self, call: Call) -> Answer:
        """What each node cost."""
        call.caller.require_all()
        query = call.query

        def ask(accounts: Accounts) -> NodeCosts:
            if query.start is None and query.end is None:
                return node_costs(accounts, accounts.last(query.period))
            return node_costs(accounts, periods.window(query.start or "", query.end or ""))

        return Answer(self._reports.asked(ask, ("node costs", query)))


def routes(by_node: ByNode) -> list[Route]:
    """The row of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/costs/nodes",
            by_node.show,
            "What each node cost, and what of it was idle",
            NodeCosts,
            scope=Scope.COST,
            takes_query=NodeCostsQuery,
            slow=True,
            problems=(404, 422, 503),
        )
    ]
