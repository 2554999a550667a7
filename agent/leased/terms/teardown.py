# SPDX-License-Identifier: Apache-2.0
"""What a teardown does, step by step, and what each step reported.

Rule: the steps are a closed, ordered set; any report that is not CLEAN fences exactly the capacity
it could not prove.

Does not carry anything out (`hardware`) and does not decide what follows (`lessor.lifecycle`).
"""

from __future__ import annotations

import enum

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
