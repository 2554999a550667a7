# SPDX-License-Identifier: Apache-2.0
"""Health: whether a GPU may be granted now, from what its driver says.

Rule: by device, and by what holds now: whatever goes away makes the GPU well again. A GPU about
which something was heard that the driver does not hold for a level (an XID, a call that hung) is
suspected until it has been probed; the backend keeps that.

Does not ask the driver and does not end leases.
"""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from leased.hardware.gpu.facts import FABRIC_WAITS, Condition, Gpu
from leased.terms.errors import DeviceError
from leased.terms.resource import Health

RECOVERY_ACTIONS: Final = (
    "nothing",
    "a reset of the GPU",
    "a reboot of the node",
    "an end of peer-to-peer use",
    "a drain, then a reset",
    "a recovery of the IMEX domain",
    "a reset of the bus",
    "a reboot of the system",
)


_GONE: Final = (errno.ENODEV, errno.ENOENT, errno.ENXIO)
_NOTHING_THERE: Final = (*_GONE, errno.ELIBACC)


class Finding(msgspec.Struct, frozen=True):
    """Whether it may be granted, and if not why, in words an operator can act on."""

    health: Health
    why: str = ""


WELL: Final = Finding(Health.OK)


def judge_gpu(gpu: Gpu) -> Finding:
    """What a GPU that answers says of itself. Behind an NVLink switch nothing starts on a whole one
    before it has joined the fabric (CUDA_ERROR_SYSTEM_NOT_READY); MIG devices have no links."""
    finding = judge_condition(gpu.condition)
    if finding == WELL and gpu.fabric in FABRIC_WAITS and not gpu.mig_enabled:
        why = f"it has not joined its NVLink fabric ({gpu.fabric}): see nvidia-fabricmanager"
        return Finding(Health.SICK, why)
    return finding


def judge_condition(condition: Condition) -> Finding:
    """What the driver says of a GPU that answers."""
    action = condition.recovery_action or 0
    if action:
        wanted = RECOVERY_ACTIONS[action] if action < len(RECOVERY_ACTIONS) else f"action {action}"
        return Finding(Health.SICK, f"the driver wants {wanted}")
    if condition.remap_failed:
        return Finding(Health.SICK, "a row of its memory could not be remapped")
    if condition.remap_pending:
        return Finding(Health.SICK, "a row of its memory is remapped at the next reset")
    if condition.retirement_pending:
        return Finding(Health.SICK, "a page of its memory is retired at the next reset")
    return WELL


def is_silence(error: DeviceError) -> bool:
    """Whether nothing was said, or nothing that tells anything, and not that there is nothing."""
    return error.verb == "worker_answer" or error.errno not in _NOTHING_THERE


def judge_fault(number: int, detail: str) -> Finding:
    """What it means that a GPU cannot be asked."""
    if number in _GONE:
        return Finding(Health.GONE, detail)
    if number == errno.ETIMEDOUT:
        return Finding(Health.SICK, f"the driver does not answer: {detail}")
    if number == errno.ENOTRECOVERABLE:
        return Finding(Health.SICK, "it must be reset before it can be used")
    return Finding(Health.SICK, detail)
