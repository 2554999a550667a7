# SPDX-License-Identifier: Apache-2.0
"""The survey of device-dax ranges: which are leased, as what, and why the others are not. Pure.

Rule: a range is leased whole or not at all; one that the host has made ordinary memory is a NUMA
node (`memory`). What may hold somebody's data is offered only on the operator's word. Never
measured on a CXL device: the evidence says so.

Does not read anything (`ranges`, `nodes`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from leased.hardware.calls import Surveyed
from leased.hardware.dax.config import DaxConfig
from leased.hardware.dax.lost import why_lost
from leased.hardware.dax.ranges import DEVICE_MODE, MEMORY_MODE, Range
from leased.hardware.nodes import Node, Origin, Speed
from leased.hardware.tiers import Classified, classify_bare, reference_speed
from leased.terms.resource import Absence, Evidence, Resource, ResourceKind

PIN_LIMIT = (
    "a page that a tenant has pinned (vmsplice, io_uring, RDMA) and whose pin it has given to a"
    " process outside its lease cannot be seen, and the kernel may not wait for it: it can reach"
    " what is there later, or end the kernel; lease this only to tenants that are trusted not to"
)
WAS_AWAY = "it was away while it was leased, and its lease ends by that"
NOT_OFFERED = "device-dax ranges are not offered: [hardware.dax] offer = false"


def describe(
    ranges: Sequence[Range],
    nodes: Sequence[Node],
    speeds: Sequence[tuple[int, Speed]],
    config: DaxConfig,
    lost: Sequence[Range] = (),
    away: Collection[str] = (),
) -> Surveyed:
    """What is offered of `ranges`. `speeds` is what HMAT says of their nodes, where it does; `lost`
    are regions without a driver; `away` the identities of those that are not what was leased."""
    resources: list[Resource] = []
    named = ((one.resource_id if one.identity else "device-dax", why_lost(one)) for one in lost)
    notes = [f"{name}: {why}" for name, why in named]
    known = dict(speeds)
    reference = reference_speed(nodes)
    for one in ranges:
        why = WAS_AWAY if one.identity in away else why_not(one, config)
        if why:
            notes.append(f"{one.resource_id} ({one.name}): {why}")
            continue
        tier = _classify(one, known.get(one.node, Speed()), nodes, reference)
        resources.append(_resource(one, tier, known.get(one.node, Speed())))
    absences: tuple[Absence, ...] = ()
    if not resources:
        seen = f"{len(ranges)} device-dax ranges seen, none leased" if ranges else "no such range"
        absences = (Absence(ResourceKind.MEM, f"device-dax (shape=dax): {seen}"),)
    return Surveyed(tuple(resources), absences, tuple(notes))


def why_not(one: Range, config: DaxConfig) -> str:
    """Why a range is not leased; "" if it is."""
    if one.driver == MEMORY_MODE:
        return f"ordinary memory of node {one.node}"
    if not one.driver:
        return why_lost(one)
    if one.driver != DEVICE_MODE:
        return f"the driver {one.driver} has it"
    if not one.whole:
        return "a part of its region, and only whole regions can be taken back for good"
    if one.is_persistent and not config.persistent:
        return "persistent memory, which may hold data: [hardware.dax] persistent = true leases it"
    return ""


def _classify(one: Range, speed: Speed, nodes: Iterable[Node], reference: Speed) -> Classified:
    origin = Origin[one.origin] if one.origin else None
    distance = next((node.distance for node in nodes if node.number == one.node), 0)
    if origin is Origin.PMEM:
        # HMAT speaks of a node, and ordinary memory of another make may be in the same.
        return Classified(classify_bare(Speed(), origin, distance, reference).tier, "origin")
    return classify_bare(speed, origin, distance, reference)


def _resource(one: Range, tier: Classified, speed: Speed) -> Resource:
    measured = one.origin != Origin.PMEM.name
    return Resource(
        resource_id=one.resource_id,
        kind=ResourceKind.MEM,
        tier=tier.tier,
        capacity=one.size_bytes,
        granule=one.size_bytes,
        node=one.node,
        # It was run on the persistent memory of an emulated machine, and on nothing else.
        evidence=Evidence.EMULATED if one.is_persistent else Evidence.NOT_RUN,
        read_latency_ns=speed.read_latency_ns if measured else None,
        write_latency_ns=speed.write_latency_ns if measured else None,
        read_bandwidth_mibps=speed.read_bandwidth_mibps if measured else None,
        write_bandwidth_mibps=speed.write_bandwidth_mibps if measured else None,
        limits=(PIN_LIMIT,),
        attributes=(
            ("align_bytes", str(one.align_bytes)),
            ("device", one.name),
            ("tier_by", tier.by),
        ),
    )
