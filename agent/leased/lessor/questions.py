# SPDX-License-Identifier: Apache-2.0
"""Questions: what is answered from the table, the queue and the policy without changing anything.

Rule: whoever may not see a lease is told that there is none; operators see everything. Nobody is
shown another tenant's lease id, not even as a victim in a plan.

Does not decide (`lessor.admission`) and emits nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from leased.lessor.admission import Admission
from leased.lessor.allowances import Books, parts_of
from leased.lessor.backfill import Lender, teardown_most_ns
from leased.lessor.bars import Rank
from leased.lessor.extension import latest_ns
from leased.lessor.fitting import misfit
from leased.lessor.meaning import Verdict
from leased.lessor.outlook import earliest_ns
from leased.lessor.queue import Waiting, WaitQueue, key_of, rank_of
from leased.lessor.quota import TenantBook
from leased.lessor.table import LeaseTable
from leased.lessor.victims import Surroundings, find_victims
from leased.lessor.yielding import leaving_of
from leased.terms import command as commands
from leased.terms.command import Acquire, Caller, Command
from leased.terms.event import Allocated, Event, Refused
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import Lease
from leased.terms.policy import Policy
from leased.terms.reply import (
    Allowed,
    Assumption,
    Changed,
    Explained,
    Forbidden,
    Inventoried,
    Listed,
    Missing,
    Planned,
    Refusal,
    RefusalReason,
    Removal,
    Reply,
)


def visible(lease: Lease | None, caller: Caller) -> bool:
    """Whether there is a lease, for this caller."""
    return lease is not None and (lease.subject.tenant == caller.tenant or caller.operator)


REFUSED_KEPT: Final = 1024
"""Refused requests that can be asked about, the last ones."""

RECALLED: Final = frozenset({Refused, Allocated})
"""Events of the past that say what became of requests."""

_REASONS: Final = frozenset(map(int, RefusalReason))
_COUNTED_IN: Final = {
    RefusalReason.TENANT_LEASES: "leases",
    RefusalReason.NODE_LEASES: "leases",
    RefusalReason.QUEUE_FULL: "waiting",
    RefusalReason.TTL_TOO_SHORT: "ns",
    RefusalReason.TTL_TOO_LONG: "ns",
    RefusalReason.DURATION: "ns",
    RefusalReason.LEVEL: "level",
}
"""What the numbers of a refusal are, where its reason says so."""


class Questions:
    """Answers, from what is true between two commands."""

    __slots__ = ("_admission", "_queue", "_refused", "_table")

    def __init__(self, table: LeaseTable, queue: WaitQueue, admission: Admission) -> None:
        self._table = table
        self._queue = queue
        self._admission = admission
        self._refused: OrderedDict[CommandId, tuple[TenantId, Refusal, int | None]] = OrderedDict()

    def remember(self, acquire: Acquire, refusal: Refusal) -> None:
        """A request was refused: its tenant may ask why for a while."""
        self._remember(acquire.command_id, acquire.caller.tenant, refusal)

    def remember_failed(self, failed: commands.GrantFailed) -> None:
        """What was granted could not be made ready."""
        lease = self._table.leases.get(failed.lease_id)
        if lease is not None:
            self._remember(lease.command_id, lease.subject.tenant, failed.refusal)

    def refused(self, acquire: Acquire) -> Refusal | None:
        """What its tenant was told of this request, as far as that is remembered."""
        tenant, refusal, _ = self._refused.get(acquire.command_id, (None, None, None))
        return refusal if tenant == acquire.caller.tenant else None

    def recall(self, refused: Event, sequence: int) -> None:
        """A request was refused (or granted after all) before the agent started: what record
        `sequence` has of it. That is neither a rule nor an instant, and a unit only where the
        reason implies one, or a kind is on record.
        """
        if isinstance(refused, Allocated):
            self.forget(refused.command_id)
        if not isinstance(refused, Refused) or refused.reason not in _REASONS:
            return  # a reason of a later release, which this one is back from
        reason = RefusalReason(refused.reason)
        kind, numbers = refused.resource_kind, (refused.limit, refused.usage, refused.requested)
        what = _COUNTED_IN.get(reason, "") if kind is None else kind.name.lower()
        refusal = Refusal(reason, what, *numbers)
        self._remember(refused.command_id, refused.tenant, refusal, sequence)

    def recalled(self, command_id: CommandId) -> int | None:
        """The record by which alone a request is known to have been refused: if it was granted
        later and its lease is closed, the log knows, and nobody was told at the start.
        """
        _, _, sequence = self._refused.get(command_id, (None, None, None))
        return sequence

    def confirm(self, command_id: CommandId) -> None:
        """The log has no grant of it: what was recalled is true."""
        if command_id in self._refused:
            tenant, refusal, _ = self._refused[command_id]
            self._refused[command_id] = (tenant, refusal, None)

    def _remember(
        self,
        command_id: CommandId,
        tenant: TenantId,
        refusal: Refusal,
        sequence: int | None = None,
    ) -> None:
        self._refused[command_id] = (tenant, refusal, sequence)
        self._refused.move_to_end(command_id)
        if len(self._refused) > REFUSED_KEPT:
            self._refused.popitem(last=False)

    def forget(self, command_id: CommandId) -> None:
        """The same request was made again, and granted."""
        self._refused.pop(command_id, None)

    def describe(self, caller: Caller, lease_id: LeaseId) -> Reply:
        """One lease."""
        lease = self._table.find(lease_id)
        if lease is None or not visible(lease, caller):
            return Missing(lease_id)
        return Changed(lease)

    def leases(self, caller: Caller, *, closed: bool) -> Reply:
        """The caller's leases, oldest first, and requests that wait."""
        table = self._table
        found = [lease for lease in table.closed.values() if closed and visible(lease, caller)]
        found += [lease for lease in table.leases.values() if visible(lease, caller)]
        if closed:
            found.sort(key=lambda lease: (lease.granted_wall_ns, lease.granted_ns))
        waiting = tuple(
            (entry.acquire.command_id, place_in_queue, entry.reason)
            for place_in_queue, entry in enumerate(self._queue, 1)
            if self._may_see(entry, caller)
        )
        return Listed(tuple(found), waiting)

    def resources(self) -> Reply:
        """The inventory and how it is used."""
        pools = self._table.pools
        whole_node = "" in pools.cordoned
        use = tuple(
            pool.use(cordoned=whole_node or pools.is_cordoned(pool))
            for pool in pools.by_id.values()
        )
        policy = self._admission.policy
        graces_ns = (policy.grace_ns_release, policy.grace_ns_preempt, policy.grace_ns_max)
        return Inventoried(pools.inventory, use, graces_ns)

    def plan(self, acquire: Acquire, now_ns: int) -> Reply:
        """What would happen to `acquire` now."""
        lease_id = self._table.requests.get(key_of(acquire))
        lease = None if lease_id is None else self._table.find(lease_id)
        if lease is not None:
            return Planned(None, tuple(a.resource_id for a in lease.subject.allotments))
        rank = rank_of(acquire, requeued=False, share=self._admission.share_of(acquire, now_ns))
        ahead = self._queue.ahead_of(rank)
        verdict = self._admission.judge(acquire, ahead, now_ns)
        if ahead is not None and isinstance(verdict, Verdict):
            lender = Lender(self._table, self._admission)
            verdict = lender.lend(acquire, ahead, verdict, now_ns)
        cost_nano = self._admission.cost_nano(acquire)
        if not isinstance(verdict, Verdict):
            taken = tuple(dict.fromkeys(a.resource_id for a in verdict.allotments))
            return Planned(None, taken, cost_nano=cost_nano)
        refusal = self.dated(acquire, verdict.refusal, now_ns)
        position = None
        if verdict.waitable and acquire.wait_ns > 0:
            position = 1 + sum(waiting.rank < rank for waiting in self._queue)
        removals = self._removals(acquire, rank, refusal, now_ns)
        within_ns, assumes = self._within(acquire, removals), []
        if refusal.retry_at_ns is not None and refusal.retry_at_ns > now_ns:
            assumes.append(Assumption.DEADLINES)
        if position is not None and position > 1:
            assumes.append(Assumption.QUEUE)
        if within_ns is not None:
            assumes.append(Assumption.GRACE)
        return Planned(refusal, (), position, removals, cost_nano, within_ns, tuple(assumes))

    def _within(self, acquire: Acquire, removals: tuple[Removal, ...]) -> int | None:
        """When all that would have to leave is gone and clean at the latest."""
        teardown_ns = teardown_most_ns(self._table, acquire)
        if not removals or teardown_ns is None:
            return None
        return max(one.until_ns for one in removals) + teardown_ns

    def why(self, caller: Caller, lease_id: LeaseId, now_ns: int) -> Reply:
        """A lease with the reason of its end on it, what a waiting request waits for, or what one
        was refused for.
        """
        lease = self._table.find(lease_id)
        if lease is not None and visible(lease, caller):
            step, errno = self._table.faults.get(lease_id, (None, 0))
            taken = self._table.preempted.get(lease_id)
            preemptor = None
            if taken is not None and (caller.operator or taken.preemptor_tenant == caller.tenant):
                preemptor = (taken.preemptor_tenant, taken.preemptor_lease_id)
            latest = latest_ns(lease, self._admission.policy)
            return Explained(
                lease=lease,
                step=step,
                errno=errno,
                preemptor=preemptor,
                told_ns=lease.told_ns,
                latest=latest,
            )
        waiting = self._queue.find(CommandId(lease_id))
        if waiting is None or not self._may_see(waiting, caller):
            tenant, refused, _ = self._refused.get(CommandId(lease_id), (None, None, None))
            if refused is not None and (caller.operator or tenant == caller.tenant):
                return Explained(refusal=refused)
            return Missing(lease_id)
        acquire = waiting.acquire
        verdict = self._admission.judge(acquire, None, now_ns)
        refusal = verdict.refusal if isinstance(verdict, Verdict) else Refusal(waiting.reason)
        position = next(at for at, one in enumerate(self._queue, 1) if one is waiting)
        return Explained(refusal=self.dated(acquire, refusal, now_ns), position=position)

    def quotas(self, caller: Caller, tenant: TenantId | None, now_ns: int) -> Reply:
        """What is allowed, and what of it is used."""
        admission, table = self._admission, self._table
        own = caller.tenant if tenant is None else tenant
        if own != caller.tenant and not caller.operator:
            return Forbidden()
        tenants = (own,) if tenant is not None or not caller.operator else self._everybody()
        books = Books(table, self._queue, admission.book, admission.prices, now_ns)
        parts, evenness = parts_of(table, self._queue, admission, tenants)
        return Allowed((*books.of(tenants), *parts), tuple(evenness))

    def tried(self, policy: Policy, now_ns: int) -> Reply:
        """What `policy`, as it would hold now, would allow of what there is."""
        admission, table = self._admission, self._table
        book = TenantBook(policy)
        tenants = dict.fromkeys((*book.named(), *self._everybody()))
        books = Books(table, self._queue, book, admission.prices, now_ns)
        why, given = misfit(policy, table.pools), policy.generation
        if given and given <= table.policy_generation and why is None:
            why = (
                f"policy.generation = {given}: {table.policy_generation} is in force, and it has to"
                " be larger (0: the agent counts)"
            )
        return Allowed(tuple(books.of(tenants)), why=why)

    def _everybody(self) -> tuple[TenantId, ...]:
        """Who is named by the policy, or has something."""
        held = (tenant for tenant, account in self._table.accounts.items() if account.charges)
        named = (*self._admission.book.named(), *held, *self._queue.tenants())
        return tuple(sorted(dict.fromkeys(named)))

    def dated(self, acquire: Acquire, refusal: Refusal, now_ns: int) -> Refusal:
        """The refusal with the earliest moment at which the same request could succeed."""
        if refusal.retry_at_ns is not None or refusal.reason is RefusalReason.NOT_PREEMPTED:
            return refusal
        return msgspec.structs.replace(
            refusal, retry_at_ns=earliest_ns(self._table, self._admission, acquire, now_ns)
        )

    def _may_see(self, waiting: Waiting, caller: Caller) -> bool:
        return caller.operator or waiting.acquire.caller.tenant == caller.tenant

    def _removals(
        self, acquire: Acquire, rank: Rank, refusal: Refusal, now_ns: int
    ) -> tuple[Removal, ...]:
        """Who would have to leave for it."""
        if refusal.reason is not RefusalReason.NO_CAPACITY:
            return ()
        around = Surroundings(self._table, self._queue, self._admission)
        leaving, barred = leaving_of(self._table), self._queue.short_before(rank)
        search = find_victims(self._table, around, acquire, leaving, now_ns, barred=barred)
        removals = []
        for victim in search.victims:
            lease, shown = victim.lease, visible(victim.lease, acquire.caller)
            until_ns = lease.deadline_ns
            if victim.grace_ns is not None:
                until_ns = min(until_ns, now_ns + victim.grace_ns)
            removals.append(
                Removal(
                    lease.lease_id if shown else None,
                    lease.subject.tenant if shown else None,
                    self._table.level(lease),
                    victim.reason,
                    until_ns,
                    lease.subject.allotments,
                )
            )
        return tuple(removals)


ANSWERS: Final[dict[type[Command], Callable[[Questions, Any, int], Reply]]] = {
    commands.Describe: lambda asked, c, now_ns: asked.describe(c.caller, c.lease_id),
    commands.ListLeases: lambda asked, c, now_ns: asked.leases(c.caller, closed=c.closed),
    commands.ListResources: lambda asked, c, now_ns: asked.resources(),
    commands.Plan: lambda asked, c, now_ns: asked.plan(c.acquire, now_ns),
    commands.Why: lambda asked, c, now_ns: asked.why(c.caller, c.lease_id, now_ns),
    commands.Quotas: lambda asked, c, now_ns: asked.quotas(c.caller, c.tenant, now_ns),
}
