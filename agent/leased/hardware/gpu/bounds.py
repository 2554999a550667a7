# SPDX-License-Identifier: Apache-2.0
"""The bounds of a GPU's teardown: the sum of what its parts may take.

Rule: each part is what `reclaiming` gives its worker and what starting one takes, so no part can
overrun its share of the sum.

Does not wait.
"""

from __future__ import annotations

from leased.hardware.config import HardwareConfig
from leased.terms.bounds import Bounds
from leased.terms.moment import NS_PER_S

STARTING_NS = NS_PER_S
"""A worker is forked and loads the vendor's library: a twentieth of this on an idle host."""


def gpu_bounds(config: HardwareConfig, cut_ns: int, memory_bytes: int) -> Bounds:
    """Of a GPU or MIG device with that much memory."""
    call_ns = config.call_budget_ns + STARTING_NS
    release_ns = release_extra_ns(config) + call_ns
    # The scrubber's own call, and the closing of a device that was not scrubbed.
    scrub_ns = 2 * call_ns
    if config.gpu.mig_layout:
        scrub_ns += config.gpu.mig_budget_ns + call_ns
    prove_ns = witness_extra_ns(config) + call_ns
    overwrite_ns = overwrite_extra_ns(config, memory_bytes)
    return Bounds(cut_ns, release_ns + scrub_ns, overwrite_ns, prove_ns)


def release_extra_ns(config: HardwareConfig) -> int:
    """How much longer than a call's usual budget the driver may take to let go."""
    gpu = config.gpu
    return gpu.release_budget_ns + gpu.scan_budget_ns + config.kill_budget_ns


def overwrite_extra_ns(config: HardwareConfig, memory_bytes: int) -> int:
    """The same for the overwriting, with its reading back."""
    return memory_bytes * NS_PER_S // config.gpu.scrub_bytes_per_s


def witness_extra_ns(config: HardwareConfig) -> int:
    """The same for the looks of the witness: the last of its budget, and one that is in time."""
    gpu = config.gpu
    return gpu.release_budget_ns + gpu.settle_apart_ns + 2 * gpu.scan_budget_ns
