# SPDX-License-Identifier: Apache-2.0
"""Tiers: what kind of memory a node has, from what is known of the node. Pure.

Rule, in this order: the operator's word; what the firmware measured (HMAT, access class 0) where it
is clearly faster or slower than the memory beside the processors; where the memory comes from (CXL,
persistent memory, a GPU, the processor's package); how far away it is. The kernel's own tiers are
not asked: 6.1 puts every node of the boot into one, whatever HMAT says.

HMAT tells how fast memory is, not what it is made of: what it calls slow is named after its origin
where one is known.

Does not read anything (`nodes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from leased.hardware.nodes import Node, Origin, Speed
from leased.terms.resource import TierKind

_FAR = 80
"""SLIT distances: 10 is local, 13 to 40 another socket, the package or a CXL card; from here on it
is another box."""

_TIER_OF = {
    Origin.CXL: TierKind.CXL,
    Origin.PMEM: TierKind.PMEM,
    Origin.GPU: TierKind.HBM,
    Origin.PACKAGE: TierKind.HBM,
}


class Classified(msgspec.Struct, frozen=True):
    """A tier, and what said so: operator, hmat, origin, distance or processors."""

    tier: TierKind
    by: str


def classify(
    node: Node, nodes: Iterable[Node], told: Mapping[int, TierKind] | None = None
) -> Classified:
    """The tier of `node` among `nodes`; `told` is the operator's word."""
    if told and node.number in told:
        return Classified(told[node.number], "operator")
    if node.has_cpu:
        return Classified(TierKind.DRAM, "processors")
    return classify_bare(node.speed, node.origin, node.distance, reference_speed(nodes))


def classify_bare(
    speed: Speed, origin: Origin | None, distance: int, reference: Speed
) -> Classified:
    """The tier of memory without processors beside it."""
    measured = _by_speed(speed, origin, reference)
    if measured is not None:
        return Classified(measured, "hmat")
    if origin is not None:
        return Classified(_TIER_OF[origin], "origin")
    if speed.read_latency_ns and speed.read_bandwidth_mibps and reference.read_latency_ns:
        # As fast as what is beside the processors, and nobody says that it is anything else.
        return Classified(TierKind.DRAM, "hmat")
    return Classified(TierKind.REMOTE if distance >= _FAR else TierKind.CXL, "distance")


def reference_speed(nodes: Iterable[Node]) -> Speed:
    """What HMAT says of the memory beside processors: that of the lowest latency."""
    speeds = [node.speed for node in nodes if node.has_cpu]
    known = [speed for speed in speeds if speed.read_latency_ns]
    return min(known, key=lambda speed: speed.read_latency_ns or 0, default=Speed())


def _by_speed(speed: Speed, origin: Origin | None, reference: Speed) -> TierKind | None:
    """HBM, or slow, where the numbers are clear; None where they are not, or are not there."""
    latency, beside = speed.read_latency_ns, reference.read_latency_ns
    bandwidth, usual = speed.read_bandwidth_mibps, reference.read_bandwidth_mibps
    late = bool(latency and beside and 2 * latency >= 3 * beside)
    too_late = bool(latency and beside and latency > 2 * beside)
    wide = bool(bandwidth and usual and bandwidth >= 2 * usual)
    narrow = bool(bandwidth and usual and 2 * bandwidth <= usual)
    if wide and not too_late:
        return TierKind.HBM
    if narrow or late:
        return TierKind.CXL if origin is None else _TIER_OF[origin]
    return None
