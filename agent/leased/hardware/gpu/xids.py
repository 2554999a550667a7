# SPDX-License-Identifier: Apache-2.0
"""The XID policy: what each error report of NVIDIA's driver means for a lease.

Rule: data. An XID is an event, never a level: APPLICATION says nothing of the GPU (a kill
mid-kernel makes them); SUSPECT stops grants until the GPU has been probed, and fails a proof that
it falls into; LOST is the end of the GPU until the driver finds it again. A code that is not here
is SUSPECT: a probe costs less than a tenant on a broken GPU.

The meanings are those of NVIDIA's "XID errors" catalogue. Does not read events (`listening`).
"""

from __future__ import annotations

import enum
from typing import Final


class Meaning(enum.Enum):
    """What follows from an XID."""

    APPLICATION = "application"
    SUSPECT = "suspect"
    LOST = "lost"


_APPLICATION: Final = {
    13: "graphics engine exception",
    31: "MMU fault",
    32: "invalid or corrupted push buffer",
    37: "driver or application error",
    43: "GPU stopped processing",
    45: "preemptive cleanup",
    68: "video processor exception",
    69: "graphics engine class error",
    137: "NVLink privilege error of an application",
}
_SUSPECT: Final = {
    38: "driver firmware error",
    46: "GPU stopped processing, timeout",
    48: "double bit ECC error",
    54: "auxiliary power is not connected",
    61: "internal microcontroller breakpoint",
    62: "internal microcontroller halt",
    63: "row remapping or page retirement recorded",
    64: "row remapping or page retirement failed",
    74: "NVLink error",
    92: "high single bit ECC error rate",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "context switch timeout",
    119: "GSP RPC timeout",
    120: "GSP error",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
    144: "NVLink error (SAW)",
    145: "NVLink error (RLW)",
    146: "NVLink error (TLW)",
    147: "NVLink error (TREX)",
    148: "NVLink error (NVLPW)",
    149: "NVLink error (NETIR)",
    150: "NVLink error (MSE)",
    154: "recovery action changed",
}
_LOST: Final = {
    79: "GPU has fallen off the bus",
}


def meaning_of(xid: int) -> Meaning:
    """What follows from it."""
    if xid in _LOST:
        return Meaning.LOST
    return Meaning.APPLICATION if xid in _APPLICATION else Meaning.SUSPECT


def describe(xid: int) -> str:
    """In words, for operators."""
    for table in (_APPLICATION, _SUSPECT, _LOST):
        if xid in table:
            return f"XID {xid}, {table[xid]}"
    return f"XID {xid}"
