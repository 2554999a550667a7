# SPDX-License-Identifier: Apache-2.0
"""Every pair of what is under way for a lease and what comes meanwhile: the first waits for a
worker, for the reaper or for the log while the second is decided.

Rule: whatever the pair, everybody is answered once, nobody is told of an end that the reaper does
not have, and a lease that nobody gave back or took at once has its time, or its grace, to the end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from leased.lessor.table import end_ns
from leased.terms.command import Command, Drain, Extend, HolderGone, Release, Renew, Revoke
from leased.terms.identity import LeaseId
from leased.terms.lease import LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Changed, Granted
from tests.doubles.desk import ACME, OPERATOR
from tests.doubles.serving import Agent, Box, Host

Make = Callable[[Host, LeaseId], Command]

UNDER_WAY = ("prepare", "arm", "renewal", "notice", "extension", "sealing")
COMES: dict[str, Make] = {
    "renewal": lambda host, one: Renew(host.command_id(), ACME, one, 120 * NS_PER_S),
    "shorter": lambda host, one: Renew(host.command_id(), ACME, one, 20 * NS_PER_S),
    "notice": lambda host, _: Drain(host.command_id(), OPERATOR, "", 8 * NS_PER_S),
    "sooner": lambda host, one: Revoke(host.command_id(), OPERATOR, one, grace_ns=3 * NS_PER_S),
    "extension": lambda host, one: Extend(host.command_id(), ACME, one, 30 * NS_PER_S),
    "less": lambda host, one: Extend(host.command_id(), ACME, one, 2 * NS_PER_S),
    "release": lambda host, one: Release(host.command_id(), ACME, one),
    "at once": lambda host, one: Revoke(host.command_id(), OPERATOR, one),
    "gone": lambda host, one: HolderGone(host.command_id(), one),
}
ENDS_IT = ("release", "at once", "gone")


class Pair:
    """One lease, the gate that what is under way waits at, and the answers that are due."""

    def __init__(self, host: Host, agent: Agent) -> None:
        self.host, self.agent = host, agent
        self.request = host.acquire(3)
        self.boxes: list[Box] = []
        self.lease_id = LeaseId(b"")

    def submit(self, command: Command) -> None:
        """Ask, and mean to be answered."""
        self.boxes.append(self.agent.submit(command))

    async def begin(self, under_way: str) -> None:
        """Bring it under way, and to its gate."""
        host, agent = self.host, self.agent
        if under_way in ("prepare", "arm"):
            gates = host.devices.gates if under_way == "prepare" else host.reaper.gates
            self.gate = gates[under_way]
            self.gate.shut()
            self.submit(self.request)
            await self.gate.reached.wait()
            [self.lease_id] = agent.lessor.table.leases
            return
        reply = await agent.ask(self.request)
        assert isinstance(reply, Granted)
        self.lease_id = reply.lease.lease_id
        await agent.until(self.lease_id, LeaseState.ACTIVE)
        if under_way == "extension":
            await agent.ask(COMES["notice"](host, self.lease_id))
            await trio.sleep(0.1)
        self.gate = agent.journal.gate if under_way == "sealing" else host.reaper.gates["renew"]
        self.gate.shut()
        what = "renewal" if under_way == "sealing" else under_way
        self.submit(COMES[what](host, self.lease_id))
        await self.gate.reached.wait()

    async def end(self, *, taken: bool) -> None:
        """Let it go on, and hold it against the rule; `taken`: it was given back or ended."""
        self.gate.open()
        with trio.fail_after(2):
            replies = [await box.reply() for box in self.boxes]
        slot = self.host.reaper.slots.get(self.lease_id)
        for reply in replies:
            if isinstance(reply, Changed | Granted) and reply.lease.ended is None and not taken:
                # A notice is told at once: until the reaper has it, the end before it holds.
                told = reply.lease.generation - (reply.lease.state is LeaseState.DRAINING)
                assert slot is not None and slot.generation >= told
        ended = await self.agent.until(self.lease_id, LeaseState.RECLAIMED, within_s=300)
        assert ended.reason is not RevocationReason.REAPER_LOST
        assert taken or ended.cut_ns == end_ns(ended)


@pytest.mark.parametrize("comes", [*COMES, "retry"])
@pytest.mark.parametrize("under_way", UNDER_WAY)
async def test_whatever_comes_meanwhile(
    under_way: str, comes: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        pair = Pair(host, agent)
        await pair.begin(under_way)
        pair.submit(pair.request if comes == "retry" else COMES[comes](host, pair.lease_id))
        await trio.sleep(0.5)
        await pair.end(taken=comes in ENDS_IT)
