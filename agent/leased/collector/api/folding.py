# SPDX-License-Identifier: Apache-2.0
"""Folds: what takes as long as whole chains are, one at a time, in order.

Rule: who asks for what is being folded already, or waits to be, gets that result and starts
nothing. Waiting is no thread's business: threads answer others meanwhile. So many wait, of one
tenant fewer, and whoever comes then is told when to come back, by how long folds take.

Does not know what is folded (`reports`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Final

import trio

from leased.collector.api.problems import Problem

WAITING_MAX: Final = 16
OF_ONE_MAX: Final = 4
"""Different folds that one tenant may have under way: it cannot fill the queue by itself."""

FIRST_S: Final = 5.0
"""How long one is thought to take before the first has been seen."""


class _Fold:
    """One that is under way. `outcome` None once it has ended: nobody carried it out."""

    def __init__(self, whose: str) -> None:
        self.whose = whose
        self.ended = trio.Event()
        self.outcome: tuple[Any, Exception | None] | None = None


class Folds:
    """The queue."""

    def __init__(self) -> None:
        self._folds: dict[Hashable, _Fold] = {}
        self._turn = trio.CapacityLimiter(1)
        self._took_s = FIRST_S

    async def of(self, key: Hashable, whose: str, fold: Callable[[], Any]) -> Any:
        """What `fold` gives, in a thread; or what the one of the same key does, that somebody asked
        for before. Raises what `fold` raises, and Problem 503 where too many wait."""
        while True:
            known = self._folds.get(key)
            if known is None:
                return await self._carry_out(key, whose, fold)
            await known.ended.wait()
            if known.outcome is not None:
                found, error = known.outcome
                if error is not None:
                    raise error
                return found
            # Who carried it out has gone; it is this one's turn to ask.

    async def _carry_out(self, key: Hashable, whose: str, fold: Callable[[], Any]) -> Any:
        self._require_room(whose)
        one = self._folds[key] = _Fold(whose)
        try:
            async with self._turn:
                began = trio.current_time()
                found = await trio.to_thread.run_sync(fold, abandon_on_cancel=True)
                self._took_s = trio.current_time() - began
            one.outcome = (found, None)
        except Exception as error:
            one.outcome = (None, error)
            raise
        finally:
            del self._folds[key]
            one.ended.set()
        return found

    def _require_room(self, whose: str) -> None:
        mine = sum(one.whose == whose for one in self._folds.values())
        if len(self._folds) <= WAITING_MAX and mine < OF_ONE_MAX:
            return
        after_s = max(1, math.ceil(self._took_s * (mine if mine >= OF_ONE_MAX else 1)))
        why = f"{len(self._folds)} are folded before you: try again, or ask by the hour."
        raise Problem(503, why, headers={"Retry-After": str(after_s)})
