# SPDX-License-Identifier: Apache-2.0
"""Contracts: what tenants are charged by. Rate cards with the hour from which each is in force,
plans, usage rates, tiers, minimums and credits.

Rule: every version begins on a full hour, so an hour has one price and usage by the hour can be
priced without being cut again. What was in force is never changed: a new version begins later. The
canonical bytes of the terms that a bill was made by are a part of the bill.

Does not read files (`collector.accounts.terms_file`) and does not price (`billing`).
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from typing import Final

import msgspec

from leased.economics.rates import DEFAULT_CARD, RateCard, check
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind

NUMBER_MAX: Final = (1 << 63) - 1
"""What is agreed is read by others too, who have no larger integers."""


class Model(enum.StrEnum):
    """How a tenant is charged: by the rate card; a plan with overage; use at rates of its own; by
    the task, cheaper the more there are."""

    RATE_CARD = "rate_card"
    RESERVED = "reserved"
    USAGE_BASED = "usage_based"
    TIERED = "tiered"


class TierMode(enum.StrEnum):
    """Every slice at its own rate, or all at the rate of the slice that the last task falls in."""

    GRADUATED = "graduated"
    VOLUME = "volume"


class CardVersion(msgspec.Struct, frozen=True):
    """`card` prices every hour from `since_ns` on, until the next version."""

    since_ns: int
    card: RateCard


class Plan(msgspec.Struct, frozen=True):
    """So much held at once for a month at a fee; the overage rates are nano-units per core-hour and
    GiB-hour, 0: not charged."""

    name: str
    cpu_milli: int
    mem_bytes: int
    monthly_nano: int
    overage_cpu_hour_nano: int = 0
    overage_gib_hour_nano: int = 0


class UsageRates(msgspec.Struct, frozen=True):
    """Nano-units per core-hour, GiB-hour, GiB-month and task. None: not priced so."""

    cpu_core_hour_nano: int | None = None
    memory_gib_hour_nano: int | None = None
    storage_gib_month_nano: int | None = None
    task_nano: int | None = None


class TaskTier(msgspec.Struct, frozen=True):
    """Tasks number `low` (from 0) on, until the next tier, at `task_nano` each."""

    low: int
    task_nano: int


class Contract(msgspec.Struct, frozen=True):
    """How `tenant` is charged in [since_ns, until_ns). `rates` also prices what neither a plan nor
    tiers cover. `rest_by_card`: the kinds that nothing here names are charged by the rate card,
    else they are included."""

    tenant: str
    since_ns: int
    model: Model
    until_ns: int | None = None
    plan: str | None = None
    rates: UsageRates = UsageRates()
    tiers: tuple[TaskTier, ...] = ()
    tier_mode: TierMode = TierMode.GRADUATED
    monthly_minimum_nano: int = 0
    rest_by_card: bool = True


class Credit(msgspec.Struct, frozen=True):
    """Something given back for a month ("2026-01"): `nano` > 0 makes the bill smaller, of which
    bills before have given `given_nano`."""

    tenant: str
    month: str
    nano: int
    reason: str
    given_nano: int = 0

    def document(self) -> dict[str, object]:
        """As plain values; what no bill before has given anything of is told without that."""
        fields = msgspec.structs.asdict(self)
        if not self.given_nano:
            del fields["given_nano"]
        return fields


class Terms(msgspec.Struct, frozen=True):
    """All of it. `infrastructure` is what capacity costs the operator, for chargeback, until the
    first of `infrastructure_cards` begins."""

    cards: tuple[CardVersion, ...] = (CardVersion(0, DEFAULT_CARD),)
    infrastructure: RateCard = DEFAULT_CARD
    infrastructure_cards: tuple[CardVersion, ...] = ()
    plans: tuple[Plan, ...] = ()
    contracts: tuple[Contract, ...] = ()
    credits: tuple[Credit, ...] = ()
    time_zones: tuple[tuple[str, str], ...] = ()
    allow_negative: bool = False
    retired_nodes: tuple[str, ...] = ()
    """Ids of nodes that will not be heard of again: nobody waits for them. Not a part of a bill."""

    @property
    def currency(self) -> str:
        """The one currency of these terms."""
        return self.cards[0].card.currency

    @property
    def decimals(self) -> int:
        """The digits that a bill line is rounded to."""
        return self.cards[0].card.decimals

    def card_number(self, hour: int) -> int:
        """Which version prices `hour`; the first also prices what was before it."""
        return number_of(self.cards, hour)

    def card_of(self, hour: int) -> RateCard:
        """The card that prices `hour`."""
        return self.cards[self.card_number(hour)].card

    def card_at(self, at_ns: int) -> RateCard:
        """The card in force at an instant: one that begins later prices nothing yet."""
        return self.card_of(at_ns // HOUR_NS)

    @property
    def costs(self) -> tuple[CardVersion, ...]:
        """What capacity costs the operator, from when on."""
        return (CardVersion(0, self.infrastructure), *self.infrastructure_cards)

    def costs_at(self, at_ns: int) -> RateCard:
        """The same at an instant."""
        return self.costs[number_of(self.costs, at_ns // HOUR_NS)].card

    def costs_in(self, window: tuple[int, int]) -> RateCard:
        """The same at the beginning of `window`, where all of it is in that currency. Raises
        InvalidParameter."""
        first = self.costs_at(window[0])
        money = (first.currency, first.decimals)
        for since_ns, card in map(msgspec.structs.astuple, self.infrastructure_cards):
            if window[0] < since_ns < window[1] and (card.currency, card.decimals) != money:
                why = f"what capacity costs is in {card.currency} from within that time on"
                raise InvalidParameter("period", f"{why}, and was in {first.currency}: ask apart")
        return first

    def plan(self, name: str) -> Plan:
        """A plan by its name; `check_terms` has seen that it is there."""
        return next(plan for plan in self.plans if plan.name == name)

    def contracts_of(self, tenant: str, window: tuple[int, int]) -> list[tuple[Contract, int, int]]:
        """The contracts of `tenant` in `window`, each with its part of it, gaps filled by the rate
        card."""
        found: list[tuple[Contract, int, int]] = []
        at_ns = window[0]
        for contract in self.contracts:
            start_ns = max(at_ns, contract.since_ns)
            end_ns = window[1] if contract.until_ns is None else min(window[1], contract.until_ns)
            if contract.tenant != tenant or start_ns >= end_ns:
                continue
            if start_ns > at_ns:
                found.append((Contract(tenant, at_ns, Model.RATE_CARD), at_ns, start_ns))
            found.append((contract, start_ns, end_ns))
            at_ns = end_ns
        if at_ns < window[1]:
            found.append((Contract(tenant, at_ns, Model.RATE_CARD), at_ns, window[1]))
        return found

    def owes(self, tenant: str, window: tuple[int, int]) -> bool:
        """Whether `tenant` owes a fee or a minimum for some of `window`, used or not."""
        contracts = self.contracts_of(tenant, window)
        return any(one.plan or one.monthly_minimum_nano for one, _, _ in contracts)

    def of_tenant(self, tenant: str, month: str) -> Terms:
        """Only what a bill of `tenant` for `month` depends on. A credit of a month before is one
        that is late."""
        contracts = tuple(c for c in self.contracts if c.tenant == tenant)
        named = [contract.plan for contract in contracts]
        return msgspec.structs.replace(
            self,
            infrastructure=DEFAULT_CARD,
            infrastructure_cards=(),
            plans=tuple(plan for plan in self.plans if plan.name in named),
            contracts=contracts,
            credits=tuple(c for c in self.credits if c.tenant == tenant and c.month <= month),
            time_zones=tuple(zone for zone in self.time_zones if zone[0] == tenant),
            retired_nodes=(),
        )


def number_of(versions: tuple[CardVersion, ...], hour: int) -> int:
    """Which of `versions` prices `hour`; the first also prices what was before it."""
    starts = [version.since_ns for version in versions]
    return max(0, bisect_right(starts, hour * HOUR_NS) - 1)


def check_terms(terms: Terms) -> Terms:
    """Return `terms` if they can be meant. Raises ConfigError naming the key."""
    if not terms.cards:
        raise ConfigError("cards: at least one rate card is needed")
    first = terms.cards[0].card
    for index, version in enumerate(terms.cards):
        check(version.card)
        # As in the file, where the first is [rates] and [[cards]] are those after it.
        key = f"cards[{index - 1}]" if index else "rates"
        _full_hour(version.since_ns, f"{key}.since")
        if index and version.since_ns <= terms.cards[index - 1].since_ns:
            raise ConfigError(f"{key}.since: versions are listed oldest first, each later")
        if (version.card.currency, version.card.decimals) != (first.currency, first.decimals):
            raise ConfigError(f"{key}: one currency and one number of decimals for all")
    check(terms.infrastructure)
    for index, version in enumerate(terms.infrastructure_cards):
        check(version.card)
        key = f"infrastructure_cards[{index}].since"
        _full_hour(version.since_ns, key)
        if version.since_ns <= (terms.infrastructure_cards[index - 1].since_ns if index else 0):
            raise ConfigError(f"{key}: versions are listed oldest first, each later")
    plans = [plan.name for plan in terms.plans]
    if len(plans) != len(frozenset(plans)):
        raise ConfigError("plans: a plan is listed twice")
    for plan in terms.plans:
        numbers = msgspec.structs.astuple(plan)[1:]
        if min(numbers) < 0:
            raise ConfigError(f"plans.{plan.name}: nothing may be negative")
        if max(numbers) > NUMBER_MAX:
            raise ConfigError(f"plans.{plan.name}: more than there is anywhere")
    for index, contract in enumerate(terms.contracts):
        _check_contract(contract, f"contracts[{index}]", plans)
    _check_order(terms.contracts)
    for index, credit in enumerate(terms.credits):
        if credit.nano < 0 or len(credit.reason) > 200:
            raise ConfigError(f"credits[{index}]: a credit is not negative, its reason is short")
    return terms


def _full_hour(at_ns: int, key: str) -> None:
    if at_ns % HOUR_NS:
        raise ConfigError(f"{key}: a version begins on a full hour (UTC)")


def _check_contract(contract: Contract, key: str, plans: list[str]) -> None:
    _full_hour(contract.since_ns, f"{key}.since")
    if contract.until_ns is not None:
        _full_hour(contract.until_ns, f"{key}.until")
        if contract.until_ns <= contract.since_ns:
            raise ConfigError(f"{key}.until: it ends before it begins")
    if (contract.model is Model.RESERVED) != (contract.plan is not None):
        raise ConfigError(f"{key}.plan: the reserved model has a plan, and no other has")
    if contract.plan is not None and contract.plan not in plans:
        raise ConfigError(f"{key}.plan: there is no plan {contract.plan!r}")
    if (contract.model is Model.TIERED) != bool(contract.tiers):
        raise ConfigError(f"{key}.tiers: the tiered model has tiers, and no other has")
    _check_priced_once(contract, key)
    lows = [tier.low for tier in contract.tiers]
    if lows and (lows[0] != 0 or lows != sorted(frozenset(lows))):
        raise ConfigError(f"{key}.tiers: tiers begin at 0 and each where the one before ends")
    if lows and lows[-1] > NUMBER_MAX:
        raise ConfigError(f"{key}.tiers: more tasks than there are anywhere")
    prices = [tier.task_nano for tier in contract.tiers]
    prices += [price for price in msgspec.structs.astuple(contract.rates) if price is not None]
    if min([contract.monthly_minimum_nano, *prices]) < 0:
        raise ConfigError(f"{key}: no price may be negative")


def _check_priced_once(contract: Contract, key: str) -> None:
    rates = contract.rates
    for model, name, nano, by in (
        (Model.RESERVED, "cpu_core_hour", rates.cpu_core_hour_nano, "the plan and its overage"),
        (Model.RESERVED, "memory_gb_hour", rates.memory_gib_hour_nano, "the plan and its overage"),
        (Model.TIERED, "task_execution", rates.task_nano, "the tiers"),
    ):
        if contract.model is model and nano is not None:
            raise ConfigError(f"{key}.{name}: {by} price that already; nobody pays twice")


def _check_order(contracts: tuple[Contract, ...]) -> None:
    ends: dict[str, int | None] = {}
    for index, contract in enumerate(contracts):
        end_ns = ends.get(contract.tenant, 0)
        if end_ns is None or contract.since_ns < end_ns:
            raise ConfigError(
                f"contracts[{index}]: it begins before the one of {contract.tenant} above it ends"
            )
        ends[contract.tenant] = contract.until_ns


COVERED: Final[dict[Model, tuple[ResourceKind, ...]]] = {
    Model.RATE_CARD: (),
    Model.RESERVED: (ResourceKind.CPU, ResourceKind.MEM),
    Model.USAGE_BASED: (),
    Model.TIERED: (),
}
"""The kinds that a model prices itself, besides those that its rates name."""
