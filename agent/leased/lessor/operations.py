# SPDX-License-Identifier: Apache-2.0
"""Operations: what an operator orders and what the node observes of itself.

Rule: only an operator may order; anybody else is told so and nothing happens. Draining lets leases
end: a holder is told until when it may stay, never longer than its deadline, and its renewals are
refused. A lease whose remaining time is no longer than its grace is therefore not revoked at all:
it is told, and expires. Ordering the same twice, or observing the same twice, seals nothing the
second time.

Does not find out anything about the node (`hardware`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import LIVE, Trigger
from leased.lessor.pool import Pool, Pools
from leased.lessor.table import end_ns
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Command
from leased.terms.effect import Teardown
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState, RevocationReason
from leased.terms.policy import Policy
from leased.terms.reply import Changed, Done, Forbidden, Missing, Refusal, RefusalReason
from leased.terms.resource import KIND_SCOPES, Allotment, Health, Inventory, in_scope

_DONE = Done()


def tell(draft: Draft, lease: Lease, reason: RevocationReason, grace_ns: int | None) -> bool:
    """Tell a live lease to leave after `grace_ns` (None: at its deadline, 0: now). False if nothing
    changed by it.
    """
    if lease.state not in LIVE:
        return False
    if grace_ns is not None and grace_ns <= 0:
        draft.end(lease, Trigger.REVOKE, Facts(draft.now_ns, reason=reason))
        return True
    until_ns = (
        lease.deadline_ns if grace_ns is None else min(draft.now_ns + grace_ns, lease.deadline_ns)
    )
    if lease.state is LeaseState.DRAINING and until_ns >= end_ns(lease):
        return False  # it was told to leave no later than that
    draft.end(lease, Trigger.DRAIN, Facts(draft.now_ns, reason=reason, until_ns=until_ns))
    return True


def revoke(draft: Draft, command: commands.Revoke, policy: Policy) -> None:
    """Take one lease back."""
    lease = draft.table.find(command.lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(command.lease_id))
        return
    tell(draft, lease, command.reason, min(command.grace_ns, policy.grace_ns_max))
    after = draft.table.find(command.lease_id)
    assert after is not None
    draft.answer(command.command_id, Changed(after))


def drain(draft: Draft, command: commands.Drain, policy: Policy) -> None:
    """Grant no more of a resource, and let its leases end."""
    pools = draft.table.pools
    if not _is_scope(command.resource_id, pools):
        _no_such_resource(draft, command, command.resource_id)
        return
    _cordon(draft, command.resource_id, cordoned=True, operator_uid=command.caller.uid)
    grace_ns = (
        command.grace_ns if command.grace_ns is None else min(command.grace_ns, policy.grace_ns_max)
    )
    told: list[LeaseId] = []
    for lease in tuple(draft.table.leases.values()):
        if _holds(lease, command.resource_id) and tell(draft, lease, command.reason, grace_ns):
            told.append(lease.lease_id)
    draft.answer(command.command_id, Done(tuple(told)))


def resume(draft: Draft, command: commands.Resume, policy: Policy) -> None:
    """Grant again. Leases that were told to leave still do."""
    pools = draft.table.pools
    if not _is_scope(command.resource_id, pools) and command.resource_id not in pools.cordoned:
        _no_such_resource(draft, command, command.resource_id)
        return
    _cordon(draft, command.resource_id, cordoned=False, operator_uid=command.caller.uid)
    draft.answer(command.command_id, _DONE)


def fence(draft: Draft, command: commands.Fence, policy: Policy) -> None:
    """Take free capacity out of use."""
    pool = draft.table.pools.by_id.get(command.resource_id)
    if pool is None:
        _no_such_resource(draft, command, command.resource_id)
        return
    asked, free = command.capacity, max(0, pool.free)
    if asked <= 0 or asked % pool.granule:
        refusal = Refusal(RefusalReason.CAPACITY_GRANULE, pool.resource_id, pool.granule, 0, asked)
        draft.answer(command.command_id, refusal)
    elif asked > free:
        used = pool.capacity - free
        refusal = Refusal(RefusalReason.NO_CAPACITY, pool.resource_id, pool.capacity, used, asked)
        draft.answer(command.command_id, refusal)
    else:
        _fence_free(draft, pool.resource_id, asked, fenced=True, operator_uid=command.caller.uid)
        draft.answer(command.command_id, _DONE)


def unfence(draft: Draft, command: commands.Unfence, policy: Policy) -> None:
    """Put back what a lease's teardown could not prove, or all that operators fenced of a
    resource.
    """
    if command.lease_id is not None:
        _unfence_lease(draft, command, command.lease_id)
        return
    pool = draft.table.pools.by_id.get(command.resource_id)
    if pool is None:
        _no_such_resource(draft, command, command.resource_id)
    elif not pool.fenced_by_operator:
        draft.answer(command.command_id, Refusal(RefusalReason.NOT_FENCED, command.resource_id))
    else:
        capacity, uid = pool.fenced_by_operator, command.caller.uid
        _fence_free(draft, pool.resource_id, capacity, fenced=False, operator_uid=uid)
        draft.answer(command.command_id, _DONE)


def _unfence_lease(draft: Draft, command: commands.Unfence, lease_id: LeaseId) -> None:
    lease = draft.table.find(lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(lease_id))
        return
    # A reboot ends access as surely as a cut.
    held = lease.cut_ns is None and lease.boot_id == draft.moment.boot_id
    trigger = Trigger.UNFENCE_HELD if held else Trigger.UNFENCE
    cell = draft.move(lease, trigger, Facts(draft.now_ns, operator_uid=command.caller.uid))
    if cell.reason is not None:
        draft.answer(command.command_id, Refusal(cell.reason, "lease"))
        return
    after = draft.table.find(lease_id)
    assert after is not None
    draft.answer(command.command_id, Changed(after))


def _cordon(draft: Draft, resource_id: str, *, cordoned: bool, operator_uid: int) -> None:
    if (resource_id in draft.table.pools.cordoned) != cordoned:
        draft.emit(events.CordonChanged(draft.event_id(), resource_id, cordoned, operator_uid))


def _fence_free(
    draft: Draft, resource_id: str, capacity: int, *, fenced: bool, operator_uid: int
) -> None:
    resource = draft.table.pools.by_id[resource_id].counted.resource
    allotment = Allotment(resource.resource_id, resource.kind, resource.tier, capacity)
    draft.emit(events.ResourceFenced(draft.event_id(), allotment, fenced, operator_uid))


def _holds(lease: Lease, resource_id: str) -> bool:
    return any(in_scope(a.resource_id, resource_id) for a in lease.subject.allotments)


def _no_such_resource(draft: Draft, command: Command, resource_id: str) -> None:
    draft.answer(command.command_id, Refusal(RefusalReason.NO_SUCH_RESOURCE, resource_id))


def _is_scope(resource_id: str, pools: Pools) -> bool:
    """The node, a kind, or a resource that is there."""
    return not resource_id or resource_id in KIND_SCOPES or resource_id in pools.by_id


# ---- what the node observes ----------------------------------------------------------------------


def observe(draft: Draft, command: commands.Observe) -> None:
    """The inventory as it is now."""
    if command.inventory != draft.table.pools.inventory:
        before = draft.table.pools.inventory
        draft.emit(events.InventoryChanged(draft.event_id(), command.inventory))
        end_lost(draft)
        prove_returned(draft, before)
    draft.answer(command.command_id, _DONE)


def observe_health(draft: Draft, command: commands.ObserveHealth) -> None:
    """One resource's health. SICK stops grants, GONE ends what is held of it."""
    pool = draft.table.pools.by_id.get(command.resource_id)
    if pool is None:
        _no_such_resource(draft, command, command.resource_id)
        return
    if pool.resource.health != command.health:
        before = draft.table.pools.inventory
        event = events.HealthChanged(
            draft.event_id(), command.resource_id, command.health.value, command.cause
        )
        draft.emit(event)
        end_lost(draft)
        prove_returned(draft, before)
    draft.answer(command.command_id, _DONE)


