# SPDX-License-Identifier: Apache-2.0
"""The library without async, against an agent in another thread, in real time (short lengths, no
sleeping).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.client import AgentUnavailable, LeaseLost, Refused, plain
from leased.terms.errors import InvalidParameter
from leased.terms.lease import Ending
from leased.wire import parameters
from tests.doubles.varlink_server import SmallAgent, small_agent_in_a_thread


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "io.leased")


@pytest.fixture
def agent(path: str) -> Iterator[SmallAgent]:
    with small_agent_in_a_thread(path) as small:
        yield small


def test_a_lease_is_held_by_a_thread_and_released(path: str, agent: SmallAgent) -> None:
    with plain.acquire(path, mem=4096, ttl=60) as held:
        held.mem()[:2] = b"ok"
        held.renew()
        assert held.notice is None
        assert held.lease.runtime.state == "active"
        held.check()
    (lease,) = agent.leases.values()
    assert lease.ended is Ending.RELEASED
    assert lease.generation == 2


def test_a_lease_can_be_released_early(path: str, agent: SmallAgent) -> None:
    with plain.acquire(path, mem=4096, ttl=60) as held:
        held.release()
    assert len(agent.calls(parameters.Release)) == 1


def test_an_exception_of_the_block_comes_out_after_the_release(
    path: str, agent: SmallAgent
) -> None:
    with pytest.raises(ZeroDivisionError), plain.acquire(path, mem=4096, ttl=60):
        raise ZeroDivisionError
    (lease,) = agent.leases.values()
    assert lease.ended is Ending.RELEASED


def test_refusals_and_mistakes_come_out_where_they_were_made(path: str, agent: SmallAgent) -> None:
    with pytest.raises(Refused), plain.acquire(path, mem="2GiB"):
        raise AssertionError("there is no lease to work under")
    with pytest.raises(InvalidParameter), plain.acquire(path):
        raise AssertionError("nothing was asked for")


def test_a_lost_lease_is_told(path: str, agent: SmallAgent) -> None:
    agent.hang.append(parameters.Renew)
    with pytest.raises(LeaseLost), plain.acquire(path, mem=4096, ttl=0.2) as held:
        while True:
            held.check()


def test_calls_without_a_lease(path: str, agent: SmallAgent) -> None:
    assert plain.call(path, "io.leased.Device.List")["resources"]
    listed = plain.run(path, lambda session: session.devices())
    assert len(listed.resources) == 2


def test_no_agent(path: str) -> None:
    with pytest.raises(AgentUnavailable), plain.acquire(path, mem=4096):
        raise AssertionError("nobody is there")
