# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: which resource a workload lives by, from its share of the workload's cost and wait.

Rule: borders are strict and in per mille; exactly half of the cost is not critical.

Does not measure cost or waiting: it is handed shares.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Sensitivity(enum.StrEnum):
    """How much a workload lives by a kind of resource."""

    CRITICAL = "critical"
    MODERATE = "moderate"
    LOW = "low"
    INDIFFERENT = "indifferent"
    UNUSED = "unused"


class Borders(msgspec.Struct, frozen=True):
    """Above which share each level begins: the source document's."""

    critical_cost_pm: int = 500
    critical_wait_pm: int = 300
    moderate_cost_pm: int = 200
    low_cost_pm: int = 50


BORDERS: Final = Borders()


def sensitivity(
    cost_pm: int, wait_pm: int, *, used: bool, borders: Borders = BORDERS
) -> Sensitivity:
    """How sensitive a workload is to a kind that is `cost_pm` of its cost and that it waited for
    `wait_pm` of its time."""
    if not used:
        return Sensitivity.UNUSED
    if cost_pm > borders.critical_cost_pm or wait_pm > borders.critical_wait_pm:
        return Sensitivity.CRITICAL
    if cost_pm > borders.moderate_cost_pm:
        return Sensitivity.MODERATE
    return Sensitivity.LOW if cost_pm > borders.low_cost_pm else Sensitivity.INDIFFERENT
