# SPDX-License-Identifier: Apache-2.0
"""What-ifs of scaling over HTTP: a share of spot capacity, and workers by schedule.

Rule: an answer is the planner's own value, unchanged. It tells what the whole fleet costs, so who
may see some tenants only is not told.

Does not compute (`planning.spot`, `planning.scheduled_scaling`), and scales nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from leased.collector.api.forms import PERCENTS, PERIOD
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.planning.scheduled_scaling import (
    ScalingConfig,
    ScalingPlan,
    scheduled_scaling,
)
from leased.collector.planning.spot import SpotConfig, SpotPlan, spot

Percents = Annotated[
    str,
    Meta(
        pattern=PERCENTS,
        description="shares on spot to tell the cost of, in percent, by commas",
    ),
]


class SpotQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By who held what in which time, and what if so many percent were spot."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"
    percents: Percents | None = None


class ScalingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back, 92 days at most."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"


class Scaling:
    """The handlers."""

    def __init__(self, reports: Reports, mix: SpotConfig, plan: ScalingConfig) -> None:
        self._reports, self._mix, self._plan = reports, mix, plan

    def spot(self, call: Call) -> Answer:
        """What a share of spot capacity would cost."""
        call.caller.require_all()
        period, percents = call.query.period, call.query.percents
        shares = [int(one) * 10 for one in percents.split(",")] if percents else []
        ask = partial(spot, period=period, config=self._mix, shares_pm=shares)
        return Answer(self._reports.asked(ask, ("spot", call.query)))

    def scheduled(self, call: Call) -> Answer:
        """What scaling by schedule would have cost."""
        call.caller.require_all()
        ask = partial(scheduled_scaling, period=call.query.period, config=self._plan)
        return Answer(self._reports.asked(ask, ("scaling", call.query)))


def routes(scaling: Scaling) -> list[Route]:
    """The rows of the table."""
    top = "/v1/governance/optimize"
    return [
        Route(
            *("GET", f"{top}/spot", scaling.spot, "What a share of spot capacity would cost"),
            SpotPlan,
            scope=Scope.COST,
            takes_query=SpotQuery,
            slow=True,
            problems=(404, 422, 503),
        ),
        Route(
            *("GET", f"{top}/scaling", scaling.scheduled, "What scaling by schedule would cost"),
            ScalingPlan,
            scope=Scope.COST,
            takes_query=ScalingQuery,
            slow=True,
            problems=(404, 422, 503),
        ),
    ]
