# SPDX-License-Identifier: Apache-2.0
"""The agent's scrubber and its kernel, by themselves: `... scrubbing look|plant|scrub UUID`.

Rule: runs in a process of its own, as the agent's does, and sets no mode.
"""

from __future__ import annotations

import json
import random
import sys
import time

from leased.hardware.gpu.calls import Scrub
from leased.hardware.gpu.cuda import UNIT_BYTES, Cuda
from leased.hardware.gpu.facts import Target
from leased.hardware.gpu.scrubber import scrub

BLOCK_BYTES = 2 << 20
PLANTED = 64
_MIB = 1 << 20


def look(uuid: str) -> dict[str, int]:
    """Take everything and count what is not zero; write nothing before."""
    cuda = Cuda(uuid)
    cuda.open()
    counter = cuda.take(BLOCK_BYTES)
    assert counter is not None, "not even 2 MiB could be had"
    first = cuda.read(counter, BLOCK_BYTES)
    taken = cuda.take_all()
    began_ns = time.monotonic_ns()
    found = cuda.differing_bytes(taken, 0, counter) + len(first) - first.count(0)
    read_ns = time.monotonic_ns() - began_ns
    cuda.close()
    taken_bytes = BLOCK_BYTES + sum(size_bytes for _, size_bytes in taken)
    return {"taken_bytes": taken_bytes, "found_bytes": found, "read_ns": read_ns}


def plant(uuid: str) -> dict[str, int]:
    """Fill 256 MiB, change single words in different units, and let the kernel count the units."""
    cuda = Cuda(uuid)
    cuda.open()
    counter, base = cuda.take(BLOCK_BYTES), cuda.take(256 * _MIB)
    assert counter is not None and base is not None, "not even 256 MiB could be had"
    cuda.fill(base, 256 * _MIB, 0x5A5A5A5A)
    clean = cuda.differing_bytes([(base, 256 * _MIB)], 0x5A5A5A5A, counter)
    units = 256 * _MIB // UNIT_BYTES
    # The first, the last, and others; in each a different one of its four words.
    chosen = [0, units - 1, *random.Random(2710).sample(range(1, units - 1), PLANTED - 2)]
    for place, unit in enumerate(chosen):
        cuda.fill(base + unit * UNIT_BYTES + place % 4 * 4, 4, 0x5A5A5A5B)
    found = cuda.differing_bytes([(base, 256 * _MIB)], 0x5A5A5A5A, counter) // UNIT_BYTES
    cuda.close()
    return {"clean": clean, "planted": PLANTED, "found": found}


def scrub_all(uuid: str) -> dict[str, int]:
    """What the agent does between two tenants, without the compute mode."""
    began_ns = time.monotonic_ns()
    done = scrub(Scrub(Target(uuid=uuid, pci="", minor=0), 0, True, False), [])
    return {
        "taken_bytes": done.taken_bytes,
        "residue_bytes": done.residue_bytes,
        "scrub_ns": time.monotonic_ns() - began_ns,
    }


def main() -> int:
    """One of the three; JSON."""
    ways = {"look": look, "plant": plant, "scrub": scrub_all}
    print(json.dumps(ways[sys.argv[1]](sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
