# SPDX-License-Identifier: Apache-2.0
"""The grammar accepts whatever the lifecycle can emit and what whole simulated hosts sealed, and
names what cannot follow."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.chain.findings import Walk
from leased.chain.grammar import FOLLOWS, Grammar, Stage
from leased.lessor.lifecycle import LIFECYCLE, Answer
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.event import KIND, Event, LeaseEvent
from leased.terms.lease import LeaseState
from tests.doubles.step_by_step import follow_each
from tests.sim.swarm import run_seed

LEASE = b"\x1e" * 16


def walk(events: Sequence[tuple[type[Event] | int, bytes]], first_seq: int = 0) -> Walk:
    """A walk over frames of which only kind and lease id are there."""
    frames = [bytes(101) + lease + bytes(11) for _, lease in events]
    kinds = [kind if isinstance(kind, int) else KIND[kind] for kind, _ in events]
    offsets = [128 * index for index in range(len(frames))]
    return Walk(b"".join(frames), array("Q", offsets), array("H", kinds), bytearray(), first_seq)


def of_one(*kinds: type[Event]) -> Walk:
    return walk([(kind, LEASE) for kind in kinds])


def test_what_a_whole_life_leaves_behind() -> None:
    grammar = Grammar()
    grammar.follow(of_one(e.Allocated, e.Activated, e.Renewed, e.DrainNotified, e.Revoked))
    grammar.follow(of_one(e.TeardownBegun, e.AccessCut))
    assert grammar.stages == {LEASE: Stage.SCRUBBING}
    grammar.follow(of_one(e.Scrubbed, e.Reclaimed))
    assert grammar.stages == {}


@pytest.mark.parametrize(
    "kinds",
    [
        (e.Released,),
        (e.Allocated, e.Allocated),
        (e.Allocated, e.Renewed),
        (e.Allocated, e.Activated, e.TeardownBegun),
        (e.Allocated, e.Activated, e.Released, e.Released),
        (e.Allocated, e.Activated, e.Released, e.TeardownBegun, e.Reclaimed),
        (e.Allocated, e.Activated, e.Expired, e.TeardownBegun, e.Fenced, e.Reclaimed),
    ],
)
def test_what_cannot_follow_is_named(kinds: tuple[type[Event], ...]) -> None:
    with pytest.raises(ChainError, match=kinds[-1].__name__) as found:
        Grammar().follow(of_one(*kinds))
    assert found.value.verdict == "BAD_ORDER" and found.value.sequence == len(kinds) - 1


def test_the_id_of_a_closed_lease_may_be_granted_again() -> None:
    """Nobody can keep every id that there ever was; metering counts both (`test_economics_sql`)."""
    grammar = Grammar()
    life = (e.Allocated, e.Activated, e.Released, e.TeardownBegun, e.AccessCut)
    grammar.follow(of_one(*life, e.Scrubbed, e.Reclaimed, *life, e.Fenced, e.Unfenced, *life))
    assert grammar.stages == {LEASE: Stage.SCRUBBING}


def test_whoever_begins_midway_takes_leases_as_they_are() -> None:
    grammar = Grammar(from_genesis=False)
    grammar.follow(of_one(e.Renewed, e.Expired, e.TeardownBegun))
    assert grammar.stages == {LEASE: Stage.REVOKING}
    with pytest.raises(ChainError):
        grammar.follow(of_one(e.Renewed))


def test_kinds_of_later_releases_are_carried() -> None:
    grammar = Grammar()
    known = set(KIND.values())
    unknown = [(kind, LEASE) for kind in e.LEASE_KINDS if kind not in known]
    grammar.follow(walk([(e.Allocated, LEASE), *unknown, (999, LEASE)]))
    assert grammar.stages == {LEASE: Stage.GRANTED}


_STAGE = {
    LeaseState.GRANTED: Stage.GRANTED,
    LeaseState.ACTIVE: Stage.ACTIVE,
    LeaseState.DRAINING: Stage.DRAINING,
    LeaseState.REVOKING: Stage.REVOKING,
    LeaseState.SCRUBBING: Stage.SCRUBBING,
    LeaseState.VERIFYING: Stage.VERIFYING,
    LeaseState.FENCED: Stage.FENCED,
    LeaseState.RECLAIMED: Stage.CLOSED,
}


def test_whatever_the_lifecycle_emits_may_follow() -> None:
    checked = 0
    for state, cells in LIFECYCLE.items():
        for cell in cells.values():
            stage = _STAGE[state]
            for event in cell.emits if cell.answer is Answer.MOVE else ():
                assert issubclass(event, LeaseEvent)
                to = FOLLOWS[stage][event]
                stage = stage if to is None else to
                checked += 1
            if cell.answer is Answer.MOVE and cell.emits:
                assert stage == _STAGE[cell.to]
    assert checked > 30


@pytest.mark.parametrize("seed", [0, 3, 7, 21])
def test_what_simulated_hosts_sealed_is_grammatical(seed: int) -> None:
    records: list = []
    run_seed(seed, keep=records)
    events = [
        (type(one.event), getattr(one.event, "lease_id", bytes(16)))
        for one in records
        if type(one.event) in KIND
    ]
    assert len(events) > 100
    Grammar().follow(walk(events))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*e.LEASE_KINDS, *e.LEASE_KINDS, 15, 32, 69, 999]),
            st.integers(0, 2).map(lambda one: bytes([one]) * 16),
        ),
        max_size=40,
    ),
    st.dictionaries(st.integers(0, 2).map(lambda one: bytes([one]) * 16), st.integers(0, 9)),
    st.booleans(),
    st.integers(0, 27),
)
def test_many_at_once_are_followed_as_one_by_one(
    records: list[tuple[int, bytes]], before: dict[bytes, int], from_genesis: bool, cut: int
) -> None:
    """Whatever comes in whatever order, up to a last record that is cut short."""
    made = walk(records, first_seq=7)
    made.data = made.data[: len(made.data) - cut]
    said = []
    for follow in (Grammar.follow, follow_each):
        grammar = Grammar(dict(before), from_genesis=from_genesis)
        try:
            follow(grammar, made)
        except ChainError as error:
            said.append((error.verdict, error.sequence, error.offset, error.why))
        else:
            said.append(grammar.stages)
    assert said[0] == said[1]


def test_tens_of_thousands_of_leases_come_and_go() -> None:
    """Of ids that stand side by side, which is how somebody would look for a slow place."""
    ids = [number.to_bytes(16, "little") for number in range(30_000)]
    grammar = Grammar()
    grammar.follow(walk([(e.Allocated, one) for one in ids]))
    grammar.follow(walk([(e.Released, one) for one in ids[::2]]))
    assert grammar.stages == {
        one: Stage.GRANTED if at % 2 else Stage.ENDED for at, one in enumerate(ids)
    }
    ends = (e.TeardownBegun, e.AccessCut, e.Scrubbed, e.Reclaimed)
    grammar.follow(walk([(event, one) for one in ids[::2] for event in ends]))
    assert grammar.stages == dict.fromkeys(ids[1::2], Stage.GRANTED)
    assert Grammar(grammar.stages).stages == grammar.stages
