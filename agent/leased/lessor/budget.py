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
from leased.lessor.ledger import Key, Ledger, Meter, used_ns
from leased.lessor.quota import Limits, Overrun
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Budget, Price
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import UNIT

_UNITS_LCM: Final = (1 << 30) * 5**9
"""A multiple of every kind's unit."""

_MONEY_SCALE: Final = _UNITS_LCM * NS_PER_S * 1000 * 1000
"""What a cost has to be divided by to be 10^-9 of the currency."""


class _Scaled(dict[Key, int]):
    """Prices by key; that of a tier without one of its own is its kind's."""

    def __missing__(self, key: Key) -> int:
        kind, _, priority = key
        price = self[key] = self.get((kind, ANY, priority), 0)
        return price


class Prices:
    """The prices in force, as integers over one denominator."""

    __slots__ = ("_scaled", "dearest")

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._scaled = _Scaled(
            {
                (int(price.kind), price.tier, price.priority): price.pico_pm
                * (_UNITS_LCM // UNIT[price.kind])
                for price in prices
            }
        )
        self.dearest = max(self._scaled.values(), default=0) or 1

    def scaled_cost(self, rows: Mapping[Key, int]) -> int:
        """What `rows` cost, times `_MONEY_SCALE`."""
        total, prices = 0, self._scaled
        for key, capacity_ns in rows.items():
            total += capacity_ns * prices[key]
        return total

    def cost_nano(self, *rows: Mapping[Key, int]) -> int:
        """What `rows` cost together in 10^-9 of the currency, rounded up once."""
        return -(-sum(map(self.scaled_cost, rows)) // _MONEY_SCALE)


def budget_overrun(
    limits: Limits,
    members: Mapping[TenantId, str],
    ledger: Ledger,
    prices: Prices,
    more: Mapping[Key, int],
) -> Overrun | None:
    """The first budget of which `more` would take more than is left."""
    own = ledger.meter(limits.holder)
    if is_spared(own, limits, prices, sum(more.values())):
        return None
    spare: int | None = None
    for one in limits.chain():
        meters = meters_of(one, members, ledger) if one.budgets else ()
        for index, budget in enumerate(one.budgets):
            asked = used = _measured(budget, prices, more)
            for meter in meters:
                used += _measured(budget, prices, meter.rows[budget.period])
            allowed = _allowed(budget)
            if asked and used > allowed:
                return _overrun(one, index, used - asked, asked)
            left = (allowed - used + asked) // (1 if budget.kind is not None else prices.dearest)
            spare = left if spare is None else min(spare, left)
    if own is not None and spare is not None and not _shares_budgets(limits):
        own.spare, own.spare_by = spare, (limits, prices)
    return None


def is_spared(own: Meter | None, limits: Limits, prices: Prices, more: int) -> bool:
    """Whether there is certainly enough: less than was left of every budget when they were last
    looked at, and has not been used since, at the dearest price. What holds nearly always is said
    so without looking at each.
    """
    if own is None:
        return False
    by_limits, by_prices = own.spare_by
    return by_limits is limits and by_prices is prices and more <= own.spare


def _shares_budgets(limits: Limits) -> bool:
    """Whether others use up what the tenant's budgets allow, too."""
    return limits.group is not None and bool(limits.group.budgets)


def meters_of(limits: Limits, members: Mapping[TenantId, str], ledger: Ledger) -> Sequence[Meter]:
    """Whose use counts against `limits`."""
    holder = limits.holder
    if not holder.startswith("@"):
        meter = ledger.meter(holder)
        return () if meter is None else (meter,)
    meters = (ledger.meter(tenant) for tenant, group in members.items() if group == holder[1:])
    return [meter for meter in meters if meter is not None]


def asked_of(limits: Limits, told: Refusal, prices: Prices, more: Mapping[Key, int]) -> int:
    """How much `more` is of the budget that `told` is about, in its unit."""
    for one in limits.chain():
        for index, budget in enumerate(one.budgets):
            overrun = _overrun(one, index, 0, _measured(budget, prices, more))
            if (overrun.what, overrun.limit) == (told.what, told.limit):
                return overrun.requested
    return 0


def _measured(budget: Budget, prices: Prices, rows: Mapping[Key, int]) -> int:
    """How much of what a budget is for `rows` are, in its smallest unit."""
    if budget.kind is None:
        return prices.scaled_cost(rows)
    return used_ns(rows, budget.kind, ANY if budget.tier is None else budget.tier)


def _allowed(budget: Budget) -> int:
    """What it allows, in that unit."""
    if budget.kind is None:
        assert budget.cost_nano is not None
        return budget.cost_nano * _MONEY_SCALE
    assert budget.capacity_ns is not None
    return budget.capacity_ns


def _overrun(limits: Limits, index: int, used: int, asked: int) -> Overrun:
    """That `asked` more would be more than the budget; in units that people know."""
    budget = limits.budgets[index]
    unit, what = _MONEY_SCALE, "cost_nano"
    if budget.kind is not None:
        unit, what = UNIT[budget.kind] * NS_PER_S, f"{budget.kind.name.lower()}_seconds"
    return Overrun(
        RefusalReason.BUDGET,
        limits.holder,
        f"{limits.name}.budgets[{index}]",
        what,
        _allowed(budget) // unit,
        -(-used // unit),
        -(-asked // unit),
        limits.when_over,
        budget.period,
    )
