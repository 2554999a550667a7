# SPDX-License-Identifier: Apache-2.0
"""What a case of the hardware suite is: a claim about a GPU, a way to find out, a verdict.

Rule: a case ends in exactly one of three: the claim *held*, it *failed*, or it was *not run* and
says why. What was measured is kept in all three. Numbers are integers with their unit in the name.

Does not import anything that has to be built: a bare machine can run what it can run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.hardware.bench import Bench

HELD, FAILED, NOT_RUN = "held", "failed", "not run"
Measured = dict[str, int | str]


class NotRun(Exception):
    """This machine, or this user, cannot find out: why."""


class Failed(Exception):
    """The claim is not true here: what was seen instead, and what was measured."""

    def __init__(self, why: str, measured: Measured | None = None) -> None:
        super().__init__(why)
        self.measured = measured or {}


class Case(NamedTuple):
    """One claim. `seconds_most` is how long finding out may take at most on a sound GPU, `headline`
    which of the measures a table shows.
    """

    name: str
    claim: str
    seconds_most: int
    headline: tuple[str, ...]
    find_out: Callable[[Bench], Measured]


class Finding(NamedTuple):
    """How a case ended."""

    case: Case
    verdict: str
    why: str
    measured: Measured
    took_ms: int

    def plain(self) -> dict[str, object]:
        """As it is written down."""
        return {
            "case": self.case.name,
            "claim": self.case.claim,
            "verdict": self.verdict,
            "why": self.why,
            "measured": self.measured,
            "took_ms": self.took_ms,
        }


CASES: list[Case] = []


def case(
    claim: str, *, seconds_most: int, headline: tuple[str, ...] = ()
) -> Callable[[Callable[[Bench], Measured]], Case]:
    """Make a function a case; its name is the case's."""

    def make(find_out: Callable[[Bench], Measured]) -> Case:
        made = Case(find_out.__name__, claim, seconds_most, headline, find_out)
        CASES.append(made)
        return made

    return make


def demand(condition: bool, why: str, measured: Measured) -> None:
    """The claim, as far as this condition goes."""
    if not condition:
        raise Failed(why, measured)
