# SPDX-License-Identifier: Apache-2.0
"""The terms from a file (billing.toml): rate cards with their beginnings, plans, contracts,
credits.

Rule: an unknown key, a float or a price in force before a full hour is refused, with file and key;
nothing is guessed. What is left out has the built-in value; in a later version of the card, that of
the version before it. The server and the verbs find the file by the same rule (`terms_path`), so
that there is one bill.

Does not price (`economics.billing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.accounts import periods
from leased.collector.config import CONFIG, read_config, read_document
from leased.ctl.console import parse_instant
from leased.ctl.rate_file import parse_card
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Credit,
    Model,
    Plan,
    TaskTier,
    Terms,
    TierMode,
    UsageRates,
    check_terms,
)
from leased.economics.rates import RateCard, parse_price
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.identity import parse_id, parse_tenant

TERMS_FILE: Final = "billing.toml"
GIB: Final = 1 << 30
_NOTHING: Final = "0"


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    """[plans.<name>]."""

    cpu_cores: int
    memory_gb: int
    monthly_price: str
    overage_per_cpu_hour: str = _NOTHING
    overage_per_gb_hour: str = _NOTHING


class _Tier(msgspec.Struct, forbid_unknown_fields=True):
    """One of [[contracts]] tiers."""

    tasks_from: int
    rate_per_task: str


class _Contract(msgspec.Struct, forbid_unknown_fields=True):
    """[[contracts]]."""

    tenant: str
    model: Model
    since: str = "1970-01-01"
    until: str | None = None
    plan: str | None = None
    cpu_core_hour: str | None = None
    memory_gb_hour: str | None = None
    storage_gb_month: str | None = None
    network_gb: str | None = None
    task_execution: str | None = None
    tiers: list[_Tier] = []
    tier_mode: TierMode = TierMode.GRADUATED
    monthly_minimum: str = _NOTHING
    rest: str = "rate_card"


class _Credit(msgspec.Struct, forbid_unknown_fields=True):
    """[[credits]]."""

    tenant: str
    month: str
    amount: str
    reason: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    rates: dict[str, Any] = {}
    cards: list[dict[str, Any]] = []
    infrastructure: dict[str, Any] = {}
    infrastructure_cards: list[dict[str, Any]] = []
    plans: dict[str, _Plan] = {}
    contracts: list[_Contract] = []
    credits: list[_Credit] = []
    time_zones: dict[str, str] = {}
    allow_negative: bool = False
    retired_nodes: list[str] = []


def terms_path(directory: Path, named: str) -> Path | None:
    """The file that a configuration in `directory` names; else the one beside it, if any."""
    path = directory / (named or TERMS_FILE)
    return path if named or path.exists() else None


def load_terms_for(config: Path | None) -> Terms:
    """The terms of the collector that `config` configures (default: that of /etc). Raises
    ConfigError."""
    governance = read_config(config).get("governance", {})
    config = config or CONFIG
    named = governance.get("terms_file", "") if isinstance(governance, dict) else None
    if not isinstance(named, str):
        raise ConfigError(f"{config}: governance.terms_file: must be a name in quotes")
    path = terms_path(config.parent, named)
    return Terms() if path is None else load_terms(path)


def load_terms(path: Path) -> Terms:
    """The terms in `path`. Raises ConfigError, also where there is no such file: who names one does
    not want the list prices."""
    return parse_terms(read_document(path, pipe=True), str(path))


def parse_terms(document: Mapping[str, Any], file: str) -> Terms:
    """A parsed file as terms. Raises ConfigError naming file and key."""
    try:
        read = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error
    first = parse_card(read.rates, file)
    costs = parse_card(read.infrastructure, file, at="infrastructure", base=first)
    try:
        return _checked(
            Terms(
                cards=(CardVersion(0, first), *_later(read.cards, file, "cards", first)),
                infrastructure=costs,
                infrastructure_cards=_later(
                    read.infrastructure_cards, file, "infrastructure_cards", costs
                ),
                plans=tuple(_plan(name, plan, file) for name, plan in read.plans.items()),
                contracts=tuple(
                    _contract(one, f"{file}: contracts[{number}]")
                    for number, one in enumerate(read.contracts)
                ),
                credits=tuple(
                    _credit(one, f"{file}: credits[{number}]")
                    for number, one in enumerate(read.credits)
                ),
                time_zones=tuple(
                    (_tenant(tenant, file), _zone(zone, f"{file}: time_zones.{tenant}"))
                    for tenant, zone in sorted(read.time_zones.items())
                ),
                allow_negative=read.allow_negative,
                retired_nodes=tuple(
                    parse_id(node, f"{file}: retired_nodes").hex() for node in read.retired_nodes
                ),
            ),
            file,
        )
    except InvalidParameter as error:
        raise ConfigError(f"{file}: {error}") from error


def _later(
    tables: list[dict[str, Any]], file: str, name: str, base: RateCard
) -> tuple[CardVersion, ...]:
    """The later versions of a card, each as the one before it but for what it names."""
    found: list[CardVersion] = []
    for number, table in enumerate(tables):
        at = f"{name}[{number}]"
        since_ns = _instant(table.get("since"), f"{file}: {at}.since")
        rest = {key: value for key, value in table.items() if key != "since"}
        base = parse_card(rest, file, at=at, base=base)
        found.append(CardVersion(since_ns, base))
    return tuple(found)


def _checked(terms: Terms, file: str) -> Terms:
    try:
        return check_terms(terms)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _plan(name: str, plan: _Plan, file: str) -> Plan:
    where = f"{file}: plans.{name}"
    return Plan(
        name,
        plan.cpu_cores * 1000,
        plan.memory_gb * GIB,
        parse_price(plan.monthly_price, f"{where}.monthly_price"),
        parse_price(plan.overage_per_cpu_hour, f"{where}.overage_per_cpu_hour"),
        parse_price(plan.overage_per_gb_hour, f"{where}.overage_per_gb_hour"),
    )


def _contract(one: _Contract, where: str) -> Contract:
    if one.network_gb is not None:
        why = "no record counts bytes (decision 0077): `rates.net` prices the bandwidth held"
        raise ConfigError(f"{where}.network_gb: {why}")
    if one.rest not in ("rate_card", "included"):
        raise ConfigError(f'{where}.rest: "rate_card" or "included"')

    def price(name: str) -> int | None:
        text = getattr(one, name)
        return None if text is None else parse_price(text, f"{where}.{name}")

    tiers = tuple(
        TaskTier(tier.tasks_from, parse_price(tier.rate_per_task, f"{where}.tiers"))
        for tier in one.tiers
    )
    return Contract(
        tenant=_tenant(one.tenant, where),
        since_ns=_instant(one.since, f"{where}.since"),
        model=one.model,
        until_ns=None if one.until is None else _instant(one.until, f"{where}.until"),
        plan=one.plan,
        rates=UsageRates(
            price("cpu_core_hour"),
            price("memory_gb_hour"),
            price("storage_gb_month"),
            price("task_execution"),
        ),
        tiers=tiers,
        tier_mode=one.tier_mode,
        monthly_minimum_nano=parse_price(one.monthly_minimum, f"{where}.monthly_minimum"),
        rest_by_card=one.rest == "rate_card",
    )


def _credit(one: _Credit, where: str) -> Credit:
    periods.month(one.month)
    nano = parse_price(one.amount, f"{where}.amount")
    return Credit(_tenant(one.tenant, where), one.month, nano, one.reason)


def _tenant(text: str, where: str) -> str:
    try:
        return parse_tenant(text)
    except InvalidParameter as error:
        raise ConfigError(f"{where}: {error}") from error


def _zone(name: str, where: str) -> str:
    try:
        # As its rules are from now on: such a month could never be billed.
        for number in range(1, 13):
            periods.month(f"2199-{number:02}", name)
    except InvalidParameter as error:
        raise ConfigError(f"{where}: {error.why}") from error
    return name


def _instant(text: object, where: str) -> int:
    if not isinstance(text, str):
        raise ConfigError(f'{where}: an instant in quotes, such as "2026-02-01"')
    try:
        return parse_instant(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
