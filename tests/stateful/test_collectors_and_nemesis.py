# SPDX-License-Identifier: Apache-2.0
"""A node, two collectors, and a nemesis that clones, restores, cuts, wipes, prunes, rotates, flips
and parts them: every dishonest outcome is found at the next contact, and no honest one is blamed.

Rule: the oracle is the records themselves. A collector whose stored hashes begin the log of the
node must go on; one whose do not must have a sticky verdict after that contact. Silence either way
fails the run.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leased.chain.signing import Signer
from leased.collector import ingest as i
from leased.collector import reconcile as r
from leased.terms import event as e
from leased.terms.errors import ChainError
from tests.doubles.logs import allocation
from tests.doubles.nodes import EPOCH_NS, PulledNode

COLLECTORS = ("west", "east")


class Held:
    """One collector's memory of the log."""

    def __init__(self, node: PulledNode) -> None:
        self.state = i.State(node.pinned())
        self.hashes: list[bytes] = []
        self.verdict = r.Verdict.BEHIND
        self.acked = 0


class Fleet(RuleBasedStateMachine):
    """The world. `flip` spoils one bit of the next page, `parted` are collectors that reach
    nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.node = PulledNode(epoch_ns=EPOCH_NS)
        self.node.start()
        self.backups: list[PulledNode] = []
        self.held = {name: Held(self.node) for name in COLLECTORS}
        self.parted: set[str] = set()
        self.number = 0
        self.wiped = False

    # -- what an honest node does ------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def serve(self, count: int) -> None:
        """Some leases begin."""
        for _ in range(count):
            self.number += 1
            granted = allocation(self.number)
            same = (granted.lease_id, granted.subject, 1, self.number)
            event = e.EventId(self.node.entropy())
            self.node.seal([granted, e.Activated(event, *same, bytes(32))], sign=count == 4)

    @rule()
    def rotate(self) -> None:
        """The node gets another key."""
        self.number += 1
        self.node.rotate(Signer(self.number.to_bytes(32, "big")))

    @rule(name=st.sampled_from(COLLECTORS), bytes_max=st.sampled_from((1, 900, 4 << 20)))
    def pull(self, name: str, bytes_max: int) -> None:
        """One contact, one page."""
        self._contact(name, bytes_max=bytes_max)

    # -- the nemesis -------------------------------------------------------------------------------

    @rule()
    def back_up(self) -> None:
        """Somebody copies the whole disk."""
        self.backups.append(self.node.clone())

    @precondition(lambda self: self.backups)
    @rule(data=st.data(), gone_on=st.integers(0, 8))
    def restore(self, data: st.DataObject, gone_on: int) -> None:
        """The whole host is an earlier copy of itself; it has gone on from there when it is seen
        again."""
        chosen = data.draw(st.integers(0, len(self.backups) - 1))
        self.node = self.backups[chosen].clone()
        if gone_on:
            self.serve(gone_on)

    @rule(share=st.integers(1, 9), gone_on=st.integers(0, 8))
    def cut(self, share: int, gone_on: int) -> None:
        """The end of the log goes, anchor and all. What seals its epochs is not cut with it, so
        this is a log that goes on without them as well."""
        size = self.node.size * share // 10
        while size and not self.node.frames[size - 1][27] & 1:
            size -= 1
        if 0 < size < self.node.size:
            self.node.ratchet = None
            self.node.cut(size)
            if gone_on:
                self.serve(gone_on)

    @rule(name=st.sampled_from(COLLECTORS), at=st.integers(0, 1 << 20))
    def flip(self, name: str, at: int) -> None:
        """One bit of a page is another."""
        self._contact(name, flip=at)

    @rule()
    def prune(self) -> None:
        """Records go that nobody has acknowledged; what else there is to say of it is true."""
        self.node.prune(self.node.size)

    @precondition(lambda self: not self.wiped)
    @rule()
    def wipe(self) -> None:
        """The log is deleted and begun anew."""
        self.node = PulledNode(9)
        self.node.start()
        self.wiped = True

    @rule(name=st.sampled_from(COLLECTORS))
    def part(self, name: str) -> None:
        """A collector reaches nobody, or does again."""
        self.parted ^= {name}

    # -- contact and judgement ---------------------------------------------------------------------

    def _contact(self, name: str, *, bytes_max: int = 4 << 20, flip: int | None = None) -> None:
        held, node = self.held[name], self.node
        if held.verdict.sticky or name in self.parted:
            return
        state = held.state
        if node.log_id != state.pinned.log_id:
            answer: bytes | r.Problem = r.Problem(404, "not-found")
        else:
            answer = node.page(state.head.size, state.head.hash, bytes_max)
        honest = (
            node.log_id == state.pinned.log_id
            and node.hashes[: len(held.hashes)] == held.hashes
            and node.min_seq <= len(held.hashes)
        )
        spoilt = flip is not None and isinstance(answer, bytes)
        if spoilt:
            page = bytearray(answer)
            page[flip // 8 % len(page)] ^= 1 << flip % 8
            answer = bytes(page)
        finding, taken = self._judge(state, answer)
        if taken is not None:
            assert honest, f"{name} took a page of a log that is not the one it holds"
            held.state = taken.state
            held.hashes = node.hashes[: taken.after.size]
            assert taken.after.hash == held.hashes[-1]
            held.verdict = r.Verdict.OK if taken.fresh else r.Verdict.BEHIND
            return
        if finding is None:
            assert spoilt, "only a page that was damaged on the way says nothing"
            return
        assert finding.verdict.sticky
        assert spoilt or not honest or self._unsealed(), f"{name} blames an honest node: {finding}"
        held.verdict = finding.verdict

    def _unsealed(self) -> bool:
        """The node has cut its log and makes no seals any more: it is caught by them, in time."""
        return self.node.ratchet is None

    @staticmethod
    def _judge(
        state: i.State, answer: bytes | r.Problem
    ) -> tuple[r.Finding | None, i.Taken | None]:
        if isinstance(answer, r.Problem):
            return r.judge_problem(state, answer), None
        try:
            return None, i.take_page(state, answer, 1)
        except ChainError as error:
            return r.judge_refusal(state, error), None

    @invariant()
    def nothing_is_silent(self) -> None:
        """After a contact with whoever holds another history there is a verdict."""
        for name in COLLECTORS:
            held = self.held[name]
            if held.verdict.sticky or name in self.parted:
                continue
            node = self.node
            same_log = node.log_id == held.state.pinned.log_id
            other = not same_log or node.hashes[: len(held.hashes)] != held.hashes
            lost = same_log and node.min_seq > len(held.hashes)
            if other or lost:
                self._contact(name)
                assert self.held[name].verdict.sticky, f"{name} has noticed nothing"


TestFleet = Fleet.TestCase
TestFleet.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
