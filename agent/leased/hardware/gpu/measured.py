# SPDX-License-Identifier: Apache-2.0
"""Measured: on which GPU models, under which driver branches, this program's teardown has been run
on a device.

Rule: a row is here only if `tests/hardware/results` has a run of the hardware suite on that model
and branch in which no claim failed, except perhaps the one of how fast; a test compares the two.
Whatever is not here is "not run", and what is no device at all is "emulated", whatever else is
known of it.

Does not hold what was measured: the results do.
"""

from __future__ import annotations

from typing import Final

from leased.terms.resource import Evidence

MEASURED: Final[tuple[tuple[str, str], ...]] = (("NVIDIA H200", "580"),)
"""(model as the driver names it, driver branch)."""


def evidence_of(model: str, branch: str, *, real: bool) -> Evidence:
    """How far the teardown is known to work on it."""
    if not real:
        return Evidence.EMULATED
    return Evidence.MEASURED if (model, branch) in MEASURED else Evidence.NOT_RUN
