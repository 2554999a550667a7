# SPDX-License-Identifier: Apache-2.0
"""How fast memory is overwritten and read back, beside libc's memset of the same memory, in turns.

Rule: everything is written over bytes that are not zero, as a tenant leaves them; between two turns
they are put back, untimed. The scrub is a device worker's: by as many threads as it would use, with
its mappings and without anything warm. memset has the memfd mapped and warm. Two passes are
compared with one: a byte that memset writes once is here written and then read, from the memory.

memset of zero and of another byte are told apart. The other byte's is what the memory takes; lines
of zero some processors do not send there as they are, and write several times as fast as the memory
could be read (decision 0041).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from leased.hardware import parallel, verbs
from tests.bench.loadgen import Figures

BYTES = 512 << 20
HUGE = 2 << 20
DIRT, OTHER = 0xA5, 0x5A
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def measure_scrub(*, rounds: int, say: Callable[[str], None]) -> list[Figures]:
    """Median bytes per second of each, of normal pages and, where there are any, of huge ones."""
    rows = [_measure("4 KiB", 0, rounds)]
    with _huge_pages(BYTES // HUGE) as there:
        if there:
            rows.append(_measure("2 MiB", HUGE, rounds))
        else:
            say(f"NOT MEASURED: scrub of huge pages: the host cannot spare {BYTES >> 20} MiB")
    for row in rows:
        rates = [f"{row[f'{name}_bytes_per_s'] / 1e9:.1f}" for name in TURNS]
        say(
            f"scrub of {BYTES >> 20} MiB, {row['pages']} pages: {rates[0]} GB/s; memset of zero "
            f"{rates[1]}, of another byte {rates[2]}"
        )
    return rows


@contextlib.contextmanager
def _huge_pages(count: int) -> Iterator[bool]:
    """So many more, while this lasts."""
    try:
        before = int(POOL.read_text())
        POOL.write_text(str(before + count))
    except OSError:
        yield False
        return
    try:
        yield int(POOL.read_text()) >= before + count
    finally:
        POOL.write_text(str(before))


def _measure(pages: str, page_bytes: int, rounds: int) -> Figures:
    fd = verbs.create_memory("leased-bench-scrub", size_bytes=BYTES, page_bytes=page_bytes)
    try:
        with mmap.mmap(fd, BYTES) as mapped:
            place = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            rates: dict[str, list[float]] = {name: [] for name in TURNS}
            for _ in range(rounds):
                for name, turn in TURNS.items():
                    ctypes.memset(place, DIRT, BYTES)
                    began_ns = time.monotonic_ns()
                    turn(fd, place, page_bytes or mmap.PAGESIZE)
                    rates[name].append(BYTES * 1e9 / (time.monotonic_ns() - began_ns))
    finally:
        verbs.truncate_memory(fd)
    medians = {f"{name}_bytes_per_s": statistics.median(all_) for name, all_ in rates.items()}
    return {"pages": pages, "bytes": BYTES, "rounds": rounds, **medians}


def _scrub(fd: int, _place: int, page_bytes: int) -> None:
    done = parallel.share(
        lambda at, length: verbs.scrub_memory(fd, size_bytes=length, from_byte=at),
        BYTES,
        page_bytes,
    )
    if done.overwritten_bytes != BYTES or done.residue_bytes:
        raise SystemExit(f"bench: the scrub says {done}")


TURNS: dict[str, Callable[[int, int, int], object]] = {
    "scrub": _scrub,
    "memset_zero": lambda _fd, place, _page: ctypes.memset(place, 0, BYTES),
    "memset_other": lambda _fd, place, _page: ctypes.memset(place, OTHER, BYTES),
}
