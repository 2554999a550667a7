# SPDX-License-Identifier: Apache-2.0
"""When a delivery that failed is tried again, and when it is given up.

Rule: the waits are those that Standard Webhooks recommends, each up to a tenth longer by chance, so
that what failed together does not come back together. A receiver that says when (Retry-After) is
believed, for at most a day.

Does not read a clock.
"""

from __future__ import annotations

from typing import Final

from leased.terms.moment import DAY_NS, HOUR_S, NS_PER_S

_MINUTE: Final = 60
WAITS_S: Final = (
    5,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * HOUR_S,
    5 * HOUR_S,
    10 * HOUR_S,
    14 * HOUR_S,
    20 * HOUR_S,
    24 * HOUR_S,
)
LIFE_NS: Final = sum(WAITS_S) * NS_PER_S
"""How long after it happened something is tried: some three days."""

AFTER_MAX_NS: Final = DAY_NS


def next_due_ns(
    failures: int, made_ns: int, now_ns: int, chance: int, after_ns: int = 0
) -> int | None:
    """When to try again after the n-th failure; None: no more. `chance` is 0 to 255. What waited
    behind others for more than twice its life has one attempt, and no second."""
    if failures > len(WAITS_S) or now_ns - made_ns > 2 * LIFE_NS:
        return None
    wait_ns = WAITS_S[failures - 1] * NS_PER_S
    wait_ns += wait_ns * chance // 2560
    return now_ns + max(wait_ns, min(after_ns, AFTER_MAX_NS))
