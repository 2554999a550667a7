# SPDX-License-Identifier: Apache-2.0
"""Places: whose receivers are delivered to at once.

Rule: a tenant has a quarter of the places at most, however many receivers it has and however slow
they are; the fleet's own leave a quarter to tenants. Among those that wait, whoever had a place the
longest ago is next: of tenants first, and of a tenant's receivers.

Does not deliver (`courier`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leased.collector.webhooks.outbox import Webhook

FLEET = ""
"""Whose those receivers are that no tenant was named for."""


class Places:
    """So many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._share = max(1, count // 4)
        self._taken: Counter[str] = Counter()
        self._busy: set[str] = set()
        self._turn = 0
        self._turns: dict[str, int] = {}
        self._turns_of_receivers: dict[str, int] = {}

    def choose(self, waiting: Sequence[Webhook]) -> list[Webhook]:
        """Those of who waits that begin now; each is to `leave`."""
        chosen: list[Webhook] = []
        left = list(waiting)
        while len(self._busy) < self._count:
            able = [one for one in left if self._has_room(one)]
            if not able:
                break
            one = min(able, key=self._last_turn)
            left.remove(one)
            chosen.append(one)
            self._busy.add(one.id)
            self._turn += 1
            self._turns_of_receivers[one.id] = self._turn
            for who in whose(one):
                self._taken[who] += 1
                self._turns[who] = self._turn
        self._forget(waiting)
        return chosen

    def leave(self, webhook: Webhook) -> None:
        """It is done."""
        self._busy.discard(webhook.id)
        self._taken.subtract(whose(webhook))

    def _last_turn(self, webhook: Webhook) -> tuple[int, int]:
        tenants = max(self._turns.get(who, 0) for who in whose(webhook))
        return tenants, self._turns_of_receivers.get(webhook.id, 0)

    def _has_room(self, webhook: Webhook) -> bool:
        return all(
            self._taken[who] < (max(1, self._count - self._share) if who == FLEET else self._share)
            for who in whose(webhook)
        )

    def _forget(self, waiting: Sequence[Webhook]) -> None:
        """Turns of who neither waits nor has a place."""
        there = {who for one in waiting for who in whose(one)} | set(+self._taken)
        self._taken = +self._taken
        self._turns = {who: turn for who, turn in self._turns.items() if who in there}
        known = self._busy.union([one.id for one in waiting])
        turns = self._turns_of_receivers.items()
        self._turns_of_receivers = {one: turn for one, turn in turns if one in known}


def whose(webhook: Webhook) -> tuple[str, ...]:
    """The tenants that a receiver counts for."""
    return (FLEET,) if webhook.tenants is None else webhook.tenants
