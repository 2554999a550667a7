# SPDX-License-Identifier: Apache-2.0
"""An agent that has to end ends, also with a policy on its way that is not to be broken off."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from leased.service.config import Config
from leased.service.unbroken import Unbroken
from leased.terms.command import SetPolicy
from leased.terms.policy import Policy, digest
from tests.doubles.desk import OPERATOR
from tests.doubles.serving import Host

POLICY = Policy(leases_max=7)


@pytest.mark.parametrize("reloads", [False, True])
@pytest.mark.autojump
async def test_a_disk_that_refuses_a_policy_ends_the_agent(
    reloads: bool, tmp_path: Path
) -> None:
    adopted: list[Config] = []
    with pytest.raises(ExceptionGroup) as raised:
        async with Host().standing() as host, host.agent() as agent:
            agent.journal.gate.shut()
            agent.journal.commit_error = OSError(errno.EIO, "no disk")
            policies = agent.policies(tmp_path)
            order = SetPolicy(host.command_id(), OPERATOR, POLICY, digest(POLICY), bytes(32))
            async with trio.open_nursery() as connections:
                if reloads:
                    fresh = Config(policy=POLICY)
                    connections.start_soon(
                        policies.reconfigure, lambda: fresh, adopted.append, OPERATOR
                    )
                connections.start_soon(policies.set, order)
                await agent.journal.gate.reached.wait()
                agent.journal.gate.open()
    assert raised.value.subgroup(OSError) is not None and not adopted


async def test_nobody_is_cancelled_before_the_end_and_everybody_after() -> None:
    unbroken, told = Unbroken(), trio.Event()
    seen: list[str] = []

    async def waits(name: str) -> None:
        with unbroken.scope():
            told.set()
            await trio.sleep_forever()
        seen.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, "before")
        await told.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks, "it was cancelled while there was somebody to answer it"
        unbroken.end()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(waits, "after")
    assert seen == []
