# SPDX-License-Identifier: Apache-2.0
"""Costs, bills, capacity and optimisation over HTTP: what the accounts tell, as it is asked for.

Rule: an answer is the accounts' own value, unchanged; JSON, CSV where rows are, both from the same
value. Until the books have been read once there is no answer (503), never an empty one.

Does not compute (`accounts`, `capacity`, `forecast`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.accounts import answers, bill_answers, periods
from leased.collector.accounts.accounts import Accounts, NoData, UnknownTenant
from leased.collector.accounts.focus import focus_csv
from leased.collector.accounts.focus_1_4 import VERSIONS
from leased.collector.accounts.focus_table import parquet_of
from leased.collector.accounts.lease_rows import Question, question, usage_by_lease
from leased.collector.accounts.node_costs import NodeCosts, node_costs
from leased.collector.accounts.periods import Window
from leased.collector.api.csv_rows import csv_of
from leased.collector.api.folding import Folds
from leased.collector.api.problems import Problem, unread
from leased.collector.api.report_queries import (
    ChargebackQuery,
    CostsQuery,
    ForecastQuery,
    HistoryQuery,
    LatencyQuery,
    PeriodQuery,
    RightSizingQuery,
    SummaryQuery,
    TimeQuery,
    UsageQuery,
)
from leased.collector.api.requests import prefers
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.archive.archive import ArchiveReader
from leased.collector.fleet import Fleet
from leased.collector.governance.strategies import Plans
from leased.collector.holdings import Holdings
from leased.collector.planning import capacity, forecast, idle_leases
from leased.collector.planning.allocation_history import AllocationHistory, allocations
from leased.collector.planning.latency_cost import LatencyCost, latency_cost
from leased.collector.planning.reserving import Offer, reservations
from leased.collector.planning.rightsizing import RightSizing, rightsizing
from leased.collector.planning.thresholds import Thresholds
from leased.collector.telemetry.store import Store, recorded
from leased.collector.telemetry.views import queue_depth, windows
from leased.economics.billing import Bill
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Allocation, Policy
from leased.terms.resource import ResourceKind

CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"
LAST: Final = "30d"
"""Of costs, where no time is said."""


class Reports:
    """The handlers."""

    def __init__(
        self,
        ask: Callable[[Callable[[Accounts], Any]], Any],
        ground: Callable[[], Policy],
        fleet: Callable[[], Fleet],
        state: Path,
        plans: Callable[[ResourceKind], Plans] = lambda kind: ((0, Allocation(kind)),),
        thresholds: Thresholds | None = None,
        offer: Offer | None = None,
    ) -> None:
        """`ask` puts a question to the accounts, and returns None if there are none yet; `state` is
        where telemetry is, `plans` how a kind was divided when, `offer` what reserving costs."""
        self._plans, self._thresholds = plans, thresholds or Thresholds()
        self._ask, self._ground, self._fleet, self._state = ask, ground, fleet, state
        self._offer = offer or Offer()
        self._folds = Folds()

    def asked(self, ask: Callable[[Accounts], Any], key: Hashable = None) -> Any:
        """What the accounts answer; what has a key, once until the books are newer. Raises Problem
        for what they cannot."""
        once = ask if key is None else (lambda accounts: accounts.once(key, ask))
        found = told(lambda: self._ask(once))
        if found is None:
            raise unread()
        return found

    def costs(self, call: Call) -> Answer:
        """What everybody cost."""
        call.caller.require_all()
        query = call.query

        def ask(accounts: Accounts) -> answers.Costs:
            return accounts.costs(
                window_of(accounts, query, period=LAST),
                top=query.top,
                basis=query.basis.value,
                group_by=query.group_by,
            )

        return Answer(self.asked(ask, ("costs", query)))

    def node_costs(self, call: Call) -> Answer:
        """What each node cost."""
        call.caller.require_all()
        query = call.query

        def ask(accounts: Accounts) -> NodeCosts:
            return node_costs(accounts, window_of(accounts, query, period=LAST))

        return Answer(self.asked(ask, ("node costs", query)))

    def summary(self, call: Call) -> Answer:
        """A tenant's bill."""
        call.caller.require_tenant(call.query.tenant)
        ask = call.query

        def answer(accounts: Accounts) -> bill_answers.Summary:
            # What was issued changes what a bill is, and is no part of the books.
            key = ("summary", ask, accounts.issued_mark(ask.tenant))
            return accounts.once(key, lambda one: one.summary(ask.tenant, ask.month))

        return Answer(self.asked(answer))

    def bill(self, call: Call) -> Answer:
        """The same as the bytes that an auditor computes again."""
        call.caller.require_tenant(call.query.tenant)
        ask = call.query
        raw = self.asked(lambda accounts: accounts.bill(ask.tenant, ask.month).canonical())
        name = f'attachment; filename="bill-{ask.tenant}-{ask.month}.json"'
        return Answer(raw=raw, headers={"Content-Disposition": name})

    def usage(self, call: Call) -> Answer:
        """A tenant's usage, as JSON or CSV; or what it was billed for, as FOCUS."""
        call.caller.require_tenant(call.query.tenant)
        query = call.query
        if query.format is not None and query.format.startswith("focus-"):
            return self._focus(call, query.format.removeprefix("focus-"))

        def ask(accounts: Accounts) -> answers.UsageReport | Question:
            window = window_of(accounts, query)
            if query.granularity == "lease":
                return question(accounts, query.tenant, window)
            return accounts.usage(query.tenant, window, query.granularity)

        report = self.asked(ask, ("usage", query))
        if isinstance(report, Question):
            return Answer(then=partial(self._by_lease, call, report))
        return self._as_asked(call, report)

    def _as_asked(self, call: Call, report: answers.UsageReport) -> Answer:
        query = call.query
        wants_csv = query.format == "csv" or (
            query.format is None and prefers(call.headers, CSV, "application/json")
        )
        if not wants_csv:
            return Answer(report)
        name = f'attachment; filename="usage-{query.tenant}.csv"'
        headers = {"Content-Disposition": name, "Vary": "Accept", **reach_headers(report.reach)}
        media_type = f"{CSV}; charset=utf-8"
        return Answer(raw=csv_of(report), media_type=media_type, headers=headers)

    async def _by_lease(self, call: Call, asked: Question) -> Answer:
        """Beside the books, which others ask meanwhile. Raises Problem."""

        def fold() -> answers.UsageReport:
            with closing(ArchiveReader(self._state)) as archive:
                report: answers.UsageReport = told(lambda: usage_by_lease(archive, asked))
                return report

        # Terms are not in the key: they are those of one state of the books, as chains are.
        key = (asked.report.tenant, asked.window, asked.chains, asked.report.total_cost)
        return self._as_asked(call, await self._folds.of(key, asked.report.tenant, fold))

    def _focus(self, call: Call, version: str) -> Answer:
        query = call.query

        def ask(accounts: Accounts) -> tuple[list[dict[str, str]], answers.Reach]:
            if query.period is not None:
                raise InvalidParameter("period", "FOCUS is of whole months: start and end")
            months = periods.months(query.start or "", query.end or "")
            rows = [
                row for month in months for row in accounts.focus_rows(query.tenant, month, version)
            ]
            end_ns = max(accounts.zoned(month, query.tenant).to_ns for month in months)
            return rows, accounts.reach(Window(0, end_ns))

        (rows, reach), columns = self.asked(ask), VERSIONS[version]
        name = f"focus-{version}-{query.tenant}"
        headers = {"Vary": "Accept", **reach_headers(reach)}
        if prefers(call.headers, PARQUET, CSV):
            headers["Content-Disposition"] = f'attachment; filename="{name}.parquet"'
            raw = told(lambda: parquet_of(rows, columns))
            return Answer(raw=raw, media_type=PARQUET, headers=headers)
        headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
        raw = focus_csv(rows, columns).encode()
        return Answer(raw=raw, media_type=f"{CSV}; charset=utf-8", headers=headers)

    def chargeback(self, call: Call) -> Answer:
        """What a month cost, by cost centre."""
        call.caller.require_all()
        month, spread = call.query.month, call.query.spread.value
        ask = partial(Accounts.chargeback, month=month, spread=spread)
        return Answer(self.asked(ask, ("chargeback", month, spread)))

    def capacity(self, call: Call) -> Answer:
        """What there is, and who has it."""
        call.caller.require_all()
        soft = capacity.soft_of(self._ground())
        turned = tuple(one.turned_wall_ns for one in self._fleet().nodes())
        with self.samples() as samples:
            now_s = call.now_ns // NS_PER_S
            depth = None if samples is None else queue_depth(samples, now_s)
        marks = self._thresholds
        ask = partial(
            capacity.capacity, soft=soft, marks=marks, turned_ns=turned, queue_depth=depth
        )
        return Answer(self.asked(ask, ("capacity", soft, turned, depth)))

    def forecast(self, call: Call) -> Answer:
        """What will be held."""
        call.caller.require_all()
        ask = partial(forecast.forecast, horizon=call.query.horizon, kind=call.query.kind)
        return Answer(self.asked(ask, ("forecast", call.query)))

    def history(self, call: Call) -> Answer:
        """How much of what there was was held."""
        call.caller.require_all()
        period, kind = call.query.period, ResourceKind[call.query.kind.upper()]
        plans = self._plans(kind)
        with self.samples() as samples:
            shares = samples.shares_by if samples is not None else None
            key = ("history", period, plans, samples.last_s() if samples is not None else 0)
            ask = partial(allocations, period=period, plans=plans, shares=shares)
            return Answer(self.asked(ask, key))

    def latency(self, call: Call) -> Answer:
        """What it costs to be quicker."""
        call.caller.require_all()
        period, fleet = call.query.period, self._fleet()
        targets = [int(one) for one in call.query.targets.split(",")] if call.query.targets else []
        ask = partial(latency_cost, fleet=fleet, period=period, targets_ms=targets)
        return Answer(self.asked(ask, ("latency", call.query)))

    def rightsizing(self, call: Call) -> Answer:
        """Who asks for more than they use."""
        call.caller.require_all()
        period, percentile = call.query.period, call.query.percentile
        try:
            begin_s, end_s = windows(call.now_ns, periods.duration(period))
        except InvalidParameter as error:
            raise Problem(422, str(error), parameter=error.parameter) from None
        with self.samples() as samples:
            ask = partial(
                rightsizing,
                fleet=self._fleet(),
                store=samples,
                begin_s=begin_s,
                end_s=end_s,
                period=period,
                percentile=percentile,
            )
            return Answer(self.asked(ask))

    def samples(self) -> AbstractContextManager[Store | None]:
        """What telemetry there is."""
        return recorded(self._state)

    def idle(self, call: Call) -> Answer:
        """What nobody uses."""
        call.caller.require_all()
        with self.samples() as samples:
            key = ("idle", samples.last_s() if samples is not None else 0)
            ask = partial(idle_leases.idle, samples=samples, holdings=Holdings(self._fleet()))
            return Answer(self.asked(ask, key))

    def reservations(self, call: Call) -> Answer:
        """What is worth reserving."""
        call.caller.require_all()
        period = call.query.period
        ask = partial(reservations, period=period, offer=self._offer)
        return Answer(self.asked(ask, ("reservations", period)))


