# SPDX-License-Identifier: Apache-2.0
"""Tables and sentences: the agent's answers for people.

Rule: columns are as wide as what is in them; ids are shown as 8 characters, and any unique
beginning is accepted back. What is not known is shown as "-", never as 0.

Does not fetch anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from leased.client.amounts import amount
from leased.ctl.console import Console, length, relative
from leased.ctl.console import plain as told
from leased.terms.lease import BOUND_TO_CGROUP, BOUND_TO_NOTHING
from leased.wire import objects

ID_CHARS = 8
_BOUND: Final = {
    BOUND_TO_CGROUP: "its cgroup",
    BOUND_TO_NOTHING: "no process: its deadline ends it",
}


def one_line(text: str) -> str:
    """A value that stands in a line, as it is shown: a name that a log or a file gives must not
    begin another line, which would be read as ours."""
    return told(text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t"))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a left-aligned table."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [len(heading) for heading in headings]
    for row in rows:
        widths = [max(width, columns(cell)) for width, cell in zip(widths, row, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]


def columns(text: str) -> int:
    """How many columns of a terminal it takes: two for a sign of East Asia, none for an accent."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)


def fields(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of "name  value", aligned."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name.ljust(width)}  {one_line(value)}".rstrip() for name, value in pairs]


def plain(value: Any) -> Any:
    """A wire value as JSON has it."""
    return msgspec.to_builtins(value)


