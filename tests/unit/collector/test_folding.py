# SPDX-License-Identifier: Apache-2.0
"""Folds wait in order, are shared by who asks for the same, and are refused beyond a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from leased.collector.api.folding import OF_ONE_MAX, WAITING_MAX, Folds
from leased.collector.api.problems import Problem


class Bench:
    """Folds that end when they are let."""

    def __init__(self) -> None:
        self.folds = Folds()
        self.begun: list[str] = []
        self.given: list[tuple[str, object]] = []
        self.go = threading.Semaphore(0)
        self.refused: list[Problem] = []

    def fold(self, name: str) -> Callable[[], object]:
        def work() -> object:
            self.begun.append(name)
            assert self.go.acquire(timeout=30)
            return object()

        return work

    async def ask(self, key: str, whose: str = "") -> None:
        try:
            found = await self.folds.of(key, whose or key, self.fold(key))
            self.given.append((key, found))
        except Problem as problem:
            self.refused.append(problem)


async def begun(bench: Bench, count: int) -> None:
    """Until so many have begun; a thread says when."""
    with trio.fail_after(30):
        while len(bench.begun) < count:
            await trio.lowlevel.checkpoint()


async def test_one_at_a_time_in_order_and_the_same_is_folded_once() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        for key in ("a", "b", "a", "c", "b"):
            nursery.start_soon(bench.ask, key)
            await trio.lowlevel.checkpoint()
        await begun(bench, 1)
        assert len(bench.begun) == 1
        bench.go.release(3)
    assert sorted(bench.begun) == ["a", "b", "c"]
    results = {key: {id(one) for of, one in bench.given if of == key} for key in "abc"}
    assert [len(results[key]) for key in "abc"] == [1, 1, 1] and len(bench.given) == 5


async def test_beyond_the_bound_is_told_when_to_come_back() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        for number in range(WAITING_MAX + 1):
            nursery.start_soon(bench.ask, f"t{number}")
        await begun(bench, 1)
        await bench.ask("one more")
        (problem,) = bench.refused
        assert (problem.status, problem.headers) == (503, {"Retry-After": "5"})
        bench.go.release(WAITING_MAX + 1)
    assert len(bench.given) == WAITING_MAX + 1


async def test_one_tenant_does_not_fill_the_queue() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        for number in range(OF_ONE_MAX):
            nursery.start_soon(bench.ask, f"w{number}", "acme")
        await begun(bench, 1)
        await bench.ask("w9", "acme")
        assert [one.status for one in bench.refused] == [503]
        nursery.start_soon(bench.ask, "x", "beta")
        bench.go.release(OF_ONE_MAX + 1)
    assert len(bench.given) == OF_ONE_MAX + 1


async def test_who_goes_away_leaves_it_to_who_waits() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        gone = trio.CancelScope()

        async def leave() -> None:
            with gone:
                await bench.ask("a")

        nursery.start_soon(leave)
        await begun(bench, 1)
        nursery.start_soon(bench.ask, "a")
        await wait_all_tasks_blocked()
        gone.cancel()
        await begun(bench, 2)
        bench.go.release(2)
    assert bench.begun == ["a", "a"] and len(bench.given) == 1


async def test_what_cannot_be_answered_is_told_to_all_who_asked() -> None:
    bench, folds = Bench(), Folds()

    def fail() -> object:
        assert bench.go.acquire(timeout=30)
        raise Problem(404, "Gone.")

    async def ask() -> None:
        with pytest.raises(Problem, match="Gone"):
            await folds.of("a", "acme", fail)
        bench.given.append(("a", None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        bench.go.release()
    assert len(bench.given) == 2
