# SPDX-License-Identifier: Apache-2.0
"""Who has a device node open, by the agent's own scan: `... openers_of NODE`, JSON out."""

from __future__ import annotations

import json
import os
import sys
import time

from leased.hardware.openers import Sought, scan

BUDGET_NS = 10_000_000_000


def main() -> int:
    """Scan once; print pid -> how."""
    number = os.stat(sys.argv[1]).st_rdev
    sought = Sought(((os.major(number), os.minor(number)),), (os.path.basename(sys.argv[1]),))
    deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + BUDGET_NS
    began_ns = time.monotonic_ns()
    found = scan(sought, exempt={}, deadline_ns=deadline_ns)
    took_ms = (time.monotonic_ns() - began_ns) // 1_000_000
    print(json.dumps({"openers": {one.pid: one.via for one in found}, "scan_ms": took_ms}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
