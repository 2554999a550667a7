# SPDX-License-Identifier: Apache-2.0
"""The verdict: whether a GPU or MIG device is clean, item by item, from what the workers saw.

Rule: clean means that every item says so; each that does not is a step with an errno that names it.
An item that the device was offered without (`Gpu.unanswered`, said in the inventory) is left out;
any other that has no answer is not clean. Nothing here looks at utilization: it can stay at 100 %
after a kill.

    ESCAPEE_SCAN  EBUSY   somebody outside the lease has a node of it open (measured: how many)
    WITNESS       EBUSY   the driver lists processes with a context (how many)
                  ESRCH   the driver lists processes that do not exist (how many)
                  ENODATA the look was too soon after the one of the release (ns)
    RELEASE       EBUSY   more memory in use than before the lease (bytes)
    COUNTERS      ENOMEM  less memory could be taken than there is (bytes taken)
    READ_BACK     EIO     bytes that could not be overwritten (how many)
    HEALTH        ENOTRECOVERABLE, EUCLEAN   recovery action (which), repair pending
                  EIO     an XID during the teardown (which)
                  ENODATA the driver's health is not known
    GUARD         EACCES  contexts can be made although nobody leases it (compute mode)

Does not ask anybody.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence

from leased.hardware.gpu.calls import Released, Sight, Witnessed
from leased.hardware.gpu.facts import Condition, Question
from leased.hardware.gpu.xids import Meaning, meaning_of
from leased.terms.teardown import StepReport, TeardownStep

Step = Callable[[TeardownStep, int, int], StepReport]


def judge_release(released: Released, used_max_bytes: int) -> tuple[StepReport, ...]:
    """Whether the driver let go of everything within its time."""

    def step(name: TeardownStep, failed: int, measured: int) -> StepReport:
        return StepReport(name, failed, released.began_ns, released.ended_ns, measured)

    return _judge_sight(released.sight, used_max_bytes, step, released.killed)


def judge_witness(
    witnessed: Witnessed,
    *,
    used_max_bytes: int,
    not_before_ns: int,
    xids: Sequence[int],
    heard_all: bool,
    lacking: Collection[str],
    closed_mode: int | None,
) -> tuple[StepReport, ...]:
    """Whether the device is clean and fit, by a look that had no part in the scrub.

    The release was the first look; this one counts from `not_before_ns` on.
    `xids` fell into the teardown; `heard_all` says whether all of them would have been heard.
    `closed_mode` is the compute mode that a free device has, None where there is none to set.
    """

    def step(name: TeardownStep, failed: int, measured: int) -> StepReport:
        return StepReport(name, failed, witnessed.began_ns, witnessed.ended_ns, measured)

    steps = list(_judge_sight(witnessed.sight, used_max_bytes, step, 0))
    early_ns = not_before_ns - witnessed.sight.seen_ns
    if early_ns > 0:
        steps.append(step(TeardownStep.WITNESS, errno.ENODATA, early_ns))
    failed, measured = judge_health(witnessed.condition, xids, heard_all, lacking)
    steps.append(step(TeardownStep.HEALTH, failed, measured))
    if closed_mode is not None and Question.COMPUTE_MODE not in lacking:
        mode = -1 if witnessed.mode is None else witnessed.mode
        guarded = 0 if mode == closed_mode else errno.EACCES
        steps.append(step(TeardownStep.GUARD, guarded, mode))
    return tuple(steps)


def is_clean(steps: Sequence[StepReport]) -> bool:
    """Whether every item says so, and there is one."""
    return bool(steps) and all(step.errno == 0 for step in steps)


def _judge_sight(
    sight: Sight, used_max_bytes: int, step: Step, killed: int
) -> tuple[StepReport, ...]:
    outside = frozenset(one.pid for one in sight.openers)
    listed = frozenset(pid for pids in sight.processes for pid in pids)
    over_bytes = max(0, sight.usage.used_bytes - used_max_bytes)
    if sight.ghosts:
        witness = step(TeardownStep.WITNESS, errno.ESRCH, len(sight.ghosts))
    else:
        witness = step(TeardownStep.WITNESS, errno.EBUSY if listed else 0, len(listed))
    return (
        step(TeardownStep.ESCAPEE_SCAN, errno.EBUSY if outside else 0, len(outside) or killed),
        witness,
        step(TeardownStep.RELEASE, errno.EBUSY if over_bytes else 0, over_bytes),
    )


def judge_health(
    condition: Condition, xids: Sequence[int], heard_all: bool, lacking: Collection[str]
) -> tuple[int, int]:
    """Whether a GPU is fit for the next tenant: (errno, what was measured)."""
    if condition.recovery_action:
        return errno.ENOTRECOVERABLE, condition.recovery_action
    if condition.remap_failed or condition.remap_pending or condition.retirement_pending:
        return errno.EUCLEAN, 0
    fatal = [xid for xid in xids if meaning_of(xid) is not Meaning.APPLICATION]
    if fatal:
        return errno.EIO, fatal[0]
    silent = condition.remap_pending is None and condition.retirement_pending is None
    if silent and Question.REPAIRS not in lacking:
        return errno.ENODATA, 0
    if condition.recovery_action is None and (Question.RECOVERY not in lacking or not heard_all):
        # What the driver does not hold for us we must have heard of: and were we listening?
        return errno.ENODATA, 0
    return 0, 0
