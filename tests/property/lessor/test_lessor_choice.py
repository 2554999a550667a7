# SPDX-License-Identifier: Apache-2.0
"""Placement and preemption, whatever the resources and the leases are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from leased.lessor.placement import place, spans
from leased.lessor.preemption import EXACT_MAX, Candidates, Left, choose_victims, take
from leased.lessor.several import Enough, Stretches, choose_in_several
from leased.lessor.wholes import wholes_of
from leased.lessor.yielders import order_of
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.lease import LEVEL_OF, Lease, Level, Priority
from leased.terms.policy import Preemption
from leased.terms.resource import (
    Allotment,
    Ask,
    Resource,
    ResourceKind,
    TierKind,
    capacity_id,
)
from tests.doubles.desk import ANY_LEVEL, OPERATOR, PAGE, Desk, cores, mem

nodes = st.none() | st.integers(0, 2)
memory_asks = st.builds(
    lambda pages, node, tier: Ask(ResourceKind.MEM, pages * PAGE, tier, node),
    st.integers(1, 30),
    nodes,
    st.sampled_from([None, TierKind.DRAM, TierKind.CXL]),
)
cpu_asks = st.builds(
    lambda milli, node: Ask(ResourceKind.CPU, milli, node=node), st.integers(1, 4000), nodes
)
core_asks = st.builds(
    lambda count, node: Ask(ResourceKind.CPU, 1000 * count, node=node, exclusive=True),
    st.integers(1, 4),
    nodes,
)
gpu_asks = st.builds(
    lambda count, node: Ask(ResourceKind.GPU, 1, node=node, count=count), st.integers(1, 4), nodes
)
disk_asks = st.builds(
    lambda count, least: Ask(ResourceKind.BLOCK, least, count=count),
    st.integers(1, 2),
    st.integers(1, 40),
)
any_ask = memory_asks | cpu_asks | core_asks | gpu_asks | disk_asks
asks = st.lists(any_ask, min_size=1, max_size=4)


def devices() -> list[Resource]:
    """Four GPUs in two linked pairs across two nodes, and three namespaces."""
    gpus = (
        Resource(f"gpu:{n}", ResourceKind.GPU, None, 1000, 1000, n // 2, attributes=links)
        for n, links in enumerate((("nvlink", str(n ^ 1)),) for n in range(4))
    )
    disks = (Resource(f"block:{n}", ResourceKind.BLOCK, None, n, n) for n in (10, 20, 30))
    return [*gpus, *disks]


def desk_of(held: Sequence[Ask]) -> Desk:
    """A node of three kinds of memory, six cores and some devices, some of it held."""
    memory = (mem(0, 30), mem(1, 20), mem(2, 40, tier=TierKind.CXL))
    desk = Desk(*memory, *cores(6, per_node=2), *devices())
    for ask in held:
        desk.ask(ask)
    return desk


def frees(desk: Desk) -> dict[str, int]:
    """What is free of each resource."""
    return {pool.resource_id: pool.free for pool in desk.table.pools.by_id.values()}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(held=st.lists(any_ask, max_size=8), wanted=asks)
def test_a_placement_is_lawful_complete_and_repeatable(held: list[Ask], wanted: list[Ask]) -> None:
    desk = desk_of(held)
    free = frees(desk)
    placed = place(wanted, desk.table.pools)
    assert placed == place(wanted, desk.table.pools)
    assert frees(desk) == free, "looking changes nothing"
    if not isinstance(placed, tuple):
        assert_no_room(desk, wanted, placed)
        return
    rest = list(placed)
    for ask in wanted:
        whole = wholes_of(ask)
        if whole is not None:
            for share in rest[: whole.count]:
                resource = desk.table.pools.by_id[share.resource_id].resource
                assert resource.kind == ask.kind and ask.node in (None, resource.node)
                assert share.capacity == resource.capacity == free[share.resource_id]
                assert share.capacity >= whole.least
            rest = rest[whole.count :]
            continue
        left = ask.capacity
        while left > 0:
            share = rest.pop(0)
            resource = desk.table.pools.by_id[share.resource_id].resource
            assert share.capacity > 0 and resource.kind == ask.kind
            assert ask.node in (None, resource.node)
            assert ask.tier in (None, resource.tier)
            if ask.exclusive:
                assert share.capacity == resource.capacity == free[share.resource_id]
            left -= share.capacity
            assert left == 0 or spans(ask), "memory comes from one resource"
        assert left == 0
    assert rest == []
    for share in placed:
        free[share.resource_id] -= share.capacity
    assert min(free.values()) >= 0


def assert_no_room(desk: Desk, wanted: list[Ask], failed: int) -> None:
    """One ask alone is refused only if there is really no room for it."""
    if len(wanted) > 1:
        return
    ask = wanted[failed]
    pools = desk.table.pools.usable(ask)
    whole = wholes_of(ask)
    if whole is not None:
        able = [p for p in pools if p.free == p.capacity >= whole.least]
        assert len(able) < whole.count
    elif ask.exclusive:
        assert sum(p.capacity for p in pools if p.free == p.capacity) < ask.capacity
    elif spans(ask):
        assert sum(pool.free for pool in pools) < ask.capacity
    else:
        assert all(pool.free < ask.capacity for pool in pools)


leases = st.lists(
    st.tuples(st.sampled_from(list(Priority)), st.integers(1, 600), st.integers(1, 9)),
    min_size=1,
    max_size=10,
)


def victims_of(desk: Desk, level: Level) -> list[Lease]:
    """Who a request of that level could have leave, in order."""
    return list(
        Candidates(
            desk.table, Preemption(), level=level, pools=["mem:node0:4096"], now_ns=desk.now_ns
        )
    )


def held_pages(some: Sequence[Lease]) -> int:
    """Pages that `some` hold together."""
    shares: list[Allotment] = [a for lease in some for a in lease.subject.allotments]
    return sum(share.capacity for share in shares) // PAGE


@settings(max_examples=150, deadline=None, derandomize=True)
@given(drawn=leases, need=st.integers(1, 40), priority=st.sampled_from(list(Priority)))
def test_victims_are_less_important_sufficient_and_none_too_many(
    drawn: list[tuple[Priority, int, int]], need: int, priority: Priority
) -> None:
    desk = Desk(mem(0, 1000), policy=ANY_LEVEL)
    for rank, ttl, pages in drawn:
        desk.lease(Ask(ResourceKind.MEM, pages * PAGE), priority=rank, ttl=ttl)
        desk.sleep(0.01)
    desk.sleep(0.5)
    ordered = victims_of(desk, LEVEL_OF[priority])
    assert all(lease.subject.priority < priority for lease in ordered)

    def room(gone: Left) -> Left | None:
        over = -gone.get("mem:node0:4096", 0) - need * PAGE
        return None if over < 0 else {"mem:node0:4096": over}

    chosen = choose_victims(ordered, room, {})
    if chosen is None:
        assert held_pages(ordered) < need
        return
    assert held_pages(chosen) >= need
    for victim in chosen:
        others = [lease for lease in chosen if lease is not victim]
        assert held_pages(others) < need, "one of them need not go"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=leases)
def test_no_two_leases_can_preempt_each_other(drawn: list[tuple[Priority, int, int]]) -> None:
    desk = Desk(mem(0, 1000), policy=ANY_LEVEL)
    for rank, ttl, pages in drawn:
        desk.lease(Ask(ResourceKind.MEM, pages * PAGE), priority=rank, ttl=max(ttl, 200))
    desk.sleep(100)
    everyone = list(desk.table.leases.values())
    beats = {
        (winner.lease_id, victim.lease_id)
        for winner in everyone
        for victim in victims_of(desk, desk.table.level(winner))
    }
    assert not any((victim, winner) in beats for winner, victim in beats)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    held=st.lists(st.tuples(asks, st.sampled_from(list(Level)[:3])), max_size=10),
    wanted=asks,
)
def test_several_resources_at_once_get_the_victims_they_need_and_no_more(
    held: list[tuple[list[Ask], Level]], wanted: list[Ask]
) -> None:
    desk = desk_of([])
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, ANY_LEVEL, b"p" * 32, b"r" * 32))
    for some, level in held:
        desk.ask(*some, level=level, ttl=600)
    desk.sleep(100)
    before = frees(desk)
    acquire = desk.acquire(*wanted, level=Level.CRITICAL, wait=60)
    proposal = desk.propose(acquire)
    victims = [e.lease_id for e in proposal.events if isinstance(e, events.Preempted)]
    assert frees(desk) == before or not victims, "who is told to leave has not left yet"

    def fits(leaving: Sequence[bytes]) -> bool:
        gone: dict[str, int] = {}
        for lease_id in leaving:
            for share in desk.table.leases[lease_id].subject.allotments:
                name = capacity_id(share.resource_id)
                gone[name] = gone.get(name, 0) - share.capacity
        return isinstance(place(wanted, desk.table.pools, taken=gone), tuple)

    if victims:
        assert fits(victims)
        for victim in victims:
            assert desk.table.level(desk.table.leases[victim]) < Level.CRITICAL
            assert not fits([other for other in victims if other != victim]), "one need not go"


few_asks = st.lists(
    st.builds(lambda pages: Ask(ResourceKind.MEM, pages * PAGE), st.integers(1, 4))
    | st.builds(lambda milli: Ask(ResourceKind.CPU, milli), st.integers(50, 700))
    | st.just(Ask(ResourceKind.CPU, 1000, exclusive=True))
    | st.just(Ask(ResourceKind.GPU, 1, count=1)),
    min_size=1,
    max_size=3,
)
crowds = st.lists(
    st.tuples(
        few_asks,
        st.sampled_from([Level.BACKGROUND, Level.LOW, Level.NORMAL, Level.HIGH]),
        st.integers(120, 240),
        st.integers(0, 9),
    ),
    min_size=8,
    max_size=40,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    drawn=crowds,
    wanted=st.lists(any_ask, min_size=1, max_size=4),
    recalled=st.integers(0, 3),
    wait=st.sampled_from([1, 30, 59, 61]),
)
def test_counting_stretches_finds_whom_looking_one_by_one_finds(
    drawn: list[tuple[list[Ask], Level, int, int]],
    wanted: list[Ask],
    recalled: int,
    wait: int,
) -> None:
    desk = desk_of([])
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, ANY_LEVEL, b"p" * 32, b"r" * 32))
    for some, level, ttl, pause in drawn:
        desk.ask(*some, level=level, ttl=ttl)
        desk.sleep(pause / 10)
    desk.sleep(wait)
    table = desk.table
    pools = dict.fromkeys(pool.resource_id for ask in wanted for pool in table.pools.usable(ask))
    called = list(table.leases.values())[:recalled]
    others = {lease.lease_id: lease for lease in called}
    enough = Enough(wanted, table.pools, pools)

    def candidates() -> Candidates:
        return Candidates(
            table, Preemption(), level=Level.CRITICAL, pools=pools, now_ns=desk.now_ns
        )

    def room(gone: Left) -> Left | None:
        placed = place(wanted, table.pools, taken=gone)
        free = {name: table.pools.by_id[name].free - gone.get(name, 0) for name in pools}
        if not isinstance(placed, tuple):
            assert not (enough.exact and enough.holds(free)), "what is enough can be placed"
            return None
        assert enough.holds(free), "what can be placed is never said to be too much"
        take(free, placed, -1)
        return free

    def placeable(gone: Left) -> bool:
        return room(gone) is not None

    def sums(gone: Left) -> bool:
        return enough.holds({name: frees(desk)[name] - gone.get(name, 0) for name in pools})

    def below() -> list[Lease]:
        return [lease for lease in candidates() if lease.lease_id not in others]

    ordered = [*called, *below()]
    expected = choose_victims(ordered, room, {})
    some = candidates()
    found = choose_in_several(
        called,
        lambda: Stretches(table, some, pools, others),
        room,
        {},
        sums if enough.exact else placeable,
    )
    gone: Left = {}
    fits = [room(gone) is not None]
    for lease in ordered:
        take(gone, lease.subject.allotments, -1)
        fits.append(room(gone) is not None)
    if fits == sorted(fits):  # more room was never worse than less
        assert (found is None) == (expected is None)
        assert sorted(map(order_of, found or ())) == sorted(map(order_of, expected or ()))
    if found is not None:
        gone = {}
        for lease in found:
            take(gone, lease.subject.allotments, -1)
        assert room(gone) is not None and len(found) <= EXACT_MAX
        for lease in found:
            without = dict(gone)
            take(without, lease.subject.allotments, 1)
            assert room(without) is None, "one need not go"
