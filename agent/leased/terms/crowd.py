# SPDX-License-Identifier: Apache-2.0
"""Who has how many places at a door, and who gives one up when there is none left.

Rule: whoever has the most gives up the oldest of them; nobody gives up an only one. So nobody keeps
others out by taking all there is.

Pure. Does not close what is given up.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Crowd(Generic[T]):
    """Places by who has them, the oldest first. `nobody` is whose an only one is given up, too."""

    def __init__(self, nobody: str | None = None) -> None:
        self._nobody = nobody
        self._of: dict[str, dict[T, None]] = {}
        self._whose: dict[T, str] = {}

    def put(self, place: T, whose: str) -> None:
        """A place is theirs from now on."""
        self.leave(place)
        self._whose[place] = whose
        self._of.setdefault(whose, {})[place] = None

    def leave(self, place: T) -> None:
        """It is nobody's any more. Idempotent."""
        whose = self._whose.pop(place, None)
        if whose is not None:
            del self._of[whose][place]
            if not self._of[whose]:
                del self._of[whose]

    def give_up(self) -> T | None:
        """The place that is given up for a newcomer, and is nobody's any more; None: there is
        none."""
        ranks = ((len(has), whose == self._nobody, whose) for whose, has in self._of.items())
        most, is_nobody, whose = max(ranks, default=(0, False, ""))
        if most < 2 and not is_nobody:
            return None
        oldest = next(iter(self._of[whose]))
        self.leave(oldest)
        return oldest
