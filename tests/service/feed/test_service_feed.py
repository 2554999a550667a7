# SPDX-License-Identifier: Apache-2.0
"""The feed: committed batches in order, one gap for whoever is too slow, an end for everybody."""

from __future__ import annotations

import pytest
import trio

from leased.service.batch import Told
from leased.service.telling.feed import Feed
from leased.terms.event import HealthChanged
from leased.terms.identity import BootId, EventId
from leased.terms.lease import LeaseState
from leased.terms.moment import Moment
from tests.doubles.serving import Host


def told(sequence: int) -> Told:
    """A batch of one event that is about no lease."""
    event = HealthChanged(EventId(sequence.to_bytes(16, "big")), "mem:node0:4096", 1, 0)
    return Told(Moment(BootId(bytes(16)), sequence, 0), (event,), [sequence], (bytes(32),))


async def test_every_batch_arrives_once_and_in_order() -> None:
    feed = Feed(lambda lease_id: None)
    with feed.subscribe() as one, feed.subscribe() as other:
        for sequence in range(10):
            feed.tell(told(sequence))
        for subscription in (one, other):
            seen = [(await subscription.receive()).sequence for _ in range(10)]
            assert seen == list(range(10))
    assert feed.sequence == 9


@pytest.mark.autojump
async def test_who_lags_gets_one_gap_and_then_nothing() -> None:
    feed = Feed(lambda lease_id: None)
    with feed.subscribe(backlog=3) as slow, feed.subscribe(backlog=100) as quick:
        for sequence in range(50):
            feed.tell(told(sequence))
        got = [await slow.receive() for _ in range(4)]
        assert [change.gap for change in got] == [False, False, False, True]
        assert slow.lagged
        with trio.move_on_after(60) as waited:
            await slow.receive()
        assert waited.cancelled_caught, "after the gap nothing comes"
        assert [(await quick.receive()).sequence for _ in range(50)] == list(range(50))


async def test_an_end_ends_every_stream() -> None:
    feed = Feed(lambda lease_id: None)
    with feed.subscribe() as subscription:
        feed.tell(told(1))
        feed.close()
        assert (await subscription.receive()).sequence == 1
        with pytest.raises(trio.EndOfChannel):
            await subscription.receive()


async def test_who_has_left_costs_nothing() -> None:
    feed = Feed(lambda lease_id: None)
    with feed.subscribe() as subscription:
        pass
    feed.tell(told(1))
    with trio.move_on_after(0) as waited:
        await subscription.receive()
    assert waited.cancelled_caught


@pytest.mark.autojump
async def test_nothing_uncommitted_is_ever_shown() -> None:
    async with Host().standing() as host, host.agent() as agent:
        with agent.feed.subscribe() as subscription:
            agent.journal.gate.shut()
            box = agent.submit(host.acquire(3))
            await agent.journal.gate.reached.wait()
            with trio.move_on_after(30) as waited:
                await subscription.receive()
            assert waited.cancelled_caught and agent.lessor.table.live == 1
            agent.journal.gate.open()
            change = await subscription.receive()
            [lease] = change.leases
            assert lease.state is LeaseState.GRANTED
            assert change.sequence == host.chain()[-1][0] or box.replies
            await box.reply()
            [active] = (await subscription.receive()).leases
            assert active.state is LeaseState.ACTIVE
