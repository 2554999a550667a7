# SPDX-License-Identifier: Apache-2.0
"""Service levels over HTTP: what each tier promised and kept.

Rule: an answer is the planner's own value, unchanged. It tells of every tenant's leases, so who may
see some tenants only is not told.

Does not compute (`planning.slo`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from leased.collector.api.forms import PERIOD
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.fleet import Fleet
from leased.collector.planning.slo import ServiceLevels, Tier, service_levels


class LevelsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back, 35 days at most."""

    period: Annotated[str, Meta(pattern=PERIOD)] = "30d"


class Levels:
    """The handler."""

    def __init__(
        self, reports: Reports, fleet: Callable[[], Fleet], tiers: tuple[Tier, ...]
    ) -> None:
        self._reports, self._fleet, self._tiers = reports, fleet, tiers

    def show(self, call: Call) -> Answer:
        """What each tier promised and kept."""
        call.caller.require_all()
        period = call.query.period
        ask = partial(service_levels, fleet=self._fleet(), period=period, tiers=self._tiers)
        return Answer(self._reports.asked(ask, ("slo", period)))


def routes(levels: Levels) -> list[Route]:
    """The row of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/economics/slo",
            levels.show,
            "What each tier promised and kept",
            ServiceLevels,
            scope=Scope.COST,
            takes_query=LevelsQuery,
            slow=True,
            problems=(404, 422, 503),
        )
    ]
