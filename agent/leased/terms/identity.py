# SPDX-License-Identifier: Apache-2.0
"""Identities: 128-bit random values, never reused, held as 16 bytes and printed as 32 hex digits.

Rule: an id is `bytes` of length 16 everywhere inside the program; it becomes text only in `wire`
and `ctl`, and it is parsed in one place, here. A tenant is a configured name, because people and
bills read it.

Does not make ids: randomness is handed in by whoever needs one (`ports.Entropy`).
"""

from __future__ import annotations

from typing import Annotated, Final, NewType

import msgspec

from leased.terms.errors import InvalidParameter

LeaseId = NewType("LeaseId", bytes)
CommandId = NewType("CommandId", bytes)
EventId = NewType("EventId", bytes)
NodeId = NewType("NodeId", bytes)
BootId = NewType("BootId", bytes)
LogId = NewType("LogId", bytes)
TenantId = NewType("TenantId", str)

ID_BYTES = 16
ID: Final = msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)
"""With it an id is refused that is longer or shorter, where bytes are decoded."""
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A SHA-256 (or a public key), whole where bytes are decoded."""

TENANT_CHARS_MAX = 64
_HEX_DIGITS = frozenset("0123456789abcdef")
_TENANT_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def parse_id(text: str, parameter: str) -> bytes:
    """Return the 16 bytes that 32 lower-case hex digits stand for.

    `parameter` names the field in the error. Raises InvalidParameter.
    """
    if len(text) == 2 * ID_BYTES and _HEX_DIGITS.issuperset(text):
        return bytes.fromhex(text)
    raise InvalidParameter(parameter, "an id is 32 lower-case hex digits")


def is_tenant(text: str) -> bool:
    """Whether a tenant may be called that."""
    return 0 < len(text) <= TENANT_CHARS_MAX and _TENANT_ALPHABET.issuperset(text)


def parse_tenant(text: str, parameter: str = "tenant") -> TenantId:
    """Return `text` as a tenant name: 1 to 64 of `a-z A-Z 0-9 - _ .`. Raises InvalidParameter."""
    if is_tenant(text):
        return TenantId(text)
    raise InvalidParameter(parameter, "a tenant is 1 to 64 of a-z A-Z 0-9 - _ .")
