# SPDX-License-Identifier: Apache-2.0
"""The lifecycle is total, leads where it says, and emits what it says: every pair is walked."""

from __future__ import annotations

import re

import pytest

from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import CELLS, LIFECYCLE, Answer, Trigger, render
from leased.terms.errors import InvariantError
from leased.terms.lease import Lease, LeaseState, RevocationReason
from leased.terms.reply import RefusalReason
from tests.doubles.desk import Desk

PAIRS = [(state, trigger) for state in LeaseState for trigger in Trigger]


def lease_in(desk: Desk, state: LeaseState) -> Lease:
    """A lease brought to `state` by commands alone."""
    if state is LeaseState.GRANTED:
        return desk.grant()
    lease = desk.lease(ttl=60)
    if state is LeaseState.ACTIVE:
        return lease
    if state is LeaseState.DRAINING:
        draft = Draft(desk.table, desk.ids, desk.moment)
        facts = Facts(
            desk.now_ns,
            reason=RevocationReason.MAINTENANCE,
            until_ns=desk.now_ns + 10_000_000_000,
        )
        draft.move(lease, Trigger.DRAIN, facts)
        return desk.at(lease)
    desk.release(lease)
    if state is LeaseState.REVOKING:
        return desk.at(lease)
    if state is LeaseState.FENCED:
        desk.cut_failed(lease)
        return desk.at(lease)
    desk.cut(lease)
    if state is LeaseState.SCRUBBING:
        return desk.at(lease)
    desk.scrub(lease)
    if state is LeaseState.VERIFYING:
        return desk.at(lease)
    desk.prove(lease)
    return desk.at(lease)


def test_every_pair_has_a_cell_and_no_other_has() -> None:
    assert set(LIFECYCLE) == set(LeaseState)
    for state, row in LIFECYCLE.items():
        assert set(row) == set(Trigger), state
        for trigger in Trigger:
            assert CELLS[state][trigger] is row[trigger]


@pytest.mark.parametrize(
    ("state", "trigger"), PAIRS, ids=[f"{state.name}-{trigger.name}" for state, trigger in PAIRS]
)
def test_a_pair_does_what_its_cell_says(state: LeaseState, trigger: Trigger) -> None:
    desk = Desk()
    lease = lease_in(desk, state)
    assert lease.state is state
    desk.sleep(1)
    draft = Draft(desk.table, desk.ids, desk.moment)
    facts = Facts(desk.now_ns, reason=RevocationReason.MAINTENANCE, until_ns=lease.deadline_ns)
    cell = CELLS[state][trigger]
    if cell.answer is Answer.IMPOSSIBLE:
        with pytest.raises(InvariantError):
            draft.move(lease, trigger, facts)
        return
    if trigger is Trigger.RENEW and cell.answer is Answer.MOVE:
        return  # spelled out in the lessor; held to its cell below
    draft.move(lease, trigger, facts)
    after = desk.at(lease)
    emitted = tuple(type(event) for event in draft.events)
    done = tuple(type(effect) for effect in draft.effects)
    if cell.answer is Answer.MOVE:
        assert (after.state, emitted, done) == (cell.to, cell.emits, cell.does)
    elif cell.answer is Answer.TIME_FIRST:
        end, step = CELLS[state][Trigger.REVOKE], CELLS[LeaseState.REVOKING][trigger]
        assert (after.state, emitted) == (step.to, end.emits + step.emits)
        assert done == end.does + step.does
    else:
        assert (after.state, emitted, done) == (state, (), cell.does)
        assert (cell.answer is Answer.DENY) == isinstance(cell.reason, RefusalReason)


def test_the_two_spelled_out_paths_do_what_their_cells_say() -> None:
    desk = Desk()
    lease = desk.grant()
    start = len(desk.history)
    del desk.effects[:]
    desk.activate(lease)
    activate = CELLS[LeaseState.GRANTED][Trigger.ACTIVATE]
    assert tuple(type(event) for event, _ in desk.history[start:]) == activate.emits
    assert tuple(type(effect) for effect in desk.effects) == activate.does
    start = len(desk.history)
    desk.renew(lease)
    renew = CELLS[LeaseState.ACTIVE][Trigger.RENEW]
    assert tuple(type(event) for event, _ in desk.history[start:]) == renew.emits
    assert tuple(type(effect) for effect in desk.effects) == renew.does
    assert desk.at(lease).state is renew.to


def test_every_state_can_be_reached_and_every_lease_can_close() -> None:
    steps: dict[LeaseState, set[LeaseState]] = {
        state: {cell.to for cell in CELLS[state] if cell.to is not None} for state in LeaseState
    }

    def reach(state: LeaseState, seen: set[LeaseState]) -> set[LeaseState]:
        if state not in seen:
            seen.add(state)
            for onward in steps[state]:
                reach(onward, seen)
        return seen

    assert reach(LeaseState.GRANTED, set()) == set(LeaseState)
    for state in LeaseState:
        assert LeaseState.RECLAIMED in reach(state, set())


def test_only_a_teardown_leads_back_to_free_or_to_the_fence() -> None:
    for state in (LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING):
        for cell in CELLS[state]:
            assert cell.to not in (LeaseState.RECLAIMED, LeaseState.FENCED)
    into_fence = {
        state
        for state in LeaseState
        if state is not LeaseState.FENCED
        and any(cell.to is LeaseState.FENCED for cell in CELLS[state])
    }
    assert into_fence == {LeaseState.REVOKING, LeaseState.SCRUBBING, LeaseState.VERIFYING}


def test_the_diagram_shows_every_move_between_two_states() -> None:
    shown = {
        (origin, to, trigger)
        for origin, to, triggers in re.findall(r"^    (\w+) --> (\w+): (.*)$", render(), re.M)
        for trigger in triggers.split(", ")
    }
    expected = {
        (state.name, cell.to.name, trigger.name.lower())
        for state, trigger in PAIRS
        if (cell := CELLS[state][trigger]).to not in (None, state)
    }
    assert shown == expected
    assert render().startswith("stateDiagram-v2\n    [*] --> GRANTED")
