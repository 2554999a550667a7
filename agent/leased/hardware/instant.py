# SPDX-License-Identifier: Apache-2.0
"""Now: by what every step of a teardown is timed, in the agent and in its workers alike.

Rule: CLOCK_BOOTTIME, the clock of every deadline, so that what two processes measured can be
compared.

Does not wait, and does not know the wall's time (`clock`).
"""

from __future__ import annotations

import time


def now_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
