# SPDX-License-Identifier: Apache-2.0
"""Allowances: what everybody may have under a policy, beside what they have; also under a policy
that is not in force.

Rule: an allowance is one limit with its usage, as admission would compare the two now; where the
usage is above it, it says until when that is borne and how many leases would be told to leave then.
An age and a rate are limits of each lease and of each moment: of them nothing is used (0).
Looking changes nothing, whichever policy is looked at.

Does not say who may ask (`questions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leased.lessor.accounts import ANY, Account
from leased.lessor.admission import Admission
from leased.lessor.budget import Prices, meters_of
from leased.lessor.fitting import capacity_of
from leased.lessor.ledger import used_ns
from leased.lessor.overage import too_many
from leased.lessor.queue import WaitQueue
from leased.lessor.quota import Limits, Row, TenantBook, account_of
from leased.lessor.shares import Division
from leased.lessor.table import LeaseTable
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Budget, Mode
from leased.terms.reply import Allowance, Evenness
from leased.terms.resource import UNIT, ResourceKind

_PER = {NS_PER_S: "s", 60 * NS_PER_S: "min", 3600 * NS_PER_S: "h"}
"""What rates are counted in, as documents write it."""


class Books:
    """A policy to look at a table by."""

    __slots__ = ("_book", "_now_ns", "_prices", "_queue", "_table")

    def __init__(
        self, table: LeaseTable, queue: WaitQueue, book: TenantBook, prices: Prices, now_ns: int
    ) -> None:
        self._table, self._queue, self._book = table, queue, book
        self._prices, self._now_ns = prices, now_ns

    def of(self, tenants: Iterable[TenantId]) -> Iterator[Allowance]:
        """Every limit that these tenants have, and those that they share, once."""
        groups: dict[str, Limits] = {}
        for tenant in tenants:
            limits = self._book.limits(tenant)
            yield from self._limits(limits)
            if limits.group is not None:
                groups[limits.group.holder] = limits.group
        for shared in groups.values():
            yield from self._limits(shared)

    def _limits(self, limits: Limits) -> Iterator[Allowance]:
        account = account_of(self._table.accounts, limits)
        for row in limits.counts:
            yield self._row(limits, row, account)
        if limits.waiting_max is not None:
            waiting = self._queue.count_of(TenantId(limits.holder))
            yield self._one(limits, "waiting_max", "waiting", limits.waiting_max, waiting)
        for row in limits.rows:
            yield self._row(limits, row, account)
        for index, budget in enumerate(limits.budgets):
            yield self._budget(limits, f"budgets[{index}]", budget)
        if limits.duration_ns_max is not None:
            yield self._one(limits, "duration_max", "ns", limits.duration_ns_max, 0)
        for name, what, rate in (
            ("submit_rate", "requests", limits.submit_rate),
            ("api_rate", "calls", limits.api_rate),
        ):
            if rate is not None:
                yield self._one(limits, name, f"{what}/{_PER[rate.per_ns]}", rate.count, 0)

    @staticmethod
    def _one(limits: Limits, name: str, what: str, limit: int, usage: int) -> Allowance:
        return Allowance(limits.holder, f"{limits.name}.{name}", what, limit, limit, usage)

    def _row(self, limits: Limits, row: Row, account: Account | None) -> Allowance:
        usage = 0 if account is None else account.has(row.kind, row.tier, row.node)
        until_ns: int | None = None
        leaving = 0
        if account is not None and usage > row.limit:
            known = self._table.overages.get((limits.holder, row.name))
            if known is not None and known.ended_ns is None:
                until_ns = known.until_ns
            elif row.mode is Mode.SOFT and usage <= row.ceiling:
                until_ns = self._now_ns + row.overage_ns
            elif usage > self._book.bearable(limits, row):  # what is lent, or a burst, is not
                until_ns = self._now_ns + limits.cut_ns
            if until_ns is not None:
                table = self._table
                leaving = len(too_many(account, row, row.limit, table.leases, table.level))
        return Allowance(
            limits.holder,
            f"{limits.name}.{row.name}",
            ResourceKind(row.kind).name.lower() if row.kind >= 0 else "leases",
            row.limit,
            row.ceiling,
            usage,
            row.mode.value,
            capacity_of(self._table.pools, row.kind, row.tier) if row.kind >= 0 else 0,
            until_ns,
            leaving,
        )

    def _budget(self, limits: Limits, name: str, budget: Budget) -> Allowance:
        meters = meters_of(limits, self._book.group_of, self._table.ledger)
        rows = [meter.rows[budget.period] for meter in meters]
        if budget.kind is None or budget.capacity_ns is None:
            usage = self._prices.cost_nano(*rows)
            return self._one(limits, name, "cost_nano", budget.cost_nano or 0, usage)
        tier = ANY if budget.tier is None else int(budget.tier)
        unit_ns = UNIT[budget.kind] * NS_PER_S
        used = sum(used_ns(row, int(budget.kind), tier) for row in rows)
        what = f"{budget.kind.name.lower()}_seconds"
        return self._one(limits, name, what, budget.capacity_ns // unit_ns, -(-used // unit_ns))


def parts_of(
    table: LeaseTable, queue: WaitQueue, admission: Admission, tenants: Iterable[TenantId]
) -> tuple[list[Allowance], list[Evenness]]:
    """What of each division these tenants are entitled to, and how even it is divided."""
    parts: list[Allowance] = []
    even: list[Evenness] = []
    wanted_tenants = tuple(tenants)
    for division in admission.shares.divisions:
        kind = ResourceKind(division.share.kind).name.lower()
        capacity = division.capacity(table.pools)
        most_pm = division.allocation.max_share_pm if division.fair else 1000
        lines = _lines(division, table, queue)
        parts += [
            Allowance(
                tenant,
                division.name,
                kind,
                lines.get(tenant, 0),
                capacity * most_pm // 1000,
                division.share.used.get(tenant, 0),
                division.allocation.strategy.value,
                capacity,
            )
            for tenant in wanted_tenants
            if tenant in lines or tenant in division.share.used
        ]
        if division.fair:
            wanted = queue.wanted(division.share.kind, division.share.tier)
            even.append(Evenness(division.name, division.index(table.pools, wanted)))
    return parts, even


def _lines(division: Division, table: LeaseTable, queue: WaitQueue) -> dict[TenantId, int]:
    if not division.fair:
        return dict(division.share.lines)
    wanted = queue.wanted(division.share.kind, division.share.tier)
    return division.entitled(table.pools, wanted)
