# SPDX-License-Identifier: Apache-2.0
"""Rate cards from files: the [rates] table of leased.toml, or of a file kept from an earlier time.

Rule: a card is known by its hash, so which file it came from does not matter; a lease is priced by
the card that was in force at its grant, or not at all.

Does not price (`economics.rates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from leased.durable.reading import read_text
from leased.economics import rates
from leased.economics.rates import DEFAULT_CARD, Rate, RateCard
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.lease import Priority
from leased.terms.reading import read_toml
from leased.terms.resource import ResourceKind, TierKind

CONFIG_FILE: Final = Path("/etc/leased/leased.toml")


def load_cards(files: Iterable[Path]) -> dict[bytes, RateCard]:
    """The cards of `files` by hash; with none given, the built-in card and that of the
    configuration.
    """
    cards = {DEFAULT_CARD.digest(): DEFAULT_CARD}
    chosen = list(files)
    for file in chosen or ([CONFIG_FILE] if CONFIG_FILE.exists() else []):
        card = load_card(file)
        cards[card.digest()] = card
    return cards


def load_card(file: Path) -> RateCard:
    """The card in `file`. Raises ConfigError naming file and key."""
    try:
        document = read_toml(read_text(file, pipe=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidParameter("rates", f"{file}: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{file}: {error}") from error
    return parse_card(document.get("rates", {}), str(file))


def parse_card(
    table: Mapping[str, Any], file: str, *, at: str = "rates", base: RateCard = DEFAULT_CARD
) -> RateCard:
    """The table `at` as a card; what it does not name is as in `base`. Raises ConfigError."""
    priced = {(rate.kind, rate.tier, rate.priority): rate for rate in base.rates}
    multipliers = dict(base.multipliers_pm)
    currency, decimals = base.currency, base.decimals
    for key, value in table.items():
        where = f"{file}: {at}.{key}"
        if key == "multipliers_pm":
            for name, multiplier in _strict(value, dict, where).items():
                priority = _member(Priority, name, where)
                multipliers[priority] = _strict(multiplier, int, f"{where}.{name}")
        elif key == "currency":
            currency = _strict(value, str, where)
        elif key == "decimals":
            decimals = _strict(value, int, where)
        else:
            kind_name, _, tier_name = key.partition(".")
            kind = _member(ResourceKind, kind_name, where)
            tier = _member(TierKind, tier_name, where) if tier_name else None
            nano, pico = rates.parse_rate(_strict(value, str, where), where)
            priced[kind, tier, None] = Rate(kind, nano, tier, pico=pico)
    card = RateCard(tuple(priced.values()), currency, decimals, tuple(multipliers.items()))
    try:
        return rates.check(card)
    except ConfigError as error:
        raise ConfigError(f"{file}: {str(error).replace('rates', at, 1)}") from error


def _strict(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise ConfigError(f"{where}: must be a {kind.__name__}; money in quotes, never a float")
    return value


def _member(members: Any, name: str, where: str) -> Any:
    for member in members:
        if member.name.lower() == name:
            return member
    known = ", ".join(member.name.lower() for member in members)
    raise ConfigError(f"{where}: {name} is none of {known}")
