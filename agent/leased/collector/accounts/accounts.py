# SPDX-License-Identifier: Apache-2.0
"""The accounts: usage, costs, bills and chargeback of a fleet, for whoever asks.

Rule: numbers come from a `Source` of hourly cells, and every source gives the same cells for the
same records: the Python reference (`reference`) and the SQL engines. What is asked of a tenant or
month that no record mentions is a typed error, never an empty bill.

Does not speak HTTP (`api`) and does not decide who may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import StrEnum
from typing import Final, TypeVar

from leased.collector.accounts import clocks, kept_hours, periods
from leased.collector.accounts.answers import (
    Chargeback,
    Costs,
    Reach,
    UsageReport,
    interval_of,
    to_decimals,
)
from leased.collector.accounts.bill_answers import Summary, summary_of
from leased.collector.accounts.corrections import corrections_of, settled_apart
from leased.collector.accounts.cost_answers import chargeback_of, costs_of
from leased.collector.accounts.cost_shares import GroupBy
from leased.collector.accounts.crediting import apart, on_bill
from leased.collector.accounts.focus import focus_csv, focus_rows
from leased.collector.accounts.focus_1_4 import VERSIONS, focus_1_4_rows
from leased.collector.accounts.invoices import Invoices
from leased.collector.accounts.once import Once
from leased.collector.accounts.periods import Window
from leased.collector.accounts.priced_cells import billed_cells, priced_sums
from leased.collector.accounts.reaching import reach_now, reach_of
from leased.collector.accounts.usage_rows import usage_rows
from leased.collector.metering.sources import Held, Source
from leased.economics.amounts import units
from leased.economics.attribution import Basis, Spread
from leased.economics.bill_text import terms_of
from leased.economics.billing import Bill, Month, make_bill
from leased.economics.contracts import Terms
from leased.economics.hourly import NodeSpan
from leased.economics.meter import UsageKey
from leased.economics.rates import RateCard
from leased.terms.errors import EX_NOINPUT, CallerError, InvalidParameter
from leased.terms.identity import is_tenant, parse_tenant
from leased.terms.lease import AccountingTag
from leased.terms.moment import DAY_NS, HOUR_NS

TOP: Final = 10
_Choice = TypeVar("_Choice", bound=StrEnum)
_Answer = TypeVar("_Answer")
_Said = list[tuple[str, int]]


class UnknownTenant(CallerError):
    """No record of any node mentions this tenant."""

    wire = "io.leased.Collector.UnknownTenant"
    exit_status = EX_NOINPUT


class NoData(CallerError):
    """No node has records of this time (yet, or any more)."""

    wire = "io.leased.Collector.NoData"
    exit_status = EX_NOINPUT


class Accounts:
    """Everything that is asked about money."""

    def __init__(
        self,
        source: Source,
        terms: Terms,
        invoices: Invoices | None = None,
        *,
        clock_ns: int | None = None,
    ) -> None:
        """`invoices` are the bills that were issued; None: nothing ever was. `clock_ns` is the time
        by the clock of whoever asks; None: there is none."""
        self.source = source
        self.terms = terms
        self._retired = frozenset(terms.retired_nodes)
        self.invoices = invoices
        self._clock_ns = clock_ns
        self._once = Once()

    def once(self, key: Hashable, answer: Callable[[Accounts], _Answer]) -> _Answer:
        """What `answer` says, by whatever names it: the same cells give the same again."""
        return self._once.of(key, lambda: answer(self))

    def issued_mark(self, tenant: str) -> Hashable:
        """Is another as soon as a bill of `tenant` is issued."""
        return self.invoices.mark(tenant) if self.invoices else None

    # ---- when ---------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The newest record of any node whose clock was not ahead. Raises NoData."""
        self.newest_ns()
        nodes = self.source.nodes()
        ahead = clocks.ahead(nodes, self._clock_ns)
        return max(node.watermark_ns for node in nodes if node not in ahead)

    def ahead(self) -> list[NodeSpan]:
        """Of the logs that are waited for, those whose clock was ahead."""
        found = clocks.ahead(self.source.nodes(), self._clock_ns)
        return [node for node in found if self._is_waited(node)]

    def newest_ns(self) -> int:
        """The newest record of any node, of whatever time. Raises NoData."""
        nodes = self.source.nodes()
        if not nodes:
            raise NoData("no node has been pulled yet: enrol one and wait for its first page")
        return max(node.watermark_ns for node in nodes)

    def watermark_ns(self) -> int:
        """The oldest last record of all nodes that are not retired: what ends before is settled.
        Where nobody is waited for, all that is over is; what is not over never is."""
        return min([*self.watermarks().values(), max(self.now_ns(), self._clock_ns or 0)])

    def reach(self, window: Window) -> Reach:
        """How far the records reach for an answer about `window`."""
        return reach_of(self.watermarks(), window.to_ns, self.now_ns())

    def reach_now(self) -> Reach:
        """The same for an answer about what is at the last record of each node."""
        return reach_now(self.watermarks(), self.now_ns())

    def watermarks(self) -> dict[str, int]:
        """Of each node that is waited for, the oldest last record of any of its logs that is."""
        found: dict[str, int] = {}
        for node in self.source.nodes():
            if self._is_waited(node):
                known_ns = found.get(node.node_id, node.watermark_ns)
                found[node.node_id] = min(known_ns, node.watermark_ns)
        return found

    def _is_waited(self, node: NodeSpan) -> bool:
        unwaited = self._retired | self.source.replaced()
        return unwaited.isdisjoint((node.node_id, node.log_id))

    def held(self) -> list[Held]:
        """What is held and what there is, now, on the nodes that are waited for."""
        return [one for one in self.source.held() if one.node_id not in self._retired]

    def last(self, period: str) -> Window:
        """The last "24h" or "30d". The running hour is not a part of it."""
        return periods.last(period, self.now_ns())

    def month(self, text: str, tenant: str | None = None) -> Month:
        """A month in the tenant's time zone. Raises InvalidParameter, NoData."""
        month = self.zoned(text, tenant)
        if month.from_ns > self.newest_ns() or month.to_ns <= self.source.first_ns():
            raise NoData(f"month: no node has a record of {text}")
        return month

    def zoned(self, text: str, tenant: str | None = None) -> Month:
        """The same, whatever there is of it. Where the tenant's zone was another when the month
        before or after was issued, it begins or ends with that bill. Raises InvalidParameter."""
        month = periods.month(text, dict(self.terms.time_zones).get(tenant or "", "UTC"))
        if tenant is None or self.invoices is None:
            return month
        before, after = (
            self.invoices.issued(tenant, periods.month_beside(text, by)) for by in (-1, 1)
        )
        return Month(
            text,
            month.from_ns if before is None else int(before.to_ns),
            month.to_ns if after is None else int(after.from_ns),
        )

    def known(self, tenant: str) -> str:
        """`tenant`, if any record mentions it. Raises InvalidParameter, UnknownTenant."""
        name = parse_tenant(tenant)
        if name not in self.source.tenants():
            raise UnknownTenant(f"tenant: no record of any node mentions {name!r}")
        return name

    # ---- what ---------------------------------------------------------------------------------

    def usage(self, tenant: str, window: Window, granularity: str = "hour") -> UsageReport:
        """What `tenant` held, by "hour", "day" or the "total"; by the lease: `lease_rows`."""
        if not any(contract.tenant == tenant for contract in self.terms.contracts):
            tenant = self.known(tenant)
        buckets = {"hour": HOUR_NS, "day": DAY_NS, "total": 0}
        if granularity not in buckets:
            raise InvalidParameter("granularity", "one of hour, day, total")
        rows, cost = usage_rows(
            self.source.cells(window.pair, tenant),
            self.source.peaks(window.pair, tenant),
            self.terms,
            window,
            buckets[granularity],
            self.source.leases(window.pair, tenant, buckets[granularity] // HOUR_NS),
        )
        return UsageReport(
            tenant,
            interval_of(window),
            granularity,
            self.terms.currency,
            rows,
            sum(self.source.tasks(window.pair, tenant).values()),
            to_decimals(cost, self.terms.decimals),
            self.reach(window),
        )

    def costs(
        self,
        window: Window,
        *,
        top: int = TOP,
        basis: str = Basis.RATE_CARD.value,
        group_by: str | None = None,
    ) -> Costs:
        """What everybody cost; who is not among the first `top` is in OTHER, last."""
        if not 1 <= top <= 1000:
            raise InvalidParameter("top", "1 to 1000")
        by_tag = group_by in tuple(AccountingTag.__struct_fields__)
        which = _choice(Basis, basis, "basis")
        by = None if group_by is None else _choice(GroupBy, group_by, "group_by")
        cells = self.priced_sums(window, tags=by_tag)
        terms = self.costed(window) if which is Basis.INFRASTRUCTURE else self.terms
        return costs_of(cells, terms, window, self.reach(window), top, which, by)

    def bill(self, tenant: str, month: str) -> Bill:
        """The bill of a month: the one that was issued, or as it is by now."""
        name = periods.month(month).name
        issued = self.invoices.issued(parse_tenant(tenant), name) if self.invoices else None
        if issued is not None:
            return issued
        if not self.terms.owes(tenant, (0, 1 << 63)):
            tenant = self.known(tenant)
        period = self.month(month, tenant)
        if not self._is_owed(tenant, period):
            tenant = self.known(tenant)
        return self.draft(tenant, period)

    def _is_owed(self, tenant: str, period: Month) -> bool:
        """Whether who never had a lease owes a fee or a minimum, or is given some of it back."""
        if self.terms.owes(tenant, period.pair):
            return True
        issued = self._issued_beside(tenant, period.name) if self.terms.allow_negative else []
        return bool(issued and on_bill(self.terms, tenant, period.name, issued).credits)

    def draft(self, tenant: str, period: Month) -> Bill:
        """The bill as it is by the records at hand, with what they say of issued ones."""
        others = self._issued_beside(tenant, period.name)
        terms = on_bill(self.terms, tenant, period.name, others)
        return self._compute(tenant, period, terms, self._corrections(period.name, others))

    def issue(self, month: str, tenants: Sequence[str] | None = None) -> list[Bill]:
        """Issue the bills of a month, of every tenant or of these: all, or none. Raises
        NotSettled."""
        assert self.invoices is not None, "there is a place for bills"
        made, ends = [], self.watermarks()
        self.invoices.costs.check(self.terms)
        for tenant in self.billed(month) if tenants is None else tenants:
            made.append(self.invoices.settled(self.bill(tenant, month), ends))
        for bill in made:
            self.invoices.issue(bill, kept_hours.written(*self._hours(bill)))
        if made:
            self.invoices.costs.keep(self.terms, periods.month(month).to_ns)
        return made

    def billed(self, month: str) -> list[str]:
        """Whom a month is billed to: who ever had a lease, and who agreed to a fee or a minimum,
        used or not. Raises NoData if it is of none of them."""
        # Root on a node may have sealed any name, and is not to keep others from their bills.
        had = frozenset(filter(is_tenant, self.source.tenants()))
        found: list[str] = []
        why: NoData | None = None
        for tenant in sorted(had.union(contract.tenant for contract in self.terms.contracts)):
            try:
                period = self.month(month, tenant)
            except NoData as error:  # where it was over before the first record
                why = error
                continue
            if tenant in had or self._is_owed(tenant, period):
                found.append(tenant)
        if why is not None and not found:
            raise why
        return found

    def corrections(self, tenant: str, month: str) -> list[tuple[str, int]]:
        """What bills issued before `month` would be now, at their own prices, and were not
        corrected by yet; of those whose hours are all there."""
        return self._corrections(month, self._issued_beside(tenant, month))

    def _corrections(self, month: str, others: list[Bill]) -> list[tuple[str, int]]:
        # A month that is billed late does not charge again what a later one has corrected.
        begin_ns = self.invoices.begin_ns() if self.invoices else 0
        earlier = [one for one in others if one.period < month and int(one.from_ns) >= begin_ns]
        found = list(corrections_of(earlier, others, self.terms, self._again))
        return [*found, *settled_apart(apart(others, self.terms), others)]

    def _issued_beside(self, tenant: str, month: str) -> list[Bill]:
        """The issued bills of all other months."""
        bills = self.invoices.of_tenant(tenant) if self.invoices else []
        return [bill for bill in bills if bill.period != month]

    def _again(self, bill: Bill) -> Bill:
        """An issued bill as it would be by now."""
        period = Month(bill.period, *bill.pair)
        before = [(text, units(amount, bill.decimals)) for text, amount in bill.corrections]
        return self._compute(bill.tenant, period, terms_of(bill.terms), before, bill.version)

    def _compute(
        self, tenant: str, period: Month, terms: Terms, said: _Said, version: int | None = None
    ) -> Bill:
        window = period.pair
        return make_bill(
            tenant,
            period,
            billed_cells(self.source, tenant, window, terms),
            self.source.tasks(window, tenant),
            terms,
            self.source.contributing(window, tenant),
            fleet_watermark_ns=self.watermark_ns(),
            corrections=said,
            version=version,
        )

    def summary(self, tenant: str, month: str) -> Summary:
        """The bill of a month as the API tells it."""
        bill = self.bill(tenant, month)
        return summary_of(bill, self.reach(Window(*bill.pair)))

    def focus_rows(self, tenant: str, month: str, version: str) -> list[dict[str, str]]:
        """The bill of a month as rows of FOCUS "1.2" or "1.4"."""
        if version not in VERSIONS:
            raise InvalidParameter("version", f"one of {', '.join(VERSIONS)}")
        rows = focus_rows(*self._hours(self.bill(tenant, month)))
        return list(rows if version == "1.2" else focus_1_4_rows(rows))

    def focus(self, tenant: str, month: str, version: str = "1.2") -> str:
        """The same, as CSV."""
        return focus_csv(self.focus_rows(tenant, month, version), VERSIONS[version])

    def _hours(self, bill: Bill) -> tuple[Bill, dict[UsageKey, int], Terms]:
        """A bill, what it was made of, and by which terms."""
        issued = self.invoices is not None and self.invoices.issued(bill.tenant, bill.period)
        cells = self.invoices.hours(bill) if self.invoices is not None and issued else None
        if cells is None:
            cells = self.source.cells(bill.pair, bill.tenant)
        return bill, cells, terms_of(bill.terms)

    def chargeback(self, month: str, *, spread: str = Spread.NONE.value) -> Chargeback:
        """What a month's infrastructure cost, by cost centre."""
        how = _choice(Spread, spread, "spread")
        period = self.month(month)
        window = Window(*period.pair)
        cells, reach = self.priced_sums(window, tags=True), self.reach(window)
        return chargeback_of(cells, self.costed(window), period.name, window, reach, how)

    def costed(self, window: Window) -> Terms:
        """The terms, if they say of `window` what they said when its months were issued. Raises
        ConfigError."""
        if self.invoices is not None:
            self.invoices.costs.check(self.terms, window.from_ns)
        return self.terms

    def infrastructure(self) -> RateCard:
        """What capacity costs by now."""
        return self.terms.costs_at(self.now_ns())

    def priced_sums(self, window: Window, *, tags: bool = False) -> Iterator[tuple[UsageKey, int]]:
        """What was held in `window`, in as few cells as there are prices of it."""
        return priced_sums(self.source, window, self.terms, tags=tags)


def _choice(kind: type[_Choice], value: str, parameter: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise InvalidParameter(parameter, f"one of {', '.join(sorted(kind))}") from None
