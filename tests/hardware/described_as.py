# SPDX-License-Identifier: Apache-2.0
"""A GPU as the agent's own look describes it, and what its telemetry has of it:
`... described_as ROOT UUID`, JSON out."""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

from leased.hardware.gpu.calls import Examine, Gauge, Where
from leased.hardware.gpu.describing import examine
from leased.hardware.gpu.examining import list_gpus
from leased.hardware.gpu.facts import Gpu, target_of
from leased.hardware.gpu.gauging import NOT_MEANT, gauge
from leased.hardware.gpu.health import judge_gpu
from leased.hardware.gpu.nodes import find_nodes

APART_S = 0.3
"""Two looks so far apart say how busy it was between them."""


def gauged(gpu: Gpu) -> dict[str, object]:
    """What telemetry has: how many readings, of which series, and which are no numbers."""
    call = Gauge(gpu.uuid, gpu.pci, gpu.uuid, gpu.mig_enabled)
    gauge(call, ())
    select.select([], [], [], APART_S)
    began_ns = time.monotonic_ns()
    found = gauge(call, ()).readings
    took_ms = (time.monotonic_ns() - began_ns) // 1_000_000
    return {
        "readings": len(found),
        "series": " ".join(sorted({one.series.rpartition("gpu.")[2] for one in found})),
        "no_numbers": sum(one.value == NOT_MEANT for one in found),
        "gauge_ms": took_ms,
    }


def main() -> int:
    """Ask everything once."""
    root, uuid = sys.argv[1:]
    listing = list_gpus(Where(root), [])
    found = examine(Examine(root, listing.driver, listing.gpus), [])
    told: dict[str, object] = {"faults": [f"{one.fault} ({one.errno})" for one in found.faults]}
    for gpu in found.gpus:
        if gpu.uuid == uuid:
            nodes = find_nodes(target_of(gpu), Path(root))
            numbers = (nodes.gpu, *nodes.shared)
            told |= {
                "finding": judge_gpu(gpu).why,
                "unanswered": list(gpu.unanswered),
                "fabric": gpu.fabric,
                "links": len(gpu.links),
                "memory_node": gpu.memory_node,
                "node": gpu.node,
                "compute_mode": gpu.compute_mode,
                "mig": f"{gpu.mig_enabled}, then {gpu.mig_pending}",
                "condition": str(gpu.condition),
                "nodes": " ".join(f"{major}:{minor}" for major, minor in numbers),
                "other_nodes": len(gpu.other_nodes),
                **gauged(gpu),
            }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
