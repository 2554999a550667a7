# SPDX-License-Identifier: Apache-2.0
"""The agent as verbs see it: a session on the right socket, and lease ids from their beginnings.

Rule: `--socket` wins over the environment, and that over the built-in path; operators' verbs use
the admin socket. A beginning that fits several leases is refused with all of them named.

Does not know the verbs.
"""

from __future__ import annotations

import argparse
import os
import string
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Final

import trio

from leased.client import ADMIN_SOCKET, SOCKET, Session
from leased.client.session import SOCKET_VARIABLE
from leased.ctl.console import Console
from leased.terms.errors import InvalidParameter, NoSuchLease

ADMIN_SOCKET_VARIABLE: Final = "LEASE_ADMIN_SOCKET"
ID_CHARS: Final = 32
Verb = Callable[[argparse.Namespace, Console, Session], Awaitable[int]]


def socket_path(options: argparse.Namespace, *, admin: bool = False) -> str:
    """Where the agent listens for this call."""
    if options.socket is not None:
        return str(options.socket)
    if admin or getattr(options, "admin", False):
        return os.environ.get(ADMIN_SOCKET_VARIABLE, ADMIN_SOCKET)
    return os.environ.get(SOCKET_VARIABLE, SOCKET)


def online(verb: Verb, *, admin: bool = False) -> Callable[[argparse.Namespace, Console], int]:
    """`verb` as a function that opens a session for itself."""

    def act(options: argparse.Namespace, console: Console) -> int:
        async def main() -> int:
            path = socket_path(options, admin=admin)
            with closing(Session(path, timeout_s=options.timeout)) as session:
                return await verb(options, console, session)

        return trio.run(main)

    return act


async def await_answer(session: Session) -> None:
    """Return once the agent answers: one that hangs is told of in time before something is asked
    that may take as long as it likes. Raises AgentUnavailable.
    """
    await session.info()


async def find_lease(session: Session, text: str, *, waiting: bool = False) -> str:
    """The lease whose id begins with `text`, or the `waiting` request. Raises NoSuchLease,
    InvalidParameter if it fits several.
    """
    if not text or not set(text) <= set(string.hexdigits.lower()) or len(text) > ID_CHARS:
        raise InvalidParameter("lease", f'"{text}": an id, or its beginning, is lower-case hex')
    if len(text) == ID_CHARS:
        return text
    listed = await session.leases(closed=True)
    known = [lease.lease_id for lease in listed.leases]
    if waiting:
        known += [one.command_id for one in listed.waiting]
    fitting = [one for one in known if one.startswith(text)]
    if not fitting:
        raise NoSuchLease(f"no lease of yours begins with {text}; see `leasectl ls --closed`")
    if len(fitting) > 1:
        raise InvalidParameter("lease", f"{text} fits several: {', '.join(fitting)}")
    return fitting[0]


async def name_requeued(session: Session, asked: dict[str, object]) -> None:
    """Let a request name the lease that it is to make up for by the beginning of its id."""
    begins = asked.get("requeue_of")
    if isinstance(begins, str):
        asked["requeue_of"] = await find_lease(session, begins)
