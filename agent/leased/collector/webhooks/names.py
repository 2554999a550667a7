# SPDX-License-Identifier: Apache-2.0
"""Where receivers' names lead: asked of the host's resolver, in threads of their own.

Rule: a resolver that is asked cannot be stopped: whose name server does not answer has its thread
for as long as the resolver tries, far beyond what a delivery waits. So none of the threads is one
that anything else waits for, and whoever asked has its place among the receivers until its thread
has ended: it has one, not one more with each attempt.

Does not judge addresses (`guard`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from leased.collector.webhooks.guard import Target
from leased.collector.webhooks.post import Address, Undelivered

WAIT_S: Final = 10.0
"""A resolver asks a second server after 5 s, as a rule, and the first again after 10."""

Resolve = Callable[..., Sequence[Any]]


class Names:
    """Look-ups of so many receivers at a time."""

    def __init__(self, most: int, resolve: Resolve = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._threads = trio.CapacityLimiter(most)

    async def find(self, target: Target, asking: trio.Nursery) -> Sequence[Address]:
        """Where a name leads now. What it takes longer than somebody waits for it, it takes in
        `asking`. Raises Undelivered."""
        ended, found = trio.Event(), list[Sequence[Address]]()

        async def ask() -> None:
            how = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}
            try:
                resolve = partial(self._resolve, target.host, target.port, **how)
                run = trio.to_thread.run_sync
                found.append(await run(resolve, limiter=self._threads, abandon_on_cancel=True))
            except (OSError, UnicodeError):
                pass
            finally:
                ended.set()

        asking.start_soon(ask)
        with trio.move_on_after(WAIT_S):
            await ended.wait()
        if not ended.is_set():
            raise Undelivered(f"its name was not resolved within {WAIT_S:g} s")
        if not found:
            raise Undelivered("its name cannot be resolved")
        return found[0]
