# SPDX-License-Identifier: Apache-2.0
"""A workload that will not let go: it ignores SIGTERM, forks, and writes its leased memory for
ever.

Run it under a lease: `leasectl run --mem 256MiB -- python packaging/workload.py`.
"""

from __future__ import annotations

import mmap
import os
import signal
import time

PAGE_BYTES = 4096
SHOWN_S = 1.0


def main() -> None:
    """Map what was leased, write all of it, go on writing. Never returns."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    fd = int(os.environ["LEASE_MEM_FDS"].split(",")[0])
    size_bytes = os.fstat(fd).st_size
    view = mmap.mmap(fd, size_bytes)
    child = os.fork()
    who = f"pid {os.getpid()}"
    if child:
        print(f"    workload: {who} and its child {child} ignore SIGTERM", flush=True)
    rounds = 0
    told = time.monotonic()
    while True:
        for at in range(0, size_bytes, PAGE_BYTES):
            view[at] = rounds & 0xFF
        rounds += 1
        if child and time.monotonic() - told >= SHOWN_S:
            told = time.monotonic()
            print(f"    workload: wrote {size_bytes >> 20} MiB {rounds} times", flush=True)


main()
