# SPDX-License-Identifier: Apache-2.0
"""The bounds of each kind, worked out from what is configured.

Rule: the very numbers that are waited for: `crew` gives a batch its budget, `fittings` a backend,
and both are these. What grows with the size of the resource is its overwriting.

Does not publish (`devices`) and does not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from leased.hardware.block.bounds import block_bounds
from leased.hardware.block.config import Offer
from leased.hardware.config import HardwareConfig
from leased.hardware.gpu.bounds import gpu_bounds
from leased.hardware.gpu.survey import memory_bytes_of
from leased.hardware.rdma.bounds import rdma_bounds
from leased.hardware.scrubbing import PASS_BUDGET_NS, PASSES_MAX
from leased.terms.bounds import Bounds
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Resource, ResourceKind, Shape, shape_of

PASSES_OVER_MEMORY: Final = 2
"""Overwriting, and reading back."""


def bounds_of(config: HardwareConfig, cut_ns: int, resource: Resource) -> Bounds:
    """The bounds of one resource, leased whole."""
    memory = _memory(config, cut_ns, resource.capacity)
    match resource.kind, shape_of(resource.resource_id):
        case ResourceKind.GPU, _:
            return gpu_bounds(config, cut_ns, memory_bytes_of(resource))
        case ResourceKind.BLOCK, shape:
            return block_bounds(config, cut_ns, resource.capacity, raw=shape is Shape.RAW)
        case ResourceKind.MEM, Shape.RDMA:
            return rdma_bounds(config, memory)
        case ResourceKind.MEM, Shape.DAX:
            asking_ns = config.call_budget_ns + config.dax.scan_budget_ns + config.kill_budget_ns
            looking_ns = memory.overwrite_ns // PASSES_OVER_MEMORY
            release_ns = asking_ns + config.dax.rebind_budget_ns
            return Bounds(cut_ns, release_ns, memory.overwrite_ns, asking_ns + looking_ns)
        case ResourceKind.MEM, Shape.BUDGET:
            taking_back_ns = memory.overwrite_ns // PASSES_OVER_MEMORY
            return Bounds(cut_ns, 0, 0, memory.prove_ns + taking_back_ns)
        case ResourceKind.MEM, Shape.MEMFD:
            return memory
    return Bounds(cut_ns, 0, 0, memory.prove_ns)


def _memory(config: HardwareConfig, cut_ns: int, capacity: int) -> Bounds:
    search_ns = PASSES_MAX * (config.kill_budget_ns + PASS_BUDGET_NS)
    return Bounds(
        cut_ns,
        config.call_budget_ns + search_ns,
        PASSES_OVER_MEMORY * capacity * NS_PER_S // config.touch_bytes_per_s,
        config.call_budget_ns + config.settle_budget_ns,
    )


def offered(config: HardwareConfig, cut_ns: int) -> Iterator[tuple[str, Bounds]]:
    """Each kind and class that may be offered, by name, with the bounds of nothing much of it."""
    blocks = config.block.offer is not Offer.NONE
    kinds = (
        ("mem", "mem:node0:4096", ResourceKind.MEM, True),
        ("mem budget", "mem:budget:node0:4096", ResourceKind.MEM, True),
        ("cpu", "cpu:0", ResourceKind.CPU, config.cpu_cores != "none"),
        ("gpu", "gpu:", ResourceKind.GPU, config.gpu.offer),
        ("block", "block:", ResourceKind.BLOCK, blocks),
        ("block raw", "block:raw:", ResourceKind.BLOCK, blocks and config.block.raw),
        ("mem dax", "mem:dax-", ResourceKind.MEM, config.dax.offer),
        ("mem rdma", "mem:rdma-:node0:4096", ResourceKind.MEM, config.rdma.offer),
    )
    for name, resource_id, kind, is_offered in kinds:
        if is_offered:
            yield name, bounds_of(config, cut_ns, Resource(resource_id, kind, None, 0, 1))
