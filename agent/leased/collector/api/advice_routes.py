# SPDX-License-Identifier: Apache-2.0
"""Advice over HTTP: where a request would go best, and what workloads live by.

Rule: an answer is the planner's own value, unchanged. It tells of every node and tenant, so who may
see one tenant alone is not told.

Does not compute (`planning.advice`).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from leased.collector.api.forms import NODES, PERIOD
from leased.collector.api.problems import Problem
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.planning import advice
from leased.economics.placement import Strategy
from leased.economics.pools import UNIT
from leased.terms.resource import ResourceKind

Whole = Annotated[int, Meta(ge=0, le=1_000_000)]
NodeIds = Annotated[
    str,
    Meta(pattern=NODES, description="ids of nodes, commas in between"),
]
Text = Annotated[str, Meta(min_length=1, max_length=256)]
_KINDS: Final = ("gpu", "cpu", "mem", "block")


class PlacementQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be placed: devices, cores and GiB; the nodes that its data is on, or whose it is;
    the project of that tenant whose usage tells what it lives by."""

    gpu: Whole = 0
    cpu: Whole = 0
    mem: Whole = 0
    block: Whole = 0
    strategy: Strategy = Strategy.SPREAD
    near: NodeIds | None = None
    tenant: Text | None = None
    project: Text | None = None


class SensitivityQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"


class Advice:
    """The handlers."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def placement(self, call: Call) -> Answer:
        """Where a request would go best."""
        call.caller.require_all()
        query = call.query
        asked = {
            kind: getattr(query, kind) * UNIT[ResourceKind[kind.upper()]]
            for kind in _KINDS
            if getattr(query, kind)
        }
        if not asked:
            raise Problem(422, "Ask for something: gpu, cpu, mem or block.", parameter="gpu")
        if query.project is not None and query.tenant is None:
            raise Problem(422, "A project is some tenant's: give tenant, too.", parameter="tenant")
        near = tuple(query.near.split(",")) if query.near else ()
        whose = (query.tenant or "", query.project)
        request = advice.Request(asked, query.strategy, near, *whose)
        with self._reports.samples() as samples:
            ask = partial(advice.placement, request=request, samples=samples)
            return Answer(self._reports.asked(ask))

    def sensitivity(self, call: Call) -> Answer:
        """What workloads live by."""
        call.caller.require_all()
        period = call.query.period
        with self._reports.samples() as samples:
            return Answer(
                self._reports.asked(
                    lambda accounts: advice.sensitivities(accounts, accounts.last(period), samples)
                )
            )


def routes(reports: Reports) -> list[Route]:
    """The rows of the table."""
    handlers = Advice(reports)
    top = "/v1/governance/optimize"
    return [
        Route(
            *("GET", f"{top}/placement", handlers.placement, "Where a request would go best"),
            advice.Placement,
            takes_query=PlacementQuery,
            slow=True,
            problems=(422, 503),
        ),
        Route(
            *("GET", f"{top}/sensitivity", handlers.sensitivity, "What workloads live by"),
            advice.SensitivityReport,
            scope=Scope.COST,
            takes_query=SensitivityQuery,
            slow=True,
            problems=(404, 422, 503),
        ),
    ]
