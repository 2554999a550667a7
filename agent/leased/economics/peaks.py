# SPDX-License-Identifier: Apache-2.0
"""Peaks: the most that was held at once, and what was left idle, by sweeping a line over interval
ends.

Rule: intervals are half-open, so at one instant ends are applied before starts: a hand-over does
not double the peak. The sweep runs on label time, where no two instants share a label (`timeline`).

Does not fold events and does not price.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import msgspec

from leased.economics.pools import Interval, Pool
from leased.economics.timeline import Timeline
from leased.terms.identity import BootId
from leased.terms.resource import Allotment, capacity_id


class Step(msgspec.Struct, frozen=True):
    """`capacity` was held over [start_ns, end_ns)."""

    start_ns: int
    end_ns: int
    capacity: int


class Peak(msgspec.Struct, frozen=True):
    """The most held at once, and the first instant at which it was."""

    capacity: int
    at_ns: int


def steps(spans: Iterable[tuple[int, int, int]]) -> Iterator[Step]:
    """The sum of `spans` (start, end, capacity) as steps, in order; stretches where nothing is held
    are left out.

    One delta per instant: what ends and what starts in the same nanosecond cancel.
    """
    deltas: dict[int, int] = {}
    for start_ns, end_ns, capacity in spans:
        if end_ns > start_ns:
            deltas[start_ns] = deltas.get(start_ns, 0) + capacity
            deltas[end_ns] = deltas.get(end_ns, 0) - capacity
    held = 0
    began_ns = 0
    for at_ns in sorted(deltas):
        change = deltas[at_ns]
        if not change:
            continue
        if held:
            yield Step(began_ns, at_ns, held)
        held += change
        began_ns = at_ns


def peak(spans: Iterable[tuple[int, int, int]]) -> Peak:
    """The peak of `spans`; Peak(0, 0) of none."""
    best = Peak(0, 0)
    for step in steps(spans):
        if step.capacity > best.capacity:
            best = Peak(step.capacity, step.start_ns)
    return best


def labelled(
    interval: Interval, timeline: Timeline, window: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, int]]:
    """`interval` as (start, end, capacity) spans of label time, clipped to `window`."""
    for piece in timeline.pieces(interval.boot_id, interval.start_ns, interval.end_ns):
        start_ns, end_ns = piece.start_ns, piece.end_ns
        if window is not None:
            start_ns, end_ns = max(start_ns, window[0]), min(end_ns, window[1])
        if end_ns > start_ns:
            yield start_ns, end_ns, interval.allotment.capacity


def peaks(
    intervals: Iterable[Interval], timeline: Timeline, window: tuple[int, int] | None = None
) -> dict[tuple[Hashable, ...], Peak]:
    """The peak per (tenant, kind, tier) of what tenants held, provisional intervals included."""
    spans: dict[tuple[Hashable, ...], list[tuple[int, int, int]]] = {}
    for interval in intervals:
        if interval.pool is Pool.TENANT and interval.subject is not None:
            key = (interval.subject.tenant, interval.allotment.kind, interval.allotment.tier)
            spans.setdefault(key, []).extend(labelled(interval, timeline, window))
    return {key: peak(found) for key, found in spans.items() if found}


def idle(intervals: Iterable[Interval]) -> list[Interval]:
    """What nobody held: per resource and boot, provisioned less everything held, as intervals of
    the IDLE pool.

    Negative capacity is kept, never clamped: it says that more was held than there was (a device
    vanished under a lease). `opened_by` and `closed_by` are -1: idleness has no record of its own.
    """
    spans: dict[tuple[BootId, str], list[tuple[int, int, int]]] = {}
    sample: dict[str, Allotment] = {}
    for interval in intervals:
        allotment = interval.allotment
        capacity = allotment.capacity
        if interval.pool is not Pool.PROVISIONED:
            capacity = -capacity
        counted_by = capacity_id(allotment.resource_id)
        if counted_by == allotment.resource_id:
            sample[counted_by] = allotment
        sample.setdefault(counted_by, allotment)
        spans.setdefault((interval.boot_id, counted_by), []).append(
            (interval.start_ns, interval.end_ns, capacity)
        )
    found: list[Interval] = []
    for (boot_id, resource_id), held in spans.items():
        like = sample[resource_id]
        for step in steps(held):
            allotment = Allotment(resource_id, like.kind, like.tier, step.capacity)
            found.append(
                Interval(Pool.IDLE, allotment, boot_id, step.start_ns, step.end_ns, -1, -1)
            )
    return found
