# SPDX-License-Identifier: Apache-2.0
"""The fleet as its verified records say: nodes, what they have, who holds what, and until when.

Rule: a function of the records alone, kept up to date by reading only what is new. What is on its
way out counts as held until it is proven clean (`live_lease`), as it does on the node. Times of a
node are told by its own last pair of clocks.

It grows in one thread while others look: who looks goes over a copy of what grows (`list` of a
table is made in one step), and may see a record of one node before an older one of another.

Does not price (`accounts`), does not verify (`ingest` has), and knows no tenant that never had a
lease or was refused one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec

from leased.chain.canonical import Unknown
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import LogEntry
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

    @property
    def draining(self) -> bool:
        """Whether it grants nothing more."""
        return "" in self.cordoned

    def left_ns(self, lease: LiveLease, now_wall_ns: int) -> int:
        """How long a lease has, by the node's clocks as they last were."""
        if self.moment is None:
            return 0
        boot_ns = now_wall_ns - self.moment.wall_ns + self.moment.boot_ns
        return max(0, lease.deadline_ns - boot_ns)

    def apply(self, sequence: int, event: Event | Unknown, moment: Moment) -> None:
        """Take one record in."""
        self.next_seq, self.moment = sequence + 1, moment
        kind = type(event).__name__
        if isinstance(event, _TURNS):
            self.turned_wall_ns = moment.wall_ns
        if isinstance(event, LeaseEvent):
            self._apply_lease(sequence, event, moment)
        elif isinstance(event, events.NodeStarted):
            if event.boot_id != self.boot_id:
                self.over.clear()  # nobody has anything after a reboot, and no end of it is sealed
            self.version, self.boot_id, self.running = event.version, event.boot_id, True
        elif isinstance(event, events.NodeStopped):
            self.running = False
        elif isinstance(event, events.InventoryChanged):
            self.resources = counted(event.inventory)
            self.tiers = _sum({(one.kind, one.tier): one.capacity} for one in self.resources)
            self._totals = _sum({kind: amount} for (kind, _), amount in self.tiers.items())
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
            self.tenants[event.tenant] = None
            self.refused[event.tenant] = self.refused.get(event.tenant, 0) + 1
            self.compliance.refuse(event.tenant, moment.wall_ns, event.reason)
            if event.reason in _THROTTLES:
                self.throttled[event.tenant] = moment.wall_ns
            want = Want(moment.wall_ns, event.limit, event.usage, event.requested)
            of = event.resource_kind
            if event.reason in _LIMITS:
                self.wants[event.tenant, event.reason, of] = want
            no_room = event.reason in _NO_ROOM and of is not None
            if no_room and event.requested <= self._totals.get(of, 0):
                self.unmet[event.tenant, of] = want
            self._tell(sequence, kind, moment, event.tenant, "")
        self.applied = sequence + 1

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
            )
            self.flow.begin(moment.wall_ns, len(self.leases))
            over = self._is_over(event.subject)
            self.compliance.admit(tenant, moment.wall_ns, over=over)
            self._granted = None if over else (tenant, moment)
        self._tell(sequence, type(event).__name__, moment, tenant, lease_id)
        lease = self.leases.get(lease_id)
        if lease is None:
            return
        if not lease.ended and type(event) in _ENDS:
            length_ns = moment.wall_ns - lease.granted_wall_ns
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

    def _tell(self, sequence: int, kind: str, moment: Moment, tenant: str, lease_id: str) -> None:
        if kind != "Renewed":
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


