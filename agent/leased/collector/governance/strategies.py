# SPDX-License-Identifier: Apache-2.0
"""Strategies: how each kind was divided, and from when on.

Rule: whenever the operator's document says something else about it, that is sealed among the
changes, so what was in force at an instant is known for good, as prices are. What came before the
first change that is known is what that change says was there.

Does not divide (`fairness`). An instant is that of the collector: nodes follow within seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from leased.collector.governance.register import Issued, Register
from leased.terms import policy as policies
from leased.terms.policy import Allocation, Policy
from leased.terms.resource import ResourceKind

ACTION: Final = "allocation.change"
ACTOR: Final = "the operator's document"
Plans = tuple[tuple[int, Allocation], ...]
"""How one kind as a whole was divided: from which instant (Unix ns; the first: always) how."""

_Rows = tuple[Allocation, ...]


class Division(msgspec.Struct, frozen=True):
    """How kinds are divided from now on, and how they were; None: nobody knows."""

    allocations: _Rows
    before: _Rows | None = None


class Strategies:
    """What was in force when, as the register has it sealed."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._known: list[tuple[int, _Rows]] = []
        for at_ns, document in register.documents_of(ACTION):
            one = msgspec.json.decode(document, type=Division)
            if not self._known:
                self._known.append((0, one.allocations if one.before is None else one.before))
            self._known.append((at_ns, one.allocations))
        self._current: _Rows = self._known[-1][1] if self._known else ()

    def note(self, policy: Policy, last: Issued | None, now_ns: int) -> None:
        """Seal how `policy` divides, if that is another way than before. `last` is the policy that
        was issued before."""
        self._current = policy.allocations
        before = self._known[-1][1] if self._known else _of(last)
        if policy.allocations == (() if before is None else before):
            return
        found = Division(policy.allocations, before)
        text = msgspec.json.encode(found, order="deterministic")
        change_id = hashlib.sha256(b"%d %b" % (now_ns, text)).hexdigest()[:32]
        what = {"actor": ACTOR, "action": ACTION, "tenant": "", "reason": ""}
        with self._register.transaction():
            self._register.record(id=change_id, wall_ns=now_ns, left=found, **what)
        if not self._known:
            self._known.append((0, policy.allocations if before is None else before))
        self._known.append((now_ns, policy.allocations))

    def of(self, kind: ResourceKind) -> Plans:
        """How a kind as a whole was divided, the oldest first. Where nothing is said of it, by
        priority."""
        rows: Sequence[tuple[int, _Rows]] = list(self._known) or [(0, self._current)]
        return tuple(
            (since_ns, plans_of(said).get(kind, Allocation(kind))) for since_ns, said in rows
        )


def plans_of(allocations: Sequence[Allocation]) -> Mapping[ResourceKind, Allocation]:
    """How each kind as a whole is divided, where that is said."""
    return {one.kind: one for one in allocations if one.tier is None}


def _of(issued: Issued | None) -> _Rows | None:
    return None if issued is None else policies.decode(issued.document.encode()).allocations
