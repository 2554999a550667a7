# SPDX-License-Identifier: Apache-2.0
"""The SQL of metering equals the Python reference, cell by cell, on all that a node can have sealed
and some of what none would: restarts, reboots, clock steps, fences, renewals on other terms, voided
grants, early ends, records of leases that are over or that never began, and ids that are granted
again after their end, which no node does and a verified chain can hold."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.metering import blocks, lease_counts, node_amounts, tables
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import PROJECTION, RESULTS, SMALL_TABLES, check_engine, meter
from leased.collector.metering.projection import Carry, Projector, shape, tier_number
from leased.collector.metering.reference import Chain, ReferenceSource
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import HOUR_NS, NS_PER_S
from tests.doubles.economics_history import History, memory, subject

MINUTE_NS = 60 * NS_PER_S
TAGS = (None, AccountingTag("cc-1", "p"), AccountingTag("cc-2", flags=1))


class Script:
    """Seals what a node might, and some of what it never would."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.history = History(wall_offset_ns=self.random.randrange(3) * HOUR_NS + 17)
        self.history.boot_ns = self.random.randrange(1, 5) * MINUTE_NS
        self.live: list[int] = []
        self.over: list[int] = []
        self.granted: dict[int, list[int]] = {}
        self.open: set[int] = set()
        self.count = 0
        if self.random.random() < 0.9:
            self.history.start()

    def subject(self):
        pick = self.random.choice
        allotments = [
            memory(pick((0, 1, 7, 1 << 40)), name=pick(("mem:node0:4096", "mem:node1:4096")))
            for _ in range(pick((1, 1, 1, 2, 3)))
        ]
        return subject(
            *allotments,
            tenant=pick(("acme", "beta")),
            priority=pick(tuple(Priority)),
            tag=pick(TAGS),
        )

    def effective(self) -> int:
        """Now, or a while ago: also before it can have been."""
        back = self.random.choice((0, 0, 0, 1, MINUTE_NS, 40 * MINUTE_NS, 10 * HOUR_NS))
        return max(0, self.history.boot_ns - back)

    def deadline(self) -> int:
        return self.history.boot_ns + self.random.choice((0, 1, MINUTE_NS, HOUR_NS, 30 * HOUR_NS))

    def someone(self) -> int:
        return self.random.choice(self.live) if self.live else 0

    def step(self) -> None:
        h, pick = self.history, self.random.choice
        h.boot_ns += pick((0, 0, 1, 7 * MINUTE_NS, 25 * MINUTE_NS, 3 * HOUR_NS))
        number = self.someone()
        what = pick(OPERATIONS)
        if what in ("end", "fence", "void"):
            self.over.append(number)
        if what == "allocate" or not number:
            self.count += 1
            self.grant(self.count)
        elif what == "again":
            ended = sorted(self.granted.keys() - self.open)
            if ended:
                self.grant(pick(ended))
        elif what == "early":
            h.subjects[self.count + 1] = self.subject()
            pick((h.end, h.release, h.reclaim, h.unfence, h.fence))(self.count + 1)
        elif what == "renew":
            # A renewal that comes too late counts for nothing, but it cannot change what follows.
            other = None if number in self.over else self.subject()
            h.renew(number, self.deadline(), pick((None, None, other)))
        elif what == "drain":
            h.drain(number, self.deadline())
        elif what == "end":
            h.end(number, self.effective())
        elif what == "release":
            h.release(number, self.effective())
        elif what == "reclaim":
            h.reclaim(number)
            self.bury(number)
        elif what == "fence":
            h.fence(number, *pick(((), (memory(3),), (memory(1), memory(2)))))
        elif what == "unfence":
            h.unfence(number)
            self.bury(number)
        elif what == "void":
            h.void(pick(self.granted[number]))
        else:
            self.of_the_node(what)

    def grant(self, number: int) -> None:
        """Granted; its id may have been another lease's that is over."""
        granted = self.history.allocate(number, self.subject(), self.deadline())
        self.granted.setdefault(number, []).append(granted)
        self.open.add(number)
        self.over = [one for one in self.over if one != number]
        if number not in self.live:
            self.live.append(number)

    def bury(self, number: int) -> None:
        """Over; sometimes its records go on all the same."""
        self.over.append(number)
        self.open.discard(number)
        if self.random.random() < 0.8:
            self.live.remove(number)

    def of_the_node(self, what: str) -> None:
        h, pick = self.history, self.random.choice
        if what == "inventory":
            h.inventory(
                *pick(((), (memory(1 << 41),), (memory(9), memory(5, name="mem:node1:4096"))))
            )
        elif what == "operator_fence":
            h.fence_resource(memory(2), fenced=True)
        elif what == "clock":
            h.step_clock(pick((-HOUR_NS, -1, 1, 2 * HOUR_NS)))
        elif what == "restart":
            h.start()
        elif what == "reboot":
            self.over.extend(self.live)
            h.boot_number += 1
            h.boot_ns = pick((0, MINUTE_NS))
            h.wall_offset_ns += pick((0, HOUR_NS, 5 * HOUR_NS))
            h.start()
        else:
            h.touch()


