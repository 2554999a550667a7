# SPDX-License-Identifier: Apache-2.0
"""What policies promise over time: cascades end, shares converge, nobody starves, and of those who
could make way no one leaves in vain.
"""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.lessor.fairness import INDEX_ONE, jain_index
from leased.lessor.placement import place
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Caller
from leased.terms.lease import Lease, LeaseState, Level
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Allocation, Policy, Preemption, Strategy, TenantLimits
from leased.terms.reply import Granted, Reply
from leased.terms.resource import Ask, ResourceKind, capacity_id
from tests.doubles.desk import ANY_LEVEL, OPERATOR, Desk, ask_mem, cores, mem, tenant

LEAVING = (LeaseState.REVOKING, LeaseState.SCRUBBING, LeaseState.VERIFYING)


def settle(desk: Desk) -> None:
    """What has ended is made clean, what was granted is used."""
    moved = True
    while moved:
        moved = False
        for lease in tuple(desk.table.leases.values()):
            if lease.state in LEAVING:
                desk.reclaim(lease)
                moved = True
            elif lease.state is LeaseState.GRANTED:
                desk.activate(lease)
                moved = True


def pass_until(desk: Desk, end_ns: int) -> None:
    """Time goes on, instant by instant."""
    while (due_ns := desk.lessor.next_deadline_ns()) is not None and due_ns <= end_ns:
        desk.now_ns = max(desk.now_ns, due_ns)
        desk.tick()
        settle(desk)
    desk.now_ns = end_ns


# ---- fair shares ---------------------------------------------------------------------------------


def used_by_weight(weights: list[int], minutes: int) -> list[int]:
    """Page-seconds of tenants that all want everything all the time, by weight."""
    names = [f"t{n}" for n in range(len(weights))]
    callers = [tenant(name, 1000 + n) for n, name in enumerate(names)]
    fair = Allocation(
        ResourceKind.MEM,
        strategy=Strategy.FAIR_SHARE,
        min_share_pm=0,
        max_share_pm=1000,
        weights_pm=tuple((c.tenant, 1000 * w) for c, w in zip(callers, weights, strict=True)),
    )
    named = tuple((caller.tenant, TenantLimits()) for caller in callers)
    desk = Desk(mem(0, 6), policy=Policy(allocations=(fair,), tenants=named))
    end_ns = desk.now_ns + minutes * 60 * NS_PER_S
    while desk.now_ns < end_ns:
        queued = [str(one.acquire.caller.tenant) for one in desk.lessor.queue]
        for name, caller in zip(names, callers, strict=True):
            for _ in range(6 - queued.count(name)):
                desk.ask(ask_mem(1), caller=caller, ttl=60, wait=7200)
        settle(desk)
        pass_until(desk, desk.now_ns + 30 * NS_PER_S)
    held = dict.fromkeys(names, 0)
    for event, _ in desk.history:
        if isinstance(event, events.Reclaimed):
            held[event.subject.tenant] += sum(event.held_capacity_ns)
    return list(held.values())


@pytest.mark.parametrize("weights", [[1, 6], [5, 3, 2], [1, 1, 4]])
def test_capacity_seconds_converge_to_the_weights(weights: list[int]) -> None:
    """Under saturation each has its part of all that was used, to within one in twenty."""
    used = used_by_weight(weights, minutes=60)
    for mine, weight in zip(used, weights, strict=True):
        off = abs(mine * sum(weights) - weight * sum(used))
        assert off * 20 <= sum(used) * sum(weights), (weights, used)


def test_with_equal_weights_jains_index_goes_to_one() -> None:
    used = used_by_weight([1] * 4, minutes=60)
    assert jain_index([(one, 1) for one in used]) >= INDEX_ONE * 995 // 1000, used


# ---- no starvation -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    small=st.lists(st.tuples(st.integers(1, 4), st.integers(5, 60)), min_size=1, max_size=6),
    pages=st.integers(9, 12),
)
def test_a_large_request_is_served_before_a_stream_of_small_ones(
    small: list[tuple[int, int]], pages: int
) -> None:
    """Where no lease may become older than 100 s, whoever is at the head has waited no longer, for
    all that others ask for and renew.
    """
    limits = TenantLimits(duration_ns_max=100 * NS_PER_S, level_max=Level.NORMAL)
    desk = Desk(mem(0, 12), policy=Policy(tenant_default=limits))
    others, me = tenant("others", 2000), tenant("me", 3000)
    for count, ttl in small * 3:
        desk.ask(ask_mem(count), caller=others, ttl=ttl, wait=600)
    settle(desk)
    asked_ns = desk.now_ns
    request = desk.acquire(ask_mem(pages), caller=me, ttl=60, wait=3600)
    ahead = len(desk.lessor.queue)
    served = desk.say(request)
    number = 0
    while served is None:
        count, ttl = small[number % len(small)]
        number += 1
        desk.ask(ask_mem(count), caller=others, ttl=ttl, wait=600)
        for lease in tuple(desk.table.leases.values()):
            if lease.subject.tenant == others.tenant and lease.state is LeaseState.ACTIVE:
                desk.renew(lease, caller=others)
        settle(desk)
        pass_until(desk, desk.now_ns + 2 * NS_PER_S)
        served = desk.answers.get(request.command_id)
        waited_s = (desk.now_ns - asked_ns) // NS_PER_S
        assert waited_s <= 102 * (ahead + 1), "it starves"
    assert isinstance(served, Granted)


