# SPDX-License-Identifier: Apache-2.0
"""Signatures of deliveries, as Standard Webhooks has them.

Rule: `v1` is HMAC-SHA256 over `id.timestamp.body`, one signature for each secret that counts, so
that a receiver may change its secret at leisure. `v1a` is Ed25519 over the same, one for each key
of ours: who checks by a public key can sign nothing itself. A secret is shown once, to whom makes
it; nothing here prints one.

Does not make the time or the randomness (they are handed in).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.signing import Signer, parse_pem
from leased.durable.reading import read_file
from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S

PREFIX: Final = "whsec_"
PUBLIC_PREFIX: Final = "whpk_"
KEYS_MAX: Final = 4
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


def load_keys(names: Sequence[str], directory: Path) -> tuple[Signer, ...]:
    """The private keys in these files, those beside `directory`'s configuration. Raises
    ConfigError."""
    at = "webhooks.signing_keys"
    if len(names) > KEYS_MAX or len(names) != len(frozenset(names)):
        raise ConfigError(f"{at}: {KEYS_MAX} at most, each once")
    found = []
    for name in names:
        path = directory / name
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{at}: {path}: others may read it; run `chmod 600 {path}`")
            found.append(parse_pem(read_file(path)))
        except OSError as error:
            raise ConfigError(f"{at}: {path}: {error.strerror}") from error
        except ValueError as error:
            why = f"not an unencrypted Ed25519 key in PKCS#8 PEM ({error})"
            raise ConfigError(f"{at}: {path}: {why}") from error
    return tuple(found)


def public_text(key: Signer) -> str:
    """A public key as receivers are given it."""
    return PUBLIC_PREFIX + base64.b64encode(key.public_key).decode()


def headers_of(
    id: str, body: bytes, secrets: Sequence[Secret], now_ns: int, keys: Sequence[Signer] = ()
) -> list[tuple[str, str]]:
    """What says who sent it, and when."""
    timestamp = str(now_ns // NS_PER_S)
    signed = f"{id}.{timestamp}.".encode() + body
    counting = [one for one in secrets if one.until_ns is None or one.until_ns > now_ns]
    signatures = [
        "v1," + base64.b64encode(hmac.new(one.key, signed, hashlib.sha256).digest()).decode()
        for one in counting
    ]
    signatures += ["v1a," + base64.b64encode(key.sign(signed)).decode() for key in keys]
    return [
        ("webhook-id", id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", " ".join(signatures)),
    ]
