# SPDX-License-Identifier: Apache-2.0
"""Sealed events for people and for JSON: ids and hashes as hex, reasons by name, one line each.

Rule: nothing of an event is left out of the JSON; an unknown kind is shown as what it is, with its
bytes.

Does not read the log (`audit`).
"""

from __future__ import annotations

import enum
import os
from typing import Any, Final

import msgspec

from leased.chain.canonical import Unknown
from leased.client.amounts import amount
from leased.ctl import render
from leased.ctl.console import length, timestamp
from leased.terms import event as events
from leased.terms.event import KIND, Event, LeaseEvent
from leased.terms.lease import Level, RevocationReason
from leased.terms.moment import Moment
from leased.terms.reply import RefusalReason
from leased.terms.teardown import TeardownStep, tell_failed

NAMES: Final = {kind.__name__: kind for kind in KIND}
_NUMBERED: Final = {
    ("Refused", "reason"): RefusalReason,
    ("Fenced", "step"): TeardownStep,
}


def event_name(event: Event | Unknown) -> str:
    """The name of an event's kind."""
    return f"kind {event.kind}" if isinstance(event, Unknown) else type(event).__name__


def event_document(sequence: int, event: Event | Unknown, moment: Moment) -> dict[str, Any]:
    """An event as plain values."""
    found: dict[str, Any] = {
        "sequence": sequence,
        "kind": event_name(event),
        "time": timestamp(moment.wall_ns),
        "boottime_ns": moment.boot_ns,
        "boot_id": moment.boot_id.hex() if any(moment.boot_id) else None,
    }
    if isinstance(event, Unknown):
        return {**found, "number": event.kind, "schema": event.schema, "body": event.body.hex()}
    return {**found, **_fields(event)}


def event_line(sequence: int, event: Event | Unknown, moment: Moment) -> str:
    """An event on one line."""
    lease, tenant = "-", "-"
    if isinstance(event, LeaseEvent):
        lease, tenant = render.short(event.lease_id.hex()), event.subject.tenant
    elif isinstance(event, events.Refused):
        tenant = event.tenant
    time = timestamp(moment.wall_ns)[:23] + "Z"
    parts = (f"{sequence:>8}", time, f"{event_name(event):<16}", f"{lease:<8}", f"{tenant:<12}")
    return render.one_line("  ".join((*parts, detail(event))).rstrip())


def detail(event: Event | Unknown) -> str:
    """What is particular to an event."""
    match event:
        case Unknown():
            return f"{len(event.body)} bytes, schema {event.schema}"
        case events.Allocated() | events.Renewed():
            held = ", ".join(
                f"{a.resource_id} {amount(a.kind.name.lower(), a.capacity)}"
                for a in event.subject.allotments
            )
            generation = f"generation {event.generation}"
            shown = held if isinstance(event, events.Allocated) else generation
            return f"{shown}, for {length(event.ttl_ns)}"
        case events.Scrubbed():
            return f"{event.scrubbed_bytes} bytes overwritten and read back"
        case events.Revoked():
            return RevocationReason(event.reason).name.lower()
        case events.DrainNotified():
            left_ns = max(0, event.drain_deadline_ns - event.effective_ns)
            return f"{RevocationReason(event.reason).name.lower()}, {length(left_ns)} from then on"
        case events.OverageBegan():
            return f"{event.holder} has {event.usage} of {event.rule}, limit {event.limit}"
        case events.OverageEnded():
            return f"{event.holder} is within {event.rule}"
        case events.Admitted():
            return f"at level {Level(event.level).name.lower()}"
        case events.PeriodBegan():
            return f"budgets of the {event.period} begin anew"
        case events.PolicyTurned():
            return f"open windows: {', '.join(event.windows) or 'none'}"
        case events.Preempted():
            return f"for {render.short(event.preemptor_lease_id.hex())} of {event.preemptor_tenant}"
        case events.AccessCut():
            return "by the reaper" if event.by_reaper else "by the agent"
        case events.Reclaimed():
            return (
                f"cut after {length(event.cut_lag_ns)}, proven after {length(event.proof_lag_ns)}"
            )
        case events.Fenced():
            held = ", ".join(a.resource_id for a in event.fenced)
            step = TeardownStep(event.step).name.lower()
            failed = tell_failed(step, event.errno, os.strerror(event.errno))
            return f"{held} not proven clean: {failed}"
        case events.Refused():
            kind = "" if event.resource_kind is None else f" {event.resource_kind.name.lower()}"
            return f"{RefusalReason(event.reason).name.lower()}: asked {event.requested}{kind}"
        case events.NodeStarted():
            return f"{event.version}, epoch {event.epoch}, boot {event.boot_id.hex()[:8]}"
        case events.HealthChanged():
            return f"{event.resource_id} {event.health}"
        case events.CordonChanged():
            state = "cordoned" if event.cordoned else "open"
            return f"{event.resource_id or 'the node'} {state}"
        case events.ClockStepped():
            return f"{event.delta_ns} ns"
        case events.CheckpointSigned():
            return f"size {event.size}"
    return ""


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    name = type(struct).__name__
    found: dict[str, Any] = {}
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        closed = _NUMBERED.get((name, field))
        # "version" is the document's own word, on every line.
        shown = "agent_version" if field == "version" else field
        found[shown] = _value(value if closed is None else closed(value))
    return found


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.IntEnum):
        return value.name.lower()
    if isinstance(value, enum.StrEnum):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return _fields(value)
    if isinstance(value, list | tuple):
        return [_value(one) for one in value]
    return value
