# SPDX-License-Identifier: Apache-2.0
"""A Moment: when something is decided, on two clocks at once.

Rule: `boot_ns` (CLOCK_BOOTTIME, which counts suspend and ignores every step of the wall clock)
decides; `wall_ns` (CLOCK_REALTIME) is a label for people and bills. Boot times of different boots
are never compared.

Does not read a clock: the sequencer stamps one Moment per command and hands it in.
"""

from __future__ import annotations

import msgspec

from leased.terms.identity import BootId

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
MINUTE_NS = 60 * NS_PER_S
HOUR_S = 3_600
HOUR_NS = HOUR_S * NS_PER_S
DAY_NS = 24 * HOUR_NS


class Moment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An instant: boot id (16 bytes), ns since that boot, ns since the Unix epoch."""

    boot_id: BootId
    boot_ns: int
    wall_ns: int
