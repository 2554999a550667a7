# SPDX-License-Identifier: Apache-2.0
"""The daily checklist of the source document over HTTP: five figures, the range that each should be
in, and what to do about one that is not.

Rule: each figure is one that another route tells, by the same code. What cannot be said (nobody did
anything, there is nothing to hold) is null, and neither in nor out of its range.

Does not alert: Prometheus' rules do.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, cut
from leased.collector.api.reports import Reports
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.api.views import Views
from leased.collector.planning import capacity
from leased.economics.attribution import Basis, attribute

DAY: Final = "24h"
_FINE: Final = 9


class Check(msgspec.Struct, frozen=True):
    """One figure. `range` is in words; `action` is what to do where it is out of it."""

    name: str
    value: Decimal | None
    range: str
    in_range: bool | None
    action: str


class Health(msgspec.Struct, frozen=True):
    """`in_range`: all that are known are. Utilization and fairness are of now, the others of the
    last `period`; `currency` is that of the cost of a task."""

    in_range: bool
    checks: list[Check]
    period: str
    currency: str
    reach: Reach


class _Told(msgspec.Struct, frozen=True):
    """What the accounts say."""

    utilization: Decimal | None
    cost_per_task: Decimal | None
    idle: Decimal | None
    currency: str
    reach: Reach


class Checklist:
    """The handler."""

    def __init__(self, reports: Reports, views: Views) -> None:
        self._reports, self._views = reports, views

    def health(self, call: Call) -> Answer:
        """All of it."""
        call.caller.require_all()
        told: _Told = self._reports.asked(_of_accounts, "checklist")
        compliance = self._views.compliance_at(call.now_ns)
        violations = None if not compliance.requests else 1 - compliance.quota_compliance
        fairness = self._views.allocations_at(call.now_ns).fairness_index
        checks = [
            _check("cluster_utilization", told.utilization, "0.65", "0.85", "Scale up or down"),
            _check("cost_per_task", told.cost_per_task, None, "0.001", "Investigate inefficiency"),
            _check("quota_violations", violations, None, "0.01", "Adjust quotas"),
            _check("idle_resources", told.idle, None, "0.10", "Scale down"),
            _check("tenant_fairness_index", fairness, "0.9", None, "Rebalance allocations"),
        ]
        well = all(one.in_range is not False for one in checks)
        return Answer(Health(well, checks, DAY, told.currency, told.reach))


def _of_accounts(accounts: Accounts) -> _Told:
    window = accounts.last(DAY)
    cells = list(accounts.priced_sums(window))
    paid = attribute(cells, accounts.terms, Basis.RATE_CARD).tenants_total
    whole = attribute(cells, accounts.terms, Basis.INFRASTRUCTURE)
    tasks = sum(accounts.source.tasks(window.pair).values())
    return _Told(
        capacity.capacity(accounts).utilization.overall,
        _cut(paid / tasks) if tasks else None,
        _cut(whole.pools["idle"] / whole.total) if whole.total else None,
        accounts.terms.currency,
        accounts.reach(window),
    )


def _cut(amount: Fraction) -> Decimal:
    return cut(amount, _FINE).normalize() + 0


def _check(
    name: str, value: Decimal | None, least: str | None, most: str | None, action: str
) -> Check:
    """Between two bounds, either included; below or above one, which is not."""
    if least is not None and most is not None:
        words = f"{least} to {most}"
        holds = value is not None and Decimal(least) <= value <= Decimal(most)
    elif most is not None:
        words, holds = f"below {most}", value is not None and value < Decimal(most)
    else:
        assert least is not None, "a range has a bound"
        words, holds = f"above {least}", value is not None and value > Decimal(least)
    return Check(name, value, words, None if value is None else holds, action)


def routes(reports: Reports, views: Views) -> list[Route]:
    """The row of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/health",
            Checklist(reports, views).health,
            "The daily checklist",
            Health,
            scope=Scope.COST,
            slow=True,
            problems=(404, 503),
        )
    ]
