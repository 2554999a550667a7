# SPDX-License-Identifier: Apache-2.0
"""The bounds of a region's teardown: what is waited for before its memory's own begins.

Rule: the very numbers that the backend waits for. They do not grow with the size: the kernel ends a
registration in milliseconds, or somebody holds it.

Does not wait.
"""

from __future__ import annotations

import msgspec

from leased.hardware.config import HardwareConfig
from leased.terms.bounds import Bounds


def rdma_bounds(config: HardwareConfig, memory: Bounds) -> Bounds:
    """Of one region, whose memory has those of `memory`."""
    return msgspec.structs.replace(
        memory,
        scrub_ns=config.call_budget_ns + letting_go_ns(config) + memory.scrub_ns,
        prove_ns=_witness_ns(config) + memory.prove_ns,
    )


def letting_go_ns(config: HardwareConfig) -> int:
    """How long an owner may take to die, and the driver to let go of what was its."""
    return config.kill_budget_ns + config.settle_budget_ns


def _witness_ns(config: HardwareConfig) -> int:
    """The kernel's list is asked until nothing is late any more, then the prober, if there is
    one."""
    probes = bool(config.rdma.prober)
    return config.settle_budget_ns + config.call_budget_ns * (1 + probes)
