# SPDX-License-Identifier: Apache-2.0
"""What may be chosen of webhooks: section [webhooks] of the configuration.

Rule: what cannot be meant is refused before anything runs.

Does not open what it names (`mailing`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from leased.collector.webhooks.guard import Network, parse_network
from leased.terms.errors import ConfigError
from leased.terms.moment import DAY_NS, NS_PER_S
from leased.terms.reading import Keys, duration, integer, rows, section, share, text


class Chosen(msgspec.Struct, frozen=True):
    """Where webhooks may go, how they are sent, and how long what was sent is kept."""

    private_networks: tuple[Network, ...] = ()
    ca: str = ""
    signing_keys: tuple[str, ...] = ()
    timeout_ns: int = 20 * NS_PER_S
    concurrency: int = 16
    overlap_ns: int = DAY_NS
    keep_ns: int = 7 * DAY_NS
    keep_dead_ns: int = 30 * DAY_NS
    thresholds_pm: tuple[int, ...] = (800, 1000)
    idle_ns: int = DAY_NS


def check_chosen(chosen: Chosen) -> None:
    """Raises ConfigError for what cannot be meant."""
    if not NS_PER_S <= chosen.timeout_ns <= 60 * NS_PER_S:
        raise ConfigError("webhooks.timeout: 1s to 60s; a receiver takes in and works later")
    if not 1 <= chosen.concurrency <= 1000:
        raise ConfigError("webhooks.concurrency: 1 to 1000")
    marks = chosen.thresholds_pm
    if list(marks) != sorted(set(marks)) or 0 in marks:
        raise ConfigError("webhooks.thresholds: above 0%, each once, the lowest first")


def _networks(value: Any) -> tuple[Network, ...]:
    return rows(value, lambda one: parse_network(text(one)))


def _shares(value: Any) -> tuple[int, ...]:
    return rows(value, share)


KEYS: Final[Keys] = {
    "private_networks": ("private_networks", _networks),
    "ca": ("ca", text),
    "signing_keys": ("signing_keys", lambda value: rows(value, text)),
    "timeout": ("timeout_ns", duration),
    "concurrency": ("concurrency", integer),
    "overlap": ("overlap_ns", duration),
    "keep": ("keep_ns", duration),
    "keep_dead": ("keep_dead_ns", duration),
    "thresholds": ("thresholds_pm", _shares),
    "idle": ("idle_ns", duration),
}
SECTION: Final = ("webhooks", section(Chosen, KEYS, "webhooks."))
