# SPDX-License-Identifier: Apache-2.0
"""Lives: leases that began and ended within a block, each as one row for each of its allotments
instead of a row for every record.

Rule: a life is put together only where nothing needs to be judged: granted, torn down at most once
and reclaimed in one boot, with the terms that it was granted with, never fenced, and not voided
before its end. Its row says what its records say. Every other lease keeps its acts and holds, and
SQL judges them. What comes after the end of a lease is no part of its life.

Does not read records (`projection`); native/verbs/lives.c does the same to columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ActRow = tuple[int, int, int, int, int, int, int, int, int | None, int | None, int | None]
"""log, seq, boot, lease_hi, lease_lo, act, at_ns, sealed_ns, deadline_ns, terms, ref."""

HoldRow = tuple[int, int, int, int, int, int]
"""log, seq, slot, party_hi, party_lo, capacity."""

LifeRow = tuple[int, int, int, int, int, int, int, int | None, int, int, int]
"""log, seq, slot, boot, granted_ns, torn_ns, ended_ns, released_ns, and party and capacity."""

_GRANTED, _RENEWED, _TORN, _FENCED, _VOIDED, _RELEASED = 1, 2, 4, 6, 8, 9
_ENDS: Final = (5, 7)


class _Life:
    """What is known of a lease since its grant."""

    def __init__(self, grant: ActRow, *, knotty: bool) -> None:
        self.boot, self.granted_ns, self.terms = grant[2], grant[6], grant[9]
        self.torn_ns: int | None = None
        self.ended_ns: int | None = None
        self.released_ns: int | None = None
        self.knotty = knotty

    def live(self, act: ActRow) -> None:
        """Something else happened to it, before its end."""
        _, _, boot, _, _, what, at_ns, sealed_ns, _, terms, _ = act
        self.knotty |= boot != self.boot or what == _FENCED
        if what == _RENEWED:
            self.knotty |= terms != self.terms
        elif what == _TORN:
            self.knotty |= self.torn_ns is not None
            self.torn_ns = max(at_ns, self.granted_ns)
        elif what in _ENDS:
            if self.torn_ns is None:
                self.torn_ns = max(at_ns, self.granted_ns)
            self.ended_ns = max(at_ns, self.torn_ns)
        elif what == _RELEASED and self.released_ns is None:
            self.released_ns = sealed_ns

    def row(self, hold: HoldRow) -> LifeRow:
        """With one of its allotments."""
        assert self.torn_ns is not None and self.ended_ns is not None, "it is whole"
        log, sequence, slot, *held = hold
        when = (self.granted_ns, self.torn_ns, self.ended_ns, self.released_ns)
        return (log, sequence, slot, self.boot, *when, *held)  # type: ignore[return-value]


def settle(
    acts: Sequence[ActRow], holds: Sequence[HoldRow]
) -> tuple[list[ActRow], list[HoldRow], list[LifeRow]]:
    """The rows of a block with its lives put together: acts and holds that are left, and lives."""
    by_lease: dict[tuple[int, int], _Life] = {}
    by_grant: dict[int, _Life] = {}
    of_act: list[_Life | None] = []
    for act in acts:
        sequence, lease, what = act[1], (act[3], act[4]), act[5]
        voided = by_grant.get(act[10] or 0) if what == _VOIDED else None
        if voided is not None and voided.ended_ns is None:
            voided.knotty = True
        life = by_lease.get(lease) if what != _VOIDED else None
        alive = life if life is not None and life.ended_ns is None else None
        if what == _GRANTED:
            if alive is not None:
                alive.knotty = True
            alive = by_lease[lease] = by_grant[sequence] = _Life(act, knotty=alive is not None)
        elif alive is not None:
            alive.live(act)
        of_act.append(alive)
    whole = {at: one for at, one in by_grant.items() if one.ended_ns is not None and not one.knotty}
    among = frozenset(map(id, whole.values()))
    left = [act for act, life in zip(acts, of_act, strict=True) if id(life) not in among]
    lives = [whole[hold[1]].row(hold) for hold in holds if hold[1] in whole]
    return left, [hold for hold in holds if hold[1] not in whole], lives
