# SPDX-License-Identifier: Apache-2.0
"""The rows of answers about the fleet: a node, a lease, the last events of a node.

Rule: what is told follows from one node's view and the logs it has, copied before it is gone over.

Does not choose which (`views`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from leased.collector.api.fleet_answers import LeaseSeen, LogSeen, NodeSeen
from leased.collector.api.quota_answers import quantities
from leased.collector.archive.manifest import LogEntry
from leased.collector.governance.dimensions import BY_KIND, show
from leased.collector.live_lease import LiveLease
from leased.collector.node_view import NodeView, Told
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind


def newest_of(views: Sequence[NodeView]) -> Iterator[tuple[int, int, int]]:
    """When each node's last event was, its sequence, and which node, where there is one."""
    for at, view in enumerate(views):
        for one in view.recent[-1:]:
            yield one.wall_ns, one.sequence, at


def newest_first(at: int, view: NodeView) -> Iterator[tuple[int, int, int, Told]]:
    """The last events of a node, one by one: who wants a hundred of a fleet's looks at few more."""
    for one in view.recent[::-1]:
        yield one.wall_ns, one.sequence, at, one


def node_row(entries: Iterable[LogEntry], view: NodeView, now_ns: int) -> NodeSeen:
    """A node, with its logs. What only records change is made once for each state of the view."""
    # Read first: a record that is taken in meanwhile makes what was made of its middle old.
    state = (view.applied, view.node, view.name)
    known, seen = view.shown
    if known != state or not isinstance(seen, NodeSeen):
        seen = _node_row(view)
        view.shown = (state, seen)
    aged = [(entry, entry.age_ns(now_ns)) for entry in entries]
    logs = [
        LogSeen(
            log_id=entry.log_id,
            records=entry.head.size,
            head=entry.head.hash.hex(),
            signed=entry.signed_size,
            cosigned=entry.cosigned_size,
            verdict=entry.verdict,
            why=entry.why,
            seen_at=None if age_ns is None else _at(entry.contact_ns // NS_PER_S),
            age_seconds=None if age_ns is None else age_ns // NS_PER_S,
        )
        for entry, age_ns in aged
    ]
    return msgspec.structs.replace(seen, logs=logs)


@lru_cache(maxsize=4_096)
def _at(wall_s: int) -> str:
    """Many nodes are heard of in one second."""
    return print_instant(wall_s * NS_PER_S)


def _node_row(view: NodeView) -> NodeSeen:
    held = view.held()
    leases = list(view.leases.values())
    live = [one for one in leases if one.is_held]
    return NodeSeen(
        node=view.node,
        name=view.name,
        version=view.version,
        state=_state(view, live),
        why=view.aside,
        policy_generation=view.policy_generation,
        policy_hash=view.policy_hash,
        total=quantities({BY_KIND[k].key: amount for k, amount in view.totals().items()}),
        held=quantities({BY_KIND[k].key: amount for k, amount in held.items()}),
        leases=len(live),
        ending=len(leases) - len(live),
        fenced=sum(one.state == "fenced" for one in leases),
        resources=len(view.resources),
        unhealthy=sorted(one.resource_id for one in view.resources if str(one.health) != "ok"),
        refused=sum(list(view.refused.values())),
        logs=[],
    )


def _state(view: NodeView, live: list[LiveLease]) -> str:
    if view.aside:
        return "set_aside"
    if not view.running:
        return "stopped"
    if view.draining:
        return "draining"
    return "active" if live else "idle"


def lease_row(view: NodeView, lease: LiveLease, now_ns: int) -> LeaseSeen:
    subject = lease.subject
    return LeaseSeen(
        lease_id=lease.lease_id,
        node=view.node,
        node_name=view.name,
        tenant=str(subject.tenant),
        workload=subject.workload,
        priority=subject.priority.name.lower(),
        state=lease.state,
        ended=lease.ended or None,
        remaining_ms=view.left_ns(lease, now_ns) // 10**6 if lease.is_held else 0,
        granted_at=print_instant(lease.granted_wall_ns),
        generation=lease.generation,
        resources={one.resource_id: _amount(one.kind, one.capacity) for one in subject.allotments},
        log_id=view.log_id,
        sequence=lease.sequence,
        last_sequence=lease.last,
    )


def _amount(kind: ResourceKind, capacity: int) -> Any:
    return show(BY_KIND[kind], capacity)
