# SPDX-License-Identifier: Apache-2.0
"""Budgets: what may be used up in a period, in capacity or in money.

Rule: a request, and a renewal, counts for all that it could use up; it is refused if that is more
than is left, so a budget is never exceeded. Money is compared as integers over one denominator and
never rounded. A group's budget is held against the sum of its members'.

Does not keep what was used (`ledger`), and knows prices only as they are handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from leased.lessor.accounts import ANY
from leased.lessor.ledger import Key, Ledger, used_ns
from leased.lessor.quota import Limits, Overrun
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Budget, Price
from leased.terms.reply import RefusalReason
from leased.terms.resource import UNIT, ResourceKind

_UNITS_LCM: Final = (1 << 30) * 5**9
"""A multiple of every kind's unit."""

_MONEY_SCALE: Final = _UNITS_LCM * NS_PER_S * 1000
"""What a cost has to be divided by to be 10^-9 of the currency."""


class Prices:
    """The prices in force, as integers over one denominator."""

    __slots__ = ("_scaled",)

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._scaled: dict[Key, int] = {
            (int(price.kind), price.tier, price.priority): price.nano_pm
            * (_UNITS_LCM // UNIT[price.kind])
            for price in prices
        }

    def scaled_cost(self, rows: Mapping[Key, int]) -> int:
        """What `rows` cost, times `_MONEY_SCALE`."""
        total = 0
        for (kind, tier, priority), capacity_ns in rows.items():
            price = self._scaled.get((kind, tier, priority))
            if price is None:
                price = self._scaled.get((kind, ANY, priority), 0)
            total += capacity_ns * price
        return total

    def cost_nano(self, rows: Mapping[Key, int]) -> int:
        """What `rows` cost in 10^-9 of the currency, rounded up."""
        return -(-self.scaled_cost(rows) // _MONEY_SCALE)


def budget_overrun(
    limits: Limits,
    members: Mapping[TenantId, str],
    ledger: Ledger,
    prices: Prices,
    more: Mapping[Key, int],
) -> Overrun | None:
    """The first budget of which `more` would take more than is left."""
    for one in limits.chain():
        if not one.budgets:
            continue
        meters = [ledger.meter(tenant) for tenant in _tenants_of(one, members)]
        for index, budget in enumerate(one.budgets):
            rows = [meter.rows[budget.period] for meter in meters if meter is not None]
            overrun = (
                _cost(budget, one, index, rows, prices, more)
                if budget.kind is None
                else _capacity(budget, one, index, rows, more)
            )
            if overrun is not None:
                return overrun
    return None


def _rule(limits: Limits, index: int) -> str:
    return f"{limits.name}.budgets[{index}]"


def _tenants_of(limits: Limits, members: Mapping[TenantId, str]) -> Sequence[TenantId]:
    if not limits.holder.startswith("@"):
        return (TenantId(limits.holder),)
    name = limits.holder[1:]
    return [tenant for tenant, group in members.items() if group == name]


def _capacity(
    budget: Budget,
    limits: Limits,
    index: int,
    rows: Sequence[Mapping[Key, int]],
    more: Mapping[Key, int],
) -> Overrun | None:
    assert budget.kind is not None and budget.capacity_ns is not None
    kind, tier = int(budget.kind), ANY if budget.tier is None else int(budget.tier)
    asked = used_ns(more, kind, tier)
    used = 0
    for one in rows:
        used += used_ns(one, kind, tier)
    if not asked or used + asked <= budget.capacity_ns:
        return None
    unit_ns = UNIT[budget.kind] * NS_PER_S
    return Overrun(
        RefusalReason.BUDGET,
        limits.holder,
        _rule(limits, index),
        f"{ResourceKind(kind).name.lower()}_seconds",
        budget.capacity_ns // unit_ns,
        -(-used // unit_ns),
        -(-asked // unit_ns),
        limits.when_over,
        budget.period,
    )


def _cost(
    budget: Budget,
    limits: Limits,
    index: int,
    rows: Sequence[Mapping[Key, int]],
    prices: Prices,
    more: Mapping[Key, int],
) -> Overrun | None:
    assert budget.cost_nano is not None
    asked = prices.scaled_cost(more)
    used = sum(map(prices.scaled_cost, rows))
    if not asked or used + asked <= budget.cost_nano * _MONEY_SCALE:
        return None
    return Overrun(
        RefusalReason.BUDGET,
        limits.holder,
        _rule(limits, index),
        "cost_nano",
        budget.cost_nano,
        -(-used // _MONEY_SCALE),
        -(-asked // _MONEY_SCALE),
        limits.when_over,
        budget.period,
    )
