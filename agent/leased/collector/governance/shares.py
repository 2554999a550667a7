# SPDX-License-Identifier: Apache-2.0
"""Shares: what nodes were given of the fleet's limits, and what they may still have of it.

Rule: what was handed out counts until the node's verified records name it, or one that followed it;
before that, until it ends by itself, by the node's own clock, which may be late by `LATE_NS`. What
a node was handed is kept durably before it is handed out. A node whose records name a policy that
this collector does not know of, and that is newer than all it does, may have anything.

Does not decide how much anybody gets (`division`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from leased.terms.moment import MINUTE_NS

LATE_NS: Final = MINUTE_NS
"""A node looks at its clock every 30 s, and clocks of a fleet differ by less than that."""

Amounts = dict[str, dict[str, int]]
"""By tenant and dimension."""


class Given(msgspec.Struct, frozen=True):
    """One policy that a node was handed: `shares` until `until_ns`, after that, and until
    `expires_ns`, `ppb` of every limit. `floors` are the most that this is of any limit that counts
    then: base, schedules and overrides."""

    node: str
    generation: int
    digest: bytes
    ppb: int
    until_ns: int
    expires_ns: int
    floors: Amounts
    shares: Amounts

    def most(self, tenant: str, key: str, now_ns: int) -> int:
        """What the node may have by it from `now_ns` on."""
        floor = self.floors.get(tenant, {}).get(key, 0) if now_ns >= self.until_ns else 0
        late = now_ns >= self.until_ns + LATE_NS
        return floor if late else max(floor, self.shares.get(tenant, {}).get(key, 0))


class Shares:
    """All of them, by node, the oldest first."""

    def __init__(self, known: Iterable[Given]) -> None:
        self._rows: dict[str, list[Given]] = {}
        for one in known:
            self._rows.setdefault(one.node, []).append(one)
        self._newest = max((one.generation for one in self), default=0)

    def __iter__(self) -> Iterator[Given]:
        for rows in list(self._rows.values()):
            yield from rows

    def nodes(self) -> list[str]:
        """Who was given something."""
        return sorted(self._rows)

    def last(self, node: str) -> Given | None:
        """What a node was handed last."""
        rows = self._rows.get(node)
        return rows[-1] if rows else None

    def add(self, given: Given) -> None:
        """It is kept, and about to be handed out."""
        self._rows.setdefault(given.node, []).append(given)
        self._newest = max(self._newest, given.generation)

    def void(self, node: str, generation: int) -> None:
        """What was made is handed to nobody."""
        left = [row for row in self._rows.get(node, ()) if row.generation != generation]
        self._rows[node] = left
        if not left:
            del self._rows[node]

    def settle(self, in_force: dict[str, tuple[int, bytes]], now_ns: int) -> list[tuple[str, int]]:
        """Forget what no node can have any more: what came before the policy that its verified
        records name (`in_force`, by node), and what has ended. Returns what was forgotten."""
        gone = []
        for node, rows in list(self._rows.items()):
            # By both: the same policy may be handed out twice, and what was between them counts.
            told = in_force.get(node)
            first = max(
                (row.generation for row in rows if (row.generation, row.digest) == told), default=0
            )
            left = [
                row for row in rows if row.generation >= first and row.expires_ns + LATE_NS > now_ns
            ]
            gone += [(node, row.generation) for row in rows if row not in left]
            if left:
                self._rows[node] = left
            else:
                del self._rows[node]
        return gone

    def is_beyond(self, generation: int, digest: bytes, node: str) -> bool:
        """Whether a node has a policy in force that is newer than all that are known here: by a
        register that was lost, or restored."""
        known = any(row.digest == digest for row in self._rows.get(node, ()))
        return not known and generation > max(self._newest, _LOCAL)

    def bound(self, node: str, tenant: str, key: str, now_ns: int) -> int:
        """The most that a node may have of a limit, by what it was handed."""
        rows = self._rows.get(node, ())
        return max((row.most(tenant, key, now_ns) for row in rows), default=0)

    def between(self, node: str, tenant: str, key: str) -> tuple[int, int]:
        """The least and the most that a node may have in force of a limit."""
        rows = self._rows.get(node, ())
        found = [
            by_tenant.get(tenant, {}).get(key, 0)
            for row in rows
            for by_tenant in (row.floors, row.shares)
        ]
        return min(found, default=0), max(found, default=0)

    def ppb(self) -> dict[str, int]:
        """The most of every limit that nodes may have for good."""
        return {node: max(row.ppb for row in rows) for node, rows in self._rows.items()}


_LOCAL: Final = 10**9
"""Agents themselves count generations from 1, a collector from the seconds since 1970."""
