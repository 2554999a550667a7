# SPDX-License-Identifier: Apache-2.0
"""Kept costs: what capacity cost the operator in the months that are issued.

Rule: with the bills of a month it is kept what capacity cost up to the month's end (UTC). Terms
that say otherwise of that time are refused: what was charged back would change. What is later may
be agreed at any time.

Does not price (`economics.attribution`).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.accounts import periods
from leased.durable.files import DirectoryDisk, write_whole
from leased.economics.amounts import fixed
from leased.economics.contracts import CardVersion, Terms
from leased.economics.rates import RateCard
from leased.terms.errors import ConfigError, StateError
from leased.terms.quantity import print_instant

FILE: Final = "infrastructure.json"
VERSION: Final = 1
_PICO_DIGITS: Final = 12
_Costs = dict[str, str]


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each kind cost, from when on, until `until_ns`."""

    version: int = VERSION
    until_ns: int = 0
    versions: list[tuple[int, _Costs]] = []


class KeptCosts:
    """Of one state directory, below its invoices."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def check(self, terms: Terms, from_ns: int = 0) -> None:
        """Whether `terms` still say what was kept; nothing is asked of what is after it. Raises
        ConfigError, StateError."""
        kept = self._read()
        if from_ns < kept.until_ns:
            _check_same(kept.versions, _versions(terms, kept.until_ns), kept.until_ns)

    def keep(self, terms: Terms, until_ns: int) -> None:
        """Keep what `terms` say up to `until_ns`, durably, beside the bills that are issued."""
        self.check(terms)
        if until_ns <= self._read().until_ns:
            return
        with closing(DirectoryDisk(self._directory)) as disk:
            if not disk.lock():
                raise StateError(f"{self._directory}: another process is issuing bills")
            told = _Kept(VERSION, until_ns, _versions(terms, until_ns))
            write_whole(disk, FILE, msgspec.json.format(msgspec.json.encode(told), indent=1))

    def _read(self) -> _Kept:
        path = self._directory / FILE
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (OSError, ValueError) as error:
            raise StateError(f"{path}: {error}; restore it from a backup") from error
        if found.version != VERSION:
            raise StateError(f"{path}: of version {found.version}; this release reads {VERSION}")
        return found


def _versions(terms: Terms, until_ns: int) -> list[tuple[int, _Costs]]:
    """What is different from when on, up to an instant."""
    found: list[tuple[int, _Costs]] = []
    for version in (CardVersion(0, terms.infrastructure), *terms.infrastructure_cards):
        costs = _costs(version.card)
        if version.since_ns < until_ns and (not found or found[-1][1] != costs):
            found.append((version.since_ns, costs))
    return found


def _costs(card: RateCard) -> _Costs:
    """What is told of a card: no priority pays for what it costs to have something."""
    found = {"currency": card.currency, "decimals": str(card.decimals)}
    for rate in card.rates:
        if rate.priority is None:
            tier = "" if rate.tier is None else f".{rate.tier.name.lower()}"
            text = fixed(rate.exact, _PICO_DIGITS).rstrip("0").rstrip(".")
            found[rate.kind.name.lower() + tier] = text
    return found


def _check_same(
    kept: list[tuple[int, _Costs]], told: list[tuple[int, _Costs]], until_ns: int
) -> None:
    for at_ns in sorted({since_ns for since_ns, _ in (*kept, *told)}):
        was, now = _at(kept, at_ns), _at(told, at_ns)
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                raise ConfigError(
                    f"infrastructure.{key}: what was charged back would change: from"
                    f" {print_instant(at_ns)} on it was {was.get(key, 'as its kind')}, in months"
                    f" to {periods.day(until_ns)} that are issued, and is"
                    f" {now.get(key, 'as its kind')} now; put it back, and list what it costs from"
                    " later on in [[infrastructure_cards]]"
                )


def _at(versions: list[tuple[int, _Costs]], at_ns: int) -> dict[str, Any]:
    return [costs for since_ns, costs in versions if since_ns <= at_ns][-1]
