# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: which resource a workload lives by, from its share of the workload's cost and wait.

Rule: borders are strict and in per mille; exactly half of the cost is not critical.

Does not measure cost or waiting: it is handed shares.
"""

from __future__ import annotations

import enum
from typing import Final


class Sensitivity(enum.StrEnum):
    """How much a workload lives by a kind of resource."""

    CRITICAL = "critical"
    MODERATE = "moderate"
    LOW = "low"
    INDIFFERENT = "indifferent"
    UNUSED = "unused"


CRITICAL_COST_PM: Final = 500
CRITICAL_WAIT_PM: Final = 300
MODERATE_COST_PM: Final = 200
LOW_COST_PM: Final = 50
"""Above which share each level begins: the source document's."""


def sensitivity(cost_pm: int, wait_pm: int, *, used: bool) -> Sensitivity:
    """How sensitive a workload is to a kind that is `cost_pm` of its cost and that it waited for
    `wait_pm` of its time."""
    if not used:
        return Sensitivity.UNUSED
    if cost_pm > CRITICAL_COST_PM or wait_pm > CRITICAL_WAIT_PM:
        return Sensitivity.CRITICAL
    if cost_pm > MODERATE_COST_PM:
        return Sensitivity.MODERATE
    return Sensitivity.LOW if cost_pm > LOW_COST_PM else Sensitivity.INDIFFERENT
