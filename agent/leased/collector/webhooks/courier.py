# SPDX-License-Identifier: Apache-2.0
"""The courier: takes what is due to its receivers, and says what came of it.

Rule: one delivery of a receiver at a time, in the order of the facts: what failed is tried again
before what comes after it, until it is given up. So many receivers at once, and so long for each
attempt; who is slow holds up nobody else, and no tenant has all of the places (`places`). What is
settled is settled on the disk before the next of that receiver is sent; a stop in between sends it
twice, never not at all.

Does not decide what is told (`watcher`).
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from leased.chain.signing import Signer
from leased.collector.webhooks import signing
from leased.collector.webhooks.facts import MEDIA_TYPE
from leased.collector.webhooks.guard import Network, Target, parse_target
from leased.collector.webhooks.names import Names, Resolve
from leased.collector.webhooks.outbox import Outbox, Parcel, Webhook
from leased.collector.webhooks.places import Places
from leased.collector.webhooks.post import Heard, Line, Undelivered, connect
from leased.collector.webhooks.schedule import next_due_ns
from leased.collector.webhooks.task_outbox import TaskOutbox
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

LOOK_S: Final = 1.0
"""How late what another process has put in is seen."""

IN_A_ROW: Final = 64
"""Deliveries of one receiver before others have their turn, or as many as there are in the time of
one attempt: who answers each as late as may be has a place among others for no longer."""

GONE: Final = 410
T = TypeVar("T")


class Courier:
    """Delivers until cancelled."""

    def __init__(
        self,
        outbox: TaskOutbox,
        *,
        allowed: Sequence[Network],
        context: ssl.SSLContext,
        timeout_ns: int,
        concurrency: int,
        wall_ns: Callable[[], int],
        entropy: Callable[[], bytes],
        agent: str,
        keys: Sequence[Signer],
        say: Callable[[str], None],
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._outbox, self._allowed, self._context = outbox, allowed, context
        self._keys = keys
        self._timeout_s = timeout_ns / NS_PER_S
        self._wall_ns, self._entropy, self._agent, self._say = wall_ns, entropy, agent, say
        self._places = Places(concurrency)
        self._names = Names(concurrency, resolve)
        self._busy: set[str] = set()
        self._wake = trio.Event()
        self._said = ""
        self.outcomes: Counter[str] = Counter()

    def look_again(self) -> None:
        """Something may have been put in."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                now_ns, wait_s = self._wall_ns(), LOOK_S
                busy = frozenset(self._busy)
                found = await self._ask(partial(Outbox.due, now_ns=now_ns, busy=busy))
                if found is not None:
                    due, later_ns = found
                    for webhook in self._places.choose(due):
                        self._busy.add(webhook.id)
                        nursery.start_soon(self._serve, webhook)
                    if later_ns is not None:
                        wait_s = min(wait_s, (later_ns - now_ns) / NS_PER_S)
                with trio.move_on_after(max(0.01, wait_s)):
                    await self._wake.wait()

    async def _serve(self, webhook: Webhook) -> None:
        """What is due to one receiver, and until its name is not asked for any more."""
        try:
            async with trio.open_nursery() as asking:
                await self._serve_in_order(webhook, asking)
        finally:
            self._busy.discard(webhook.id)
            self._places.leave(webhook)
            self._wake.set()

    async def _serve_in_order(self, webhook: Webhook, asking: trio.Nursery) -> None:
        line: Line | None = None
        try:
            ends = trio.current_time() + self._timeout_s
            for _ in range(IN_A_ROW):
                if trio.current_time() > ends:
                    return
                parcel = await self._ask(
                    partial(Outbox.next, webhook_id=webhook.id, now_ns=self._wall_ns())
                )
                if parcel is None:
                    return
                line, went = await self._deliver(parcel, line, asking)
                if not went:
                    return
        finally:
            if line is not None:
                with trio.CancelScope(shield=True):
                    await line.aclose()

    async def _deliver(
        self, parcel: Parcel, line: Line | None, asking: trio.Nursery
    ) -> tuple[Line | None, bool]:
        """One attempt; the line if another may follow on it, and whether it arrived."""
        heard: Heard | None = None
        why = f"no answer within {self._timeout_s:g} s"
        with trio.move_on_after(self._timeout_s):
            try:
                line, heard = await self._attempt(parcel, line, asking)
                why = f"answered {heard.status}"
            except Undelivered as error:
                why = str(error)
        if line is not None and (heard is None or not line.reusable):
            await line.aclose()
            line = None
        arrived = heard is not None and 200 <= heard.status < 300
        settled = await self._settle(parcel, heard, "" if arrived else why)
        return line, arrived and settled

    async def _attempt(
        self, parcel: Parcel, line: Line | None, asking: trio.Nursery
    ) -> tuple[Line, Heard]:
        now_ns = self._wall_ns()
        headers = [
            ("User-Agent", self._agent),
            ("Content-Type", MEDIA_TYPE),
            *signing.headers_of(
                parcel.message, parcel.body, parcel.webhook.secrets, now_ns, self._keys
            ),
        ]
        if line is not None:
            try:
                return line, await line.post(headers, parcel.body, now_ns)
            except Undelivered:
                # Receivers close idle connections: once more, on a new one.
                await line.aclose()
        target: Target = parse_target(parcel.webhook.url)
        found = await self._names.find(target, asking)
        line = await connect(target, found, self._allowed, self._context)
        try:
            return line, await line.post(headers, parcel.body, now_ns)
        except BaseException:
            with trio.CancelScope(shield=True):
                await line.aclose()
            raise

    async def _settle(self, parcel: Parcel, heard: Heard | None, why: str) -> bool:
        now_ns = self._wall_ns()
        status = heard.status if heard is not None else None
        state, due_ns, disabled = "delivered", 0, ""
        if status == GONE:
            state, disabled = "pending", "the receiver answered 410: it is gone for good"
        elif why:
            after_ns = heard.after_ns if heard is not None else 0
            failures, chance = parcel.attempts + 1, self._entropy()[0]
            due = next_due_ns(failures, parcel.made_ns, now_ns, chance, after_ns)
            state, due_ns = ("dead", 0) if due is None else ("pending", due)
        outcome = "disabled" if disabled else "failed" if state == "pending" else state

        def settle(outbox: Outbox) -> bool:
            outbox.settle(parcel, state, now_ns, due_ns=due_ns, status=status, why=why)
            if disabled:
                self._outbox.disable(outbox, parcel.webhook.id, disabled, now_ns)
            return True

        done = await self._ask(settle, writes=True)
        self.outcomes[outcome] += 1
        if outcome in ("disabled", "dead"):
            self._say(f"webhook {parcel.webhook.id}: {outcome}: {disabled or why}")
        return done is not None

    async def _ask(self, ask: Callable[[Outbox], T], *, writes: bool = False) -> T | None:
        """Ask the outbox; None: the disk or the database is not to be had now, and it was said."""
        try:
            found = await self._outbox.ask(ask, writes=writes)
        except StateError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._say(f"webhooks wait: {error}")
            await trio.sleep(LOOK_S)
            return None
        self._said = ""
        return found
