# SPDX-License-Identifier: Apache-2.0
"""The ticker: what time brings about happens when it is due, whatever the wall clock says."""

from __future__ import annotations

import pytest
import trio

from leased.lessor.lessor import EXPIRIES_MAX
from leased.service.batch import Deliver
from leased.service.ticker import BACKSTOP_NS, LATE_NS, Ticker
from leased.terms.command import Renew, Tick
from leased.terms.event import Expired
from leased.terms.lease import Ending, LeaseState
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.policy import Policy
from leased.terms.reply import Done
from tests.doubles.desk import ACME
from tests.doubles.serving import Host
from tests.sim.clock import SimClock

pytestmark = pytest.mark.autojump


async def ended_at(host: Host, lease_id: bytes) -> int:
    """When the expiry was sealed."""
    [moment] = [
        moment
        for _, event, moment in host.chain()
        if isinstance(event, Expired) and event.lease_id == lease_id
    ]
    return moment.boot_ns


async def test_a_lease_expires_when_it_is_due() -> None:
    async with Host().standing() as host, host.agent() as agent:
        leases = [await agent.lease(ttl_s=ttl_s) for ttl_s in (9.5, 3.25, 6)]
        for lease in leases:
            await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            late_ns = await ended_at(host, lease.lease_id) - lease.deadline_ns
            assert 0 <= late_ns < NS_PER_MS
    assert host.sealed().count("Expired") == 3


async def test_a_renewal_moves_it_and_a_shorter_lease_is_not_missed() -> None:
    async with Host().standing() as host, host.agent() as agent:
        long = await agent.lease(ttl_s=10)
        await trio.sleep(9)
        await agent.ask(Renew(host.command_id(), ACME, long.lease_id))
        short = await agent.lease(ttl_s=2)
        await trio.sleep(3)
        assert agent.at(short.lease_id).ended is Ending.EXPIRED
        assert agent.at(long.lease_id).state is LeaseState.ACTIVE
        await agent.until(long.lease_id, LeaseState.RECLAIMED)
        late_ns = await ended_at(host, long.lease_id) - long.deadline_ns
        assert 9 * NS_PER_S <= late_ns < 9.01 * NS_PER_S


async def test_the_wall_clock_changes_nothing() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=10)
        for delta_s in (86_400, -7 * 86_400, 3600):
            await trio.sleep(2)
            host.clock.step(delta_s * NS_PER_S)
            assert agent.at(lease.lease_id).state is LeaseState.ACTIVE
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert await ended_at(host, lease.lease_id) - lease.deadline_ns < NS_PER_MS


async def test_a_wake_up_that_is_lost_costs_half_a_second() -> None:
    async with Host().standing() as host, host.agent() as agent:
        await trio.sleep(0.1)
        agent.ticker.look_again = lambda: None  # the bug
        lease = await agent.lease(ttl_s=1)
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        late_ns = await ended_at(host, lease.lease_id) - lease.deadline_ns
        assert 0 <= late_ns <= BACKSTOP_NS


async def test_more_than_fit_in_one_tick_all_end() -> None:
    count = EXPIRIES_MAX + 50
    policy = Policy(leases_max=2 * count)
    async with (
        Host(policy=policy).standing() as host,
        host.agent(commands_max=2 * count, batch_commands_max=count) as agent,
    ):
        boxes = [agent.submit(host.acquire(1, ttl_s=30)) for _ in range(count)]
        for box in boxes:
            await box.reply()
        await trio.sleep(31)
        ended = sum(one.ended is Ending.EXPIRED for one in agent.lessor.table.leases.values())
        ended += len(agent.lessor.table.closed)
        assert ended == count
        await trio.sleep(5)
        assert agent.free == 1024 * 4096 and not host.reaper.slots


async def test_a_lease_is_due_from_its_end_until_that_is_sealed() -> None:
    async with Host().standing() as host, host.agent() as agent:
        agent.ticker._late_ns = LATE_NS
        lease = await agent.lease(ttl_s=3)
        assert not agent.ticker.is_due(lease.lease_id)
        await host.clock.sleep_until(lease.deadline_ns + NS_PER_MS)
        assert agent.ticker.is_due(lease.lease_id)
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert not agent.ticker.is_due(lease.lease_id), "it has ended"


class Due:
    """A lessor of which only one lease's deadline is known."""

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns: int | None = deadline_ns

    def next_deadline_ns(self, late_ns: int = 0) -> int | None:
        return None if self.deadline_ns is None else self.deadline_ns + late_ns


@pytest.mark.parametrize(
    ("cut_after_ns", "ticked_after_ns"),
    [(NS_PER_MS, NS_PER_MS), (None, LATE_NS), (-NS_PER_S, LATE_NS)],
    ids=["told", "not told", "told of another"],
)
async def test_at_a_deadline_the_reaper_goes_first(
    cut_after_ns: int | None, ticked_after_ns: int
) -> None:
    clock = SimClock()
    deadline_ns = clock.now().boot_ns + 2 * NS_PER_S
    due, ticked = Due(deadline_ns), trio.Event()

    def submit(_tick: Tick, deliver: Deliver) -> None:
        due.deadline_ns = None
        deliver(Done())
        ticked.set()

    ticker = Ticker(lessor=due, clock=clock, submit=submit, late_ns=LATE_NS)  # type: ignore
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        if cut_after_ns is not None:
            await clock.sleep_until(deadline_ns + cut_after_ns)
            ticker.note_cut()
        await ticked.wait()
        late_ns = clock.now().boot_ns - deadline_ns
        assert ticked_after_ns <= late_ns < ticked_after_ns + NS_PER_MS
        nursery.cancel_scope.cancel()
