# SPDX-License-Identifier: Apache-2.0
"""Verbs under the hood: call, introspect. What varlinkctl does, where there is none.

Rule: what goes out is what was typed, and what comes back is printed as it came.
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from leased.client import RemoteError, Session
from leased.ctl.agent import await_answer, online
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_PROTOCOL, InvalidParameter
from leased.terms.reading import UNREADABLE


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "call",
        "call any method of the local API",
        "leasectl call io.leased.Lease.List '{\"closed\": true}'",
        json=False,
    )
    one.add_argument("method", help="its full name")
    one.add_argument("parameters", nargs="?", default="{}", help="a JSON object (default: {})")
    one.add_argument("--more", action="store_true", help="ask for a stream; one reply a line")
    one.set_defaults(act=online(call))
    one = verb(
        verbs,
        "introspect",
        "print the interfaces of the local API",
        "leasectl introspect io.leased.Lease",
    )
    one.add_argument("interface", nargs="?", help="print this one's description")
    one.set_defaults(act=online(introspect))


async def call(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Call a method."""
    arguments = _arguments(options.parameters)
    try:
        if options.more:
            await await_answer(session)
            async with session.follow_any(options.method, arguments) as answers:
                async for answer in answers:
                    console.say(msgspec.json.encode(answer).decode())
                    console.out.flush()
            return 0
        answer = await session.call(options.method, arguments)
    except RemoteError as error:
        console.note(str(error))
        return EX_PROTOCOL
    console.say(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    return 0


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except UNREADABLE as error:
        raise InvalidParameter("parameters", f"not a JSON object: {error}") from error


async def introspect(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Print what the service says of itself."""
    if options.interface is not None:
        text = await session.interface(options.interface)
        console.answer(
            options.json, {"interface": options.interface, "description": text}, text.rstrip()
        )
        return 0
    info = await session.info()
    # Below a name: it has a version of its own.
    document = {"service": msgspec.to_builtins(info)}
    console.answer(options.json, document, f"{info.product} {info.version}", *info.interfaces)
    return 0
