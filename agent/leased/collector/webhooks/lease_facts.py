# SPDX-License-Identifier: Apache-2.0
"""What is told of a lease: the event as it was sealed, so that who bills by it asks nobody else.

Rule: a fact has the record that it follows from and the one before it, who pays (tenant and tag),
what is held, of which kind and tier, and since and until when, to the nanosecond. What it came to
is in the closing one (reclaimed or fenced): the capacity x ns that the meter has, raw units, as a
string. An instant that the record alone does not tell is null: the end of a lease of an earlier
boot, by a clock that has stopped.

Does not price, and does not look at other records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from leased.chain.record import Record
from leased.collector.accounts.periods import exact_instant
from leased.collector.archive.manifest import LogEntry
from leased.collector.webhooks.facts import Fact, Kind
from leased.terms import event as events
from leased.terms.event import Event, LeaseEvent
from leased.terms.lease import RevocationReason

KINDS: Final[Mapping[type[Event], Kind]] = {
    events.Allocated: Kind.LEASE_ALLOCATED,
    events.Activated: Kind.LEASE_ACTIVATED,
    events.Renewed: Kind.LEASE_RENEWED,
    events.DrainNotified: Kind.LEASE_DRAINING,
    events.Preempted: Kind.LEASE_PREEMPTED,
    events.Released: Kind.LEASE_RELEASED,
    events.Expired: Kind.LEASE_EXPIRED,
    events.Revoked: Kind.LEASE_REVOKED,
    events.Fenced: Kind.LEASE_FENCED,
    events.Unfenced: Kind.LEASE_UNFENCED,
    events.Reclaimed: Kind.LEASE_RECLAIMED,
}


def lease_fact(kind: Kind, event: LeaseEvent, record: Record, entry: LogEntry) -> Fact:
    """One event of a lease."""
    subject, lease_id, place = event.subject, event.lease_id.hex(), f"{entry.node}/{entry.log_id}"
    held = event.fenced if isinstance(event, events.Fenced) else subject.allotments
    reason = getattr(event, "reason", None)
    data = {
        "event_id": event.event_id.hex(),
        "event_type": type(event).__name__,
        "tenant": str(subject.tenant),
        "lease_id": lease_id,
        "generation": event.generation,
        "node": entry.node,
        "node_name": entry.name,
        "log_id": entry.log_id,
        "sequence": record.sequence,
        "hash": record.hash.hex(),
        "previous_hash": record.prev_hash.hex(),
        "priority": subject.priority.name.lower(),
        "workload": subject.workload,
        "accounting_tag": None if subject.tag is None else msgspec.structs.asdict(subject.tag),
        "reason": None if reason is None else reason.name.lower(),
        "effective_at": None
        if reason is RevocationReason.NODE_REBOOT
        else _instant(record, event.effective_ns),
        "expires_at": _instant(record, _end_ns(event)),
        "resources": {one.resource_id: one.capacity for one in held},
        "allotments": _allotments(event),
    }
    key = f"{place}/{record.sequence}/{record.hash.hex()}"
    return Fact(kind, key, f"leases/{lease_id}", str(subject.tenant), record.wall_ns, data)


def _end_ns(event: LeaseEvent) -> int | None:
    """When the lease ends if nothing else happens, on the boot clock."""
    if isinstance(event, (events.Allocated, events.Renewed)):
        return event.deadline_ns
    return event.drain_deadline_ns if isinstance(event, events.DrainNotified) else None


def _instant(record: Record, boot_ns: int | None) -> str | None:
    """A moment of the record's boot, on the wall clock as it was when it was sealed."""
    return None if boot_ns is None else exact_instant(record.wall_ns - record.boot_ns + boot_ns)


def _allotments(event: LeaseEvent) -> list[dict[str, Any]]:
    """What the tenant holds, or held; with what that came to where the event says it."""
    rows: list[dict[str, Any]] = [
        {
            "resource_id": one.resource_id,
            "kind": one.kind.name.lower(),
            "tier": None if one.tier is None else one.tier.name.lower(),
            "capacity": one.capacity,
        }
        for one in event.subject.allotments
    ]
    if isinstance(event, (events.Reclaimed, events.Fenced)):
        for row, amount in zip(rows, event.held_capacity_ns, strict=False):
            row["cap_ns"] = str(amount)
    return rows
