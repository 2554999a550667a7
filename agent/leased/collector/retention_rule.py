# SPDX-License-Identifier: Apache-2.0
"""The rule of retention: section [retention] of the configuration.

Does not carry it out (`retention`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from leased.collector.config import read_section
from leased.terms.errors import ConfigError
from leased.terms.reading import section

MONTHS_MAX: Final = 1200
FOREVER: Final = "forever"


class Rule(msgspec.Struct, frozen=True):
    """Section [retention]: how many whole months of raw records, and of hourly usage, are kept
    beside the running one; None: all."""

    raw_months: int | None = None
    usage_months: int | None = None


def load_rule(path: Path | None) -> Rule:
    """Section [retention]. Raises ConfigError."""
    return read_section(path, "retention", _SECTION, _checked)


def _checked(rule: Rule) -> Rule:
    if rule.usage_months is not None and rule.usage_months < (rule.raw_months or MONTHS_MAX):
        raise ConfigError("retention.usage_months: not fewer than raw_months")
    return rule


def _months(value: object) -> int | None:
    if value == FOREVER:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MONTHS_MAX:
        return value
    raise ValueError(f'"{FOREVER}", or months from 1 to {MONTHS_MAX}')


_KEYS: Final = {"raw_months": ("raw_months", _months), "usage_months": ("usage_months", _months)}
_SECTION: Final = ("retention", section(Rule, _KEYS, "retention."))
