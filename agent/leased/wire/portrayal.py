# SPDX-License-Identifier: Apache-2.0
"""Portrayal: `terms` values as wire objects.

Rule: what is portrayed is the value handed in and the moment handed in, nothing else: remaining
time and seconds until a retry are counted from that moment, and are 0 where the value is of another
boot.

Does not encode and does not decide who may see what.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from leased.terms.bounds import ATTRIBUTE, published
from leased.terms.lease import (
    AccountingTag,
    Ending,
    Lease,
    LeaseState,
    Level,
    Priority,
    RevocationReason,
    Trust,
)
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reply import (
    Allowance,
    Inventoried,
    Listed,
    Refusal,
    RefusalReason,
    Removal,
    ResourceUse,
)
from leased.terms.resource import (
    Allotment,
    Evidence,
    Resource,
    ResourceKind,
    TierKind,
)
from leased.wire import objects


def names(members: type[enum.IntEnum]) -> tuple[str, ...]:
    """The lower-case names of a closed set whose numbers are 0, 1, 2 and so on, by number."""
    assert [member.value for member in members] == list(range(len(members)))
    return tuple(member.name.lower() for member in members)


STATE = names(LeaseState)
KIND = names(ResourceKind)
TIER = names(TierKind)
PRIORITY = names(Priority)
LEVEL = tuple(level.name.lower() for level in Level)
ENDING = names(Ending)
REASON = names(RevocationReason)
TRUST = names(Trust)
REFUSAL_REASON = names(RefusalReason)
EVIDENCE = {
    Evidence.MEASURED: "measured",
    Evidence.EMULATED: "emulated",
    Evidence.NOT_RUN: "not_run",
}


def portray_allotment(allotment: Allotment) -> objects.Allotment:
    """One share."""
    tier = allotment.tier
    return objects.Allotment(
        allotment.resource_id,
        KIND[allotment.kind],
        allotment.capacity,
        None if tier is None else TIER[tier],
    )


def portray_tag(tag: AccountingTag) -> objects.AccountingTag:
    """An accounting tag; what is empty is left out."""
    return objects.AccountingTag(
        tag.cost_center,
        tag.project or None,
        tag.request_class or None,
        tag.budget_group or None,
        tag.flags or None,
    )


def portray_lease(lease: Lease, moment: Moment) -> objects.Lease:
    """One lease as it stands at `moment`."""
    subject = lease.subject
    tag = subject.tag
    context = objects.Context(
        lease.command_id.hex(),
        lease.ttl_ns,
        lease.grace_ns,
        PRIORITY[subject.priority],
        subject.workload,
        None if tag is None else portray_tag(tag),
    )
    live = lease.boot_id == moment.boot_id
    runtime = objects.Runtime(
        state=STATE[lease.state],
        generation=lease.generation,
        tenant=subject.tenant,
        uid=subject.uid,
        gid=subject.gid,
        pid=lease.pid,
        trust=TRUST[subject.trust],
        cgroup=subject.cgroup,
        allotments=[portray_allotment(allotment) for allotment in subject.allotments],
        boot_id=lease.boot_id.hex(),
        granted_boottime_ns=lease.granted_ns,
        granted_wall_ns=lease.granted_wall_ns,
        deadline_boottime_ns=lease.deadline_ns,
        remaining_ns=max(0, lease.deadline_ns - moment.boot_ns) if live else 0,
        fenced=[portray_allotment(allotment) for allotment in lease.fenced],
        drain_deadline_boottime_ns=lease.drain_deadline_ns,
        ended=None if lease.ended is None else ENDING[lease.ended],
        reason=None if lease.reason is None else REASON[lease.reason],
        cut_boottime_ns=lease.cut_ns,
        granted_sequence=None if lease.granted_sequence < 0 else lease.granted_sequence,
    )
    return objects.Lease(lease.lease_id.hex(), context, runtime)


def environment_of(access: Iterable[objects.Access]) -> dict[str, str]:
    """What a program inside the lease should see: several values of one name in their order, with
    commas between."""
    found: dict[str, str] = {}
    for one in access:
        found[one.name] = f"{found[one.name]},{one.value}" if one.name in found else one.value
    return found


def portray_notice(
    lease: Lease, reason: RevocationReason, deadline_ns: int, moment: Moment
) -> objects.Notice:
    """What a holder that should leave is told."""
    left_ns = max(0, deadline_ns - moment.boot_ns)
    return objects.Notice(lease.lease_id.hex(), REASON[reason], deadline_ns, left_ns // NS_PER_S)


def portray_refusal(refusal: Refusal, moment: Moment) -> objects.Refusal:
    """A denial; the seconds are rounded up, so that a caller who waits that long is not early."""
    retry_at_ns = refusal.retry_at_ns
    seconds = None
    if retry_at_ns is not None:
        seconds = -(-max(0, retry_at_ns - moment.boot_ns) // NS_PER_S)
    return objects.Refusal(
        REFUSAL_REASON[refusal.reason],
        refusal.what,
        refusal.limit,
        refusal.usage,
        refusal.requested,
        retry_at_ns,
        seconds,
        refusal.rule or None,
    )


def portray_removal(removal: Removal) -> objects.Removal:
    """A lease that would have to make way."""
    return objects.Removal(
        None if removal.lease_id is None else removal.lease_id.hex(),
        removal.tenant,
        removal.level.name.lower(),
        REASON[removal.reason],
        removal.until_ns,
        [portray_allotment(allotment) for allotment in removal.allotments],
    )


def portray_allowance(allowance: Allowance) -> objects.Allowance:
    """One limit and its usage."""
    return objects.Allowance(
        allowance.holder,
        allowance.rule,
        allowance.what,
        allowance.limit,
        allowance.ceiling,
        allowance.usage,
        allowance.mode,
        allowance.capacity,
        allowance.leaving,
        allowance.until_ns,
    )


def portray_waiting(listed: Listed) -> list[objects.Waiting]:
    """The requests that wait."""
    return [
        objects.Waiting(command_id.hex(), position, REFUSAL_REASON[reason])
        for command_id, position, reason in listed.waiting
    ]


def portray_resource(resource: Resource, use: ResourceUse | None) -> objects.Resource:
    """One resource with how it is used, if that is known. Its bounds are no attribute here."""
    bounds = published(resource)
    return objects.Resource(
        resource_id=resource.resource_id,
        kind=KIND[resource.kind],
        capacity=resource.capacity,
        granule=resource.granule,
        node=resource.node,
        evidence=EVIDENCE[resource.evidence],
        health=resource.health.value,
        limits=list(resource.limits),
        attributes={name: said for name, said in resource.attributes if name != ATTRIBUTE},
        tier=None if resource.tier is None else TIER[resource.tier],
        read_latency_ns=resource.read_latency_ns,
        write_latency_ns=resource.write_latency_ns,
        read_bandwidth_mibps=resource.read_bandwidth_mibps,
        write_bandwidth_mibps=resource.write_bandwidth_mibps,
        use=None
        if use is None
        else objects.Use(use.free, use.leased, use.teardown, use.fenced, use.cordoned),
        bounds=None
        if bounds is None
        else objects.Bounds(bounds.cut_ns, bounds.scrub_ns, bounds.overwrite_ns, bounds.prove_ns),
    )


def portray_resources(inventoried: Inventoried) -> list[objects.Resource]:
    """Every resource of an inventory."""
    use = {item.resource_id: item for item in inventoried.use}
    return [
        portray_resource(resource, use.get(resource.resource_id))
        for resource in inventoried.inventory.resources
    ]
