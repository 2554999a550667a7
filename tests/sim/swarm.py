# SPDX-License-Identifier: Apache-2.0
"""Run one seed, or many over all cores, deterministically.

Rule: a seed and a commit replay any run. Trio's scheduler is put on its deterministic track (its
own flag for that) and its coin is seeded; time is a MockClock that jumps whenever every task waits.

Does not print: `__main__` does.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import trio
import trio.testing

from leased.terms.errors import LeasedError
from tests.sim.agent import read_chain
from tests.sim.auditor import Sealed
from tests.sim.world import Outcome, World

TICKS = 300


def run_seed(
    seed: int,
    ticks: int = TICKS,
    *,
    keep: list[Sealed] | None = None,
    make: Callable[[int, int], World] = World,
) -> Outcome:
    """One world from its seed. `keep` gets its records."""
    core = trio._core._run  # type: ignore[attr-defined]
    core._ALLOW_DETERMINISTIC_SCHEDULING = True
    core._r.seed(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    world = make(seed, ticks)
    try:
        outcome = trio.run(world.run, clock=clock)
    except (BaseExceptionGroup, LeasedError) as group:
        # The agent (or a fake that argues back) fell over: that is a breach like any other.
        return world.fallen(_innermost(group))
    if keep is not None:
        keep += read_chain(world.disk)
    return outcome


def _innermost(group: BaseException) -> str:
    """The first cause, with where it happened."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    frames = traceback.extract_tb(group.__traceback__)
    where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames[:-6:-1])
    return f"{type(group).__name__}: {group} at {where}"


def run_seeds(
    seeds: Iterable[int],
    ticks: int = TICKS,
    *,
    workers: int | None = None,
    make: Callable[[int, int], World] = World,
) -> Iterator[Outcome]:
    """Many worlds, over `workers` processes (all cores), in the order of `seeds`."""
    # Spawned, not forked: every worker has a hash seed of its own, which must not matter.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=fresh) as pool:
        wanted = list(seeds)
        one = partial(run_seed, ticks=ticks, make=make)
        yield from pool.map(one, wanted, chunksize=4)