def counted(number: int, noun: str) -> str:
    """ "1 lease", "2 leases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short(lease_id: str) -> str:
    """The beginning of an id that people see."""
    return lease_id[:ID_CHARS]


def held(allotments: Sequence[objects.Allotment]) -> str:
    """What is held, "mem 256MiB (node0), cpu 2"; cores of one lease are added up."""
    found: list[str] = []
    milli = [one.capacity for one in allotments if one.kind == "cpu"]
    if milli:
        found.append(f"cpu {amount('cpu', sum(milli))}")
    for one in allotments:
        if one.kind == "cpu":
            continue
        where = one.resource_id.split(":")[1] if ":" in one.resource_id else one.resource_id
        found.append(f"{one.kind} {amount(one.kind, one.capacity)} ({where})")
    return ", ".join(found) or "-"


def when(lease: objects.Lease, console: Console) -> str:
    """What the clock says of a lease: when it ends, or how it ended."""
    runtime = lease.runtime
    if runtime.ended is not None:
        return ending(lease)
    if runtime.state == "draining" and runtime.drain_deadline_boottime_ns is not None:
        return f"leaves {console.time_of_boot(runtime.drain_deadline_boottime_ns)}"
    left_ns = runtime.remaining_ns
    return f"{relative(left_ns)} ({console.time_of_day(console.wall_ns() + left_ns)})"


def ending(lease: objects.Lease) -> str:
    """How a lease ended: "expired", "revoked: operator_drain"."""
    runtime = lease.runtime
    reason = runtime.reason if runtime.reason is not None and runtime.ended == "revoked" else None
    return f"{runtime.ended or '-'}{f': {reason}' if reason else ''}"


def lease_table(leases: Sequence[objects.Lease], console: Console) -> list[str]:
    """`ls`."""
    rows = [
        (
            short(lease.lease_id),
            lease.runtime.state,
            lease.runtime.tenant,
            lease.context.priority,
            held(lease.runtime.allotments),
            when(lease, console),
            lease.context.workload or "-",
        )
        for lease in leases
    ]
    return table(("LEASE", "STATE", "TENANT", "PRIORITY", "HOLDS", "ENDS", "WORKLOAD"), rows)


def lease_fields(
    lease: objects.Lease, access: Sequence[objects.Access], console: Console
) -> list[str]:
    """`show`. What the holder must know is named only: a value may be a capability."""
    context, runtime = lease.context, lease.runtime
    bound = _BOUND.get(runtime.pid, f"process {runtime.pid}")
    pairs = [
        ("lease", lease.lease_id),
        ("state", runtime.state),
        ("ends", when(lease, console)),
        ("holds", held(runtime.allotments)),
        ("tenant", f"{runtime.tenant} (uid {runtime.uid}, gid {runtime.gid}, {runtime.trust})"),
        ("priority", context.priority),
        ("workload", context.workload or "-"),
        ("bound to", bound),
        ("cgroup", runtime.cgroup or "-"),
        ("granted", console.time_of_day(runtime.granted_wall_ns)),
        ("ttl", f"{length(context.ttl_ns)} (generation {runtime.generation})"),
        ("grace", length(context.grace_ns)),
    ]
    if access:
        pairs.append(("told as", ", ".join(dict.fromkeys(one.name for one in access))))
    tag = context.accounting_tag
    if tag is not None:
        named = (tag.cost_center, tag.project, tag.request_class, tag.budget_group)
        pairs.append(("tag", "/".join(part for part in named if part)))
    if runtime.fenced:
        pairs.append(("fenced", held(runtime.fenced)))
    if runtime.granted_sequence is not None:
        pairs.append(("record", str(runtime.granted_sequence)))
    pairs.append(("command", context.command_id))
    return fields(pairs)


def resource_table(resources: Sequence[objects.Resource]) -> list[str]:
    """`devices`."""
    rows = []
    for one in resources:
        use = one.use
        split = ("-",) * 4 if use is None else tuple(
            amount(one.kind, part) for part in (use.free, use.leased, use.teardown, use.fenced)
        )  # fmt: skip
        health = one.health + (", cordoned" if use is not None and use.cordoned else "")
        row = (one.resource_id, one.tier or "-", amount(one.kind, one.capacity), *split)
        rows.append((*row, health, one.evidence.replace("_", " ")))
    names = ("RESOURCE", "TIER", "CAPACITY", "FREE", "LEASED", "TEARDOWN", "FENCED")
    return table((*names, "HEALTH", "EVIDENCE"), rows)


TAKEN_IN_TURN: Final = (
    "several namespaces in one lease: SCRUB, OVERWRITE and PROOF of each add up, because those of"
    " one drive are made clean one after the other"
)


def bounds_table(resources: Sequence[objects.Resource]) -> list[str]:
    """`devices`: how long teardowns may take, of each kind the longest."""
    longest: dict[str, objects.Bounds] = {}
    for one in resources:
        name = _class_of(one)
        if one.bounds is not None and _total_ns(one.bounds) >= _total_ns(longest.get(name)):
            longest[name] = one.bounds
    rows = [
        (
            name,
            length(bounds.cut_ns),
            length(bounds.scrub_ns),
            length(bounds.overwrite_ns),
            length(bounds.prove_ns),
            length(_total_ns(bounds)),
        )
        for name, bounds in longest.items()
    ]
    names = ("AFTER THE DEADLINE", "CUT", "SCRUB", "OVERWRITE", "PROOF", "IN ALL AT MOST")
    several = len({one.resource_id.rpartition(":")[2] for one in resources if one.kind == "block"})
    told = [TAKEN_IN_TURN] if several > 1 and rows else []
    return [*table(names, rows), *told] if rows else []


def notices(graces: objects.Graces) -> str:
    """`devices`: what a holder is told before."""
    told = ((graces.release_ns, "drain"), (graces.preempt_ns, "preemption"))
    lengths = ", ".join(f"{length(ns)} of {why}" for ns, why in told)
    return f"notice before the end: {lengths}; never more than {length(graces.max_ns)}"


def _class_of(resource: objects.Resource) -> str:
    """The kind, and the class of it where a kind has several."""
    head = resource.resource_id.split(":")
    shape = head[1].partition("-")[0] if len(head) > 2 or "-" in head[1] else ""
    known = ("budget", "dax", "rdma", "raw")
    return f"{resource.kind} {shape}" if shape in known else resource.kind


def _total_ns(bounds: objects.Bounds | None) -> int:
    if bounds is None:
        return -1
    return bounds.cut_ns + bounds.scrub_ns + bounds.overwrite_ns + bounds.prove_ns


def holder_table(holders: Sequence[objects.Holder]) -> list[str]:
    """`holders`."""
    rows = [
        (
            one.resource_id,
            str(one.pid) if one.pid else "kernel",
            str(one.uid) if one.pid else "-",
            one.name,
            one.via,
            short(one.lease_id) if one.lease_id else "-",
        )
        for one in holders
    ]
    return table(("RESOURCE", "PID", "UID", "NAME", "VIA", "LEASE"), rows)
