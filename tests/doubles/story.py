# SPDX-License-Identifier: Apache-2.0
"""What the chain tells, judged by rules of its own: nothing here is the lessor's code.

Rule: a lease begins once, ends once, and its steps come in order; at no moment do the leases
between grant and proof hold more of a resource than the host has. `verify` (the program's own
judge, as auditors run it) is asked first; a story is told only of what it has passed.

Does not start or stop anything.
"""

from __future__ import annotations

import msgspec

from leased.durable.reader import read_log
from leased.terms.event import (
    AccessCut,
    Activated,
    Allocated,
    DrainNotified,
    Event,
    Expired,
    Fenced,
    InventoryChanged,
    LeaseEvent,
    Reclaimed,
    Released,
    Renewed,
    Revoked,
    Scrubbed,
    TeardownBegun,
    Unfenced,
)
from tests.doubles.host_agent import HostAgent

_RANK: dict[type[LeaseEvent], int] = {
    Allocated: 0,
    Activated: 1,
    Renewed: 2,
    Released: 3,
    Expired: 3,
    Revoked: 3,
    TeardownBegun: 4,
    AccessCut: 5,
    Scrubbed: 6,
    Reclaimed: 7,
    Fenced: 7,
    Unfenced: 8,
}


class Life:
    """One lease, from its events alone."""

    def __init__(self, allocated: Allocated) -> None:
        self.allocated = allocated
        self.deadline_ns = allocated.deadline_ns
        self.generation = allocated.generation
        self.events: list[LeaseEvent] = [allocated]
        self.reached = 0
        self.held = {a.resource_id: a.capacity for a in allocated.subject.allotments}

    def add(self, event: LeaseEvent) -> None:
        """The next event of this lease. AssertionError if it cannot follow."""
        rank = _RANK.get(type(event))
        if rank is not None:
            again = rank == self.reached and isinstance(event, Renewed)
            told = f"{type(event).__name__} after {type(self.events[-1]).__name__}"
            assert rank > self.reached or again, told
            self.reached = rank
        if isinstance(event, Renewed):
            assert event.generation > self.generation, f"generation {event.generation} again"
            self.generation, self.deadline_ns = event.generation, event.deadline_ns
        if isinstance(event, DrainNotified):  # a holder that asked for time may have got more
            self.deadline_ns = max(self.deadline_ns, event.drain_deadline_ns)
        if isinstance(event, Expired):
            assert event.effective_ns <= self.deadline_ns, "it ran past its deadline"
        if isinstance(event, Reclaimed | Unfenced):
            self.held = {}
        if isinstance(event, Fenced):
            self.held = {}
            for allotment in event.fenced:
                was = self.held.get(allotment.resource_id, 0)
                self.held[allotment.resource_id] = was + allotment.capacity
        self.events.append(event)

    def first(self, kind: type[LeaseEvent]) -> LeaseEvent | None:
        """The event of that kind, if it came."""
        return next((event for event in self.events if isinstance(event, kind)), None)

    @property
    def ended(self) -> LeaseEvent | None:
        """Released, Expired or Revoked."""
        return self.first(Released) or self.first(Expired) or self.first(Revoked)

    @property
    def closed(self) -> bool:
        """Whether it came to its end."""
        return any(isinstance(event, Reclaimed | Fenced) for event in self.events)

    @property
    def cut_lag_ns(self) -> int | None:
        """From the end of the right to the end of access, as sealed."""
        cut, begun = self.first(AccessCut), self.first(TeardownBegun)
        if cut is None or begun is None:
            return None
        return cut.effective_ns - begun.effective_ns


class Story(msgspec.Struct):
    """Every lease by its id in hex, and all events with their sequence numbers."""

    lives: dict[str, Life]
    events: list[tuple[int, Event]]

    def of(self, kind: type[Event]) -> list[Event]:
        """All events of one kind."""
        return [event for _, event in self.events if isinstance(event, kind)]


def tell(agent: HostAgent) -> Story:
    """Read what is anchored now and judge it. AssertionError names what does not hold."""
    log = read_log(agent.audit)
    try:
        sealed = [(sequence, event) for sequence, event, _ in log.events()]
    finally:
        log.close()
    lives: dict[str, Life] = {}
    capacity: dict[str, int] = {}
    used: dict[str, int] = {}
    commands: set[tuple[int, bytes]] = set()
    for sequence, event in sealed:
        if isinstance(event, InventoryChanged):
            capacity = {r.resource_id: r.capacity for r in event.inventory.resources}
        if not isinstance(event, LeaseEvent):
            continue
        lease_id = event.lease_id.hex()
        if isinstance(event, Allocated):
            assert lease_id not in lives, f"record {sequence}: {lease_id} begins again"
            command = (event.subject.uid, event.command_id)
            assert command not in commands, f"record {sequence}: one command, two grants"
            commands.add(command)
            life = lives[lease_id] = Life(event)
            for name, held in life.held.items():
                used[name] = used.get(name, 0) + held
                assert used[name] <= capacity[name], f"record {sequence}: {name} granted twice"
            continue
        life = lives[lease_id]
        before = dict(life.held)
        try:
            life.add(event)
        except AssertionError as wrong:
            raise AssertionError(f"record {sequence}, lease {lease_id}: {wrong}") from None
        for name, held in before.items():
            used[name] -= held - life.held.get(name, 0)
    return Story(lives, sealed)


def judge(agent: HostAgent) -> Story:
    """`leasectl verify` first, then the story."""
    verdict = msgspec.json.decode(
        agent.leasectl("verify", "--json", "--log", str(agent.audit)).stdout
    )
    assert verdict["verdict"] == "ok", verdict
    return tell(agent)