# ---- cascades ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 8), st.sampled_from(list(Level))),
        min_size=2,
        max_size=14,
    )
)
def test_every_cascade_of_preemptions_ends(asked: list[tuple[int, int, Level]]) -> None:
    """Whoever is put out asks again at the head of its level, and all renew for ever: after as many
    grace periods as there are levels nobody puts anybody out any more.
    """
    policy = Policy(
        tenant_default=TenantLimits(level_max=Level.CRITICAL),
        preemption=Preemption(runtime_ns_min_standard=0, cooldown_ns=0),
    )
    desk = Desk(mem(0, 10), policy=policy)
    callers = [tenant(f"t{n}", 1000 + n) for n in range(4)]
    again: dict[bytes, None] = {}

    def ask(caller: Caller, pages: int, level: Level, requeue_of: Lease | None) -> Reply | None:
        return desk.ask(
            ask_mem(pages),
            caller=caller,
            level=level,
            ttl=60,
            wait=80_000,
            requeue_of=None if requeue_of is None else requeue_of.lease_id,
        )

    def live(seconds: int) -> None:
        end_ns = desk.now_ns + seconds * NS_PER_S
        while desk.now_ns < end_ns:
            settle(desk)
            for lease in tuple(desk.table.leases.values()):
                caller = next(c for c in callers if c.tenant == lease.subject.tenant)
                if lease.state is LeaseState.ACTIVE:
                    desk.renew(lease, caller=caller)
                elif lease.state is LeaseState.DRAINING and lease.lease_id not in again:
                    again[lease.lease_id] = None
                    pages = sum(a.capacity for a in lease.subject.allotments) // 4096
                    ask(caller, pages, desk.table.level(lease), lease)
            pass_until(desk, desk.now_ns + 10 * NS_PER_S)

    for who, pages, level in asked:
        ask(callers[who], pages, level, None)
        live(10)
    live(len(Level) * 40)
    told = sum(isinstance(event, events.Preempted) for event, _ in desk.history)
    assert told <= len(asked) * 8 * (len(Level) - 1)
    live(600)
    after = sum(isinstance(event, events.Preempted) for event, _ in desk.history)
    assert after == told, "they put each other out for ever"


# ---- the least set of victims --------------------------------------------------------------------

several = st.lists(
    st.one_of(
        st.builds(ask_mem, st.integers(1, 6), node=st.sampled_from([None, 0, 1])),
        st.builds(lambda n: Ask(ResourceKind.CPU, 500 * n), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    held=st.lists(st.tuples(several, st.sampled_from(list(Level)[:3])), max_size=8),
    wanted=several,
)
def test_by_brute_force_no_fewer_of_the_victims_would_do(
    held: list[tuple[list[Ask], Level]], wanted: list[Ask]
) -> None:
    """Every subset of them is tried; and where nobody is told, all of them would not do."""
    desk = Desk(mem(0, 8), mem(1, 6), *cores(3), policy=ANY_LEVEL)
    desk.say(commands.SetPolicy(desk.command_id(), OPERATOR, ANY_LEVEL, b"p" * 32, b"r" * 32))
    for some, level in held:
        desk.ask(*some, level=level, ttl=600)
    desk.sleep(100)
    before = tuple(desk.table.leases)
    proposal = desk.propose(desk.acquire(*wanted, level=Level.CRITICAL, wait=60))
    if any(isinstance(event, events.Allocated | events.Refused) for event in proposal.events):
        return
    victims = [event.lease_id for event in proposal.events if isinstance(event, events.Preempted)]

    def fits(leaving: tuple[bytes, ...]) -> bool:
        gone: dict[str, int] = {}
        for lease_id in leaving:
            for share in desk.table.leases[lease_id].subject.allotments:
                name = capacity_id(share.resource_id)
                gone[name] = gone.get(name, 0) - share.capacity
        return isinstance(place(wanted, desk.table.pools, taken=gone), tuple)

    if not victims:
        assert not fits(before), "they could have made way"
        return
    assert fits(tuple(victims))
    for size in range(len(victims)):
        for fewer in combinations(victims, size):
            assert not fits(fewer), "fewer of them would do"
