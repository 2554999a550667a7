# SPDX-License-Identifier: Apache-2.0
"""Planning over HTTP: where a request would go best, what workloads live by, what each tier
promised and kept, and what-ifs of scaling.

Rule: an answer is the planner's own value, unchanged. It tells of every node and tenant, and what
the whole fleet costs, so who may see some tenants only is not told.

Does not compute (`planning`), and scales nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from leased.collector.api.forms import NODES, PERCENTS, PERIOD
from leased.collector.api.problems import Problem
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.api.settings import Settings
from leased.collector.fleet import Fleet
from leased.collector.planning import advice
from leased.collector.planning.scheduled_scaling import ScalingPlan, scheduled_scaling
from leased.collector.planning.slo import ServiceLevels, service_levels
from leased.collector.planning.spot import SpotPlan, spot
from leased.economics.placement import Strategy

Whole = Annotated[int, Meta(ge=0, le=1_000_000)]
NodeIds = Annotated[
    str,
    Meta(pattern=NODES, description="ids of nodes, commas in between"),
]
Percents = Annotated[
    str,
    Meta(
        pattern=PERCENTS,
        description="shares on spot to tell the cost of, in percent, by commas",
    ),
]
Text = Annotated[str, Meta(min_length=1, max_length=256)]


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


class BackQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back: of service levels 35 days at most, of scaling 92."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"


class SpotQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By who held what in which time, and what if so many percent were spot."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"
    percents: Percents | None = None


class Planning:
    """The handlers."""

    def __init__(self, reports: Reports, fleet: Callable[[], Fleet], settings: Settings) -> None:
        self._reports, self._fleet, self._settings = reports, fleet, settings

    def placement(self, call: Call) -> Answer:
        """Where a request would go best."""
        call.caller.require_all()
        query = call.query
        asked = advice.raw_amounts(query)
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

    def levels(self, call: Call) -> Answer:
        """What each tier promised and kept."""
        call.caller.require_all()
        period, tiers = call.query.period, self._settings.slo_tiers
        ask = partial(service_levels, fleet=self._fleet(), period=period, tiers=tiers)
        return Answer(self._reports.asked(ask, ("slo", period)))

    def spot(self, call: Call) -> Answer:
        """What a share of spot capacity would cost."""
        call.caller.require_all()
        period, percents = call.query.period, call.query.percents
        shares = [int(one) * 10 for one in percents.split(",")] if percents else []
        mix = self._settings.spot_optimization
        ask = partial(spot, period=period, config=mix, shares_pm=shares)
        return Answer(self._reports.asked(ask, ("spot", call.query)))

    def scheduled(self, call: Call) -> Answer:
        """What scaling by schedule would have cost."""
        call.caller.require_all()
        plan = self._settings.scheduled_scaling
        ask = partial(scheduled_scaling, period=call.query.period, config=plan)
        return Answer(self._reports.asked(ask, ("scaling", call.query)))


def routes(planning: Planning) -> list[Route]:
    """The rows of the table."""
    top = "/v1/governance/optimize"
    get = partial(Route, "GET", slow=True)
    dear = partial(get, scope=Scope.COST, problems=(404, 422, 503))
    return [
        get(f"{top}/placement", planning.placement, "Where a request would go best",
            advice.Placement, takes_query=PlacementQuery, problems=(422, 503)),
        dear(f"{top}/sensitivity", planning.sensitivity, "What workloads live by",
             advice.SensitivityReport, takes_query=BackQuery),
        dear("/v1/governance/economics/slo", planning.levels, "What each tier promised and kept",
             ServiceLevels, takes_query=BackQuery),
        dear(f"{top}/spot", planning.spot, "What a share of spot capacity would cost",
             SpotPlan, takes_query=SpotQuery),
        dear(f"{top}/scaling", planning.scheduled, "What scaling by schedule would cost",
             ScalingPlan, takes_query=BackQuery),
    ]  # fmt: skip