class Fleet:
    """Every node, as far as its log has been read. `changes` counts what was taken in; who is
    `retired` will not be heard of again: what it was is known, and it has and holds nothing."""

    def __init__(self) -> None:
        self.logs: dict[str, NodeView] = {}
        self.entries: dict[str, LogEntry] = {}
        self.changes = 0
        self.retired: frozenset[str] = frozenset()

    def follow(self, archive: ArchiveReader, records_max: int) -> bool:
        """Read at most so many records that are new; whether there are more."""
        left = records_max
        for entry in archive.logs():
            known = self.entries.get(entry.log_id)
            if known is None or (known.head, known.verdict) != (entry.head, entry.verdict):
                self.changes += 1
            self.entries[entry.log_id] = entry
            view = self.logs.setdefault(entry.log_id, NodeView(entry.log_id))
            view.node, view.name = entry.node, entry.name
            if view.next_seq >= entry.head.size:
                continue
            for sequence, event, moment in archive.events(
                entry.log_id, view.next_seq, boot_id=view.boot_id
            ):
                view.apply(sequence, event, moment)
                left -= 1
                if left <= 0:
                    return True
        return False

    def nodes(self) -> list[NodeView]:
        """Each node that is there, by its last log, by name."""
        return [view for view in self.known() if view.node not in self.retired]

    def known(self) -> list[NodeView]:
        """The same, and those that are not there any more."""
        latest: dict[str, NodeView] = {}
        for view in list(self.logs.values()):
            latest[view.node] = view
        return sorted(latest.values(), key=lambda view: (view.name, view.node))

    def tenants(self) -> list[str]:
        """Everybody who had a lease or was refused one, sorted."""
        return sorted(
            {tenant for view in list(self.logs.values()) for tenant in list(view.tenants)}
        )

    def leases(self, tenant: str | None = None) -> Iterator[tuple[NodeView, LiveLease]]:
        """Every lease that is not proven clean."""
        for view in self.nodes():
            for lease in list(view.leases.values()):
                if tenant is None or lease.subject.tenant == tenant:
                    yield view, lease

    def subjects(self) -> dict[str, Subject]:
        """Whose each lease is, or was lately, on all nodes."""
        found: dict[str, Subject] = {}
        for view in list(self.logs.values()):
            found.update(list(view.ended.items()))
            found.update((one.lease_id, one.subject) for one in list(view.leases.values()))
        return found

    def totals(self) -> dict[ResourceKind, int]:
        """What there is of each kind, on all nodes."""
        return _sum(view.totals() for view in self.nodes())

    def held(self, tenant: str | None = None) -> dict[ResourceKind, int]:
        """What is held of each kind, on all nodes."""
        return _sum(view.held(tenant) for view in self.nodes())

    def held_by(self) -> dict[str, dict[ResourceKind, int]]:
        """What each has of each kind, on all nodes, in one pass."""
        found: dict[str, dict[ResourceKind, int]] = {tenant: {} for tenant in self.tenants()}
        for _, lease in self.leases():
            mine = found.setdefault(str(lease.subject.tenant), {})
            for one in lease.subject.allotments if lease.counts else ():
                mine[one.kind] = mine.get(one.kind, 0) + one.capacity
        return found

    def borrowed_by(self) -> dict[str, dict[ResourceKind, int]]:
        """What each has that is somebody else's."""
        found: dict[str, dict[ResourceKind, int]] = {}
        for _, lease in self.leases():
            for kind, amount in lease.borrowed if lease.counts else ():
                mine = found.setdefault(str(lease.subject.tenant), {})
                mine[kind] = mine.get(kind, 0) + amount
        return found

    def unmet(self, since_ns: int) -> dict[str, dict[ResourceKind, int]]:
        """The largest of what each asked for in vain since then, for want of room, and has not
        been given afterwards: who asks one node after the other wants it once."""
        given: dict[tuple[str, ResourceKind], int] = {}
        for _, lease in self.leases():
            for one in lease.subject.allotments:
                key = (str(lease.subject.tenant), one.kind)
                given[key] = max(lease.granted_wall_ns, given.get(key, 0))
        found: dict[str, dict[ResourceKind, int]] = {}
        for view in self.nodes():
            for (tenant, kind), want in list(view.unmet.items()):
                if since_ns < want.wall_ns and given.get((tenant, kind), 0) < want.wall_ns:
                    mine = found.setdefault(tenant, {})
                    mine[kind] = max(want.requested, mine.get(kind, 0))
        return found


def _sum(rows: Iterable[Mapping[T, int]]) -> dict[T, int]:
    found: dict[T, int] = {}
    for row in rows:
        for what, amount in row.items():
            found[what] = found.get(what, 0) + amount
    return found
