# SPDX-License-Identifier: Apache-2.0
"""What each node cost, over HTTP.

Rule: an answer is the accounts' own value, unchanged. It tells what the operator's hosts cost, so
who may see some tenants only is not told.

Does not compute (`accounts.node_costs`).
"""

from __future__ import annotations

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.node_costs import NodeCosts, node_costs
from leased.collector.api.report_queries import TimeQuery
from leased.collector.api.reports import LAST, Reports, window_of
from leased.collector.api.routes import Answer, Call, Route, Scope


class ByNode:
    """The handler."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def show(self, call: Call) -> Answer:
        """What each node cost."""
        call.caller.require_all()
        query = call.query

        def ask(accounts: Accounts) -> NodeCosts:
            return node_costs(accounts, window_of(accounts, query, period=LAST))

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
            takes_query=TimeQuery,
            slow=True,
            problems=(404, 422, 503),
        )
    ]
