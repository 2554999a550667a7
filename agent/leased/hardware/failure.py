# SPDX-License-Identifier: Apache-2.0
"""A failure: a step of a teardown that an error ended, as the report that is sealed, and in words.

Rule: a report has an errno and no words, and a unit may be fenced by it; what was being asked, of
which process and file, goes to standard error, which is the journal.

Does not decide what becomes of the unit.
"""

from __future__ import annotations

import contextlib
import os

from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep


def failed_step(step: TeardownStep, error: DeviceError, began_ns: int) -> StepReport:
    """The report of a step that ended now, by the error."""
    tell_failure(step, error)
    return StepReport(step, error.errno, began_ns, now_ns())


def tell_failure(step: TeardownStep, error: DeviceError) -> None:
    """Say in the journal what failed."""
    with contextlib.suppress(OSError):
        os.write(2, f"{step.name.lower()} failed: {error}\n".encode("utf-8", "replace"))
