# SPDX-License-Identifier: Apache-2.0
"""Repeated: whether a request that comes under a used command id says what the first one said, and
whether one that asks again for a lease that was taken asks for no more than that had.

Rule: a lease is held against what its records say of it, so the answer is the same after a restart
of the agent; what they do not say is held against nothing, and so is what a policy that has changed
since may have said in the caller's place: no retry of the same request is ever refused. A retry may
wait for another time, and may come from another process.

Does not say what becomes of the request (`requests`).
"""

from __future__ import annotations

from leased.lessor.pool import fits
from leased.lessor.queue import level_of
from leased.lessor.quota import wanted_by
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import wholes_of
from leased.terms.command import Acquire
from leased.terms.lease import Lease
from leased.terms.policy import Policy
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Allotment, Ask, ResourceKind


def other_than_granted(
    acquire: Acquire, lease: Lease, table: LeaseTable, policy: Policy
) -> Refusal | None:
    """Why the request is not the one that the lease was granted to, by what is on record of it."""
    subject, grace_ns = lease.subject, acquire.grace_ns
    renewed = lease.generation > 0
    pairs = (
        ("tenant", subject.tenant != acquire.caller.tenant),
        ("resources", not _granted(acquire.asks, lease, table)),
        ("ttl_ns", not renewed and _lasts_otherwise(acquire, lease.ttl_ns, policy)),
        ("priority", subject.priority != acquire.priority),
        ("level", table.level(lease) != level_of(acquire)),
        # A policy may have granted less of it than was asked for, never more.
        ("grace_ns", grace_ns is not None and lease.grace_ns > max(0, grace_ns)),
        ("workload", subject.workload != acquire.workload),
        ("accounting_tag", subject.tag != acquire.tag),
        ("bind", _bound(lease.pid) != _bound(acquire.bind_pid)),
    )
    return _used(pairs)


def other_than_waiting(acquire: Acquire, first: Acquire, policy: Policy) -> Refusal | None:
    """Why the request is not the one that waits."""
    pairs = (
        ("tenant", first.caller.tenant != acquire.caller.tenant),
        ("resources", first.asks != acquire.asks),
        ("ttl_ns", _lasts_otherwise(acquire, first.ttl_ns, policy)),
        ("priority", first.priority != acquire.priority),
        ("level", level_of(first) != level_of(acquire)),
        ("grace_ns", first.grace_ns != acquire.grace_ns),
        ("workload", first.workload != acquire.workload),
        ("accounting_tag", first.tag != acquire.tag),
        ("bind", _bound(first.bind_pid) != _bound(acquire.bind_pid)),
        ("requeue_of", first.requeue_of != acquire.requeue_of),
    )
    return _used(pairs)


def asks_for_more(acquire: Acquire, lease: Lease) -> bool:
    """Whether a request is for more of any kind than a lease had."""
    had: dict[int, int] = {}
    for one in lease.subject.allotments:
        had[one.kind] = had.get(one.kind, 0) + one.capacity
    for (kind, _, _), capacity in wanted_by(acquire):
        had[kind] = had.get(kind, 0) - capacity
    return min(had.values()) < 0


def _used(pairs: tuple[tuple[str, bool], ...]) -> Refusal | None:
    """The refusal that names the first parameter that differs."""
    for what, differs in pairs:
        if differs:
            return Refusal(RefusalReason.COMMAND_ID_USED, what)
    return None


def _lasts_otherwise(acquire: Acquire, ttl_ns: int, policy: Policy) -> bool:
    """Who names no length asks for the policy's, which may be another one by now."""
    return acquire.ttl_ns not in (ttl_ns, policy.ttl_ns_default)


def _bound(pid: int) -> int:
    """What kind of thing a lease is bound to: a process, whichever, or one of the constants."""
    return min(pid, 1)


def _granted(asks: tuple[Ask, ...], lease: Lease, table: LeaseTable) -> bool:
    """Whether the lease's allotments are what placement gives for `asks`, which come in order."""
    left = list(reversed(lease.subject.allotments))
    for ask in asks:
        wanted = wholes_of(ask)
        if wanted is not None:
            taken = [left.pop() for _ in range(min(wanted.count, len(left)))]
            enough = all(one.capacity >= wanted.least for one in taken)
            if len(taken) != wanted.count or not enough:
                return False
        else:
            taken = _shares(ask, left)
            if sum(one.capacity for one in taken) != ask.capacity:
                return False
        if not all(_of(ask, one, table) for one in taken):
            return False
    return not left


def _shares(ask: Ask, left: list[Allotment]) -> list[Allotment]:
    """What the ask has at the most: one share, or as many cores as it takes."""
    taken: list[Allotment] = []
    while left and (not taken or ask.kind is ResourceKind.CPU):
        if sum(one.capacity for one in taken) >= ask.capacity:
            break
        taken.append(left.pop())
    return taken


def _of(ask: Ask, allotment: Allotment, table: LeaseTable) -> bool:
    """Whether a share is of what the ask names. Of a resource that is gone only its kind, tier and
    name are known.
    """
    pool = table.pools.by_id.get(allotment.resource_id)
    if pool is not None and pool.present:
        return fits(pool.resource, ask)
    return (
        allotment.kind == ask.kind
        and ask.tier in (None, allotment.tier)
        and ask.resource_id in (None, allotment.resource_id)
    )
