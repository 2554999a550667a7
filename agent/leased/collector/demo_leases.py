# SPDX-License-Identifier: Apache-2.0
"""The leases of a demonstration host: who asks for what, how long it stays, and how it ends.

Rule: nothing is held twice and nothing before it is proven clean; every event is one that the agent
could have sealed, with the usage that its lease's records add up to.

Does not seal (`demo`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from leased.terms.event import (
    AccessCut,
    Activated,
    Allocated,
    Event,
    Expired,
    Fenced,
    Reclaimed,
    Released,
    Renewed,
    Revoked,
    Scrubbed,
    TeardownBegun,
    Unfenced,
)
from leased.terms.identity import CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, Priority, RevocationReason, Subject, Trust
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind, TierKind

GIB: Final = 1 << 30
TTL_NS: Final = 4 * HOUR_NS
RENEW_NS: Final = 2 * HOUR_NS
HASH: Final = bytes(32)
TENANTS: Final = (
    ("acme", "CC-ENGINEERING", "atlas", Priority.GUARANTEED),
    ("acme", "CC-ENGINEERING", "search", Priority.STANDARD),
    ("research", "CC-DATASCIENCE", "vision", Priority.STANDARD),
    ("research", "CC-DATASCIENCE", "language", Priority.SCAVENGER),
    ("analytics", "CC-ANALYTICS", "reports", Priority.STANDARD),
    ("startup-c", "CC-SALES", "pilot", Priority.STANDARD),
    ("batch", "", "", Priority.SCAVENGER),
)
WORK: Final = {
    "atlas": (("atlas-train", "training", "platform"), ("atlas-eval", "batch", "platform")),
    "search": (("search-serve", "inference", "product"), ("search-index", "batch", "product")),
    "vision": (("vision-train", "training", "lab"), ("vision-notebook", "interactive", "lab")),
    "language": (("language-sweep", "training", "lab"), ("language-eval", "batch", "lab")),
    "reports": (("reports-night", "batch", "office"), ("reports-panel", "interactive", "office")),
    "pilot": (("pilot-serve", "inference", "sales"),),
}
"""What runs in a project: the workload, its class of requests, and who has the budget."""

GPUS, CORES, DRAM, DISKS = 8, 64, 1024 * GIB, 4
DISK: Final = 3_840 * 10**9


class Live:
    """One lease while it lasts. `expires`: at `ends_ns` its holder leaves without a word."""

    def __init__(
        self, lease_id: LeaseId, subject: Subject, granted_ns: int, ends_ns: int, expires: bool
    ) -> None:
        self.lease_id = lease_id
        self.subject = subject
        self.granted_ns = granted_ns
        self.ends_ns = ends_ns
        self.expires = expires
        self.generation = 0
        self.deadline_ns = 0
        self.held_ns = 0


class Machine:
    """What a host has, and who has it. `due` is (wall ns, order, lease) of what happens next."""

    def __init__(self, stream: random.Random, entropy: Callable[[], bytes], number: int) -> None:
        self._random = stream
        self._entropy = entropy
        self._free: dict[str, int] = {}
        self._kinds: dict[str, Resource] = {}
        self.due: list[tuple[int, int, Live, str]] = []
        self._order = 0
        for resource in _resources(number):
            self._free[resource.resource_id] = resource.capacity
            self._kinds[resource.resource_id] = resource

    def inventory(self) -> Inventory:
        """What there is."""
        return Inventory(tuple(self._kinds.values()))

    def arrive(self, boot_ns: int, wall_ns: int) -> list[Event]:
        """Somebody asks: a grant, or nothing if there is no room."""
        allotments = self._choose()
        if not allotments:
            return []
        tenant, center, project, priority = self._random.choice(TENANTS)
        lease_id = LeaseId(self._entropy())
        workload, tag = None, None
        if project:
            work = WORK[project]
            workload, sort, budget = work[lease_id[0] % len(work)]
            tag = AccountingTag(center, project, sort, budget)
        subject = Subject(
            TenantId(tenant),
            1000,
            1000,
            lease_id.hex(),
            workload,
            tag,
            priority,
            Trust.CONFINED,
            allotments,
            HASH,
        )
        minutes = int(self._random.lognormvariate(4.6, 1.1)) + 2
        ends_ns = wall_ns + min(minutes, 5_000) * 60 * NS_PER_S + self._random.randrange(NS_PER_S)
        live = Live(lease_id, subject, boot_ns, ends_ns, self._random.random() < 0.1)
        live.deadline_ns = boot_ns + TTL_NS
        for held in allotments:
            self._free[held.resource_id] -= held.capacity
        self._next(live, boot_ns, wall_ns)
        head = self._head(live, boot_ns)
        command_id = CommandId(self._entropy())
        grace_ns = 10 * NS_PER_S
        return [
            Allocated(*head, command_id, TTL_NS, live.deadline_ns, 0, grace_ns),
            Activated(*self._head(live, boot_ns), HASH),
        ]

    def act(self, boot_ns: int, wall_ns: int) -> list[Event]:
        """What is due next."""
        _, _, live, what = heappop(self.due)
        if what == "prove":
            return self._prove(live, boot_ns, wall_ns)
        if what == "unfence":
            self._give_back(live.subject.allotments)
            return [Unfenced(*self._head(live, boot_ns), 0, HASH)]
        if what == "renew":
            live.generation += 1
            live.deadline_ns = boot_ns + TTL_NS
            self._next(live, boot_ns, wall_ns)
            return [Renewed(*self._head(live, boot_ns), TTL_NS, live.deadline_ns)]
        ended: Event = Released(*self._head(live, boot_ns))
        if live.expires:
            ended = Expired(*self._head(live, boot_ns))
        elif live.subject.priority is not Priority.GUARANTEED and self._random.random() < 0.09:
            reason = RevocationReason.PRIORITY_PREEMPTION
            ended = Revoked(*self._head(live, boot_ns), reason)
        return [ended, *self._tear_down(live, boot_ns, wall_ns, boot_ns)]

    def reboot(self, boot_ns: int, wall_ns: int, last_ns: int) -> list[Event]:
        """Whatever was held is over: paid to the last moment sealed in the old boot, or to its
        deadline, if that was earlier."""
        events: list[Event] = []
        kept = [entry for entry in self.due if entry[3] in ("unfence", "prove")]
        lives = sorted(
            (entry for entry in self.due if entry[3] in ("renew", "end")),
            key=lambda entry: entry[2].lease_id,
        )
        self.due = kept
        heapify(self.due)
        for _, _, live, _ in lives:
            events.append(Revoked(*self._head(live, boot_ns), RevocationReason.NODE_REBOOT))
            paid_ns = min(last_ns, live.deadline_ns)
            events.extend(self._tear_down(live, boot_ns, wall_ns, paid_ns))
        return events

    def _tear_down(self, live: Live, boot_ns: int, wall_ns: int, paid_until_ns: int) -> list[Event]:
        live.held_ns = max(0, paid_until_ns - live.granted_ns)
        proof_ns = wall_ns + self._random.randrange(NS_PER_S // 2, 20 * NS_PER_S)
        self._schedule(proof_ns, live, "prove")
        head = self._head(live, boot_ns)
        return [TeardownBegun(*head), AccessCut(*self._head(live, boot_ns), False, HASH)]

    def _prove(self, live: Live, boot_ns: int, wall_ns: int) -> list[Event]:
        allotments = live.subject.allotments
        held = tuple(one.capacity * live.held_ns for one in allotments)
        scrubbed = sum(one.capacity for one in allotments if one.kind is ResourceKind.MEM)
        events: list[Event] = [Scrubbed(*self._head(live, boot_ns), scrubbed, HASH)]
        if self._random.random() < 0.01:
            fenced = Fenced(*self._head(live, boot_ns), allotments, 8, 5, held, NS_PER_S, HASH)
            self._schedule(wall_ns + self._random.randrange(HOUR_NS, 20 * HOUR_NS), live, "unfence")
            return [*events, fenced]
        self._give_back(allotments)
        return [
            *events,
            Reclaimed(
                *self._head(live, boot_ns),
                held,
                cut_lag_ns=20_000_000,
                proof_lag_ns=900_000_000,
                utilization_mean_pm=None,
                utilization_max_pm=None,
                active_share_pm=None,
                sample_count=0,
                coverage_pm=0,
                evidence=HASH,
            ),
        ]

    def _next(self, live: Live, boot_ns: int, wall_ns: int) -> None:
        """The next renewal, or the end: of what nobody renews any more, its deadline."""
        if live.ends_ns < wall_ns + RENEW_NS:
            deadline_ns = wall_ns + live.deadline_ns - boot_ns
            self._schedule(deadline_ns if live.expires else live.ends_ns, live, "end")
        else:
            self._schedule(wall_ns + RENEW_NS, live, "renew")

    def _schedule(self, at_ns: int, live: Live, what: str) -> None:
        self._order += 1
        heappush(self.due, (at_ns, self._order, live, what))

    def _give_back(self, allotments: tuple[Allotment, ...]) -> None:
        for held in allotments:
            self._free[held.resource_id] += held.capacity

    def _choose(self) -> tuple[Allotment, ...]:
        """A few GPUs with cores and memory, cores and memory alone, or a namespace."""
        how = self._random.random()
        if how < 0.15:
            return self._take("block:", 1, DISK)
        gpus = self._take("gpu:", self._random.choice((1, 1, 2, 4)), 1000) if how < 0.75 else ()
        if how < 0.75 and not gpus:
            return ()
        cores = self._take("cpu:", self._random.choice((2, 4, 8)), 1000)
        memory = self._random.choice((16, 32, 64, 128)) * GIB
        if not cores or self._free["mem:node0:4096"] < memory:
            return ()
        dram = Allotment("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, memory)
        return (*gpus, *cores, dram)

    def _take(self, prefix: str, count: int, capacity: int) -> tuple[Allotment, ...]:
        """`count` whole units that are free, or none."""
        free = [n for n, left in self._free.items() if n.startswith(prefix) and left >= capacity]
        if len(free) < count:
            return ()
        return tuple(
            Allotment(name, self._kinds[name].kind, self._kinds[name].tier, capacity)
            for name in free[:count]
        )

    def _head(self, live: Live, at_ns: int) -> tuple[EventId, LeaseId, Subject, int, int]:
        return EventId(self._entropy()), live.lease_id, live.subject, live.generation, at_ns


def _resources(number: int) -> list[Resource]:
    name = f"{number:04x}"
    gpus = [
        Resource(f"gpu:GPU-{name}-{n}", ResourceKind.GPU, None, 1000, 1000) for n in range(GPUS)
    ]
    cores = [Resource(f"cpu:{n}", ResourceKind.CPU, None, 1000, 1000) for n in range(CORES)]
    disks = [
        Resource(f"block:{name}-{n}", ResourceKind.BLOCK, None, DISK, DISK) for n in range(DISKS)
    ]
    dram = Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, DRAM, 4096)
    return [*gpus, *cores, *disks, dram]
