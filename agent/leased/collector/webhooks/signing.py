# SPDX-License-Identifier: Apache-2.0
"""Signatures of deliveries, as Standard Webhooks has them.

Rule: `v1` is HMAC-SHA256 over `id.timestamp.body`, one signature for each secret that counts, so
that a receiver may change its secret at leisure. A secret is shown once, to whom makes it; nothing
here prints one.

Does not make the time or the randomness (they are handed in).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32


class Secret(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key of 24 to 64 bytes. `until_ns` None: for as long as there is no other."""

    key: bytes
    since_ns: int
    until_ns: int | None = None

    def __repr__(self) -> str:
        return f"Secret(since_ns={self.since_ns}, until_ns={self.until_ns})"

    def text(self) -> str:
        """As the receiver is given it."""
        return PREFIX + base64.b64encode(self.key).decode()


def make_secret(entropy: Callable[[], bytes], now_ns: int) -> Secret:
    """A new one."""
    return Secret((entropy() + entropy())[:SECRET_BYTES], now_ns)


def parse_secret(text: str, now_ns: int) -> Secret:
    """One that the receiver has. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX).encode(), validate=True)
    except (binascii.Error, UnicodeError, ValueError):
        key = b""
    if not text.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(f'"{PREFIX}" and 24 to 64 bytes in base64')
    return Secret(key, now_ns)


def turn(secrets: Sequence[Secret], fresh: Secret, overlap_ns: int) -> tuple[Secret, ...]:
    """Put `fresh` first; what counted before goes on for `overlap_ns`."""
    now_ns, until_ns = fresh.since_ns, fresh.since_ns + overlap_ns
    kept = [
        msgspec.structs.replace(one, until_ns=min(one.until_ns or until_ns, until_ns))
        for one in secrets
        if one.until_ns is None or one.until_ns > now_ns
    ]
    return (fresh, *kept[:1])


def headers_of(
    id: str, body: bytes, secrets: Sequence[Secret], now_ns: int
) -> list[tuple[str, str]]:
    """What says who sent it, and when."""
    timestamp = str(now_ns // 1_000_000_000)
    signed = f"{id}.{timestamp}.".encode() + body
    counting = [one for one in secrets if one.until_ns is None or one.until_ns > now_ns]
    signatures = [
        "v1," + base64.b64encode(hmac.new(one.key, signed, hashlib.sha256).digest()).decode()
        for one in counting
    ]
    return [
        ("webhook-id", id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", " ".join(signatures)),
    ]
