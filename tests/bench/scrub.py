# SPDX-License-Identifier: Apache-2.0
"""How fast memory is overwritten and read back, beside libc's memset of as much, in turns.

Rule: everything is written over bytes that are not zero, as a tenant leaves them; between two turns
they are put back, untimed. The scrub is a device worker's: by as many threads as it would use. Two
passes are compared with one: a byte that memset writes once is here written and then read.

memset of zero and of another byte are told apart: some processors write lines of zero several times
as fast as the memory takes others.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from collections.abc import Callable

from leased.hardware import parallel, verbs
from tests.bench.loadgen import Figures

BYTES = 512 << 20
DIRT, OTHER = 0xA5, 0x5A


def measure_scrub(*, rounds: int, say: Callable[[str], None]) -> Figures:
    """Median bytes per second of each."""
    fd = verbs.create_memory("leased-bench-scrub", size_bytes=BYTES)
    try:
        lent, plain = mmap.mmap(fd, BYTES), mmap.mmap(-1, BYTES)
        try:
            found = _take_turns(fd, _address(lent), _address(plain), rounds)
        finally:
            lent.close()
            plain.close()
    finally:
        verbs.truncate_memory(fd)
    say(
        f"scrub of {BYTES >> 20} MiB: {found['scrub_bytes_per_s'] / 1e9:.1f} GB/s; memset of zero "
        f"{found['memset_zero_bytes_per_s'] / 1e9:.1f}, of another byte "
        f"{found['memset_other_bytes_per_s'] / 1e9:.1f}"
    )
    return found


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _take_turns(fd: int, lent: int, plain: int, rounds: int) -> Figures:
    def scrub() -> None:
        done = parallel.share(
            lambda at, length: verbs.scrub_memory(fd, size_bytes=length, from_byte=at),
            BYTES,
            mmap.PAGESIZE,
        )
        if done.overwritten_bytes != BYTES or done.residue_bytes:
            raise SystemExit(f"bench: the scrub says {done}")

    turns: dict[str, Callable[[], object]] = {
        "memset_zero": lambda: ctypes.memset(plain, 0, BYTES),
        "memset_other": lambda: ctypes.memset(plain, OTHER, BYTES),
        "scrub": scrub,
    }
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            for where in (plain, lent):
                ctypes.memset(where, DIRT, BYTES)
            began_ns = time.monotonic_ns()
            turn()
            rates[name].append(BYTES * 1e9 / (time.monotonic_ns() - began_ns))
    medians = {f"{name}_bytes_per_s": statistics.median(all_) for name, all_ in rates.items()}
    return {"bytes": BYTES, "rounds": rounds, **medians}
