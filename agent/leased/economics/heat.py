# SPDX-License-Identifier: Apache-2.0
"""Heat: how hot a node runs, from 0 (cool, or nothing is known) to 1000, and what makes it so.

Rule: the hottest signal counts, not a mean over them: one GPU that is held back is trouble, however
cool the other seven are. What is not known is no heat: a node that tells nothing is not avoided for
it. Heat only scores a node down, by at most `WEIGHT_PM`.

Pure. Does not place anything.
"""

from __future__ import annotations

from typing import Final

import msgspec

WARM_MILLICELSIUS: Final = 60_000
HOT_MILLICELSIUS: Final = 90_000
"""Data center GPUs begin to slow down around 90 degrees; below 60 nobody minds."""

PRESSED_PM: Final = 500
"""Somebody waited half of the time: as hot as it gets."""

WEIGHT_PM: Final = 500


class Signals(msgspec.Struct, frozen=True):
    """What was seen of a node lately; None: nothing. The hottest sensor in 1/1000 degree, the share
    of time that a GPU was held back for heat or power, and the largest share of time in which
    somebody waited for processors, memory or I/O."""

    millicelsius: int | None = None
    throttled_pm: int | None = None
    pressed_pm: int | None = None


class Heat(msgspec.Struct, frozen=True):
    """How hot, and by which signal ("" where none is known)."""

    heat_pm: int
    by: str


def heat_of(signals: Signals) -> Heat:
    """The heat of a node."""
    found = [Heat(0, "")]
    if signals.millicelsius is not None:
        above = signals.millicelsius - WARM_MILLICELSIUS
        span = HOT_MILLICELSIUS - WARM_MILLICELSIUS
        found.append(Heat(_bounded(above * 1000 // span), "temperature"))
    if signals.throttled_pm is not None:
        found.append(Heat(_bounded(signals.throttled_pm), "throttling"))
    if signals.pressed_pm is not None:
        found.append(Heat(_bounded(signals.pressed_pm * 1000 // PRESSED_PM), "pressure"))
    hottest = max(one.heat_pm for one in found)
    named = [one for one in found if one.heat_pm == hottest and one.by]
    return named[0] if named else found[0]


def steered(score: int, heat_pm: int) -> int:
    """A placement score, scored down by heat; rounded down."""
    return score * (1_000_000 - WEIGHT_PM * heat_pm) // 1_000_000


def _bounded(pm: int) -> int:
    return max(0, min(1000, pm))
