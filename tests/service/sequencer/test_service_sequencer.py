# SPDX-License-Identifier: Apache-2.0
"""The spine: answers only after durability, one batch for what waits, bounded channel, places in
the queue that are given up with their connection, a clean stop.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from leased.service.evidence import NO_COMMAND
from leased.service.sequencer import PLANS_MAX
from leased.terms.command import (
    Heartbeat,
    ListLeases,
    ListResources,
    Plan,
    Release,
    Renew,
    Revoke,
)
from leased.terms.lease import LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.reply import (
    Changed,
    Done,
    Granted,
    Inventoried,
    Listed,
    Planned,
    Refusal,
    RefusalReason,
)
from tests.doubles.desk import ACME, OPERATOR
from tests.doubles.serving import Host

pytestmark = pytest.mark.autojump


async def test_no_reply_leaves_while_the_journal_blocks() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease()
        agent.journal.gate.shut()
        renewed = agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
        refused = agent.submit(host.acquire(100_000))
        asked = agent.submit(ListLeases(host.command_id(), ACME))
        renewals = len([call for call in host.reaper.calls if call[0] == "renew"])
        await trio.sleep(30)
        assert agent.journal.gate.reached.is_set()
        boxes = (renewed, refused, asked)
        assert [box.replies for box in boxes] == [[], [], []], "answered before it was durable"
        assert renewals == len([call for call in host.reaper.calls if call[0] == "renew"])
        agent.journal.gate.open()
        assert isinstance(await renewed.reply(), Changed)
        assert isinstance(await refused.reply(), Refusal)
        listed = await asked.reply()
        assert isinstance(listed, Listed) and listed.leases[0].generation == 1


async def test_a_question_never_sees_an_uncommitted_table() -> None:
    async with Host().standing() as host, host.agent() as agent:
        agent.journal.gate.shut()
        grant = agent.submit(host.acquire(5))
        await agent.journal.gate.reached.wait()
        asked = agent.submit(ListResources(host.command_id(), ACME))
        await trio.sleep(1)
        assert not asked.replies, "the table was shown while a grant in it was not durable"
        agent.journal.gate.open()
        told = await asked.reply()
        assert isinstance(told, Inventoried) and told.use[0].leased == 5 * 4096
        assert isinstance(await grant.reply(), Granted)
        assert agent.journal.commits


async def test_what_waits_is_one_commit_up_to_the_limit() -> None:
    async with Host().standing() as host, host.agent(batch_commands_max=10) as agent:
        lease = await agent.lease()
        await trio.sleep(1)
        agent.journal.gate.shut()
        first = agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
        await agent.journal.gate.reached.wait()
        before = len(agent.journal.commits)
        boxes = [agent.submit(Renew(host.command_id(), ACME, lease.lease_id)) for _ in range(25)]
        agent.journal.gate.open()
        for box in (first, *boxes):
            assert isinstance(await box.reply(), Changed)
        counts = agent.journal.commits[before:]
        assert counts[1:4] == [10, 10, 5], "25 commands in batches of 10"


async def test_a_full_channel_refuses_busy_and_the_agent_itself_is_heard() -> None:
    async with Host().standing() as host, host.agent(commands_max=4) as agent:
        lease = await agent.lease()
        agent.journal.gate.shut()
        agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
        await agent.journal.gate.reached.wait()
        taken = [agent.submit(ListLeases(host.command_id(), ACME)) for _ in range(4)]
        refused = agent.submit(ListLeases(host.command_id(), ACME))
        assert len(refused.replies) == 1, "a full channel must answer at once"
        [busy] = refused.replies
        assert isinstance(busy, Refusal)
        assert (busy.reason, busy.limit, busy.usage) == (RefusalReason.BUSY, 4, 4)
        assert busy.retry_at_ns == host.clock.now().boot_ns
        beat: list[object] = []
        agent.sequencer.submit_own(Heartbeat(NO_COMMAND), beat.append)
        agent.journal.gate.open()
        for box in taken:
            assert isinstance(await box.reply(), Listed)
        assert isinstance(await agent.ask(ListLeases(host.command_id(), ACME)), Listed)
        assert beat == [Done()]


async def test_what_the_agent_itself_has_to_do_makes_nobody_busy() -> None:
    """Thousands of leases that end at once: a client waits for its turn, and has it."""
    async with Host().standing() as host, host.agent(commands_max=4) as agent:
        lease = await agent.lease()
        for _ in range(10):
            agent.sequencer.submit_own(Heartbeat(NO_COMMAND))
        boxes = [agent.submit(Renew(host.command_id(), ACME, lease.lease_id)) for _ in range(4)]
        busy = agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
        assert [reply.reason for reply in busy.replies] == [RefusalReason.BUSY]
        for box in boxes:
            assert isinstance(await box.reply(), Changed)
        for _ in range(3):
            assert isinstance(await agent.ask(ListLeases(host.command_id(), ACME)), Listed)


async def test_stop_refuses_new_answers_what_waits_and_seals_it() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(1024)
        waiting = agent.submit(host.acquire(1, wait_s=1000))
        queued = agent.submit(ListLeases(host.command_id(), ACME))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.stop)
            await trio.testing.wait_all_tasks_blocked()
            late = agent.submit(host.acquire(1))
        [refused] = late.replies
        assert isinstance(refused, Refusal) and refused.reason is RefusalReason.STOPPING
        assert isinstance(await queued.reply(), Listed)
        ended = await waiting.reply()
        assert isinstance(ended, Refusal) and ended.reason is RefusalReason.STOPPING
        assert agent.at(lease.lease_id).state is LeaseState.ACTIVE, "leases go on"
    assert host.sealed()[-1] in ("NodeStopped", "CheckpointSigned")
    assert "NodeStopped" in host.sealed()
    assert lease.lease_id in host.reaper.slots, "the reaper keeps what the agent left"


# ---- callers that go -----------------------------------------------------------------------------


async def test_a_place_in_the_queue_is_given_up_with_its_caller() -> None:
    async with Host().standing() as host, host.agent() as agent:
        everything = await agent.lease(1024)
        request = host.acquire(1, wait_s=1000)
        gone = agent.submit(request)
        await trio.sleep(1)
        assert len(agent.lessor.queue) == 1
        agent.sequencer.forget_waiter(request.command_id, gone)
        await trio.sleep(1)
        assert len(agent.lessor.queue) == 0
        await agent.ask(Release(host.command_id(), ACME, everything.lease_id))
        await agent.until(everything.lease_id, LeaseState.RECLAIMED)
        assert not gone.replies and host.sealed().count("Allocated") == 1


async def test_a_caller_gone_before_its_request_was_read_leaves_no_place() -> None:
    """The connection ends while its request is still on the channel."""
    async with Host().standing() as host, host.agent() as agent:
        everything = await agent.lease(1024)
        agent.journal.gate.shut()
        agent.submit(Renew(host.command_id(), ACME, everything.lease_id))
        await agent.journal.gate.reached.wait()
        request = host.acquire(1, wait_s=1000)
        gone = agent.submit(request)
        agent.sequencer.forget_waiter(request.command_id, gone)
        agent.journal.gate.open()
        await trio.sleep(1)
        assert len(agent.lessor.queue) == 0, "nobody is there any more to take the lease"


async def test_a_caller_gone_before_its_request_was_looked_at_is_granted_nothing() -> None:
    """A disk that hangs: who had enough of it had its lease when it went on, and nobody knew."""
    async with Host().standing() as host, host.agent() as agent:
        held = await agent.lease(1)
        agent.journal.gate.shut()
        agent.submit(Renew(host.command_id(), ACME, held.lease_id))
        await agent.journal.gate.reached.wait()
        request = host.acquire(1)
        gone = agent.submit(request)
        agent.sequencer.forget_waiter(request.command_id, gone)
        retry = agent.submit(request)
        twice = host.acquire(1)
        agent.sequencer.forget_waiter(twice.command_id, agent.submit(twice))
        agent.journal.gate.open()
        with trio.fail_after(60):
            assert isinstance(await retry.reply(), Granted), "it is asked for again"
        assert not gone.replies and host.sealed().count("Allocated") == 2


async def test_a_retry_from_a_new_connection_keeps_the_place() -> None:
    """The old connection is found dead only after the retry came in."""
    async with Host().standing() as host, host.agent() as agent:
        everything = await agent.lease(1024)
        request = host.acquire(1, wait_s=1000)
        old = agent.submit(request)
        await trio.sleep(1)
        fresh = agent.submit(request)
        agent.sequencer.forget_waiter(request.command_id, old)
        await trio.sleep(1)
        assert len(agent.lessor.queue) == 1, "the retry lost its place to its own dead connection"
        await agent.ask(Release(host.command_id(), ACME, everything.lease_id))
        with trio.fail_after(60):
            assert isinstance(await fresh.reply(), Granted)


async def test_two_waiters_of_one_request_are_both_answered() -> None:
    async with Host().standing() as host, host.agent() as agent:
        everything = await agent.lease(1024)
        request = host.acquire(1, wait_s=1000)
        first, second = agent.submit(request), agent.submit(request)
        await trio.sleep(1)
        await agent.ask(Release(host.command_id(), ACME, everything.lease_id))
        with trio.fail_after(60):
            one, other = await first.reply(), await second.reply()
        assert isinstance(one, Granted) and isinstance(other, Granted)
        assert one.lease.lease_id == other.lease.lease_id
        assert host.sealed().count("Allocated") == 2


async def test_a_wait_ends_at_its_time_with_a_reason() -> None:
    async with Host().standing() as host, host.agent() as agent:
        await agent.lease(1024, ttl_s=3600)
        asked_ns = host.clock.now().boot_ns
        reply = await agent.ask(host.acquire(1, wait_s=7))
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.WAIT_EXPIRED
        waited_ns = host.clock.now().boot_ns - asked_ns
        assert 7 * NS_PER_S <= waited_ns < 7.1 * NS_PER_S


async def test_a_preempting_order_of_an_operator_is_carried_out() -> None:
    """Effects of a batch start once it is committed, not before."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease()
        agent.journal.gate.shut()
        box = agent.submit(Revoke(host.command_id(), OPERATOR, lease.lease_id))
        await trio.sleep(30)
        assert host.reaper.slots[lease.lease_id].cut is None, "cut before the order was durable"
        agent.journal.gate.open()
        assert isinstance(await box.reply(), Changed)
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        await trio.sleep(1)
        assert lease.lease_id not in host.reaper.slots


async def test_who_plans_much_holds_up_nobody_but_who_plans() -> None:
    """A plan may go through all leases: six hundred of them made grants take seconds."""
    async with Host().standing() as host, host.agent() as agent:
        plans = [
            agent.submit(Plan(host.command_id(), host.acquire(1))) for _ in range(PLANS_MAX + 1)
        ]
        [refused] = plans.pop().replies
        assert isinstance(refused, Refusal) and refused.reason is RefusalReason.BUSY
        assert (refused.what, refused.limit) == ("plans", PLANS_MAX)
        grant = agent.submit(host.acquire(1))
        assert isinstance(await grant.reply(), Granted)
        assert sum(bool(box.replies) for box in plans) < PLANS_MAX // 2, "behind the grant"
        for box in plans:
            assert isinstance(await box.reply(), Planned)
        agent.journal.gate.shut()
        last = agent.submit(Plan(host.command_id(), host.acquire(1)))
        await trio.sleep(1)
        assert last.replies, "it changes nothing, and waits for no disk"
