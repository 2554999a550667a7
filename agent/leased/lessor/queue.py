# SPDX-License-Identifier: Apache-2.0
"""The queue of requests that wait: bounded, first come first served, and nobody overtakes what
another waits for.

Rule: a request that waits for capacity bars every resource it could use, one that waits for a limit
of its tenant bars that limit for its tenant; what came later may only take what nobody before it
waits for. So the head cannot starve, and a request for a GPU does not hold up one for memory. The
queue is not sealed: a restart empties it and clients ask again.

Does not decide who gets what (`lessor.admission`) and does not watch the time by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from leased.lessor.deadlines import Deadlines
from leased.lessor.pool import Pools, Where, where_of
from leased.terms.command import Acquire
from leased.terms.identity import CommandId, TenantId
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind

Key = tuple[int, CommandId]


def key_of(acquire: Acquire) -> Key:
    """What makes a repeated request the same request: who asks, and the id they chose."""
    return (acquire.caller.uid, acquire.command_id)


class Waiting(msgspec.Struct):
    """A request in the queue: until when it waits, and why it did not get anything the last
    time.
    """

    acquire: Acquire
    until_ns: int
    reason: RefusalReason


class Bars:
    """What the requests ahead wait for, so that those behind leave it alone."""

    __slots__ = ("node", "places", "pools", "tenant_kinds", "tenants")

    def __init__(self) -> None:
        self.node = False
        self.pools: set[str] = set()
        self.places: set[tuple[Where, ...]] = set()
        self.tenants: set[TenantId] = set()
        self.tenant_kinds: set[tuple[TenantId, ResourceKind]] = set()

    def add(self, acquire: Acquire, reason: RefusalReason, pools: Pools) -> None:
        """Bar what `acquire`, which waits because of `reason`, needs."""
        tenant = acquire.caller.tenant
        if reason is RefusalReason.NODE_LEASES:
            self.node = True
        elif reason is RefusalReason.TENANT_LEASES:
            self.tenants.add(tenant)
        elif reason is RefusalReason.TENANT_CAPACITY:
            self.tenant_kinds.update((tenant, ask.kind) for ask in acquire.asks)
        elif reason is RefusalReason.NO_CAPACITY:
            self.places.add(places_of(acquire))
            for ask in acquire.asks:
                self.pools.update(pool.counted.resource_id for pool in pools.usable(ask))

    def hold_back(self, acquire: Acquire) -> RefusalReason | None:
        """Why `acquire` has to wait behind another, judged without looking at any pool."""
        tenant = acquire.caller.tenant
        if self.node:
            return RefusalReason.NODE_LEASES
        if tenant in self.tenants:
            return RefusalReason.TENANT_LEASES
        if self.tenant_kinds and any(
            (tenant, ask.kind) in self.tenant_kinds for ask in acquire.asks
        ):
            return RefusalReason.TENANT_CAPACITY
        if self.places and places_of(acquire) in self.places:
            return RefusalReason.NO_CAPACITY
        return None


def places_of(acquire: Acquire) -> tuple[Where, ...]:
    """Where the asks of a request may go; two with the same places wait for the same pools."""
    return tuple(where_of(ask) for ask in acquire.asks)


class WaitQueue:
    """Waiting requests in the order they came."""

    __slots__ = ("_by_command", "_ends", "_entries", "_tenants", "bars")

    def __init__(self) -> None:
        self._entries: dict[Key, Waiting] = {}
        self._by_command: dict[CommandId, Key] = {}
        self._ends: Deadlines[Key] = Deadlines()
        self._tenants: dict[TenantId, int] = {}
        self.bars: Bars | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._entries.values()))

    def get(self, key: Key) -> Waiting | None:
        """The waiting request of that key, if it waits."""
        return self._entries.get(key)

    def find(self, waiting_id: CommandId) -> Waiting | None:
        """The waiting request of that command id; at most one waits under an id."""
        key = self._by_command.get(waiting_id)
        return None if key is None else self._entries[key]

    def count_of(self, tenant: TenantId) -> int:
        """How many requests of a tenant wait."""
        return self._tenants.get(tenant, 0)

    def position(self, key: Key) -> int:
        """Place in the queue, from 1."""
        return next(place for place, known in enumerate(self._entries, 1) if known == key)

    def append(self, waiting: Waiting) -> None:
        """Put a request at the end."""
        acquire = waiting.acquire
        key = key_of(acquire)
        assert key not in self._entries and acquire.command_id not in self._by_command
        self._entries[key] = waiting
        self._by_command[acquire.command_id] = key
        self._ends.set(key, waiting.until_ns)
        self._tenants[acquire.caller.tenant] = self.count_of(acquire.caller.tenant) + 1

    def remove(self, waiting: Waiting) -> None:
        """Take a request out, wherever it stands."""
        acquire = waiting.acquire
        key = key_of(acquire)
        del self._entries[key], self._by_command[acquire.command_id]
        self._ends.discard(key)
        tenant = acquire.caller.tenant
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        if not self._entries:
            self.bars = None

    def next_ns(self) -> int | None:
        """When the first wait ends."""
        return self._ends.next_ns()

    def due(self, now_ns: int, limit: int) -> list[Waiting]:
        """At most `limit` requests whose wait is over; they are still in the queue."""
        return [self._entries[key] for key in self._ends.due(now_ns, limit)]
