# SPDX-License-Identifier: Apache-2.0
"""What is lent to those behind never delays the head, and is called back if others leave early."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from leased.lessor.backfill import teardown_most_ns
from leased.terms import event as events
from leased.terms.bounds import Bounds, publish
from leased.terms.lease import LeaseState, Level
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Granted, Planned, Refusal, RefusalReason
from leased.terms.resource import Ask, Resource, ResourceKind
from tests.doubles.desk import ACME, ANY_LEVEL, BETA, Desk, ask_mem, mem, tenant

PAGES = 20
CARL = tenant("carl", 3000)
TEARDOWN = Bounds(NS_PER_S // 10, NS_PER_S // 10, NS_PER_S // 5, NS_PER_S // 10)
"""Half a second in all."""


def desk_of(*, lends: bool) -> Desk:
    """A node that says how long its teardown takes, or one that does not and so lends nothing."""
    memory = mem(0, PAGES)
    return Desk(publish(memory, TEARDOWN) if lends else memory, policy=ANY_LEVEL)


def pass_until(desk: Desk, end_ns: int) -> None:
    """Time goes on; what ends is clean half a second later, as late as it may be."""
    while True:
        due_ns = desk.lessor.next_deadline_ns()
        if due_ns is None or due_ns > end_ns:
            break
        desk.now_ns = max(desk.now_ns, due_ns)
        desk.tick()
        ended = [
            lease
            for lease in desk.table.leases.values()
            if lease.state in (LeaseState.REVOKING, LeaseState.SCRUBBING)
        ]
        if ended:
            desk.now_ns += TEARDOWN.total_ns
            for lease in ended:
                desk.reclaim(lease)
    desk.now_ns = max(desk.now_ns, end_ns)


held = st.lists(st.tuples(st.integers(1, 8), st.integers(5, 60)), min_size=1, max_size=5)
asked = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=6
)


def start_of_head(
    desk: Desk, leases: Sequence[tuple[int, int]], head: int, others: Sequence[tuple[int, int, int]]
) -> int | None:
    """When the head was granted, if it was."""
    for pages, ttl in leases:
        granted = desk.ask(ask_mem(pages), ttl=ttl)
        if isinstance(granted, Granted):
            desk.activate(granted.lease)
    request = desk.acquire(ask_mem(head), caller=BETA, ttl=100, wait=3_600)
    if desk.say(request) is not None:
        return None
    for pages, ttl, pause in others:
        reply = desk.ask(ask_mem(pages), caller=CARL, ttl=ttl)
        if isinstance(reply, Granted):
            desk.activate(reply.lease)
        pass_until(desk, desk.now_ns + pause * NS_PER_S)
    pass_until(desk, desk.now_ns + 200 * NS_PER_S)
    for event, moment in desk.history:
        if isinstance(event, events.Allocated) and event.subject.tenant == BETA.tenant:
            return moment.boot_ns
    return None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(leases=held, head=st.integers(2, PAGES), others=asked)
def test_the_head_begins_when_it_would_have_begun(
    leases: list[tuple[int, int]], head: int, others: list[tuple[int, int, int]]
) -> None:
    alone = start_of_head(desk_of(lends=False), leases, head, others)
    lending = desk_of(lends=True)
    beside = start_of_head(lending, leases, head, others)
    if alone is None:
        assert beside is None
        return
    # Every teardown of the two histories takes as long as it may, one after the other.
    slack_ns = TEARDOWN.total_ns * (len(leases) + len(others))
    assert beside is not None and beside <= alone + slack_ns


def test_what_is_free_until_the_head_can_begin_is_lent_and_not_longer() -> None:
    desk = desk_of(lends=True)
    desk.lease(ask_mem(15), ttl=60)
    head = desk.acquire(ask_mem(10), caller=BETA, wait=600)
    assert desk.say(head) is None
    late = desk.ask(ask_mem(5), caller=CARL, ttl=60)
    assert isinstance(late, Refusal) and late.reason is RefusalReason.NO_CAPACITY
    planned = desk.lessor.questions.plan(desk.acquire(ask_mem(5), caller=CARL, ttl=59), desk.now_ns)
    assert isinstance(planned, Planned) and planned.refusal is None
    lent = desk.lease(ask_mem(5), caller=CARL, ttl=59)
    admitted = next(e for e, _ in desk.history if isinstance(e, events.Admitted))
    assert admitted.backfill_until_ns == desk.now_ns + 60 * NS_PER_S - TEARDOWN.total_ns
    desk.sleep(30)
    denied = desk.renew(lent, ttl=59, caller=CARL)
    assert isinstance(denied, Refusal) or desk.at(lent).deadline_ns == admitted.backfill_until_ns
    pass_until(desk, desk.now_ns + 31 * NS_PER_S)
    assert isinstance(desk.answers[head.command_id], Granted)


def test_what_is_lent_is_called_back_when_somebody_leaves_early() -> None:
    desk = desk_of(lends=True)
    long = desk.lease(ask_mem(15), ttl=300)
    head = desk.acquire(ask_mem(20), caller=BETA, wait=600)
    assert desk.say(head) is None
    lent = desk.lease(ask_mem(5), caller=CARL, ttl=200, grace=10)
    behind = desk.acquire(ask_mem(5), caller=ACME, wait=600, level=Level.LOW)
    assert desk.say(behind) is None
    assert desk.at(lent).state is LeaseState.ACTIVE, "whoever came later calls nothing back"
    desk.sleep(20)
    desk.release(long)
    desk.reclaim(long)
    assert desk.at(lent).state is LeaseState.DRAINING
    assert desk.at(lent).drain_deadline_ns == desk.now_ns + 10 * NS_PER_S
    pass_until(desk, desk.now_ns + 11 * NS_PER_S)
    assert isinstance(desk.answers[head.command_id], Granted)


def test_who_waits_behind_is_lent_to_as_well() -> None:
    desk = desk_of(lends=True)
    first = desk.lease(ask_mem(5), ttl=20)
    desk.lease(ask_mem(15), ttl=300)
    head = desk.acquire(ask_mem(20), caller=BETA, wait=600)
    small = desk.acquire(ask_mem(4), caller=CARL, ttl=100, wait=600)
    assert desk.say(head) is None and desk.say(small) is None
    desk.release(first)
    desk.reclaim(first)
    assert isinstance(desk.answers[small.command_id], Granted)
    assert head.command_id not in desk.answers


def test_nothing_is_lent_of_what_does_not_say_how_long_its_teardown_takes() -> None:
    desk = desk_of(lends=False)
    desk.lease(ask_mem(15), ttl=60)
    assert desk.ask(ask_mem(10), caller=BETA, wait=600) is None
    assert isinstance(desk.ask(ask_mem(5), caller=CARL, ttl=5), Refusal)


def test_namespaces_are_lent_only_if_all_of_them_are_clean_in_time_one_after_the_other() -> None:
    """They may be of one drive; the bound of one was taken for any number of them."""
    spaces = [
        publish(Resource(f"block:aa0{n}", ResourceKind.BLOCK, None, 1 << 30, 512), TEARDOWN)
        for n in range(3)
    ]
    desk = Desk(*spaces, policy=ANY_LEVEL)
    table = desk.table
    for count, parts in ((0, 1), (1, 1), (3, 3)):
        ask = Ask(ResourceKind.BLOCK, 1 << 30, count=count)
        most_ns = teardown_most_ns(table, desk.acquire(ask))
        assert most_ns == NS_PER_S // 10 + parts * (TEARDOWN.total_ns - NS_PER_S // 10)
