# SPDX-License-Identifier: Apache-2.0
"""Leases whose holders do not die: however many there are, nobody else's teardown waits for them,
and what comes of a cut is told once.
"""

from __future__ import annotations

import trio
import trio.testing

from leased.service.reclaimer import LOOKS_MAX
from leased.terms.command import Revoke
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_S
from tests.doubles.desk import ACME, BETA, OPERATOR
from tests.doubles.reaper import KILL_NS
from tests.doubles.serving import Agent, Host

MANY = 60
NEVER_NS = 3600 * NS_PER_S


def cuts_told(agent: Agent, lease: Lease) -> int:
    """How often what came of its cut was told."""
    return [(one, step) for one, step, _ in agent.reports].count((lease.lease_id, "cut"))


async def test_what_came_of_a_cut_is_told_once_whoever_ends_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An agent that comes back to a cut that was not clean looks for who keeps the killed; that
    takes longer than leases which fall together wait for each other."""
    async with Host().standing() as host:
        host.devices.adoptions.look_s = 1
        async with host.agent() as agent:
            stuck, well = await agent.lease(ttl_s=5), await agent.lease(ttl_s=5)
            host.reaper.cut_takes_ns[stuck.lease_id] = NEVER_NS
        await trio.sleep(20)
        async with host.agent() as agent:
            await agent.until(stuck.lease_id, LeaseState.FENCED)
            await agent.until(well.lease_id, LeaseState.RECLAIMED, within_s=0.5)
            await trio.sleep(10)
            assert [cuts_told(agent, one) for one in (stuck, well)] == [1, 1]
            assert host.devices.adoptions.looks == [(stuck.lease_id,)]
    for one in (stuck, well):
        assert host.sealed(one.lease_id).count("TeardownBegun") == 1


async def test_one_look_serves_all_whose_holders_do_not_die(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        adoptions = host.devices.adoptions
        adoptions.look_s = 1
        hostile = [await agent.lease(caller=ACME) for _ in range(MANY)]
        other = await agent.lease(caller=BETA)
        for lease in (*hostile, other):
            host.reaper.cut_takes_ns[lease.lease_id] = NEVER_NS
        for lease in hostile:
            agent.submit(Revoke(host.command_id(), OPERATOR, lease.lease_id))
        await trio.sleep(0.5)
        revoked_at_ns = host.clock.now().boot_ns
        await agent.ask(Revoke(host.command_id(), OPERATOR, other.lease_id))
        await agent.until(other.lease_id, LeaseState.FENCED)
        assert host.clock.now().boot_ns - revoked_at_ns <= KILL_NS + NS_PER_S // 10
        assert set(adoptions.looks[0]) == {lease.lease_id for lease in hostile}
        assert other.lease_id in adoptions.looks[1], "the next look was for it, too"
        await agent.reclaimer.quiet()
        await trio.sleep(5)
        assert len(adoptions.looks) <= LOOKS_MAX + 4, "of all together"
        assert {cuts_told(agent, lease) for lease in (*hostile, other)} == {1}
