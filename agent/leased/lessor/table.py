# SPDX-License-Identifier: Apache-2.0
"""The LeaseTable: every lease that is not closed, what it holds, and what the node has. Rebuilt
from events alone.

Rule: `apply(event, moment)` is the only thing that changes it, live and in replay alike, and it
refuses (InvariantError) an event that cannot follow. Capacity moves between the columns of a pool
exactly here: leased at Allocated, teardown at TeardownBegun, free at Reclaimed, fenced or free at
Fenced, free at Unfenced.

Does not decide which event comes next (`lessor.lifecycle`, `lessor.draft`) and does not know
policy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from leased.lessor.accounts import Accounts
from leased.lessor.deadlines import Deadlines
from leased.lessor.ledger import Ledger
from leased.lessor.lifecycle import LIVE, TEARDOWN
from leased.lessor.overage import Overages
from leased.lessor.pool import Pools
from leased.lessor.yielders import Yielders
from leased.terms import event as events
from leased.terms.errors import InvariantError
from leased.terms.event import Event, LeaseEvent
from leased.terms.identity import BootId, CommandId, LeaseId
from leased.terms.lease import LEVEL_OF, Ending, Lease, LeaseState, Level
from leased.terms.moment import Moment
from leased.terms.resource import Health
from leased.terms.teardown import TeardownStep

NO_HASH = bytes(32)
NO_BOOT = BootId(bytes(16))
_replace = msgspec.structs.replace


class Tenancy(msgspec.Struct, gc=False):
    """When a lease's tenant stopped paying (on the clock of the lease's boot) and when its teardown
    began (on its own).
    """

    ended_ns: int
    begun_ns: int | None = None
    begun_boot: BootId = NO_BOOT
    cut_boot: BootId = NO_BOOT


def end_ns(lease: Lease) -> int:
    """When a live lease ends by time: at its deadline, or earlier if it was told to leave
    earlier.
    """
    drain_ns = lease.drain_deadline_ns
    return lease.deadline_ns if drain_ns is None or drain_ns > lease.deadline_ns else drain_ns


class LeaseTable:
    """What is. Read it freely; change it by `apply`."""

    def __init__(self, closed_max: int) -> None:
        self.closed_max = closed_max
        self.leases: dict[LeaseId, Lease] = {}
        self.closed: OrderedDict[LeaseId, Lease] = OrderedDict()
        self.requests: dict[tuple[int, CommandId], LeaseId] = {}
        self.tenancies: dict[LeaseId, Tenancy] = {}
        self.deadlines: Deadlines[LeaseId] = Deadlines()
        self.accounts = Accounts(self.deadlines)
        self.pools = Pools(self.deadlines)
        self.terms: dict[LeaseId, events.Admitted] = {}
        self.preempted: dict[LeaseId, events.Preempted] = {}
        self.faults: dict[LeaseId, tuple[TeardownStep, int]] = {}
        self.yielders = Yielders()
        self.overages = Overages()
        self.ledger = Ledger()
        self.fenced_count = 0
        self.releases = 0
        self.boot_id = NO_BOOT
        self.epoch = 0
        self.policy_generation = 0
        self.policy_hash = self.rate_hash = NO_HASH
        self.last: Moment | None = None
        self.previous_boot_last: Moment | None = None
        self._apply: dict[type[Event], Callable[..., None]] = {
            events.Allocated: self._allocated,
            events.Admitted: self._admitted,
            events.Activated: self._activated,
            events.Renewed: self._renewed,
            events.Preempted: self._preempted,
            events.DrainNotified: self._drain_notified,
            events.Released: self._released,
            events.Expired: self._expired,
            events.Revoked: self._revoked,
            events.TeardownBegun: self._teardown_begun,
            events.AccessCut: self._access_cut,
            events.Scrubbed: self._scrubbed,
            events.Reclaimed: self._reclaimed,
            events.Fenced: self._fenced,
            events.Unfenced: self._unfenced,
            events.NodeStarted: self._node_started,
            events.InventoryChanged: self._inventory_changed,
            events.PolicyChanged: self._policy_changed,
            events.OverageBegan: self._overage_began,
            events.OverageEnded: self._overage_ended,
            events.PeriodBegan: self._period_began,
            events.Metered: self._metered,
            events.HealthChanged: self._health_changed,
            events.CordonChanged: self._cordon_changed,
            events.ResourceFenced: self._resource_fenced,
        }

    def apply(self, event: Event, moment: Moment) -> None:
        """Let `event`, sealed at `moment`, have happened. Kinds that say nothing of leases only
        tell the time.
        """
        apply = self._apply.get(type(event))
        if apply is not None:
            apply(event, moment)
        self.last = moment

    def find(self, lease_id: LeaseId) -> Lease | None:
        """A lease, also one that closed recently."""
        return self.leases.get(lease_id) or self.closed.get(lease_id)

    @property
    def occupied(self) -> int:
        """Leases that take a place on the node: all that are neither closed nor fenced."""
        return len(self.leases) - self.fenced_count

    def level(self, lease: Lease) -> Level:
        """The level of a lease, also of one that closed recently: that of its priority, unless it
        was granted at another."""
        terms = self.terms.get(lease.lease_id)
        return LEVEL_OF[lease.subject.priority] if terms is None else Level(terms.level)

    @property
    def live(self) -> int:
        """Leases whose holder still has access."""
        return len(self.deadlines)

    def keep_closed(self, closed_max: int) -> None:
        """Change how many closed leases are remembered, for questions and for repeated requests."""
        self.closed_max = closed_max
        self._forget_closed()

    # ---- a lease begins and goes on --------------------------------------------------------------

    def _allocated(self, event: events.Allocated, moment: Moment) -> None:
        lease_id, subject, deadline_ns = event.lease_id, event.subject, event.deadline_ns
        if lease_id in self.leases or lease_id in self.closed:
            raise InvariantError("a lease id was used twice")
        lease = self.leases[lease_id] = Lease(
            lease_id,
            event.command_id,
            subject,
            LeaseState.GRANTED,
            moment.boot_id,
            event.effective_ns,
            deadline_ns,
            event.ttl_ns,
            event.generation,
            event.pid,
            event.grace_ns,
            moment.wall_ns,
        )
        self.requests[subject.uid, event.command_id] = lease_id
        self.deadlines.set(lease_id, deadline_ns)
        charge = []
        for allotment in subject.allotments:
            found = self.pools.by_id.get(allotment.resource_id)
            pool = self.pools.of(allotment) if found is None else found.counted
            pool.leased += allotment.capacity
            pool.free -= allotment.capacity
            pool.endings.add(lease_id, deadline_ns)
            pool.holders[lease_id] = None
            charge.append(((found or pool).cell, allotment.capacity))
        self.accounts.begin(lease_id, subject.tenant, tuple(charge), deadline_ns, moment.boot_ns)
        self.ledger.change(lease, event.effective_ns, deadline_ns)
        self.yielders.enter(lease, LEVEL_OF[subject.priority])

    def _admitted(self, event: events.Admitted, moment: Moment) -> None:
        lease = self._one_of(event, LIVE)
        self.terms[event.lease_id] = event
        if event.level != LEVEL_OF[lease.subject.priority]:
            self.yielders.leave(lease)
            self.yielders.enter(lease, Level(event.level))
        if event.backfill_until_ns:
            self.yielders.lent[event.lease_id] = None

    def _activated(self, event: events.Activated, moment: Moment) -> None:
        lease = self._one_of(event, LIVE)
        state = LeaseState.ACTIVE if lease.state is LeaseState.GRANTED else lease.state
        self.leases[event.lease_id] = _replace(lease, state=state, activated=True)

    def _renewed(self, event: events.Renewed, moment: Moment) -> None:
        lease = self.leases.get(event.lease_id)
        if lease is None or lease.state is not LeaseState.ACTIVE:
            raise InvariantError("Renewed: the lease is not active")
        deadline_ns = event.deadline_ns
        self.leases[event.lease_id] = _replace(
            lease, deadline_ns=deadline_ns, ttl_ns=event.ttl_ns, generation=event.generation
        )
        self.deadlines.set(event.lease_id, deadline_ns)
        self.yielders.move(lease, deadline_ns)
        self.ledger.change(lease, lease.deadline_ns, deadline_ns)
        if deadline_ns < lease.deadline_ns:
            self._ends_earlier(lease, deadline_ns)

    def _preempted(self, event: events.Preempted, moment: Moment) -> None:
        self._one_of(event, LIVE)
        self.preempted[event.lease_id] = event

    def _drain_notified(self, event: events.DrainNotified, moment: Moment) -> None:
        before = self._one_of(event, LIVE)
        lease = self.leases[event.lease_id] = _replace(
            before,
            state=LeaseState.DRAINING,
            generation=event.generation,
            deadline_ns=max(before.deadline_ns, event.drain_deadline_ns),
            drain_deadline_ns=event.drain_deadline_ns,
            told_ns=before.told_ns or event.effective_ns,
            reason=event.reason,
        )
        before_ns, at_ns = end_ns(before), end_ns(lease)
        self._drains(lease, before.state is not LeaseState.DRAINING)
        self.yielders.leave(lease)
        self.deadlines.set(event.lease_id, at_ns)
        self.ledger.change(lease, before_ns, at_ns)
        if at_ns < before_ns:
            self._ends_earlier(lease, at_ns)

    def _drains(self, lease: Lease, sign: int) -> None:
        for allotment in lease.subject.allotments:
            self.pools.of(allotment).draining += sign * allotment.capacity

    def _ends_earlier(self, lease: Lease, at_ns: int) -> None:
        self.accounts.end_earlier(lease, at_ns)
        for allotment in lease.subject.allotments:
            self.pools.of(allotment).endings.add(lease.lease_id, at_ns)

    # ---- a lease ends ----------------------------------------------------------------------------

    def _released(self, event: events.Released, moment: Moment) -> None:
        self._ended(event, ended=Ending.RELEASED)

    def _expired(self, event: events.Expired, moment: Moment) -> None:
        self._ended(event, ended=Ending.EXPIRED)

    def _revoked(self, event: events.Revoked, moment: Moment) -> None:
        self._ended(event, ended=Ending.REVOKED, reason=event.reason)

    def _ended(self, event: LeaseEvent, **changes: object) -> None:
        lease = self._one_of(event, LIVE)
        self.leases[event.lease_id] = _replace(lease, state=LeaseState.REVOKING, **changes)
        self.tenancies[event.lease_id] = Tenancy(event.effective_ns)
        if lease.state is LeaseState.DRAINING:
            self._drains(lease, -1)
        self.yielders.leave(lease)
        self.ledger.change(lease, end_ns(lease), event.effective_ns)

    def _teardown_begun(self, event: events.TeardownBegun, moment: Moment) -> None:
        lease = self._one_of(event, TEARDOWN)
        tenancy = self.tenancies[event.lease_id]
        if tenancy.begun_ns is not None:
            raise InvariantError("TeardownBegun: it had begun already")
        tenancy.begun_ns = event.effective_ns
        tenancy.begun_boot = moment.boot_id
        self.deadlines.discard(event.lease_id)
        self.accounts.cut(lease)
        self.releases += 1
        for allotment in lease.subject.allotments:
            pool = self.pools.of(allotment)
            pool.leased -= allotment.capacity
            pool.teardown += allotment.capacity

    def _access_cut(self, event: events.AccessCut, moment: Moment) -> None:
        lease = self._one_of(event, (LeaseState.REVOKING,))
        self.leases[event.lease_id] = _replace(
            lease, state=LeaseState.SCRUBBING, cut_ns=event.effective_ns
        )
        self.tenancies[event.lease_id].cut_boot = moment.boot_id

    def _scrubbed(self, event: events.Scrubbed, moment: Moment) -> None:
        lease = self._one_of(event, (LeaseState.SCRUBBING,))
        self.leases[event.lease_id] = _replace(lease, state=LeaseState.VERIFYING)

    def _reclaimed(self, event: events.Reclaimed, moment: Moment) -> None:
        lease = self._one_of(event, (LeaseState.VERIFYING,))
        self._give_back(lease, moment)
        self._close(lease)

    def _fenced(self, event: events.Fenced, moment: Moment) -> None:
        lease = self._one_of(event, TEARDOWN)
        for allotment in event.fenced:
            self.pools.fence(self.pools.of(allotment), allotment.capacity)
        self._give_back(lease, moment)
        self.leases[event.lease_id] = _replace(lease, state=LeaseState.FENCED, fenced=event.fenced)
        self.faults[event.lease_id] = (TeardownStep(event.step), event.errno)
        self.fenced_count += 1

    def _unfenced(self, event: events.Unfenced, moment: Moment) -> None:
        lease = self._one_of(event, (LeaseState.FENCED,))
        for allotment in lease.fenced:
            pool = self.pools.of(allotment)
            self.pools.fence(pool, -allotment.capacity)
            self.pools.settle(pool)
        self.fenced_count -= 1
        self.releases += 1
        self._close(lease)

    def _give_back(self, lease: Lease, moment: Moment) -> None:
        self.accounts.settle(lease, moment.boot_ns)
        self.releases += 1
        for allotment in lease.subject.allotments:
            pool = self.pools.of(allotment)
            pool.teardown -= allotment.capacity
            pool.free += allotment.capacity
            pool.holders.pop(lease.lease_id, None)
            if not pool.present:
                self.pools.settle(pool)

    def _close(self, lease: Lease) -> None:
        lease_id = lease.lease_id
        del self.leases[lease_id]
        self.tenancies.pop(lease_id, None)
        self.faults.pop(lease_id, None)
        self.closed[lease_id] = _replace(lease, state=LeaseState.RECLAIMED)
        self._forget_closed()

    def _forget_closed(self) -> None:
        while len(self.closed) > self.closed_max:
            lease_id, lease = self.closed.popitem(last=False)
            self.preempted.pop(lease_id, None)
            self.terms.pop(lease_id, None)
            key = (lease.subject.uid, lease.command_id)
            if self.requests.get(key) == lease_id:
                del self.requests[key]

    def _one_of(self, event: LeaseEvent, states: tuple[LeaseState, ...]) -> Lease:
        lease = self.leases.get(event.lease_id)
        if lease is None or lease.state not in states:
            known = "unknown" if lease is None else lease.state.name
            raise InvariantError(
                f"{type(event).__name__}: cannot happen to a lease that is {known}"
            )
        return lease

    # ---- the node --------------------------------------------------------------------------------

    def _node_started(self, event: events.NodeStarted, moment: Moment) -> None:
        if event.boot_id != self.boot_id:
            self.previous_boot_last = self.last
            self.overages.forget()
            self.ledger.reboot()
        self.boot_id = event.boot_id
        self.epoch = event.epoch

    def _inventory_changed(self, event: events.InventoryChanged, moment: Moment) -> None:
        self.releases += 1
        self.pools.observe(event.inventory)

    def _policy_changed(self, event: events.PolicyChanged, moment: Moment) -> None:
        self.policy_hash = event.policy_hash
        self.rate_hash = event.rate_hash
        self.policy_generation = event.policy_generation

    def _overage_began(self, event: events.OverageBegan, moment: Moment) -> None:
        self.overages.began(event)

    def _overage_ended(self, event: events.OverageEnded, moment: Moment) -> None:
        self.overages.ended(event, moment.boot_ns)

    def _period_began(self, event: events.PeriodBegan, moment: Moment) -> None:
        ends = ((self.leases[lease_id], at) for lease_id, at in self.deadlines.current.items())
        self.ledger.begin(event, ends)

    def _metered(self, event: events.Metered, moment: Moment) -> None:
        self.ledger.set(event)

    def _health_changed(self, event: events.HealthChanged, moment: Moment) -> None:
        self.releases += 1
        self.pools.observe_health(event.resource_id, Health(event.health))

    def _cordon_changed(self, event: events.CordonChanged, moment: Moment) -> None:
        self.releases += 1
        self.pools.cordon(event.resource_id, cordoned=event.cordoned)

    def _resource_fenced(self, event: events.ResourceFenced, moment: Moment) -> None:
        self.releases += 1
        pool = self.pools.of(event.allotment)
        change = event.allotment.capacity
        if not event.fenced:
            # Of a replay: what is lifted here may have been fenced in records that were pruned.
            change = -min(change, pool.fenced_by_operator)
        self.pools.fence(pool, change)
        pool.fenced_by_operator += change
        self.pools.settle(pool)
