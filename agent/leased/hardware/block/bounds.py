# SPDX-License-Identifier: Apache-2.0
"""The bounds of a namespace's teardown: the sum of what its parts may take.

Rule: the very numbers that the backend waits for. What a drive needs to erase itself is its own
affair and bounded by the configuration; what is zeroed grows with the size.

Does not wait.
"""

from __future__ import annotations

from leased.hardware.block.drives import Erase
from leased.hardware.config import HardwareConfig
from leased.terms.bounds import Bounds
from leased.terms.moment import NS_PER_S


def block_bounds(config: HardwareConfig, cut_ns: int, size_bytes: int, *, raw: bool) -> Bounds:
    """Of one namespace."""
    budget_ns, settle_ns = config.call_budget_ns, config.block.settle_budget_ns
    return Bounds(
        cut_ns,
        budget_ns + settle_ns,
        erase_extra_ns(config, size_bytes, raw=raw),
        budget_ns + settle_ns,
    )


def erase_extra_ns(config: HardwareConfig, size_bytes: int, *, raw: bool) -> int:
    """How long erasing may take, by the slowest way that the policy allows."""
    ways = config.block.raw_erase if raw else config.block.crypt_erase
    longest = 0
    for way in ways:
        if way is Erase.ZERO:
            longest = max(longest, size_bytes * NS_PER_S // config.block.zero_bytes_per_s)
        else:
            longest = max(longest, config.block.erase_budget_ns)
    return longest
