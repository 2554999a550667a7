# SPDX-License-Identifier: Apache-2.0
"""Wanted: the namespaces that an operator wants there, look by look.

Rule: what was made and could not be attached is made again ever more rarely: after one look, then
after two, four and so on, at most every `LOOKS_MAX`. What is told of it stays the same from look to
look, so that the inventory does. A new run of the agent begins anew.

Does not make anything (`arranging`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from leased.hardware.block.calls import Arrange, Arranged
from leased.hardware.block.config import BlockConfig

LOOKS_MAX: Final = 1024
"""At a look a minute some 17 hours."""

Make = tuple[str, int, int]


class Wanted:
    """What is to be arranged, and what of it was in vain."""

    def __init__(self, config: BlockConfig) -> None:
        self._attach, self._make = config.attach, config.make
        self._pauses: dict[Make, int] = {}
        self._left: dict[Make, int] = {}
        self._why: dict[Make, str] = {}

    def by_drive(self) -> dict[str, Arrange]:
        """What is to be arranged at this look on each drive, by its NQN."""
        later = tuple(one for one in self._make if self._left.get(one))
        self._left = {one: self._left[one] - 1 for one in later}
        return {
            nqn: Arrange(
                tuple(one for one in self._attach if one[0] == nqn),
                tuple(one for one in self._make if one[0] == nqn),
                tuple(one for one in later if one[0] == nqn),
            )
            for nqn in sorted({one[0] for one in self._attach} | {one[0] for one in self._make})
        }

    def learn(self, answers: Iterable[Arranged]) -> list[str]:
        """What to tell of this look. A drive that gave no answer changes nothing."""
        troubles: list[str] = []
        for each in answers:
            troubles += each.troubles
            for one, why in each.tried:
                if why:
                    self._why[one] = why
                    self._pauses[one] = min(2 * self._pauses.get(one, 0) or 1, LOOKS_MAX)
                    self._left[one] = self._pauses[one]
                else:
                    self._why.pop(one, None)
                    self._pauses.pop(one, None)
        return [*troubles, *(f"{why}; tried again ever more rarely" for why in self._why.values())]
