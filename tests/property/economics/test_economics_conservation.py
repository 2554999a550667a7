# SPDX-License-Identifier: Apache-2.0
"""Conservation: every nanosecond of every unit is paid for by exactly one pool, whatever happens.

The oracle is a world that ticks nanosecond by nanosecond and paints, per tick, what is true; it
knows nothing of intervals. It seals events late, restarts, reboots, fences and changes its
inventory.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from leased.economics.intervals import Ledger, fold
from leased.economics.meter import Meter, Sums, measure
from leased.economics.peaks import idle, peak, steps
from leased.economics.pools import Pool
from leased.terms.resource import Allotment, capacity_id
from tests.doubles.economics_history import History, memory, subject

NAMES = ("mem:node0:4096", "mem:node1:4096")
WAYS = tuple(name.replace("mem:", "mem:budget:") for name in NAMES)
CAPACITY = 40
OPERATIONS = (
    *("tick",) * 6,
    *("allocate",) * 3,
    *("reclaim", "fence", "renew"),
    "renew",
    "release",
    "seal_expiries",
    "reclaim",
    "fence",
    "unfence",
    "operator_fence",
    "operator_unfence",
    "inventory",
    "restart",
    "reboot",
    "clock",
    "touch",
)


class Tenancy:
    """One lease as the world knows it."""

    def __init__(self, allotments: tuple[Allotment, ...], deadline_ns: int) -> None:
        self.allotments = allotments
        self.deadline_ns = deadline_ns
        self.pool = Pool.TENANT
        self.sealed_end = False
        self.fenced: tuple[Allotment, ...] = ()


class World:
    """Ticks, and counts per (pool, resource) what each tick was."""

    def __init__(self) -> None:
        self.history = History(wall_offset_ns=10_000)
        self.leases: dict[int, Tenancy] = {}
        self.capacity = dict.fromkeys(NAMES, CAPACITY)
        self.fences = dict.fromkeys(NAMES, 0)
        self.truth: Counter[tuple[Pool, str]] = Counter()
        self._unsealed: Counter[tuple[Pool, str]] = Counter()
        self._records = 0
        self.history.start()
        self._inventory()
        self._settle()

    def step(self, operation: str, a: int, b: int) -> None:
        """Carry out one operation with two choices."""
        getattr(self, f"_{operation}")(a, b)
        self._settle()

    def _settle(self) -> None:
        """Ticks count only once a later record of their boot was sealed."""
        if len(self.history.records) > self._records:
            self._records = len(self.history.records)
            self.truth += self._unsealed
            self._unsealed = Counter()

    def _free(self, name: str) -> int:
        used = self.fences[name]
        for lease in self.leases.values():
            held = lease.fenced if lease.pool is Pool.FENCED else lease.allotments
            used += sum(a.capacity for a in held if capacity_id(a.resource_id) == name)
        return self.capacity[name] - used

    def _tick(self, a: int, b: int) -> None:
        for _ in range(1 + a % 7):
            now_ns = self.history.boot_ns
            left = Counter(self.capacity)
            for lease in self.leases.values():
                if lease.pool is Pool.TENANT and now_ns >= lease.deadline_ns:
                    lease.pool = Pool.TEARDOWN
                held = lease.fenced if lease.pool is Pool.FENCED else lease.allotments
                for allotment in held:
                    name = capacity_id(allotment.resource_id)
                    self._unsealed[(lease.pool, name)] += allotment.capacity
                    left[name] -= allotment.capacity
            for name, amount in self.fences.items():
                self._unsealed[(Pool.FENCED, name)] += amount
                left[name] -= amount
            for name, amount in left.items():
                assert amount >= 0, "the world itself oversold"
                self._unsealed[(Pool.IDLE, name)] += amount
                self._unsealed[(Pool.PROVISIONED, name)] += self.capacity[name]
            self.history.boot_ns += 1

    def _allocate(self, a: int, b: int) -> None:
        ways = WAYS if b % 3 == 0 else NAMES
        allotments = tuple(
            memory(1 + (a + i) % self._free(name), name=ways[i])
            for i, name in enumerate(NAMES[: 1 + b % 2])
            if self._free(name) > 0
        )
        if allotments:
            number = len(self.history.records)
            deadline_ns = self.history.boot_ns + 1 + b % 30
            self.leases[number] = Tenancy(allotments, deadline_ns)
            self.history.allocate(number, subject(*allotments, tenant=f"t{a % 2}"), deadline_ns)

    def _pick(self, a: int, pool: Pool, *, sealed_end: bool | None = None) -> int | None:
        found = [
            number
            for number, lease in sorted(self.leases.items())
            if lease.pool is pool and sealed_end in (None, lease.sealed_end)
        ]
        return found[a % len(found)] if found else None

    def _renew(self, a: int, b: int) -> None:
        number = self._pick(a, Pool.TENANT)
        if number is not None and self.history.boot_ns < self.leases[number].deadline_ns:
            self.leases[number].deadline_ns = self.history.boot_ns + 1 + b % 30
            self.history.renew(number, self.leases[number].deadline_ns)

    def _release(self, a: int, b: int) -> None:
        number = self._pick(a, Pool.TENANT)
        if number is not None and self.history.boot_ns < self.leases[number].deadline_ns:
            lease = self.leases[number]
            lease.pool, lease.sealed_end = Pool.TEARDOWN, True
            self.history.end(number)

    def _seal_expiries(self, a: int, b: int) -> None:
        for number, lease in sorted(self.leases.items()):
            if lease.pool is Pool.TEARDOWN and not lease.sealed_end:
                lease.sealed_end = True
                self.history.end(number, effective_ns=lease.deadline_ns)

    def _reclaim(self, a: int, b: int) -> None:
        number = self._pick(a, Pool.TEARDOWN, sealed_end=True)
        if number is not None:
            del self.leases[number]
            self.history.reclaim(number)

    def _fence(self, a: int, b: int) -> None:
        number = self._pick(a, Pool.TEARDOWN, sealed_end=True)
        if number is not None:
            lease = self.leases[number]
            lease.pool = Pool.FENCED
            lease.fenced = lease.allotments[: 1 + b % len(lease.allotments)]
            self.history.fence(number, *lease.fenced)

    def _unfence(self, a: int, b: int) -> None:
        number = self._pick(a, Pool.FENCED)
        if number is not None:
            del self.leases[number]
            self.history.unfence(number)

    def _operator_fence(self, a: int, b: int) -> None:
        name = NAMES[a % 2]
        if self._free(name) > 0:
            amount = 1 + b % self._free(name)
            self.fences[name] += amount
            self.history.fence_resource(memory(amount, name=name), fenced=True)

    def _operator_unfence(self, a: int, b: int) -> None:
        name = NAMES[a % 2]
        if self.fences[name]:
            amount = 1 + b % self.fences[name]
            self.fences[name] -= amount
            self.history.fence_resource(memory(amount, name=name), fenced=False)

    def _inventory(self, a: int = 0, b: int = 0) -> None:
        name = NAMES[a % 2]
        self.capacity[name] += b % 9 - min(4, self._free(name))
        amounts = tuple(self.capacity.values())
        self.history.inventory(
            *(memory(n, name=name) for name, n in zip(NAMES, amounts, strict=True)),
            *(memory(n, name=name) for name, n in zip(WAYS, amounts, strict=True)),
        )

    def _restart(self, a: int, b: int) -> None:
        self.history.wall_offset_ns += a % 100 - 50
        self.history.start()

    def _reboot(self, a: int, b: int) -> None:
        self._unsealed = Counter()
        self.history.boot_number += 1
        self.history.boot_ns = b % 10
        self.history.start()
        for number, lease in sorted(self.leases.items()):
            if lease.pool is Pool.TENANT or (lease.pool is Pool.TEARDOWN and not lease.sealed_end):
                lease.pool, lease.sealed_end = Pool.TEARDOWN, True
                self.history.end(number)

    def _clock(self, a: int, b: int) -> None:
        self.history.step_clock(a % 100 - 50)

    def _touch(self, a: int, b: int) -> None:
        self.history.touch()


def live(script: list[tuple[str, int, int]]) -> World:
    """A world that lived through `script`."""
    world = World()
    for operation, a, b in script:
        world.step(operation, a, b)
    return world


def long_script(seed: int) -> list[tuple[str, int, int]]:
    """200 steps drawn from `seed`: hypothesis alone prefers short histories."""
    draw = random.Random(seed)
    return [(draw.choice(OPERATIONS), draw.randrange(200), draw.randrange(200)) for _ in range(200)]


STEPS = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 200), st.integers(0, 200))
SCRIPTS = st.one_of(st.lists(STEPS, max_size=60), st.integers(0, 2**32).map(long_script))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SCRIPTS)
def test_every_pool_is_what_the_ticking_world_painted(script: list[tuple[str, int, int]]) -> None:
    world = live(script)
    ledger, found = fold(world.history.records)
    painted: Counter[tuple[Pool, str]] = Counter()
    for interval in [*found, *idle(found)]:
        name = capacity_id(interval.allotment.resource_id)
        painted[(interval.pool, name)] += interval.capacity_ns
    assert +painted == +world.truth
    assert not ledger.orphans and not ledger.clamped


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SCRIPTS, st.sampled_from((0, 1, 7, 50)))
def test_incremental_equals_batch_at_every_record_and_conserves(
    script: list[tuple[str, int, int]], bucket_ns: int
) -> None:
    records = live(script).history.records
    meter = Meter(bucket_ns)
    for index, record in enumerate(records):
        meter.observe(*record)
        if index % 5 and index != len(records) - 1:
            continue
        ledger, found = fold(records[: index + 1])
        batch = measure(found, ledger.timeline, bucket_ns)
        assert meter.totals().usage == batch.usage
        check_conserved(meter.totals())
        assert sum(i.capacity_ns for i in idle(found)) == sum(
            totals.idle for totals in batch.resources.values()
        )


def check_conserved(sums: Sums) -> None:
    """tenant + teardown + fenced + idle = provisioned, and the two tables agree."""
    for totals in sums.resources.values():
        paid = totals.tenant + totals.teardown + totals.fenced + totals.idle
        assert paid == totals.provisioned
        assert totals.idle >= 0
    assert sum(sums.usage.values()) == sum(
        t.tenant + t.teardown + t.fenced + t.provisioned for t in sums.resources.values()
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SCRIPTS)
def test_labels_keep_every_length_and_name_nothing_twice(
    script: list[tuple[str, int, int]],
) -> None:
    ledger, found = fold(live(script).history.records)
    by_resource: dict[str, list[tuple[int, int]]] = {}
    for interval in found:
        pieces = ledger.timeline.pieces(interval.boot_id, interval.start_ns, interval.end_ns)
        assert sum(p.end_ns - p.start_ns for p in pieces) == interval.end_ns - interval.start_ns
        if interval.pool is Pool.PROVISIONED:
            named = by_resource.setdefault(interval.allotment.resource_id, [])
            named.extend((p.start_ns, p.end_ns) for p in pieces)
    for named in by_resource.values():
        ordered = sorted(named)
        for (_, end_ns), (start_ns, _) in zip(ordered, ordered[1:], strict=False):
            assert end_ns <= start_ns


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9)), max_size=12))
def test_the_sweep_agrees_with_looking_at_every_nanosecond(
    spans: list[tuple[int, int, int]],
) -> None:
    held = [sum(c for s, e, c in spans if s <= t < e) for t in range(41)]
    best = peak(spans)
    assert best.capacity == max(held)
    if best.capacity:
        assert best.at_ns == held.index(best.capacity)
    swept = [0] * 41
    for step in steps(spans):
        for t in range(step.start_ns, step.end_ns):
            swept[t] = step.capacity
    assert swept == held


def test_the_ledger_forgets_leases_that_are_closed() -> None:
    history = History()
    ledger = Ledger()
    for number in range(1, 500):
        history.allocate(number, subject(memory(1)), history.boot_ns + 10)
        history.boot_ns += 1
        history.end(number)
        history.reclaim(number)
    for record in history.records:
        ledger.observe(*record)
    assert ledger.open_intervals() == []
    assert not ledger._leases and not ledger._granted_by
