# SPDX-License-Identifier: Apache-2.0
"""What is little is committed within the turn that read it (decisions/0011): the same order, the
same answers, and nothing overtakes what was sealed before it.
"""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from leased.service.sequencer import FEW
from leased.terms.command import ListLeases, Renew
from leased.terms.lease import Lease
from leased.terms.reply import Changed, Listed, Refusal, RefusalReason
from tests.doubles.desk import ACME
from tests.doubles.serving import Agent, Box, Host

pytestmark = pytest.mark.autojump

AUTOJUMP = trio.testing.MockClock


async def idle_with_lease(agent: Agent) -> Lease:
    """A lease, a sequencer that has nothing more to do about it, and a reaper that is quick."""
    lease = await agent.lease()
    agent.host.reaper.board = True
    await trio.testing.wait_all_tasks_blocked()
    return lease


async def test_a_renewal_is_answered_before_the_turn_ends() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        [box] = agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        [reply] = box.replies
        assert isinstance(reply, Changed) and reply.lease.generation == lease.generation + 1
        slot = host.reaper.slots[lease.lease_id]
        assert slot.deadline_ns == reply.lease.deadline_ns
        assert agent.journal.at_once and ("renew", 1) not in host.reaper.calls


async def test_a_deadline_moves_when_its_renewal_is_anchored_and_not_before() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        seen: list[tuple[str, bool]] = []

        def note(verb: str, name: str) -> None:
            seen.append((f"{verb} {name[:3]}", ("renew on board", 1) in host.reaper.calls))

        host.disk.fault = note
        agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        host.disk.fault = None
        assert seen == [
            ("write seg", False),
            ("sync seg", False),
            ("write anc", False),
            ("sync anc", False),
        ]
        assert ("renew on board", 1) in host.reaper.calls


async def test_many_requests_of_one_turn_go_to_the_sequencer() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        renewals = [Renew(host.command_id(), ACME, lease.lease_id) for _ in range(FEW + 1)]
        boxes = agent.submit_turn(*renewals)
        assert not any(box.replies for box in boxes)
        for box in boxes:
            assert isinstance(await box.reply(), Changed)


async def test_what_was_sealed_and_not_written_goes_first() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        agent.journal.gate.shut()
        [slow] = agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        await agent.journal.gate.reached.wait()
        [behind] = agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        [asked] = agent.submit_turn(ListLeases(host.command_id(), ACME))
        await trio.sleep(1)
        assert not (slow.replies or behind.replies or asked.replies)
        agent.journal.gate.open()
        first, second, listed = await slow.reply(), await behind.reply(), await asked.reply()
        assert isinstance(first, Changed) and isinstance(second, Changed)
        assert second.lease.generation == first.lease.generation + 1
        assert isinstance(listed, Listed)
        assert listed.leases[0].generation == second.lease.generation


async def test_a_reaper_without_a_board_is_asked() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        host.reaper.board = False
        [box] = agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        assert not box.replies
        reply = await box.reply()
        assert isinstance(reply, Changed)
        assert host.reaper.slots[lease.lease_id].deadline_ns == reply.lease.deadline_ns


async def test_a_late_renewal_loses_on_the_spot_too() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await idle_with_lease(agent)
        host.reaper.slots[lease.lease_id].cutting = True
        [box] = agent.submit_turn(Renew(host.command_id(), ACME, lease.lease_id))
        [reply] = box.replies
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED


@pytest.mark.parametrize("step", ["sync seg", "write anc", "sync anc"])
async def test_a_disk_that_fails_on_the_spot_ends_the_agent_and_nobody_is_told(
    step: str,
) -> None:
    def fail(verb: str, name: str) -> tuple[bool, OSError] | None:
        if f"{verb} {name[:3]}" == step:
            return True, OSError(errno.EIO, "the disk says no")
        return None

    async with Host().standing() as host:
        box = Box()
        async with host.agent() as agent:
            lease = await idle_with_lease(agent)
            host.disk.fault = fail
            agent.sequencer.begin_turn()
            agent.sequencer.submit(Renew(host.command_id(), ACME, lease.lease_id), box)
            with pytest.raises(OSError, match="the disk says no"):
                agent.sequencer.end_turn()
            host.disk.fault = None
            assert not box.replies
