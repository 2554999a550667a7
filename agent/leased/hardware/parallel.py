# SPDX-License-Identifier: Apache-2.0
"""Parallel: one large overwrite, or one large look, shared by the processor's cores.

Rule: the parts are disjoint, cover everything and begin where a page begins; all of them end before
the call does, whatever fails; what they did adds up. A verb runs without the interpreter's lock, so
threads are enough, and there are none when a part is too small to be worth one.

Does not know what a verb does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from leased.hardware.verbs import Scrubbed
from leased.terms.errors import DeviceError

THREADS_MAX = 8
"""One core reads a third to a half of what its memory delivers; eight get all of it."""

PART_BYTES_MIN = 128 << 20
"""Some ms of work: a thread costs a tenth of one."""

Verb = Callable[[int, int], Scrubbed]
"""(from byte, bytes) -> what was done there. Raises DeviceError."""


def split(size_bytes: int, align_bytes: int, threads_max: int) -> list[tuple[int, int]]:
    """(from, bytes) of each part."""
    count = max(1, min(threads_max, size_bytes // max(PART_BYTES_MIN, align_bytes)))
    part = -(-size_bytes // count // align_bytes) * align_bytes
    return [(at, min(part, size_bytes - at)) for at in range(0, size_bytes, part)]


def share(verb: Verb, size_bytes: int, align_bytes: int) -> Scrubbed:
    """Carry the verb out on all of it. Raises the first part's DeviceError when all have ended."""
    cores = len(os.sched_getaffinity(0))
    parts = split(size_bytes, align_bytes, min(cores, THREADS_MAX))
    done: list[Scrubbed] = []
    failed: list[DeviceError] = []

    def one(at: int, length: int) -> None:
        try:
            done.append(verb(at, length))
        except DeviceError as error:
            failed.append(error)

    others: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):  # no more threads are to be had
        for part in parts[1:]:
            thread = threading.Thread(target=one, args=part)
            thread.start()
            others.append(thread)
    for part in (parts[0], *parts[1 + len(others) :]):
        one(*part)
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
    overwritten = sum(part.overwritten_bytes for part in done)
    return Scrubbed(overwritten, sum(part.residue_bytes for part in done))
