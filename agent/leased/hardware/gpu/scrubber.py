# SPDX-License-Identifier: Apache-2.0
"""The scrubber: a worker takes a whole GPU or MIG device and overwrites every byte it can reach.

Order: exclusive context (nobody else has one) -> take everything there is (nobody else has any) ->
count what is not zero, before a byte is written -> fill with a pattern, read back -> fill with
zero, read back -> close the GPU. What is found before the first write is no failure of this lease's
end, but it means that the driver does not clear what it frees.

Rule: whatever happens, the GPU is closed afterwards. Where somebody waits for the release anyway,
context and memory end with the process: the driver is through with that sooner than with freeing
(an H200 with all of its memory: 150 ms against 240). Less memory than there must be is somebody
else's until proven otherwise. Registers, caches and page tables are beyond it.

Does not judge (`verdict`).
"""

from __future__ import annotations

import errno

from leased.hardware.gpu.calls import Scrub, Scrubbed
from leased.hardware.gpu.cuda import Cuda
from leased.hardware.gpu.facts import ComputeMode
from leased.hardware.gpu.opening import set_mode
from leased.hardware.gpu.sights import parent_of
from leased.hardware.instant import now_ns
from leased.terms.teardown import StepReport, TeardownStep

PATTERN = 0xA5C35A3C
_COUNTER_BLOCK_BYTES = 2 << 20


def scrub(call: Scrub, fds: list[int]) -> Scrubbed:
    """Take, overwrite, read back, close. Raises DeviceError."""
    gpu = parent_of(call.target) if call.sets_mode else None
    try:
        if gpu is not None:
            set_mode(gpu, ComputeMode.EXCLUSIVE_PROCESS)
        cuda = Cuda(call.target.visible)
        try:
            cuda.open()
            return overwrite(cuda, call)
        finally:
            if not call.lingers:
                cuda.close()
    finally:
        if gpu is not None:
            set_mode(gpu, ComputeMode.PROHIBITED)


def overwrite(cuda: Cuda, call: Scrub) -> Scrubbed:
    """Take, overwrite, read back, with a context that is open. Raises DeviceError."""
    began_ns = now_ns()
    counter = cuda.take(_COUNTER_BLOCK_BYTES)
    taken = cuda.take_all()
    taken_bytes = sum(size_bytes for _, size_bytes in taken)
    taken_bytes += 0 if counter is None else _COUNTER_BLOCK_BYTES
    # Whatever was expected: what cannot even be counted in was not overwritten.
    enough = taken_bytes >= call.expected_bytes and (counter is not None or not call.writes)
    short = 0 if enough else errno.ENOMEM
    taking = StepReport(TeardownStep.COUNTERS, short, began_ns, now_ns(), taken_bytes)
    if not call.writes or counter is None:
        return Scrubbed(taken_bytes, 0, 0, (taking,))
    began_ns = now_ns()
    # The counter's own block is small enough to be looked at from here.
    found_bytes = _nonzero(cuda.read(counter, _COUNTER_BLOCK_BYTES))
    found_bytes += cuda.differing_bytes(taken, 0, counter)
    residue_bytes = 0
    for pattern in (PATTERN, 0):
        for address, size_bytes in taken:
            cuda.fill(address, size_bytes, pattern)
        residue_bytes += cuda.differing_bytes(taken, pattern, counter)
    cuda.fill(counter, _COUNTER_BLOCK_BYTES, 0)
    residue_bytes += _nonzero(cuda.read(counter, _COUNTER_BLOCK_BYTES))
    overwriting = StepReport(TeardownStep.SCRUB, 0, began_ns, now_ns(), taken_bytes)
    failed = errno.EIO if residue_bytes else 0
    reading = StepReport(TeardownStep.READ_BACK, failed, began_ns, now_ns(), residue_bytes)
    return Scrubbed(taken_bytes, found_bytes, residue_bytes, (taking, overwriting, reading))


def _nonzero(content: bytes) -> int:
    return len(content) - content.count(0)
