# SPDX-License-Identifier: Apache-2.0
"""Spot capacity: what the fleet would cost if a share of it ran on capacity that may be taken away.

Rule: the expected cost of an hour of work is `E = p·spot·(1 + λ·(lost + restart)) + (1 − p)·OD`:
on spot, what an interruption undoes is paid for again. OD is what having the capacity costs now
(`[infrastructure]` of the terms), and what leases of a priority that is not eligible held stays on
it, however much is wished for. What an interruption does is the operator's estimate, so how often
one may come until spot is no cheaper stands beside the cost.

Does not order, replace or drain workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, cut, to_decimals
from leased.collector.accounts.periods import Window
from leased.collector.planning import capacity
from leased.economics.pools import Pool
from leased.terms.errors import ConfigError
from leased.terms.lease import Priority
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_S
from leased.terms.reading import Keys, duration, member, rows, section, share

MONTH_NS: Final = capacity.MONTH_H * HOUR_NS
SHARES_PM: Final = (0, 250, 500, 750, 1000)
"""Beside the share that is aimed at, where none are named."""


class SpotConfig(msgspec.Struct, frozen=True):
    """`target_pm` of the capacity, per mille, at `price_pm` of what it costs now; a worker is taken
    away every `interrupted_every_ns`, which undoes `lost_work_ns` and takes `restart_ns`."""

    target_pm: int = 700
    price_pm: int = 350
    interrupted_every_ns: int = 30 * DAY_NS
    lost_work_ns: int = 1_800 * NS_PER_S
    restart_ns: int = 300 * NS_PER_S
    eligible: tuple[Priority, ...] = (Priority.STANDARD, Priority.SCAVENGER)

    @property
    def undone_ns(self) -> int:
        """What one interruption takes of a worker's time."""
        return self.lost_work_ns + self.restart_ns

    @property
    def factor(self) -> Fraction:
        """Of what capacity costs now, what an hour of work costs on spot."""
        again = Fraction(self.undone_ns, self.interrupted_every_ns)
        return Fraction(self.price_pm, 1000) * (1 + again)


class SpotMix(msgspec.Struct, frozen=True):
    """What a share of spot would cost; not `reachable`: too much is held by who is not eligible."""

    spot_share: Decimal
    expected_cost_hourly: Decimal
    expected_cost_monthly: Decimal
    savings_monthly: Decimal
    savings_percent: Decimal
    reachable: bool


class SpotPlan(msgspec.Struct, frozen=True):
    """`expected` is of `target_share`, or of `eligible_share` where that is less. `overhead` is of
    the work on spot what is done again, `break_even_interruptions_per_month` how often a worker may
    be taken away until spot costs what it saves (null: as often as it likes). `reason` says why
    there is nothing to tell."""

    on_demand_cost_hourly: Decimal
    expected: SpotMix | None
    what_if: list[SpotMix]
    target_share: Decimal
    eligible_share: Decimal | None
    interruptions_per_month: Decimal
    overhead: Decimal
    break_even_interruptions_per_month: Decimal | None
    workers: int
    period: str
    currency: str
    reach: Reach
    reason: str | None = None


def check_spot(config: SpotConfig) -> None:
    """Raises ConfigError for what cannot be meant."""
    at = "spot_optimization."
    for name in ("target", "price"):
        if getattr(config, f"{name}_pm") > 1000:
            raise ConfigError(f"{at}{name}: 100% at most")
    if config.interrupted_every_ns < 60 * NS_PER_S:
        raise ConfigError(f"{at}interrupted_every: at least 60s")
    if len(config.eligible) != len(frozenset(config.eligible)):
        raise ConfigError(f"{at}eligible: each priority once")


def spot(
    accounts: Accounts,
    period: str = "30d",
    config: SpotConfig | None = None,
    shares_pm: Sequence[int] = (),
) -> SpotPlan:
    """What there is now, by who held it in the last `period`. Raises InvalidParameter, NoData."""
    config = config or SpotConfig()
    window = accounts.last(period)
    prices = capacity.node_prices(accounts, accounts.held())
    now = sum(prices.values(), Fraction(0))
    decimals = accounts.infrastructure().decimals
    eligible = _eligible(accounts, window, config)
    wanted = Fraction(config.target_pm, 1000)

    def mix(spot_share: Fraction) -> SpotMix:
        return _mix(now, spot_share, config.factor, eligible or Fraction(0), decimals)

    known = bool(now) and eligible is not None
    shares = sorted({*(shares_pm or (*SHARES_PM, config.target_pm))})
    return SpotPlan(
        to_decimals(now, decimals),
        mix(min(wanted, eligible)) if known and eligible is not None else None,
        [mix(Fraction(one, 1000)) for one in shares] if known else [],
        cut(wanted, 3),
        None if eligible is None else cut(eligible, 3),
        to_decimals(Fraction(MONTH_NS, config.interrupted_every_ns), 3),
        to_decimals(Fraction(config.undone_ns, config.interrupted_every_ns), 6),
        _break_even(config),
        len(prices),
        period,
        accounts.infrastructure().currency,
        accounts.reach(window),
        None if known else "insufficient_history",
    )


def expected_cost(on_demand: Fraction, spot_share: Fraction, factor: Fraction) -> Fraction:
    """`E` of the formula; `factor` is of `on_demand` what spot costs, interruptions included."""
    return on_demand * (spot_share * factor + 1 - spot_share)


def _eligible(accounts: Accounts, window: Window, config: SpotConfig) -> Fraction | None:
    """Of what there was, by its cost, what no lease held that must stay; None: nothing was there.
    What was torn down, fenced or free may go."""
    there = bound = Fraction(0)
    for key, amount in accounts.source.sums(window.pair).items():
        cost = capacity.infrastructure_cost(accounts, key.kind, key.tier, amount)
        if key.pool is Pool.PROVISIONED:
            there += cost
        elif key.pool is Pool.TENANT and key.priority not in config.eligible:
            bound += cost
    return max(Fraction(0), 1 - bound / there) if there else None


def _mix(
    now: Fraction, spot_share: Fraction, factor: Fraction, eligible: Fraction, decimals: int
) -> SpotMix:
    cost = expected_cost(now, spot_share, factor)
    saved = now - cost
    return SpotMix(
        cut(spot_share, 3),
        to_decimals(cost, decimals),
        to_decimals(cost * capacity.MONTH_H, decimals),
        to_decimals(saved * capacity.MONTH_H, decimals),
        to_decimals(saved * 100 / now, 1),
        spot_share <= eligible,
    )


def _break_even(config: SpotConfig) -> Decimal | None:
    """From `spot·(1 + λ·undone) = OD`."""
    if not config.undone_ns or not config.price_pm:
        return None
    dearer = Fraction(1000 - config.price_pm, config.price_pm)
    return to_decimals(dearer * MONTH_NS / config.undone_ns, 1)


KEYS: Final[Keys] = {
    "target_spot": ("target_pm", share),
    "price": ("price_pm", share),
    "interrupted_every": ("interrupted_every_ns", duration),
    "lost_work": ("lost_work_ns", duration),
    "restart": ("restart_ns", duration),
    "eligible": ("eligible", lambda value: rows(value, lambda one: member(Priority, one))),
}
SECTION: Final = ("spot_optimization", section(SpotConfig, KEYS, "spot_optimization."))