OPERATIONS = (
    *("allocate",) * 6,
    *("renew",) * 3,
    *("end",) * 4,
    *("reclaim",) * 4,
    *("release",) * 3,
    *("drain", "fence", "unfence", "void", "inventory", "inventory", "again", "early"),
    *("operator_fence", "clock", "restart", "reboot", "touch"),
)
_ENGINE: list[DuckEngine] = []


def engine() -> DuckEngine:
    """One for all examples."""
    if not _ENGINE:
        _ENGINE.append(DuckEngine())
        check_engine(_ENGINE[0])
    return _ENGINE[0]


def project(node: int, script: Script, split: int) -> tuple[Chain, list[blocks.Block], object]:
    """A history folded, and projected in two blocks."""
    records = script.history.records
    node_id, log_id = f"{node:02x}" * 16, f"{node + 1:02x}" * 16
    number = int.from_bytes(bytes.fromhex(log_id)[:8], "big", signed=True)
    carry, made, rare = Carry(), [], []
    for part in (records[:split], records[split:]):
        projector = Projector(number, carry)
        for sequence, event, moment in part:
            projector.observe(sequence, event, moment)
        block = projector.block()
        carry, rare = block.carry, [*rare, *block.rare]
        made.append(block)
    chain = Chain(node_id, log_id).read(records, "ab" * 32)
    return chain, made, (number, shape(rare, carry))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.integers(1, 3))
def test_sql_and_reference_agree(seed: int, steps: int, nodes: int):
    chains, made, shapes = [], [], {}
    for node in range(nodes):
        script = Script(seed + node)
        for _ in range(steps):
            script.step()
        chain, parts, (number, found) = project(node, script, seed % (steps + 1))
        chains.append(chain)
        made.extend(parts)
        shapes[number] = found
    source = ReferenceSource(chains)
    duck = engine()
    projected = [blocks.arrow_tables(one) for one in made]
    for table in PROJECTION:
        duck.load_table(table, pyarrow.concat_tables([one[table] for one in projected]))
    duck.load_table("parties", blocks.party_table({one for part in made for one in part.parties}))
    for name, rows in tables.small_tables(shapes).items():
        duck.load(name, SMALL_TABLES[name], rows)
    meter(duck)

    def rows(name: str):
        return duck.query(f"SELECT {', '.join(RESULTS[name])} FROM {name}")

    window = (0, 1 << 62)
    assert tables.cells(rows("usage")) == source.cells(window)
    found = tables.peak_cells([*rows("peaks"), *rows("fleet_peaks")])
    assert found == source.peaks(window)
    assert tables.task_cells(rows("tasks")) == source.tasks(window)
    by_number = {chain.number: chain for chain in chains}
    quiet = {(by_number[log].node_id, s, e) for log, s, e in rows("quiet")}
    assert quiet == {(q.node_id, q.from_ns, q.to_ns) for q in source.quiet(window)}
    for tenant in source.tenants():
        inside, hours = (HOUR_NS, 60 * HOUR_NS), (0, 1, 24)[seed % 3]
        counted = lease_counts.ask(duck, (), tenant, inside, hours)
        assert counted == source.leases(inside, tenant, hours)
    inside = (HOUR_NS, 60 * HOUR_NS)
    names = {chain.number: chain.node_id for chain in chains}
    swept = node_amounts.ask(duck, (), names, inside)
    assert sorted(map(repr, swept)) == sorted(map(repr, source.node_amounts(inside)))
    for one in swept:
        held_at_all = one.tenant + one.teardown + one.fenced
        assert held_at_all + one.idle + one.missing == one.provisioned
    parts = Counter[Any]()
    for log, *what, capacity in rows("held"):
        parts[by_number[log].node_id, *what] += capacity
    held = sorted((*what, capacity) for what, capacity in parts.items())
    expected = sorted(
        (h.node_id, int(h.pool), h.tenant, int(h.kind), tier_number(h.tier), h.capacity)
        for h in source.held()
        if h.tenant
    )
    assert held == expected
    for log, one in shapes.items():
        assert one.watermark_ns == by_number[log].fold.watermark_ns()
    days = {(log, tenant, day) for log, tenant, day in rows("contributors")}
    for tenant in source.tenants():
        for day in {day for _, _, day in days}:
            span = (day * 24 * HOUR_NS, (day + 1) * 24 * HOUR_NS)
            expected_logs = {node.log_id for node in source.contributing(span, tenant)}
            assert expected_logs == {
                by_number[log].log_id for log, who, when in days if (who, when) == (tenant, day)
            }
