# SPDX-License-Identifier: Apache-2.0
"""The service as tests describe it, and one call of it as a conversation hands it on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from leased.wire.conversation import Call, Conversation
from leased.wire.description import OPERATOR_INTERFACES, Service, describe_service

IDL = Path(__file__).parents[2] / "agent" / "leased" / "wire" / "idl"


def idl_texts() -> dict[str, str]:
    """Every IDL text by interface."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(IDL.glob("*.varlink"))}


def described(interfaces: Sequence[str] = OPERATOR_INTERFACES) -> Service:
    """The service of a socket that serves `interfaces`."""
    return describe_service("0.0.test", idl_texts(), interfaces)


def called(method: str, given: dict[str, Any] | None = None, *, more: bool = False) -> Call:
    """The call that these bytes are."""
    asked = {"method": method, "parameters": given, "more": more}
    (call,) = Conversation(described()).receive(msgspec.json.encode(asked) + b"\0")
    return call
