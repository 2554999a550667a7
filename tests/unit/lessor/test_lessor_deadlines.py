# SPDX-License-Identifier: Apache-2.0
"""Deadlines against a dictionary and a sort, with every kind of move."""

from __future__ import annotations

import random

import pytest

from leased.lessor.deadlines import Deadlines, Endings


def test_nothing_is_due_of_nothing() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.next_ns() is None
    assert deadlines.due(10**18, 10) == []


def test_due_is_earliest_first_and_at_most_the_limit() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, at_ns in (("c", 30), ("a", 10), ("b", 20), ("d", 40)):
        deadlines.set(key, at_ns)
    assert deadlines.due(30, 2) == ["a", "b"]
    assert deadlines.due(30, 2) == ["c"]
    assert deadlines.due(30, 2) == []
    assert deadlines.next_ns() == 40


def test_an_instant_is_due_at_itself_and_not_before() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 10)
    assert deadlines.due(9, 1) == []
    assert deadlines.due(10, 1) == ["a"]


@pytest.mark.parametrize("moves", [(5, 50), (50, 5), (50, 5, 50), (5, 50, 5, 70, 6)])
def test_the_last_move_counts(moves: tuple[int, ...]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    for at_ns in moves:
        deadlines.set("a", at_ns)
    assert deadlines.next_ns() == moves[-1]
    assert deadlines.due(moves[-1] - 1, 9) == []
    assert deadlines.due(moves[-1], 9) == ["a"]
    assert deadlines.due(10**9, 9) == []


def test_a_key_leaves_once_even_if_it_came_back_at_the_same_instant() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 10)
    deadlines.discard("a")
    deadlines.set("a", 10)
    assert deadlines.due(10, 9) == ["a"]
    assert deadlines.due(10, 9) == []


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    deadlines: Deadlines[int] = Deadlines()
    naive: dict[int, int] = {}
    now = 0
    for _ in range(4000):
        key, what = rng.randrange(40), rng.random()
        if what < 0.7:
            naive[key] = now + rng.randrange(1, 200)
            deadlines.set(key, naive[key])
        elif what < 0.8:
            naive.pop(key, None)
            deadlines.discard(key)
        else:
            now += rng.randrange(60)
            gone = deadlines.due(now, 10**6)
            assert sorted(gone) == sorted(k for k, at in naive.items() if at <= now)
            assert [naive[k] for k in gone] == sorted(naive[k] for k in gone)
            for k in gone:
                del naive[k]
        assert deadlines.next_ns() == min(naive.values(), default=None)
        assert len(deadlines) == len(naive)
        assert deadlines.current == naive


def test_stale_entries_do_not_pile_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("far", 10**9)
    for step in range(100_000):
        deadlines.set("a", 10**8 - step)  # each earlier than the last: the case that pushes
    assert len(deadlines._heap) < 200


@pytest.mark.parametrize("seed", range(5))
def test_endings_cover_what_a_sort_says(seed: int) -> None:
    rng = random.Random(seed)
    deadlines: Deadlines[int] = Deadlines()
    endings: Endings[int] = Endings(deadlines)
    weights: dict[int, int] = {}
    for _ in range(1500):
        what, key = rng.random(), rng.randrange(60)
        if what < 0.3 and key not in weights:
            weights[key] = rng.randrange(1, 9)
            deadlines.set(key, rng.randrange(1000))
            endings.add(key, deadlines.current[key])
        elif what < 0.6 and key in weights:
            at_ns = rng.randrange(1000)
            earlier = at_ns < deadlines.current[key]
            deadlines.set(key, at_ns)
            if earlier:
                endings.add(key, at_ns)  # later moves need not be told
        elif what < 0.7 and key in weights:
            del weights[key]
            deadlines.discard(key)
        else:
            need = rng.randrange(1, 200)
            left, expected = need, None
            for at_ns, held in sorted((deadlines.current[k], weights[k]) for k in weights):
                left -= held
                if left <= 0:
                    expected = at_ns
                    break
            assert endings.covering_ns(need, weights.__getitem__, 10**6) == expected
            in_order = sorted((deadlines.current[k], k) for k in weights)
            assert [at for at, _ in endings.first(5)] == [at for at, _ in in_order[:5]]


def test_endings_stop_at_the_limit_with_an_instant_that_is_not_too_late() -> None:
    deadlines: Deadlines[int] = Deadlines()
    endings: Endings[int] = Endings(deadlines)
    for key in range(100):
        deadlines.set(key, 10 + key)
        endings.add(key, 10 + key)
    assert endings.covering_ns(50, lambda _: 1, 1000) == 59
    assert endings.covering_ns(50, lambda _: 1, 8) == 17
    assert endings.covering_ns(101, lambda _: 1, 1000) is None
