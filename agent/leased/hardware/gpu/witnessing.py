# SPDX-License-Identifier: Apache-2.0
"""Witnessing: a look at a GPU that should be clean, and what its driver says of its health, in a
worker that had no part in the scrub.

Rule: facts only. The look that counts is the first quiet one, or the last of the budget: the
scrubber's own context takes a moment to go. One before its time is made again. A question without
an answer ends the whole call: half a witness is none.

Does not judge (`verdict`).
"""

from __future__ import annotations

import time

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Sight, Witness, Witnessed
from leased.hardware.gpu.examining import condition_of
from leased.hardware.gpu.releasing import is_quiet
from leased.hardware.gpu.sights import handle_of, look, parent_of
from leased.hardware.instant import now_ns
from leased.terms.moment import NS_PER_S

_AGAIN_S = 0.02


def witness(call: Witness, fds: list[int]) -> Witnessed:
    """Look until it is quiet, and again if that was too soon after the release."""
    began_ns = now_ns()
    parent, handle = parent_of(call.target), handle_of(call.target)

    def once() -> Sight:
        return look(handle, call.target, call.root, call.guests, call.scan_budget_ns)

    sight = once()
    while not is_quiet(sight, call.used_max_bytes) and now_ns() - began_ns < call.budget_ns:
        time.sleep(_AGAIN_S)
        sight = once()
    while sight.seen_ns < call.not_before_ns:
        time.sleep((call.not_before_ns - sight.seen_ns) / NS_PER_S)
        sight = once()
    condition = condition_of(parent, lambda question: None)
    mode = nvml.compute_mode_of(parent) if call.asks_mode else None
    return Witnessed(sight, condition, mode, began_ns, now_ns())
