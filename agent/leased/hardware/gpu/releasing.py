# SPDX-License-Identifier: Apache-2.0
"""Releasing: waiting, in a worker, until the driver has let go of all that a lease had.

The driver finishes closing a killed process's files when it gets to it (`nvidia_close` defers to a
thread when it is interrupted), so this looks again until nobody is there and the memory is back, or
the budget is over.

Rule: whoever is found outside the lease is killed only if the operator lets escapees be killed and
it is no process of root's: root's is an operator at work, and the GPU is fenced instead. A ghost is
waited for like anybody else.

Does not judge what is left: the last look is the answer.
"""

from __future__ import annotations

import time
from pathlib import Path

from leased.hardware import openers
from leased.hardware.gpu.calls import Release, Released, Sight
from leased.hardware.gpu.nodes import find_nodes
from leased.hardware.gpu.sights import as_now, handle_of, look
from leased.hardware.instant import now_ns
from leased.hardware.openers import Opener

_AGAIN_S = 0.02


def release(call: Release, fds: list[int]) -> Released:
    """The last look: clean, or what was left when the budget ended."""
    began_ns = now_ns()
    handle = handle_of(call.target)
    killed = 0
    while True:
        sight = look(handle, call.target, call.root, call.guests, call.scan_budget_ns)
        if is_quiet(sight, call.used_max_bytes):
            break
        killed += _end_strangers(sight.openers, call)
        if now_ns() - began_ns >= call.budget_ns:
            break
        time.sleep(_AGAIN_S)
    return Released(sight, killed, began_ns, now_ns())


def is_quiet(sight: Sight, used_max_bytes: int) -> bool:
    """Nobody is there, and the memory is back."""
    return (
        not any(sight.processes) and not sight.openers and sight.usage.used_bytes <= used_max_bytes
    )


def _end_strangers(seen: tuple[Opener, ...], call: Release) -> int:
    strangers = [one for one in seen if one.uid != 0]
    if not call.kill or not strangers:
        return 0
    target = as_now(call.target)
    sought = find_nodes(target, Path(call.root)).sought(target)
    killed, _ = openers.evict(strangers, sought, budget_ns=call.kill_budget_ns)
    return killed