def observe_clock_step(draft: Draft, command: commands.ObserveClockStep) -> None:
    """The wall clock jumped. Nothing that runs here cares; readers of wall times do."""
    draft.emit(events.ClockStepped(draft.event_id(), command.delta_ns))
    draft.answer(command.command_id, _DONE)


def observe_haste(draft: Draft, command: commands.ObserveHaste) -> None:
    """A tenant calls too often: on record, as what else of it is refused."""
    caller, limit = command.caller, command.limit
    who = (caller.tenant, caller.uid, command.command_id)
    reason = int(RefusalReason.API_RATE)
    draft.emit(events.Refused(draft.event_id(), *who, reason, limit, limit, 1))
    draft.answer(command.command_id, _DONE)


def end_lost(draft: Draft) -> None:
    """End every live lease that holds something of a resource that is no longer there."""
    lost = {
        pool.resource_id: None
        for pool in draft.table.pools.by_id.values()
        if pool.leased and (not pool.present or pool.resource.health == Health.GONE)
    }
    if not lost:
        return
    for lease in tuple(draft.table.leases.values()):
        if lease.state in LIVE and any(a.resource_id in lost for a in lease.subject.allotments):
            draft.end(
                lease,
                Trigger.DEVICE_LOST,
                Facts(draft.now_ns, reason=RevocationReason.DEVICE_UNHEALTHY),
            )


def prove_returned(draft: Draft, before: Inventory) -> None:
    """Try the teardown of fenced leases again whose hardware was away, or sick, and is back: the
    proof opens the fence, and whatever fails leaves it as it is.

    Only of leases that are fenced whole: the rest of another one is somebody else's by now.
    """
    was = {one.resource_id: one.health for one in before.resources}
    pools = draft.table.pools.by_id
    for lease in tuple(draft.table.leases.values()):
        if lease.state is not LeaseState.FENCED or lease.fenced != lease.subject.allotments:
            continue
        wanted = [pools.get(allotment.resource_id) for allotment in lease.fenced]
        there = [pool for pool in wanted if pool is not None and _is_there(pool)]
        news = any(_is_back(was.get(pool.resource_id), pool.resource.health) for pool in there)
        if news and len(there) == len(wanted):
            draft.effects.append(Teardown(lease))


def _is_there(pool: Pool) -> bool:
    return pool.present and pool.resource.health != Health.GONE


def _is_back(before: Health | None, now: Health) -> bool:
    """Whether something that is there was not (None: no inventory had it), or was not fit."""
    return before is None or before == Health.GONE or (before == Health.SICK and now == Health.OK)


def forbidden(draft: Draft, command: Command) -> None:
    """The answer to an order of somebody who may give none."""
    draft.answer(command.command_id, Forbidden())


ORDERS: Final[dict[type[Command], Callable[[Draft, Any, Policy], None]]] = {
    commands.Revoke: revoke,
    commands.Drain: drain,
    commands.Resume: resume,
    commands.Fence: fence,
    commands.Unfence: unfence,
}
OBSERVATIONS: Final[dict[type[Command], Callable[[Draft, Any], None]]] = {
    commands.Observe: observe,
    commands.ObserveHealth: observe_health,
    commands.ObserveClockStep: observe_clock_step,
    commands.ObserveHaste: observe_haste,
}
