# SPDX-License-Identifier: Apache-2.0
"""A node as its verified records say: what it has, who holds what of it, and until when.

Rule: a function of the records alone, taken in one by one. What is on its way out counts as held
until it is proven clean (`live_lease`), as it does on the node. Times of a node are told by its own
last pair of clocks.

A log whose records name more than there is room for (`burden`) is set aside: of its node it is
known that it is there, how far its log is, and why nothing else is.

Does not verify (`ingest` has) and knows no tenant that never had a lease or was refused one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from leased.chain.canonical import Unknown
from leased.collector.burden import BYTES_MAX, LOOK_RECORDS, burden, weight
from leased.collector.live_lease import LiveLease
from leased.collector.planning.attainment import Attainment
from leased.collector.planning.compliance import Compliance
from leased.collector.planning.flow import Flow
from leased.terms import event as events
from leased.terms.event import Event, LeaseEvent
from leased.terms.lease import OverageCause, Subject
from leased.terms.moment import Moment
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment, Resource, ResourceKind, TierKind, counted

T = TypeVar("T")

_STATES: Final[dict[type[Event], str]] = {
    events.Activated: "active",
    events.DrainNotified: "draining",
    events.Released: "revoking",
    events.Expired: "revoking",
    events.Revoked: "revoking",
    events.TeardownBegun: "revoking",
    events.AccessCut: "scrubbing",
    events.Scrubbed: "verifying",
    events.Fenced: "fenced",
}
_ENDS: Final = {
    events.Released: "released",
    events.Expired: "expired",
    events.Revoked: "revoked",
}
_THROTTLES: Final = (
    RefusalReason.SUBMIT_RATE,
    RefusalReason.API_RATE,
    RefusalReason.THROTTLED,
)
_LIMITS: Final = (RefusalReason.TENANT_CAPACITY, RefusalReason.TENANT_LEASES)
_TURNS: Final = (events.NodeStarted, events.NodeStopped, events.CordonChanged)
_NO_ROOM: Final = (
    RefusalReason.NO_CAPACITY,
    RefusalReason.SHARE,
    RefusalReason.RESERVED,
    RefusalReason.WAIT_EXPIRED,
)
RECENT: Final = 256
"""The last events of a node that are kept to be shown."""

ENDED_KEPT: Final = 512
"""Leases of a node that are over, and whose telemetry may still be asked about."""


class Want(msgspec.Struct, frozen=True):
    """What a tenant asked for in vain, last, for one reason and of one kind (None: of none, or its
    node is of a release that does not say): in the raw unit of its limit."""

    wall_ns: int
    limit: int
    usage: int
    requested: int
    boot_ns: int = 0


class Told(msgspec.Struct, frozen=True):
    """An event to be shown."""

    sequence: int
    kind: str
    wall_ns: int
    tenant: str
    lease_id: str


class NodeView:
    """One log of one node, folded."""

    def __init__(self, log_id: str) -> None:
        self.log_id = log_id
        self.node = self.name = self.version = ""
        self.next_seq = 0
        self.applied = 0
        """As `next_seq`, once the record is taken in: what was made of the view before is old."""
        self.shown: tuple[object, Any] = (None, None)
        """What `api.rows` made of it last, and of which state."""
        self.moment: Moment | None = None
        self.boot_id = bytes(16)
        self.running = False
        self.resources: tuple[Resource, ...] = ()
        self.tiers: dict[tuple[ResourceKind, TierKind | None], int] = {}
        """What there is, by kind and tier: a node has a hundred resources and four of these."""
        self._totals: dict[ResourceKind, int] = {}
        self.leases: dict[str, LiveLease] = {}
        self.fences: dict[str, Allotment] = {}
        """What an operator fenced, by resource."""
        self.cordoned: dict[str, None] = {}
        self.tenants: dict[str, None] = {}
        self.policy_generation = 0
        self.policy_hash = ""
        self.refused: dict[str, int] = {}
        self.throttled: dict[str, int] = {}
        self.wants: dict[tuple[str, int, ResourceKind | None], Want] = {}
        self.unmet: dict[tuple[str, ResourceKind], Want] = {}
        self.over: dict[tuple[str, str], int] = {}
        """Who is above which soft limit, since when."""
        self._granted: tuple[str, Moment] | None = None
        self.recent: list[Told] = []
        self.flow = Flow()
        self.compliance = Compliance()
        self.attainment = Attainment()
        self.ended: dict[str, Subject] = {}
        self.turned_wall_ns = 0
        """When it came, went, or was told to grant nothing more or again, last."""
        self.aside = ""
        """Why nothing is kept of it but how far it is; "": all is."""
        self._unlooked = 0

    @property
    def draining(self) -> bool:
        """Whether it grants nothing more."""
        return "" in self.cordoned

    def left_ns(self, lease: LiveLease, now_wall_ns: int) -> int:
        """How long a lease has, by the node's clocks as they last were."""
        return max(0, lease.deadline_ns - self._boot_ns(now_wall_ns)) if self.moment else 0

    def age_ns(self, lease: LiveLease, now_wall_ns: int) -> int:
        """How long a lease was there, by the same."""
        return max(0, self._boot_ns(now_wall_ns) - lease.granted_ns) if self.moment else 0

    def since_ns(self, want: Want, now_wall_ns: int) -> int:
        """How long ago something was asked for, by the same."""
        return max(0, self._boot_ns(now_wall_ns) - want.boot_ns) if self.moment else 0

    def _boot_ns(self, now_wall_ns: int) -> int:
        # No earlier than its last record was, whose label may be of a time to come.
        assert self.moment is not None, "it has a record"
        since_ns = max(0, now_wall_ns - self.moment.wall_ns)
        return self.moment.boot_ns + since_ns

    def apply(self, sequence: int, event: Event | Unknown, moment: Moment) -> None:
        """Take one record in."""
        self.next_seq, self.moment = sequence + 1, moment
        if not self.aside:
            self._take_in(sequence, event, moment)
            self._unlooked += weight(event)
            if self._unlooked >= LOOK_RECORDS:
                self._unlooked = 0
                if burden(self) > BYTES_MAX:
                    self._set_aside()
        elif isinstance(event, events.NodeStarted):
            self.boot_id = event.boot_id
        self.applied = sequence + 1

    @property
    def names(self) -> Iterable[str]:
        """As `burden` has it."""
        yield from chain(self.tenants, self.refused, self.throttled, self.fences, self.cordoned)
        yield from (tenant for tenant, _, _ in self.wants)
        yield from (tenant for tenant, _ in self.unmet)
        yield from (name for key in self.over for name in key)
        yield from (one.tenant for one in self.recent)
        yield from self.compliance.names

    def _set_aside(self) -> None:
        most = f"{BYTES_MAX >> 20} MiB"
        self.aside = f"what records 0 to {self.next_seq - 1} name takes more than {most} of memory"
        # Anew, not emptied: others may be going over them.
        self.resources, self.tiers, self._totals = (), {}, {}
        self.leases, self.ended, self.fences, self.cordoned = {}, {}, {}, {}
        self.tenants, self.refused, self.throttled = {}, {}, {}
        self.wants, self.unmet, self.over, self.recent = {}, {}, {}, []
        self.compliance = Compliance()

    def _take_in(self, sequence: int, event: Event | Unknown, moment: Moment) -> None:
        if isinstance(event, _TURNS):
            self.turned_wall_ns = moment.wall_ns
        if isinstance(event, LeaseEvent):
            self._apply_lease(sequence, event, moment)
        elif isinstance(event, events.NodeStarted):
            if event.boot_id != self.boot_id:
                # Nobody has anything after a reboot, or waits, and no end of it is sealed.
                self.over.clear()
                self.wants.clear()
            self.version, self.boot_id, self.running = event.version, event.boot_id, True
        elif isinstance(event, events.NodeStopped):
            self.running = False
        elif isinstance(event, events.InventoryChanged):
            self.resources = counted(event.inventory)
            self.tiers = summed({(one.kind, one.tier): one.capacity} for one in self.resources)
            self._totals = summed({kind: amount} for (kind, _), amount in self.tiers.items())
        elif isinstance(event, events.CordonChanged):
            if event.cordoned:
                self.cordoned[event.resource_id] = None
            else:
                self.cordoned.pop(event.resource_id, None)
        elif isinstance(event, events.ResourceFenced):
            self._fence(event.allotment, 1 if event.fenced else -1)
        elif isinstance(event, events.PolicyChanged):
            self.policy_generation = event.policy_generation
            self.policy_hash = event.policy_hash.hex()
        elif isinstance(event, events.OverageBegan) and event.cause == OverageCause.SOFT:
            self._exceed(moment)
            self.over[event.holder, event.rule] = moment.wall_ns
        elif isinstance(event, events.OverageBegan | events.OverageEnded):
            self.over.pop((event.holder, event.rule), None)
        elif isinstance(event, events.Refused):
            self._refuse(event, moment)
            self._tell(sequence, event, moment, event.tenant, "")

    def _refuse(self, event: events.Refused, moment: Moment) -> None:
        tenant, of, wall_ns = event.tenant, event.resource_kind, moment.wall_ns
        self.tenants[tenant] = None
        self.refused[tenant] = self.refused.get(tenant, 0) + 1
        self.compliance.refuse(tenant, wall_ns, event.reason)
        if event.reason in _THROTTLES:
            self.throttled[tenant] = wall_ns
        want = Want(wall_ns, event.limit, event.usage, event.requested, moment.boot_ns)
        if event.reason in _LIMITS:
            self.wants[tenant, event.reason, of] = want
        whole = 0 if of is None else self._totals.get(of, 0)
        if event.reason in _NO_ROOM and of is not None and event.requested <= whole:
            self.unmet[tenant, of] = want

    def _apply_lease(self, sequence: int, event: LeaseEvent, moment: Moment) -> None:
        lease_id, tenant = event.lease_id.hex(), str(event.subject.tenant)
        if isinstance(event, events.Allocated):
            self.tenants[tenant] = None
            self.leases[lease_id] = LiveLease(
                lease_id=lease_id,
                subject=event.subject,
                state="granted",
                granted_wall_ns=moment.wall_ns,
                deadline_ns=event.deadline_ns,
                generation=event.generation,
                sequence=sequence,
                last=sequence,
                granted_ns=event.effective_ns,
            )
            self.flow.begin(moment.wall_ns, len(self.leases))
            over = self._is_over(event.subject)
            self.compliance.admit(tenant, moment.wall_ns, over=over)
            self._granted = None if over else (tenant, moment)
        self._tell(sequence, event, moment, tenant, lease_id)
        lease = self.leases.get(lease_id)
        if lease is None:
            return
        if not lease.ended and type(event) in _ENDS:
            # However late its end was sealed, and whatever the wall's clock did meanwhile.
            length_ns = event.effective_ns - lease.granted_ns
            self.flow.end(moment.wall_ns, length_ns)
            reason = event.reason if isinstance(event, events.Revoked) else None
            self.attainment.end(event.subject.priority, moment.wall_ns, length_ns, reason)
            self.ended[lease_id] = lease.subject
            if len(self.ended) > ENDED_KEPT:
                del self.ended[next(iter(self.ended))]
        lease.last = sequence
        lease.state = _STATES.get(type(event), lease.state)
        lease.ended = lease.ended or _ENDS.get(type(event), "")
        if isinstance(event, events.Renewed):
            lease.deadline_ns, lease.generation = event.deadline_ns, event.generation
        elif isinstance(event, events.DrainNotified):
            lease.deadline_ns = max(lease.deadline_ns, event.drain_deadline_ns)
        elif isinstance(event, events.Admitted):
            lease.borrowed = event.borrowed
            if event.burst_until_ns or event.borrowed:
                self._exceed(moment)
        elif isinstance(event, events.Fenced):
            lease.fenced = event.fenced
        elif isinstance(event, events.Reclaimed | events.Unfenced):
            del self.leases[lease_id]

    def _fence(self, change: Allotment, sign: int) -> None:
        before = self.fences.pop(change.resource_id, None)
        capacity = sign * change.capacity + (0 if before is None else before.capacity)
        if capacity > 0:
            self.fences[change.resource_id] = msgspec.structs.replace(change, capacity=capacity)

    def _is_over(self, subject: Subject) -> bool:
        """Whether its tenant is above a soft limit of a kind that it holds: "gpu", "mem.hbm@2"."""
        kinds = {one.kind.name.lower() for one in subject.allotments}
        rules = [rule for holder, rule in self.over if holder == subject.tenant]
        return any(rule.partition("@")[0].partition(".")[0] in kinds for rule in rules)

    def _exceed(self, moment: Moment) -> None:
        """What was granted in this moment went above a limit: it counts once, whoever's that is."""
        if self._granted is not None and self._granted[1] == moment:
            self.compliance.exceed(self._granted[0], moment.wall_ns)
            self._granted = None

    def _tell(
        self, sequence: int, event: Event, moment: Moment, tenant: str, lease_id: str
    ) -> None:
        if not isinstance(event, events.Renewed):
            kind = type(event).__name__
            self.recent.append(Told(sequence, kind, moment.wall_ns, tenant, lease_id))
            del self.recent[:-RECENT]

    def totals(self) -> dict[ResourceKind, int]:
        """What there is of each kind."""
        return self._totals

    def held(self, tenant: str | None = None) -> dict[ResourceKind, int]:
        """What is not free of each kind: what leases have until they are proven clean, and what is
        fenced. Of one tenant: what counts against its quota."""
        found: dict[ResourceKind, int] = {}
        kept = list(self.fences.values()) if tenant is None else []
        for lease in list(self.leases.values()):
            if tenant is None or (lease.subject.tenant == tenant and lease.counts):
                kept += lease.kept
        for one in kept:
            found[one.kind] = found.get(one.kind, 0) + one.capacity
        return found


def summed(rows: Iterable[Mapping[T, int]]) -> dict[T, int]:
    """Amounts of several, by what they are of."""
    found: dict[T, int] = {}
    for row in rows:
        for what, amount in row.items():
            found[what] = found.get(what, 0) + amount
    return found
