# SPDX-License-Identifier: Apache-2.0
"""Preemption: in which order leases would have to make room for a more important request, and how
few suffice.

Rule: a victim's priority is strictly lower than the request's, so no two leases can ever preempt
each other in turn. Scavenger goes before Standard; within a priority the one with the shortest
remaining TTL first, then the most recently granted. A lease is safe until it has run for the
minimum of its priority. Of the shortest row of victims that makes enough room, those that are not
needed after all are let off, the last ones first.

Does not preempt: it orders and chooses; `lessor.questions` shows the choice in a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from leased.terms.lease import Lease, LeaseState, Priority
from leased.terms.moment import NS_PER_S

RUNTIME_NS_MIN: Final[dict[Priority, int]] = {
    Priority.SCAVENGER: 0,
    Priority.STANDARD: 60 * NS_PER_S,
    Priority.GUARANTEED: 0,  # never reached: nothing is above it
}


def order_victims(leases: Iterable[Lease], *, priority: Priority, now_ns: int) -> list[Lease]:
    """Those of `leases` that a request of `priority` may preempt at `now_ns`, in the order it
    would.
    """
    candidates = [
        lease
        for lease in leases
        if lease.state in (LeaseState.GRANTED, LeaseState.ACTIVE)
        and lease.subject.priority < priority
        and now_ns - lease.granted_ns >= RUNTIME_NS_MIN[lease.subject.priority]
    ]
    candidates.sort(
        key=lambda lease: (
            lease.subject.priority,
            lease.deadline_ns,
            -lease.granted_ns,
            lease.lease_id,
        )
    )
    return candidates


def choose_victims(
    ordered: Sequence[Lease], suffices: Callable[[Sequence[Lease]], bool]
) -> tuple[Lease, ...] | None:
    """As few of `ordered` as `suffices` accepts, front first; None if all of them together are not
    enough.
    """
    if not suffices(ordered):
        return None
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if suffices(ordered[:middle]):
            high = middle
        else:
            low = middle + 1
    chosen = list(ordered[:high])
    for lease in reversed(ordered[:high]):
        fewer = [other for other in chosen if other is not lease]
        if suffices(fewer):
            chosen = fewer
    return tuple(chosen)
