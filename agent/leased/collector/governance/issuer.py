# SPDX-License-Identifier: Apache-2.0
"""The issuer: what of a policy nodes are handed, and when they are handed another.

Rule: a generation is issued when the policy has changed (a change of the register, an override that
ended) or half the time of the last one is over; never twice the same, never a smaller one, also by
a collector whose register was lost: generations are at least the seconds since 1970. Whoever waits
for a policy is woken by the one that follows.

Where limits of the whole fleet are divided, every node is handed a policy of its own, for it alone;
what it is given is kept before it is handed out. Until a node's part is known it is handed nothing.

Does not answer HTTP (`api`), and keeps what it issued in the register.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

import msgspec
import trio

from leased.chain import policy_note
from leased.chain.note import NoteKey
from leased.chain.policy_note import Grant
from leased.chain.signing import Signer
from leased.collector.fleet import Fleet
from leased.collector.governance.divider import (
    Divider,
    Handout,
    Limit,
    Plan,
    Portion,
    plan_of,
)
from leased.collector.governance.policies import (
    Saying,
    compile_policy,
    most_for_good,
    policy_of_node,
    sayings,
)
from leased.collector.governance.register import Issued, Register
from leased.collector.governance.shares import Given, Shares
from leased.collector.governance.strategies import Strategies
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, digest, digest_of

LOOK_NS: Final = 30 * NS_PER_S
"""A step of the wall clock is noticed this much later at most."""

PRESENT_NS: Final = 120 * NS_PER_S
"""Who has not asked for so long is not there: it keeps what it was given, and is given nothing."""

DIVIDE_S: Final = 5
"""A node that has just come waits so long for its part of what is divided."""


class Acceptance(msgspec.Struct, frozen=True):
    """What a node last said that it has in force, and when it said so."""

    node: str
    generation: int
    seen_ns: int


def next_turn_ns(register: Register, now_ns: int) -> int | None:
    """When an override ends next: nodes let go of it themselves, and the next policy is without."""
    ends = (one.expires_ns for one in register.overrides())
    return min((end_ns for end_ns in ends if end_ns > now_ns), default=None)


class Own(msgspec.Struct, frozen=True):
    """What one node is handed where limits are divided: made of what, on which policy."""

    handout: Handout
    base: bytes
    issued: Issued


class Issuer:
    """Signs policies. `compiled` raises ConfigError if what the register holds cannot be meant;
    `seen` is the fleet as its verified records tell it."""

    def __init__(
        self,
        *,
        register: Register,
        signer: Signer,
        key_name: str,
        fleet: str,
        ground: Callable[[], Policy],
        valid_ns: int,
        share_valid_ns: int,
        seen: Callable[[], Fleet],
        wall_ns: Callable[[], int],
    ) -> None:
        self._register = register
        self._signer = signer
        self.key = NoteKey(key_name, signer.public_key)
        self.fleet = fleet
        self.ground = ground
        self._valid_ns = valid_ns
        self._seen = seen
        self._wall_ns = wall_ns
        self._changed = trio.Event()
        self._wake = trio.Event()
        self.accepted: dict[str, Acceptance] = {}
        self.strategies = Strategies(register)
        self.shares = Shares(register.shares())
        self._present: dict[str, int] = {}
        self._waiting: dict[str, Mapping[Limit, int]] = {}
        self.divider = Divider(self.shares, seen, share_valid_ns, lambda: self._waiting)
        self._own: dict[str, Own] = {}
        self._fetched: set[str] = set()
        self._generation = max((one.generation for one in self.shares), default=0)
        self._plan = Plan({}, {}, None)
        self._policy = Policy()
        self._stale = False
        self.current = self._issue(wall_ns())

    def compiled(self) -> Policy:
        """The fleet's policy as it would be now."""
        return compile_policy(self.ground(), self._said(self._wall_ns()))

    def _said(self, now_ns: int) -> dict[str, Saying]:
        register = self._register
        return sayings(register.quotas(), register.overrides(), register.schedules(), now_ns)

    def turn(self) -> None:
        """Issue what there is a reason to. Raises ConfigError."""
        for _ in self.turning():
            pass

    def turning(self) -> Iterator[None]:
        """The same in steps, a node's policy each: a fleet of a thousand takes seconds, and others
        are served in between."""
        now_ns, before = self._wall_ns(), self.current
        if now_ns >= self._due_ns(now_ns):
            self.current = self._issue(now_ns)
            self._stale = False
        is_other = yield from self._divide(now_ns)
        if is_other or self.current is not before:
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    def _due_ns(self, now_ns: int) -> int:
        """When the fleet's policy is another one, whether anybody says so or not."""
        if self._stale or self.current.issued_ns > now_ns:  # our clock was ahead
            return now_ns
        ends = (self.current.issued_ns + self._valid_ns // 2, next_turn_ns(self._register, now_ns))
        return min(end_ns for end_ns in ends if end_ns is not None)

    def _issue(self, now_ns: int) -> Issued:
        said = self._said(now_ns)
        policy = policy_note.bare(compile_policy(self.ground(), said))
        self._plan, self._policy = plan_of(said, now_ns), policy
        policy_hash = digest(policy)
        last = self._register.issued()
        self.strategies.note(policy, last, now_ns)
        age_ns = -1 if last is None else now_ns - last.issued_ns
        fresh = 0 <= age_ns < self._valid_ns // 2
        if last is not None:
            self._generation = max(self._generation, last.generation)
            if fresh and last.digest == policy_hash and self._is_ours(last):
                return last
        issued = self._signed(policy, self._next(now_ns), now_ns, self.fleet)
        with self._register.transaction():
            self._register.issue(issued)
        return issued

    def _next(self, now_ns: int) -> int:
        self._generation = max(self._generation + 1, now_ns // NS_PER_S)
        return self._generation

    def _signed(self, policy: Policy, generation: int, now_ns: int, whose: str) -> Issued:
        changes, head = self._register.head()
        expires_ns = now_ns + self._valid_ns
        document = policy_note.offer(policy)
        policy_hash = digest_of(document.encode())
        grant = Grant(whose, generation, now_ns, expires_ns, changes, head, policy_hash)
        note = policy_note.sign(grant, self._signer, self.key.name)
        return Issued(generation, policy_hash, note, document, now_ns, expires_ns)

    def _is_ours(self, issued: Issued) -> bool:
        """Whether the last one is by this key and for this fleet."""
        lines = issued.note.split("\n")
        return lines[1] == self.fleet and f" {self.key.name} " in issued.note

    # -- where limits are divided ------------------------------------------------------------------

    def _divide(self, now_ns: int) -> Generator[None, None, bool]:
        """Make each node's own policy, where it is another than it was; whether any is. Until all
        are made, nodes are handed what they were."""
        before = self._own
        if self._plan.until_ns is not None and now_ns >= self._plan.until_ns:
            self._plan = plan_of(self._plan.said, now_ns)
        gone = self._forget(now_ns)
        own = {node: one for node, one in self._own.items() if node in self._present}
        handouts: list[Handout] = []
        if self._plan.limits:
            handouts = self.divider.step(self._plan, now_ns, self._present)
        fresh = [one for one in handouts if self._is_news(one, own.get(one.node))]
        given = []
        generation = self._next(now_ns) if fresh else 0
        for one in fresh:
            made, issued = self._make(one, generation, now_ns)
            given.append(made)
            own[one.node] = Own(one, self.current.digest, issued)
            yield
        if given or gone:
            with self._register.transaction():
                self._register.give(given, gone)
        for made in given:
            self.shares.add(made)
        self._fetched.difference_update(one.node for one in fresh)
        self._own = own if self._plan.limits else {}
        return bool(fresh) or before.keys() != self._own.keys()

    def _is_news(self, handout: Handout, known: Own | None) -> bool:
        return known is None or (known.handout, known.base) != (handout, self.current.digest)

    def _forget(self, now_ns: int) -> list[tuple[str, int]]:
        """Who is not there any more, and what no node can have any more; returns the latter."""
        self._present = {
            node: min(seen_ns, now_ns)  # our own clock may have been ahead
            for node, seen_ns in self._present.items()
            if seen_ns + PRESENT_NS > now_ns
        }
        for node, one in self.accepted.items():
            if one.seen_ns > now_ns:
                self.accepted[node] = msgspec.structs.replace(one, seen_ns=now_ns)
        self._waiting = {node: row for node, row in self._waiting.items() if node in self._present}
        in_force = {
            view.node: (view.policy_generation, bytes.fromhex(view.policy_hash))
            for view in self._seen().known()
        }
        gone = self.shares.settle(in_force, now_ns)
        if self._plan is not self.divider.plan:
            # Limits are other ones: what was made of the old ones, and fetched by nobody, is void.
            for node, own in list(self._own.items()):
                if node not in self._fetched:
                    self.shares.void(node, own.issued.generation)
                    gone.append((node, own.issued.generation))
                    del self._own[node]
        return gone

    def _make(self, handout: Handout, generation: int, now_ns: int) -> tuple[Given, Issued]:
        policy = policy_of_node(self._policy, self.ground(), self._plan.said, handout.parts)
        whose = policy_note.for_node(self.fleet, handout.node)
        issued = self._signed(policy, generation, now_ns, whose)
        in_force = msgspec.structs.replace(policy, expires_wall_ns=issued.expires_ns)
        given = Given(
            node=handout.node,
            generation=generation,
            digest=digest(in_force),
            ppb=handout.ppb,
            until_ns=handout.until_ns,
            expires_ns=issued.expires_ns,
            floors={
                tenant: most_for_good(self._plan.said[tenant], part)
                for tenant, part in handout.parts.items()
            },
            shares={tenant: part.shares for tenant, part in handout.parts.items()},
        )
        return given, issued

    # -- who asks ----------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Something was changed."""
        self._stale = True
        self._wake.set()

    def look_at_records(self) -> None:
        """The fleet has told something new."""
        if self._plan.limits:
            self._wake.set()

    def of(self, node: str) -> Issued | None:
        """Hand a node what it gets now; None: its part of what is divided is not known yet."""
        if not self._plan.limits:
            return self.current
        own = self._own.get(node)
        if own is None:
            return None
        self._fetched.add(node)
        return own.issued

    async def newer(self, node: str, generation: int, wait_s: float) -> Issued | None:
        """What the node is handed; if that is of `generation`, wait so long for another."""
        self.come(node)
        with trio.move_on_after(max(wait_s, 0 if self._has(node) else DIVIDE_S)):
            while not self._has(node) or self._generation_of(node) == generation:
                await self._changed.wait()
        self.come(node)
        return self.of(node)

    def _has(self, node: str) -> bool:
        return not self._plan.limits or node in self._own

    def _generation_of(self, node: str) -> int:
        own = self._own.get(node)
        return (self.current if own is None else own.issued).generation

    def come(self, node: str) -> None:
        """A node asks: it is there."""
        is_new = node not in self._present
        self._present[node] = self._wall_ns()
        if is_new and self._plan.limits:
            self._wake.set()

    def note_acceptance(self, node: str, generation: int) -> None:
        """A node has said what it has in force."""
        self.accepted[node] = Acceptance(node, generation, self._wall_ns())

    def note_waiting(self, node: str, row: Mapping[Limit, int]) -> None:
        """A node has said what waits there for more of which limits."""
        if row != self._waiting.get(node, {}):
            self._waiting[node] = row
            self.look_at_records()

    def is_current(self, acceptance: Acceptance) -> bool:
        """Whether a node has what it is handed now."""
        return self._generation_of(acceptance.node) == acceptance.generation

    def divided(self, tenant: str) -> tuple[dict[str, int], list[Portion]]:
        """A tenant's limits that are divided, and who has which part of them."""
        limits = {key: raw for (one, key), raw in self._plan.limits.items() if one == tenant}
        return limits, self.divider.portions(tenant, limits, self._wall_ns())

    async def run(self) -> None:
        """Issue when there is a reason, until cancelled."""
        while True:
            self._wake = trio.Event()
            for _ in self.turning():
                await trio.lowlevel.checkpoint()
            now_ns = self._wall_ns()
            due = [now_ns + LOOK_NS, self._due_ns(now_ns)]
            if self._plan.limits:
                due += [self.divider.due_ns, self._plan.until_ns or now_ns + LOOK_NS]
            with trio.move_on_after(max(0.001, (min(due) - now_ns) / NS_PER_S)):
                await self._wake.wait()