def told(ask: Callable[[], Any]) -> Any:
    """What `ask` gives. Raises Problem for what cannot be answered."""
    try:
        return ask()
    except UnknownTenant as error:
        raise Problem(404, str(error), parameter="tenant") from None
    except NoData as error:
        raise Problem(404, str(error)) from None
    except InvalidParameter as error:
        raise Problem(422, str(error), parameter=error.parameter) from None
    except ConfigError as error:
        raise Problem(503, f"Not by these terms: {error}") from None


def reach_headers(reach: answers.Reach) -> dict[str, str]:
    """What an answer that is no JSON says of how far the records go."""
    return {
        "Leased-As-Of": reach.as_of,
        "Leased-Watermark": reach.watermark,
        "Leased-Nodes-Behind": str(len(reach.nodes_behind)),
        "Leased-Provisional": "true" if reach.provisional else "false",
    }


def window_of(accounts: Accounts, query: TimeQuery, *, period: str | None = None) -> Window:
    """What is asked for; `period` where nothing is said. Raises InvalidParameter."""
    dated = query.start is not None or query.end is not None
    if dated and query.period is not None:
        raise InvalidParameter("period", "either that, or start and end")
    wanted = query.period if query.period is not None or dated else period
    if wanted is not None:
        return accounts.last(wanted)
    return periods.window(query.start or "", query.end or "")


