# SPDX-License-Identifier: Apache-2.0
"""The auditor: judges a finished run from its sealed chain, from what tenants were told and from
what really happened.

Rule: it is written from the glossary and DESIGN sections 1, 4 and 5, not from the lessor: its own
table, its own integration, its own idea of what may follow what. It shares with the agent only the
terms and the verifier (which is the judge of bytes), and it compares the meter with its own sums to
the nanosecond.

Does not stop at the first breach: a run is told everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from leased.economics.meter import Meter
from leased.terms import event as events
from leased.terms.identity import CommandId, LeaseId
from leased.terms.lease import Ending, RevocationReason
from leased.terms.moment import NS_PER_MS, NS_PER_S, Moment
from leased.terms.resource import Allotment
from tests.sim.reaper import Cut, Told

CUT_NS_MAX = 5 * NS_PER_MS
"""Deadline to cut while the reaper lives: the slowest kill of the simulated reaper and its wake-up.
"""

GRACE_NS_MAX = 300 * NS_PER_S
"""The longest that any notice may last, however often it is put off."""


class Sealed(msgspec.Struct, frozen=True):
    """One record as verified: who, what, when, with its hash."""

    sequence: int
    event: object
    moment: Moment
    hash: bytes


class Ack(msgspec.Struct, frozen=True):
    """A tenant was told something, at a true time."""

    true_ns: int
    what: str
    lease_id: LeaseId
    command_id: CommandId
    uid: int
    generation: int
    deadline_ns: int
    boot_id: bytes
    sequence: int = -1
    record_hash: bytes = b""
    ended: Ending | None = None


class Tracked(msgspec.Struct):
    """One lease as the auditor knows it. Times are of the present boot."""

    lease_id: LeaseId
    tenant: str
    uid: int
    command_id: CommandId
    allotments: tuple[Allotment, ...]
    boot_id: bytes
    granted_ns: int
    deadline_ns: int
    ttl_ns: int
    generation: int
    deadlines: dict[int, int]
    since_ns: int
    noticed: dict[int, int]
    pool: str = "tenant"
    state: str = "live"
    drain_deadline_ns: int | None = None
    told_ns: int | None = None
    ended: Ending | None = None
    cut: bool = False
    scrubbed: bool = False
    end_reason: int | None = None

    @property
    def closed(self) -> bool:
        """Whether every unit of it is free again."""
        return self.state == "closed"

    @property
    def right_ends_ns(self) -> int:
        """When the right ends by time: at the deadline, or earlier if the holder was told so."""
        drain_ns = self.drain_deadline_ns
        return self.deadline_ns if drain_ns is None else min(drain_ns, self.deadline_ns)


class Auditor:
    """Fold `observe` over the whole chain, then `judge`."""

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.leases: dict[LeaseId, Tracked] = {}
        self.by_command: dict[tuple[int, CommandId], LeaseId] = {}
        self.records: list[Sealed] = []
        self.sums: dict[tuple[str, str], int] = {}
        self._capacity: dict[str, int] = {}
        self._capacity_since = 0
        self._operator_fenced: dict[str, int] = {}
        self._boot_id = b""
        self._watermark_ns = 0
        self._meter = Meter()
        self._limits: dict[str, int] = {}
        self._periods: dict[str, int] = {}

    def breach(self, text: str, sequence: int = -1) -> None:
        self.breaches.append(f"{text}" + (f" (sequence {sequence})" if sequence >= 0 else ""))

    # -- the chain --------------------------------------------------------------------------------

    def observe(self, record: Sealed) -> None:
        """Fold one record in."""
        if record.sequence != len(self.records):
            self.breach("a sequence is missing or doubled", record.sequence)
        self.records.append(record)
        self._meter.observe(record.sequence, record.event, record.moment)
        event, moment = record.event, record.moment
        if not self._boot_id:
            self._boot_id, self._watermark_ns = moment.boot_id, moment.boot_ns
        if isinstance(event, events.NodeStarted) and event.boot_id != self._boot_id:
            self._turn_page(event, moment)
        if moment.boot_id == self._boot_id:
            if moment.boot_ns < self._watermark_ns:
                self.breach("boottime went back within a boot", record.sequence)
            self._watermark_ns = max(self._watermark_ns, moment.boot_ns)
        if isinstance(event, events.InventoryChanged):
            self._supply(event)
        elif isinstance(event, events.PeriodBegan):
            # However the wall's clock is set: no story here is as long as a day.
            if event.began_wall_ns <= self._periods.get(event.period, 0):
                self.breach(f"a {event.period} of budgets began again", record.sequence)
            self._periods[event.period] = event.began_wall_ns
        elif isinstance(event, events.ResourceFenced):
            self._fence_by_operator(event, record.sequence)
        elif isinstance(event, events.Allocated):
            self._allocated(event, record)
        elif isinstance(event, events.LeaseEvent):
            lease = self.leases.get(event.lease_id)
            if lease is None or lease.closed:
                self.breach(f"{type(event).__name__} of a lease that is not open", record.sequence)
            else:
                self._lease_event(lease, event, record)
        self._check_capacity(record.sequence)

    def _allocated(self, event: events.Allocated, record: Sealed) -> None:
        key = (event.subject.uid, event.command_id)
        if event.lease_id in self.leases:
            self.breach("a lease id was used twice", record.sequence)
        earlier = self.leases.get(self.by_command.get(key, LeaseId(b"")))
        if earlier is not None and earlier.state == "live":
            self.breach("one command was granted two leases at once", record.sequence)
        if event.deadline_ns != event.effective_ns + event.ttl_ns:
            self.breach("the deadline is not now + TTL", record.sequence)
        self.by_command[key] = event.lease_id
        self.leases[event.lease_id] = Tracked(
            event.lease_id,
            event.subject.tenant,
            event.subject.uid,
            event.command_id,
            event.subject.allotments,
            record.moment.boot_id,
            event.effective_ns,
            event.deadline_ns,
            event.ttl_ns,
            event.generation,
            {event.generation: event.deadline_ns},
            event.effective_ns,
            {},
        )
        for tenant, most in self._limits.items():
            held = [one for one in self.leases.values() if one.tenant == tenant]
            if sum(one.state == "live" for one in held) > most:
                self.breach(f"{tenant} holds more than {most} leases", record.sequence)

    def _lease_event(self, lease: Tracked, event: events.LeaseEvent, record: Sealed) -> None:
        at = record.sequence
        # The end of a lease that a reboot took is told on the clock of its own boot.
        if event.effective_ns > record.moment.boot_ns and lease.boot_id == record.moment.boot_id:
            self.breach(f"{type(event).__name__} takes effect before it happens", at)
        if isinstance(event, events.Renewed):
            self._renewed(lease, event, record)
        elif isinstance(event, events.DrainNotified):
            if event.generation != lease.generation + 1:
                self.breach("a notice to leave without a new generation", at)
            self._noticed(lease, event, at)
            # The reaper is told the end of the notice, the holder still sees the deadline it had.
            lease.deadlines[event.generation] = lease.right_ends_ns
            lease.noticed[event.generation] = lease.deadline_ns
        elif isinstance(event, (events.Released, events.Expired, events.Revoked)):
            self._ended(lease, event, record)
        elif isinstance(event, events.TeardownBegun):
            if lease.ended is None or lease.state != "live":
                self.breach("a teardown began of a lease that had not just ended", at)
            if lease.pool == "tenant":
                self._pay(lease, event.effective_ns, "teardown")
            lease.state = "teardown"
        elif isinstance(event, events.AccessCut):
            if lease.state != "teardown" or lease.cut:
                self.breach("access was cut out of turn", at)
            lease.cut = True
        elif isinstance(event, events.Scrubbed):
            if not lease.cut or lease.scrubbed:
                self.breach("scrubbed out of turn", at)
            lease.scrubbed = True
        elif isinstance(event, events.Reclaimed):
            if not (lease.cut and lease.scrubbed and lease.state == "teardown"):
                self.breach("reclaimed without cut, scrub and proof", at)
            self._pay(lease, event.effective_ns, "nobody")
            lease.state = "closed"
        elif isinstance(event, events.Fenced):
            self._fenced(lease, event, at)
        elif isinstance(event, events.Unfenced):
            if lease.state != "fenced":
                self.breach("unfenced what was not fenced", at)
            self._pay(lease, event.effective_ns, "nobody")
            lease.state = "closed"

    def _noticed(self, lease: Tracked, event: events.DrainNotified, at: int) -> None:
        """A notice is put off only within what a notice may last in all, from the first one on."""
        until_ns = event.drain_deadline_ns
        if lease.told_ns is None:
            lease.told_ns = event.effective_ns
            if until_ns > lease.deadline_ns:
                self.breach("a notice that ends after the deadline", at)
        elif until_ns > lease.right_ends_ns and until_ns > lease.told_ns + GRACE_NS_MAX:
            self.breach("a notice was put off for longer than any may last", at)
        lease.deadline_ns = max(lease.deadline_ns, until_ns)
        lease.drain_deadline_ns, lease.generation = until_ns, event.generation

    def _renewed(self, lease: Tracked, event: events.Renewed, record: Sealed) -> None:
        at = record.sequence
        if lease.ended is not None or lease.drain_deadline_ns is not None:
            self.breach("a lease was renewed after its end or its notice", at)
        if event.effective_ns >= lease.deadline_ns:
            self.breach("a late renewal won", at)
        if event.generation != lease.generation + 1:
            self.breach("a renewal skipped a generation", at)
        if event.deadline_ns != event.effective_ns + event.ttl_ns:
            self.breach("the renewed deadline is not now + TTL", at)
        lease.generation, lease.deadline_ns = event.generation, event.deadline_ns
        lease.deadlines[event.generation] = event.deadline_ns

    def _ended(self, lease: Tracked, event: events.LeaseEvent, record: Sealed) -> None:
        if lease.ended is not None:
            self.breach("a lease ended twice", record.sequence)
        if isinstance(event, events.Expired):
            lease.ended = Ending.EXPIRED
            if event.effective_ns != lease.deadline_ns:
                self.breach(
                    "an expiry took effect at another time than the deadline", record.sequence
                )
            return
        lease.ended = Ending.RELEASED if isinstance(event, events.Released) else Ending.REVOKED
        if isinstance(event, events.Revoked):
            lease.end_reason = event.reason
        if event.effective_ns > lease.deadline_ns and lease.boot_id == record.moment.boot_id:
            self.breach("a right outlived its deadline", record.sequence)

    def _fenced(self, lease: Tracked, event: events.Fenced, at: int) -> None:
        if lease.state != "teardown":
            self.breach("fenced out of turn", at)
        left: dict[str, int] = {}
        for one in lease.allotments:
            left[one.resource_id] = left.get(one.resource_id, 0) + one.capacity
        for one in event.fenced:
            left[one.resource_id] = left.get(one.resource_id, 0) - one.capacity
            if one.capacity <= 0 or left[one.resource_id] < 0:
                self.breach("more was fenced than was held", at)
        if not event.fenced:
            self.breach("nothing was fenced", at)
        self._pay(lease, event.effective_ns, "fenced")
        lease.state = "fenced"
        lease.allotments = event.fenced

    # -- what there is ----------------------------------------------------------------------------

    def _supply(self, event: events.InventoryChanged) -> None:
        self._provide(self._watermark_ns)
        self._capacity = {one.resource_id: one.capacity for one in event.inventory.resources}

    def _provide(self, until_ns: int) -> None:
        for resource_id, capacity in self._capacity.items():
            self._add(resource_id, "provisioned", capacity * (until_ns - self._capacity_since))
        for resource_id, capacity in self._operator_fenced.items():
            self._add(resource_id, "fenced", capacity * (until_ns - self._capacity_since))
        self._capacity_since = until_ns

    def _fence_by_operator(self, event: events.ResourceFenced, at: int) -> None:
        self._provide(self._watermark_ns)
        change = event.allotment.capacity if event.fenced else -event.allotment.capacity
        resource_id = event.allotment.resource_id
        now = self._operator_fenced.get(resource_id, 0) + change
        if now < 0:
            self.breach("more was unfenced than an operator fenced", at)
        self._operator_fenced[resource_id] = now

    def _turn_page(self, event: events.NodeStarted, moment: Moment) -> None:
        """Another boot: what the old one held ends at the last moment sealed in it, a tenant at its
        deadline.
        """
        for lease in self.leases.values():
            if not lease.closed:
                self._pay_to_watermark(lease)
                lease.since_ns = moment.boot_ns
        self._provide(self._watermark_ns)
        self._capacity_since = moment.boot_ns
        self._boot_id, self._watermark_ns = event.boot_id, moment.boot_ns

    def _pay(self, lease: Tracked, until_ns: int, pool: str) -> None:
        """Whoever paid pays up to `until_ns`; from there on `pool` does."""
        until_ns = max(until_ns, lease.since_ns)
        for one in lease.allotments:
            self._add(one.resource_id, lease.pool, one.capacity * (until_ns - lease.since_ns))
        lease.since_ns = until_ns
        lease.pool = pool

    def _pay_to_watermark(self, lease: Tracked) -> None:
        """Up to the last moment sealed: a tenant to the end of its right, the teardown pool from
        there on.
        """
        if lease.pool == "tenant":
            self._pay(lease, min(lease.right_ends_ns, self._watermark_ns), "teardown")
        self._pay(lease, self._watermark_ns, lease.pool)

    def _add(self, resource_id: str, payer: str, amount: int) -> None:
        self.sums[resource_id, payer] = self.sums.get((resource_id, payer), 0) + amount

    def _check_capacity(self, sequence: int) -> None:
        """No unit twice, counted from the grant to the proven reclaim."""
        taken = dict(self._operator_fenced)
        for lease in self.leases.values():
            if not lease.closed:
                for one in lease.allotments:
                    taken[one.resource_id] = taken.get(one.resource_id, 0) + one.capacity
        for resource_id, used in taken.items():
            most = self._capacity.get(resource_id, 0)
            if used > most:
                self.breach(f"{resource_id}: {used} of {most} held at once", sequence)

    # -- judgement --------------------------------------------------------------------------------

    def limit(self, tenant: str, leases_max: int) -> None:
        """Tell the auditor of a tenant's limit before it folds anything."""
        self._limits[tenant] = leases_max

    def judge(self, acks: Sequence[Ack], told: Sequence[Told], cuts: Sequence[Cut]) -> list[str]:
        """Everything that is wrong with the run."""
        self._judge_acks(acks)
        self._judge_reaper(told)
        self._judge_arming(acks, told)
        self._judge_cuts(acks, told, cuts)
        self._judge_losses(cuts)
        self._judge_conservation()
        return self.breaches

    def _judge_acks(self, acks: Sequence[Ack]) -> None:
        """P1: no acknowledged event is lost, and what was said is what was sealed."""
        for ack in acks:
            lease = self.leases.get(ack.lease_id)
            if lease is None:
                self.breach(f"an acknowledged {ack.what} is not in the chain")
                continue
            told = lease.noticed.get(ack.generation, lease.deadlines.get(ack.generation))
            if told != ack.deadline_ns:
                self.breach(f"{ack.what}: the deadline that was told was never sealed")
            if ack.what in ("grant", "attach"):
                if (lease.uid, lease.command_id) != (ack.uid, ack.command_id):
                    self.breach("a grant was answered with another's lease")
                if ack.sequence >= 0:
                    record = self.records[ack.sequence]
                    at_allocated = isinstance(record.event, events.Allocated)
                    # A repeated request is told the sequence alone: the hash is in the log.
                    known = ack.record_hash or (record.hash if ack.what == "attach" else b"")
                    if record.hash != known or not at_allocated:
                        self.breach("a receipt does not match the chain", ack.sequence)
            if ack.what == "release" and lease.ended is None:
                self.breach("a release that was acknowledged never ended the lease")

    def _judge_reaper(self, told: Sequence[Told]) -> None:
        """A deadline in the reaper is always one that was sealed: nothing refills a TTL, a restart
        least of all.
        """
        for one in told:
            lease = self.leases.get(one.lease_id)
            if lease is None:
                self.breach("the reaper was told of a lease that was never sealed")
            elif lease.deadlines.get(one.generation) != one.deadline_ns:
                self.breach(
                    f"the reaper was told {one.deadline_ns} for generation {one.generation}, "
                    f"sealed was {lease.deadlines.get(one.generation)}"
                )

    def _judge_arming(self, acks: Sequence[Ack], told: Sequence[Told]) -> None:
        """Nothing is answered as granted or renewed before the reaper holds it so, or as something
        later."""
        held: dict[LeaseId, list[Told]] = {}
        for one in told:
            held.setdefault(one.lease_id, []).append(one)
        for ack in acks:
            if ack.what == "release" or ack.ended is not None:
                continue
            # Whoever attaches is told of what may be on its way yet: it has been promised nothing.
            least = 0 if ack.what == "attach" else ack.generation
            by_then = [one for one in held.get(ack.lease_id, ()) if one.true_ns <= ack.true_ns]
            if not any(one.generation >= least for one in by_then):
                self.breach(f"a {ack.what} was answered before the reaper knew of it")

    def _judge_cuts(self, acks: Sequence[Ack], told: Sequence[Told], cuts: Sequence[Cut]) -> None:
        """P3: access ends by the deadline plus the bound, and not before what was promised.

        A holder may ask for an earlier deadline, and the agent may die between sealing that and
        telling the reaper: then the old deadline holds until the reaper is told, and the holder,
        who was told nothing, has no promise but the one it asked for.
        """
        promised: dict[LeaseId, int] = {}
        for ack in acks:
            lease = self.leases.get(ack.lease_id)
            promises = ack.what in ("grant", "renew", "extend")
            if promises and ack.ended is None and lease is not None:
                since = (ns for at, ns in lease.deadlines.items() if at >= ack.generation)
                promised[ack.lease_id] = min(ack.deadline_ns, *since)
        armed = {one.lease_id: max(one.deadline_ns, one.boot_ns) for one in told}
        seen: dict[LeaseId, None] = {}
        for cut in cuts:
            lease = self.leases.get(cut.lease_id)
            if cut.lease_id in seen:
                self.breach("access was cut twice")
            seen[cut.lease_id] = None
            if lease is None or lease.boot_id != cut.boot_id:
                continue
            deadline_ns = max(lease.right_ends_ns, armed[cut.lease_id])
            late_ns = cut.boot_ns - deadline_ns - cut.down_ns
            if late_ns > CUT_NS_MAX:
                self.breach(f"access ended {late_ns / 1e6:.1f} ms after the deadline")
            if cut.by_deadline and cut.boot_ns < promised.get(cut.lease_id, 0):
                early_ms = (promised[cut.lease_id] - cut.boot_ns) / 1e6
                self.breach(
                    f"access to {cut.lease_id.hex()[:8]} ended {early_ms:.3f} ms before an "
                    f"acknowledged deadline, at {cut.true_ns} ns"
                )

    def _judge_losses(self, cuts: Sequence[Cut]) -> None:
        """A lease is lost to the reaper only where that came to a deadline before it was told of
        the next one, and never by a cut that we asked for."""
        late = {cut.lease_id for cut in cuts if cut.by_deadline}
        for lease in self.leases.values():
            if lease.end_reason == RevocationReason.REAPER_LOST and lease.lease_id not in late:
                self.breach(f"{lease.lease_id.hex()[:8]} was cut before its end by nobody's order")

    def _judge_conservation(self) -> None:
        """tenant + teardown + fenced + idle = capacity x time, and the meter says the same to the
        nanosecond.
        """
        for lease in self.leases.values():
            if not lease.closed:
                self._pay_to_watermark(lease)
        self._provide(self._watermark_ns)
        totals = self._meter.totals()
        if self._meter.ledger.disagreements:
            self.breach(f"sealed summaries disagree: {self._meter.ledger.disagreements[:3]}")
        if self._meter.ledger.orphans:
            self.breach(f"the meter met {self._meter.ledger.orphans} events of unknown leases")
        for resource_id in sorted(self._capacity):
            metered = totals.resources[resource_id]
            for payer in ("tenant", "teardown", "fenced", "provisioned"):
                ours = self.sums.get((resource_id, payer), 0)
                theirs = getattr(metered, payer)
                if ours != theirs:
                    self.breach(f"{resource_id} {payer}: metered {theirs}, audited {ours}")
            if metered.idle < 0:
                self.breach(f"{resource_id}: more was used than there was")

    def open_leases(self) -> list[Tracked]:
        """Leases that are neither reclaimed nor fenced."""
        return [one for one in self.leases.values() if one.state not in ("closed", "fenced")]
