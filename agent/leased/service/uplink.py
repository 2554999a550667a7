# SPDX-License-Identifier: Apache-2.0
"""Where this node's collector is, and how it is known: a part of the agent's configuration.

Rule: off unless a URL is given, and then nothing is left to trust: the key by which policies are
checked has to be there too. A token or certificate only says who asks.

Does not connect (`policy.exchange`).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from leased.chain.policy_note import parse_key
from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Collector(msgspec.Struct, frozen=True):
    """`url` is the collector's ("https://collector.example:8443"), `policy_key` what
    `leased-collector key` prints. `wait_ns` is how long a request may wait for another policy,
    `retry_ns` the longest pause after one that failed."""

    url: str = ""
    fleet: str = "leased"
    policy_key: str = ""
    token_file: str = ""
    ca: str = ""
    certificate: str = ""
    certificate_key: str = ""
    wait_ns: int = 60 * NS_PER_S
    retry_ns: int = 30 * NS_PER_S


def check(collector: Collector) -> None:
    """Raises ConfigError naming the key."""
    if not collector.url:
        return
    try:
        parts = urlsplit(collector.url)
        plain = parts.scheme == "http" and parts.hostname in LOOPBACK
        if not (parts.scheme == "https" or plain) or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:  # also brackets without an address, and ports that there are not
        wanted = "https://HOST:PORT (http:// for this host only)"
        raise ConfigError(f"collector.url: {wanted}") from None
    if parts.path.strip("/") or parts.query or "@" in collector.url:
        raise ConfigError("collector.url: scheme, host and port, and nothing else")
    if not collector.policy_key:
        raise ConfigError(
            "collector.policy_key: needed with collector.url (`leased-collector key`)"
        )
    parse_key(collector.policy_key)
    if bool(collector.certificate) != bool(collector.certificate_key):
        raise ConfigError("collector.certificate: goes with collector.certificate_key")
    if not NS_PER_S <= collector.wait_ns <= 300 * NS_PER_S:
        raise ConfigError("collector.wait: from 1s to 300s")
    if collector.retry_ns < NS_PER_S:
        raise ConfigError("collector.retry: at least 1s")
    for key in ("token_file", "ca", "certificate", "certificate_key"):
        if getattr(collector, key) and not Path(getattr(collector, key)).is_absolute():
            raise ConfigError(f"collector.{key}: must be absolute")