_SHOWN: Final = (answers.Capacity, answers.Forecast, AllocationHistory)
"""What has no prices in it."""


def routes(reports: Reports) -> list[Route]:
    """The rows of the table."""
    cost, missing = Scope.COST, (404, 422, 503)
    rows: list[tuple[str, Any, str, Any, type[msgspec.Struct] | None]] = [
        ("governance/costs", reports.costs, "What everybody cost", answers.Costs, CostsQuery),
        ("governance/costs/nodes", reports.node_costs,
         "What each node cost, and what of it was idle", NodeCosts, TimeQuery),
        ("billing/summary", reports.summary, "A tenant's bill", bill_answers.Summary, SummaryQuery),
        ("billing/bill", reports.bill, "A tenant's bill, byte for byte as it is computed",
         Bill, SummaryQuery),
        ("billing/usage", reports.usage, "A tenant's usage", answers.UsageReport, UsageQuery),
        ("billing/chargeback", reports.chargeback, "A month by cost centre",
         answers.Chargeback, ChargebackQuery),
        ("governance/capacity", reports.capacity, "What there is", answers.Capacity, None),
        ("governance/capacity/forecast", reports.forecast, "What will be held",
         answers.Forecast, ForecastQuery),
        ("governance/allocations/history", reports.history, "What was held of what there was",
         AllocationHistory, HistoryQuery),
        ("governance/economics/latency-cost", reports.latency, "What it costs to be quicker",
         LatencyCost, LatencyQuery),
        ("governance/optimize/rightsizing", reports.rightsizing, "Who asks for too much",
         RightSizing, RightSizingQuery),
        ("governance/optimize/idle", reports.idle, "What nobody uses", answers.Idle, None),
        ("governance/optimize/reservations", reports.reservations, "What to reserve",
         answers.Reservations, PeriodQuery),
    ]  # fmt: skip
    return [
        Route(
            "GET",
            f"/v1/{path}",
            act,
            summary,
            answer,
            scope=Scope.READ if answer in _SHOWN else cost,
            takes_query=query,
            slow=True,
            problems=missing,
            also=(CSV, PARQUET) if query is UsageQuery else (),
            about=path.partition("/")[0],
        )
        for path, act, summary, answer, query in rows
    ]
