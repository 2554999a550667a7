# SPDX-License-Identifier: Apache-2.0
"""A demonstration fleet: chains of hosts that never were, sealed by the real sealer and checked by
the real verifier, for people to look around in.

Rule: everything follows from the seed and the end: the same two give the same chains, byte for
byte. A lease goes through what a real one goes through; hosts reboot, clocks step, a unit in a
hundred cannot be proven clean and is fenced until somebody looks.

Does not touch hardware, and never mixes with real logs: it refuses an archive that has any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from heapq import heappop, heappush
from typing import Final

import msgspec

from leased.chain.head import GENESIS
from leased.chain.note import log_origin
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier
from leased.collector.archive.archive import Archive, LogEntry, Page
from leased.collector.demo_leases import Machine
from leased.terms.errors import StateError
from leased.terms.event import ClockStepped, Event, InventoryChanged, NodeStarted
from leased.terms.identity import BootId, EventId
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_S, Moment

PAGE_EVENTS: Final = 2_000
NAME: Final = "demo-{:03d}"
PREFIX: Final = "demo.invalid"


class Wish(msgspec.Struct, frozen=True):
    """What to make: `nodes` hosts over `days` that end at `until_ns`, with about `leases_per_day`
    each."""

    nodes: int
    days: int = 90
    seed: int = 1
    until_ns: int = 0
    leases_per_day: int = 24


class Node:
    """One host and its chain."""

    def __init__(self, wish: Wish, number: int) -> None:
        self.wish = wish
        self.number = number
        self.random = random.Random(f"{wish.seed}/{number}/{wish.until_ns}")
        self.node_id = self.entropy()
        self.log_id = self.entropy()
        self.origin = log_origin(PREFIX, self.log_id)
        self.signer = Signer(sha256(self.log_id).digest())
        self.sealer = Sealer(
            self.log_id,
            GENESIS,
            EMPTY,
            1,
            entropy=self.entropy,
            signer=self.signer,
            origin=self.origin,
        )
        self.boot_id = BootId(self.entropy())
        self.wall_ns = wish.until_ns - wish.days * DAY_NS
        self.boot_ns = self.sealed_ns = 30 * NS_PER_S
        self.machine = Machine(self.random, self.entropy, number)

    def entropy(self) -> bytes:
        """16 bytes of this host's own stream."""
        return self.random.randbytes(16)

    def moment(self) -> Moment:
        """Now: something is sealed."""
        self.sealed_ns = self.boot_ns
        return Moment(self.boot_id, self.boot_ns, self.wall_ns)

    def history(self) -> Iterator[tuple[Event, Moment]]:
        """Everything this host seals, in order."""
        yield from self._start(epoch=1)
        plan: list[tuple[int, int, str]] = []
        for index, at_ns in enumerate(self._arrivals()):
            heappush(plan, (at_ns, index, "arrive"))
        for index in range(self.wish.days // 30):
            at_ns = self.wall_ns + self.random.randrange(self.wish.days * DAY_NS)
            what = "reboot" if (self.number + index) % 4 == 0 else "step"
            heappush(plan, (at_ns, -1 - index, what))
        while plan or self.machine.due:
            at_ns, _, what = plan[0] if plan else (self.wish.until_ns, 0, "")
            due_ns = self.machine.due[0][0] if self.machine.due else at_ns
            if min(at_ns, due_ns) >= self.wish.until_ns:
                break
            if due_ns <= at_ns and self.machine.due:
                self._advance(due_ns)
                yield from self._stamped(self.machine.act(self.boot_ns, self.wall_ns))
                continue
            heappop(plan)
            self._advance(at_ns)
            if what == "arrive":
                yield from self._stamped(self.machine.arrive(self.boot_ns, self.wall_ns))
            elif what == "reboot":
                yield from self._reboot()
            else:
                delta_ns = self.random.choice((-2, 3)) * NS_PER_S
                yield ClockStepped(EventId(self.entropy()), delta_ns), self.moment()
        self._advance(self.wish.until_ns)
        yield ClockStepped(EventId(self.entropy()), 0), self.moment()

    def _arrivals(self) -> Iterator[int]:
        """When somebody asks: more by day than by night, more on workdays, and growing."""
        at_ns, end_ns = self.wall_ns, self.wish.until_ns
        while True:
            hour = at_ns // HOUR_NS % 24
            weekday = (at_ns // DAY_NS + 3) % 7
            percent = (160 if 8 <= hour < 19 else 60) * (50 if weekday >= 5 else 115) // 100
            percent += 40 * (at_ns - self.wall_ns) // (end_ns - self.wall_ns)
            mean_ns = DAY_NS * 100 // (self.wish.leases_per_day * percent)
            at_ns += self.random.randrange(1, 2 * mean_ns)
            if at_ns >= end_ns:
                return
            yield at_ns

    def _start(self, epoch: int) -> Iterator[tuple[Event, Moment]]:
        started = (self.boot_id, self.node_id, epoch, "0.1.0", "ext4", "strict")
        yield NodeStarted(EventId(self.entropy()), *started), self.moment()
        yield InventoryChanged(EventId(self.entropy()), self.machine.inventory()), self.moment()

    def _reboot(self) -> Iterator[tuple[Event, Moment]]:
        last_ns = self.sealed_ns
        self.boot_id = BootId(self.entropy())
        self.wall_ns += 120 * NS_PER_S
        self.boot_ns = 30 * NS_PER_S
        yield from self._start(epoch=2)
        yield from self._stamped(self.machine.reboot(self.boot_ns, self.wall_ns, last_ns))

    def _advance(self, wall_ns: int) -> None:
        passed_ns = max(0, wall_ns - self.wall_ns)
        self.wall_ns += passed_ns
        self.boot_ns += passed_ns

    def _stamped(self, events: list[Event]) -> Iterator[tuple[Event, Moment]]:
        moment = self.moment()
        for event in events:
            yield event, moment


Watch = Callable[[str, Event, Moment], None]


def make_fleet(
    archive: Archive,
    wish: Wish,
    progress: Callable[[str], None] = lambda text: None,
    watch: Watch = lambda node, event, moment: None,
) -> int:
    """Seal, verify and archive a fleet; how many records. `watch` sees each event, and of which
    node it is. Raises StateError."""
    if archive.logs():
        raise StateError(
            f"{archive.directory}: there are logs in it already; give --state an empty directory"
        )
    records = 0
    for number in range(wish.nodes):
        progress(f"node {number + 1} of {wish.nodes}")
        records += _make_node(archive, Node(wish, number), watch)
    return records


def _make_node(archive: Archive, node: Node, watch: Watch) -> int:
    log_id, name = node.log_id.hex(), NAME.format(node.number)
    node_id = node.node_id.hex()
    entry = LogEntry(log_id, node_id, name, node.origin, GENESIS)
    archive.add_log(entry)
    verifier = Verifier(
        node.log_id, GENESIS, EMPTY, batch=0, origin=node.origin, public_key=node.signer.public_key
    )
    waiting: list[tuple[Event, Moment]] = []
    before = GENESIS
    history = node.history()
    more = True
    while more:
        item = next(history, None)
        more = item is not None
        if item is not None:
            waiting.append(item)
            watch(node_id, *item)
        if len(waiting) < PAGE_EVENTS and more:
            continue
        if not waiting:
            break
        sealed = node.sealer.seal(waiting, sign=True)
        verifier.feed(sealed.frames)
        after = sealed.new_head
        contact_ns = waiting[-1][1].wall_ns
        page = Page(log_id, before, after, sealed.frames, b"", after.size - 1, "", contact_ns)
        (moved,) = archive.persist([page])
        assert moved is None, "nobody else writes this archive"
        before = after
        waiting = []
    return before.size
