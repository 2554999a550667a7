# SPDX-License-Identifier: Apache-2.0
"""The issuer: what of a policy nodes are handed, and when they are handed another.

Rule: a generation is issued when the policy has changed (a change of the register, an override that
ended) or half the time of the last one is over; never twice the same, never a smaller one, also by
a collector whose register was lost: generations are at least the seconds since 1970. Whoever waits
for a policy is woken by the one that follows.

Does not answer HTTP (`api`), and keeps what it issued in the register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import trio

from leased.chain import policy_note
from leased.chain.policy_note import Grant
from leased.chain.signing import Signer
from leased.collector.governance import windows
from leased.collector.governance.policies import compile_policy
from leased.collector.governance.quotas import Opening, Schedule
from leased.collector.governance.register import Issued, Register
from leased.terms.policy import Policy, digest

NS_PER_S: Final = 1_000_000_000
LOOK_NS: Final = 30 * NS_PER_S
"""A step of the wall clock is noticed this much later at most."""


class Acceptance(msgspec.Struct, frozen=True):
    """What a node last said that it has in force, and when it said so."""

    node: str
    generation: int
    seen_ns: int


def openings_at(schedules: list[Schedule], now_ns: int) -> list[Opening]:
    """The windows that are open."""
    found = []
    for schedule in schedules:
        began = windows.last_opening_ns(schedule.cron, schedule.timezone, now_ns)
        if began is not None and began + schedule.duration_ns > now_ns:
            found.append(Opening(schedule, began + schedule.duration_ns))
    return found


def next_turn_ns(register: Register, now_ns: int) -> int | None:
    """When an override ends next: nodes let go of it themselves, and the next policy is without."""
    ends = (one.expires_ns for one in register.overrides())
    return min((end_ns for end_ns in ends if end_ns > now_ns), default=None)


class Issuer:
    """Signs policies. `compiled` raises ConfigError if what the register holds cannot be meant."""

    def __init__(
        self,
        *,
        register: Register,
        signer: Signer,
        key_name: str,
        fleet: str,
        ground: Callable[[], Policy],
        valid_ns: int,
        wall_ns: Callable[[], int],
    ) -> None:
        self._register = register
        self._signer = signer
        self.key = policy_note.NoteKey(key_name, signer.public_key)
        self.fleet = fleet
        self.ground = ground
        self._valid_ns = valid_ns
        self._wall_ns = wall_ns
        self._changed = trio.Event()
        self._wake = trio.Event()
        self.accepted: dict[str, Acceptance] = {}
        issued = register.issued()
        self.current = issued if issued is not None else self.issue()

    def compiled(self) -> Policy:
        """The policy as it would be now."""
        now_ns = self._wall_ns()
        return compile_policy(
            self.ground(),
            self._register.quotas(),
            self._register.overrides(),
            self._register.schedules(),
            now_ns,
        )

    def issue(self) -> Issued:
        """Issue if there is a reason to; the policy that counts then."""
        now_ns = self._wall_ns()
        policy = policy_note.bare(self.compiled())
        policy_hash = digest(policy)
        last = self._register.issued()
        fresh = last is not None and now_ns < last.issued_ns + self._valid_ns // 2
        if last is not None and fresh and last.digest == policy_hash and self._is_ours(last):
            return last
        changes, head = self._register.head()
        generation = max(last.generation + 1 if last is not None else 1, now_ns // NS_PER_S)
        grant = Grant(
            self.fleet,
            generation,
            now_ns,
            now_ns + self._valid_ns,
            changes,
            head,
            policy_hash,
        )
        note = policy_note.sign(grant, self._signer, self.key.name)
        issued = Issued(
            generation,
            policy_hash,
            note,
            policy_note.offer(policy),
            grant.issued_ns,
            grant.expires_ns,
        )
        with self._register.transaction():
            self._register.issue(issued)
        self.current = issued
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        return issued

    def _is_ours(self, issued: Issued) -> bool:
        """Whether the last one is by this key and for this fleet."""
        lines = issued.note.split("\n")
        return lines[1] == self.fleet and f" {self.key.name} " in issued.note

    def look_again(self) -> None:
        """Something was changed."""
        self._wake.set()

    async def newer(self, generation: int, wait_s: float) -> Issued:
        """The current policy; if that is of `generation`, wait so long for another."""
        with trio.move_on_after(wait_s):
            while self.current.generation == generation:
                await self._changed.wait()
        return self.current

    def note_acceptance(self, node: str, generation: int) -> None:
        """A node has said what it has in force."""
        self.accepted[node] = Acceptance(node, generation, self._wall_ns())

    async def run(self) -> None:
        """Issue when there is a reason, until cancelled."""
        while True:
            self._wake = trio.Event()
            self.issue()
            now_ns = self._wall_ns()
            due = [
                now_ns + LOOK_NS,
                self.current.issued_ns + self._valid_ns // 2,
                next_turn_ns(self._register, now_ns) or now_ns + LOOK_NS,
            ]
            with trio.move_on_after(max(0.001, (min(due) - now_ns) / NS_PER_S)):
                await self._wake.wait()
