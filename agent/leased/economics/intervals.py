# SPDX-License-Identifier: Apache-2.0
"""Intervals: sealed events folded, in sequence order, into who held how much of what from when to
when.

Rule: intervals are half-open [start_ns, end_ns) on the boot clock of one boot, one per allotment
and pool. The tenant pays [Allocated, TeardownBegun), the teardown pool until Reclaimed or Fenced,
the fenced pool (what was fenced only) until Unfenced, all by `effective_ns`. A NodeStarted of
another boot ends what the old boot held at the last moment sealed in it; the tenant's part at its
deadline, if that was earlier. So per resource and instant tenant + teardown + fenced + idle =
provisioned, and nothing is estimated.

What is still open is told apart (`open_intervals`, provisional): its end is min(watermark,
deadline).

Does not add up (`meter`), does not price (`rates`), and does not check the chain: it is fed
verified records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from leased.economics.holding import Holding
from leased.economics.pools import Disagreement, Interval, Pool
from leased.economics.timeline import BOOT_NS_MAX, Timeline
from leased.terms.errors import ChainError
from leased.terms.event import (
    Allocated,
    ClockStepped,
    DrainNotified,
    Event,
    Fenced,
    InventoryChanged,
    LeaseEvent,
    NodeStarted,
    Reclaimed,
    Renewed,
    ResourceFenced,
    TeardownBegun,
    Unfenced,
    Voided,
)
from leased.terms.identity import BootId, LeaseId
from leased.terms.moment import Moment
from leased.terms.resource import Allotment, capacity_id

_NONE: Final[tuple[Interval, ...]] = ()


class Ledger:
    """The fold. Feed it every record in sequence order; each call returns the intervals that the
    record closed.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.boot_id: BootId | None = None
        self.watermark_ns = 0
        self._boot_start_ns = 0
        self.first_sequence = -1
        self.last_sequence = -1
        self.orphans = 0
        self.known_from_ns = 0
        self.unknown = 0
        self.clamped = 0
        self.node_id = b""
        self.disagreements: list[Disagreement] = []
        self._leases: dict[LeaseId, Holding] = {}
        self._granted_by: dict[int, LeaseId] = {}
        self._fences: dict[str, Holding] = {}
        self._supply: dict[str, Holding] = {}
        self._act: dict[type, Callable[[int, Any, Moment], Sequence[Interval]]] = {
            NodeStarted: self._start_node,
            ClockStepped: self._step_clock,
            InventoryChanged: self._change_inventory,
            ResourceFenced: self._fence_resource,
            Voided: self._void,
            Allocated: self._allocate,
            Renewed: self._renew,
            DrainNotified: self._drain,
            TeardownBegun: self._tear_down,
            Reclaimed: self._reclaim,
            Fenced: self._fence,
            Unfenced: self._unfence,
        }

    def observe(self, sequence: int, event: object, moment: Moment) -> Sequence[Interval]:
        """Fold one record in. Raises ChainError where two records cannot both be meant."""
        if sequence <= self.last_sequence:
            raise ChainError(
                "EVENT_ORDER", "records must be folded in sequence order", sequence=sequence
            )
        if moment.boot_ns > BOOT_NS_MAX:
            moment = Moment(moment.boot_id, BOOT_NS_MAX, moment.wall_ns)
        if self.boot_id is None:
            self._open_first_boot(sequence, moment)
        self.last_sequence = sequence
        kind = type(event)
        if moment.boot_id == self.boot_id:
            if moment.boot_ns >= self.watermark_ns:
                self.watermark_ns = moment.boot_ns
            else:
                # Order is that of the records: a clock that goes back is held.
                moment = Moment(moment.boot_id, self.watermark_ns, moment.wall_ns)
        act = self._act.get(kind)
        if act is not None:
            return act(sequence, event, moment)
        if not isinstance(event, Event):
            self.unknown += 1
        return _NONE

    def pass_by(self, boot_ns: int) -> None:
        """Take note of a record of the current boot that changes nothing but the time."""
        self.watermark_ns = max(self.watermark_ns, min(boot_ns, BOOT_NS_MAX))

    def open_intervals(self) -> list[Interval]:
        """What is still open, as of the watermark, marked provisional."""
        found: list[Interval] = []
        for holding in self._holdings():
            self._close_at_watermark(holding, found, provisional=True)
        return found

    def _orphan(self) -> None:
        """A record of what began before the log: so far not all of it is here."""
        self.orphans += 1
        assert self.boot_id is not None, "a record was seen"
        self.known_from_ns = self.timeline.label(self.boot_id, self.watermark_ns)

    # ---- boots --------------------------------------------------------------------------------

    def _open_first_boot(self, sequence: int, moment: Moment) -> None:
        self.first_sequence = sequence
        self.boot_id = moment.boot_id
        self.watermark_ns = self._boot_start_ns = moment.boot_ns
        self.timeline.anchor(moment, moment.boot_ns)
        if sequence:
            self.known_from_ns = self.timeline.label(moment.boot_id, moment.boot_ns)

    def _start_node(self, sequence: int, event: NodeStarted, moment: Moment) -> Sequence[Interval]:
        self.node_id = event.node_id
        if event.boot_id == self.boot_id:
            self.timeline.anchor(moment, moment.boot_ns)
            return _NONE
        closed: list[Interval] = []
        for holding in self._holdings():
            self._close_at_watermark(holding, closed, provisional=False)
            if holding.pool is Pool.TENANT:
                holding.pool = Pool.TEARDOWN
            holding.start_ns = moment.boot_ns
            holding.opened_by = sequence
        started = Moment(event.boot_id, moment.boot_ns, moment.wall_ns)
        self.timeline.anchor(started, self.watermark_ns)
        self.boot_id = event.boot_id
        self.watermark_ns = self._boot_start_ns = moment.boot_ns
        return closed

    def _step_clock(self, sequence: int, event: ClockStepped, moment: Moment) -> Sequence[Interval]:
        if moment.boot_id == self.boot_id:
            self.timeline.anchor(moment, moment.boot_ns)
        return _NONE

    # ---- leases -------------------------------------------------------------------------------

    def _allocate(self, sequence: int, event: Allocated, moment: Moment) -> Sequence[Interval]:
        if event.lease_id in self._leases:
            raise ChainError("EVENT_ORDER", "a lease id was granted twice", sequence=sequence)
        self._leases[event.lease_id] = Holding(
            Pool.TENANT,
            event.subject.allotments,
            start_ns=min(max(event.effective_ns, self._boot_start_ns), moment.boot_ns),
            opened_by=sequence,
            subject=event.subject,
            lease_id=event.lease_id,
            deadline_ns=event.deadline_ns,
        )
        self._granted_by[sequence] = event.lease_id
        return _NONE

    def _renew(self, sequence: int, event: Renewed, moment: Moment) -> Sequence[Interval]:
        holding = self._leases.get(event.lease_id)
        if holding is None or holding.pool is not Pool.TENANT:
            self._orphan()
            return _NONE
        holding.deadline_ns = event.deadline_ns
        holding.deadline_seq = sequence
        if event.subject == holding.subject:
            return _NONE
        # A renewal may resize or re-price: the new terms hold from its own instant on.
        closed = self._close(holding, self._clamp(holding, event, moment), sequence)
        holding.subject = event.subject
        if event.subject.allotments != holding.allotments:
            holding.allotments = event.subject.allotments
            holding.held = [0] * len(holding.allotments)
        return closed

    def _drain(self, sequence: int, event: DrainNotified, moment: Moment) -> Sequence[Interval]:
        holding = self._leases.get(event.lease_id)
        if holding is None:
            self._orphan()
        elif holding.pool is Pool.TENANT:  # the last word counts: a notice may be put off
            holding.deadline_ns = event.drain_deadline_ns
            holding.deadline_seq = sequence
        return _NONE

    def _tear_down(self, sequence: int, event: TeardownBegun, moment: Moment) -> Sequence[Interval]:
        holding = self._leases.get(event.lease_id)
        if holding is None:
            self._orphan()
            return _NONE
        if holding.pool is not Pool.TENANT:
            return _NONE
        closed = self._close(holding, self._clamp(holding, event, moment), sequence)
        holding.pool = Pool.TEARDOWN
        return closed

    def _reclaim(self, sequence: int, event: Reclaimed, moment: Moment) -> Sequence[Interval]:
        holding = self._end(sequence, event)
        if holding is None:
            return _NONE
        closed = self._close(holding, self._clamp(holding, event, moment), sequence)
        self._compare(sequence, event, holding)
        return closed

    def _fence(self, sequence: int, event: Fenced, moment: Moment) -> Sequence[Interval]:
        holding = self._end(sequence, event)
        if holding is None:
            return _NONE
        at_ns = self._clamp(holding, event, moment)
        closed = self._close(holding, at_ns, sequence)
        self._compare(sequence, event, holding)
        self._leases[event.lease_id] = Holding(
            Pool.FENCED,
            event.fenced,
            start_ns=at_ns,
            opened_by=sequence,
            subject=holding.subject,
            lease_id=event.lease_id,
        )
        return closed

    def _unfence(self, sequence: int, event: Unfenced, moment: Moment) -> Sequence[Interval]:
        holding = self._end(sequence, event)
        if holding is None:
            return _NONE
        return self._close(holding, self._clamp(holding, event, moment), sequence)

    def _void(self, sequence: int, event: Voided, moment: Moment) -> Sequence[Interval]:
        lease_id = self._granted_by.get(event.sequence)
        holding = None if lease_id is None else self._leases.get(lease_id)
        if holding is not None and holding.pool is Pool.TENANT:
            # The grant was never answered: the tenant had nothing of it, so the operator's pool
            # pays from its start.
            holding.pool = Pool.TEARDOWN
        return _NONE

    # ---- what there is ------------------------------------------------------------------------

    def _change_inventory(
        self, sequence: int, event: InventoryChanged, moment: Moment
    ) -> Sequence[Interval]:
        closed: list[Interval] = []
        now: dict[str, Allotment] = {}
        for resource in event.inventory.resources:
            # Another way to the same memory is not more memory.
            if capacity_id(resource.resource_id) == resource.resource_id:
                now[resource.resource_id] = Allotment(
                    resource.resource_id, resource.kind, resource.tier, resource.capacity
                )
        for resource_id in list(self._supply):
            holding = self._supply[resource_id]
            if now.get(resource_id) != holding.allotments[0]:
                closed += self._close(holding, self.watermark_ns, sequence)
                del self._supply[resource_id]
        for resource_id, allotment in now.items():
            if resource_id not in self._supply:
                self._supply[resource_id] = Holding(
                    Pool.PROVISIONED, (allotment,), start_ns=self.watermark_ns, opened_by=sequence
                )
        return closed

    def _fence_resource(
        self, sequence: int, event: ResourceFenced, moment: Moment
    ) -> Sequence[Interval]:
        closed: list[Interval] = []
        change = event.allotment
        holding = self._fences.pop(change.resource_id, None)
        capacity = change.capacity if event.fenced else -change.capacity
        if holding is not None:
            closed = self._close(holding, self.watermark_ns, sequence)
            capacity += holding.allotments[0].capacity
        if capacity < 0:
            self._orphan()  # more was unfenced than was fenced
        if capacity > 0:
            allotment = Allotment(change.resource_id, change.kind, change.tier, capacity)
            self._fences[change.resource_id] = Holding(
                Pool.FENCED, (allotment,), start_ns=self.watermark_ns, opened_by=sequence
            )
        return closed

    # ---- closing ------------------------------------------------------------------------------

    def _holdings(self) -> Iterator[Holding]:
        yield from self._leases.values()
        yield from self._fences.values()
        yield from self._supply.values()

    def _end(self, sequence: int, event: LeaseEvent) -> Holding | None:
        holding = self._leases.pop(event.lease_id, None)
        if holding is None:
            self._orphan()
        else:
            self._granted_by.pop(holding.granted_by, None)
        return holding

    def _clamp(self, holding: Holding, event: LeaseEvent, moment: Moment) -> int:
        """`effective_ns`, held between the start of what it ends and the moment that it was sealed
        at.
        """
        at_ns = min(max(event.effective_ns, holding.start_ns), moment.boot_ns)
        if at_ns != event.effective_ns:
            self.clamped += 1
        return at_ns

    def _close(self, holding: Holding, end_ns: int, closed_by: int) -> list[Interval]:
        """Emit what `holding` held until `end_ns`, and let it go on from there."""
        closed: list[Interval] = []
        self._emit(holding, holding.pool, (holding.start_ns, end_ns), closed_by, closed)
        holding.start_ns = end_ns
        holding.opened_by = closed_by
        return closed

    def _close_at_watermark(
        self, holding: Holding, into: list[Interval], *, provisional: bool
    ) -> None:
        """Emit up to the watermark: a tenant to its deadline at most, the teardown pool from there
        on.
        """
        start_ns = holding.start_ns
        pool = holding.pool
        if pool is Pool.TENANT and holding.deadline_ns < self.watermark_ns:
            end_ns = max(start_ns, holding.deadline_ns)
            self._emit(holding, pool, (start_ns, end_ns), holding.deadline_seq, into, provisional)
            start_ns, pool = end_ns, Pool.TEARDOWN
        stretch = (start_ns, self.watermark_ns)
        self._emit(holding, pool, stretch, self.last_sequence, into, provisional)

    def _emit(
        self,
        holding: Holding,
        pool: Pool,
        stretch: tuple[int, int],
        closed_by: int,
        into: list[Interval],
        provisional: bool = False,
    ) -> None:
        start_ns, end_ns = stretch
        if end_ns <= start_ns:
            return
        assert self.boot_id is not None, "a holding exists only after a record was seen"
        for index, allotment in enumerate(holding.allotments):
            into.append(
                Interval(
                    pool,
                    allotment,
                    self.boot_id,
                    start_ns,
                    end_ns,
                    holding.opened_by,
                    closed_by,
                    holding.subject,
                    holding.lease_id,
                    provisional,
                )
            )
            if pool is Pool.TENANT and not provisional:
                holding.held[index] += allotment.capacity * (end_ns - start_ns)

    def _compare(self, sequence: int, event: Reclaimed | Fenced, holding: Holding) -> None:
        folded = tuple(holding.held)
        if event.held_capacity_ns != folded:
            self.disagreements.append(
                Disagreement(sequence, event.lease_id, event.held_capacity_ns, folded)
            )


def fold(records: Iterable[tuple[int, object, Moment]]) -> tuple[Ledger, list[Interval]]:
    """Batch form: every interval of `records`, the provisional ones last."""
    ledger = Ledger()
    found: list[Interval] = []
    for sequence, event, moment in records:
        found.extend(ledger.observe(sequence, event, moment))
    found.extend(ledger.open_intervals())
    return ledger, found
