# SPDX-License-Identifier: Apache-2.0
"""What a teardown does, step by step, and what each step reported.

Rule: the steps are a closed, ordered set; any report that is not CLEAN fences exactly the capacity
it could not prove.

Does not carry anything out (`hardware`) and does not decide what follows (`lessor.lifecycle`).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.terms.identity import LeaseId
from leased.terms.resource import Allotment


class TeardownStep(enum.IntEnum):
    """Roughly in the order they run. The numbers are on disk for ever (`event.Fenced.step`).

    RELEASE: the driver let go. WITNESS: a list that somebody else keeps is empty. HEALTH: the
    device is fit for the next tenant. GUARD: it is closed while nobody leases it.
    """

    PREPARE = 0
    ARM = 1
    DENY = 2
    FREEZE = 3
    OBJECT_REVOKE = 4
    KILL = 5
    ESCAPEE_SCAN = 6
    REMOVE_CGROUP = 7
    SCRUB = 8
    READ_BACK = 9
    TRUNCATE = 10
    COUNTERS = 11
    WORKER = 12
    RELEASE = 13
    WITNESS = 14
    CANARY = 15
    KEY = 16
    HEALTH = 17
    GUARD = 18


_DOES: Final = {
    "prepare": "making it ready for its holder",
    "arm": "handing the lease to the reaper",
    "deny": "letting nobody open it any more",
    "freeze": "holding the holder's processes still",
    "object_revoke": "taking back what was made for the lease",
    "kill": "ending the holder's processes",
    "escapee_scan": "looking for processes that still have it open",
    "remove_cgroup": "removing the lease's cgroup",
    "scrub": "overwriting it",
    "read_back": "reading back what was overwritten",
    "truncate": "giving its pages back",
    "counters": "counting what the kernel or the driver has left of it",
    "worker": "hearing from the worker that looked",
    "release": "waiting until the driver has let go",
    "witness": "looking a second time, elsewhere, whether anybody has it",
    "canary": "reading blocks again that were looked at before",
    "key": "forgetting its key",
    "health": "asking whether it is fit for the next tenant",
    "guard": "closing it while nobody leases it",
}


def tell_failed(step: str, errno: int, words: str) -> str:
    """A step that failed, for people: its name, what it does, and what was said to it, as a number
    and in words. One that only a newer release knows has its name alone."""
    does = f" ({_DOES[step]})" if step in _DOES else ""
    return f"{step}{does}: {f'{words} (errno {errno})' if errno else 'no reason was given'}"


class StepReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step: 0 or an errno, when it began and ended (boottime ns), and a number it measured
    (bytes, pids, pages)."""

    step: TeardownStep
    errno: int
    began_ns: int
    ended_ns: int
    measured: int = 0


class CutReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How access ended: `cut_ns` (boottime) is when the last process of the lease was gone."""

    lease_id: LeaseId
    cut_ns: int
    by_reaper: bool
    clean: bool
    steps: tuple[StepReport, ...]


class ScrubReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the hardware was made clean."""

    lease_id: LeaseId
    ended_ns: int
    scrubbed_bytes: int
    clean: bool
    steps: tuple[StepReport, ...]


class ProofReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What another source than the scrub says. `unproven` is what must be fenced; empty means
    CLEAN."""

    lease_id: LeaseId
    ended_ns: int
    unproven: tuple[Allotment, ...]
    steps: tuple[StepReport, ...]


class Utilization(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sampler saw of a lease, in per mille; None where it saw nothing. Never used for
    billing."""

    mean_pm: int | None = None
    max_pm: int | None = None
    active_share_pm: int | None = None
    sample_count: int = 0
    coverage_pm: int = 0
