# SPDX-License-Identifier: Apache-2.0
"""The tenant's library and foreign Varlink clients against the real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased import client
from leased.client import AgentUnavailable, LeaseLost, Refused, plain
from leased.wire import parameters, replies
from leased.wire.objects import Ask
from tests.doubles.host_agent import NS_PER_S, REPOSITORY, HostAgent

pytestmark = pytest.mark.root

MIB = 1 << 20


def small(size_bytes: int = MIB) -> list[Ask]:
    return [Ask("mem", size_bytes, page_size=4096)]


async def test_a_lease_for_a_block(shared_agent: HostAgent) -> None:
    async with client.acquire(str(shared_agent.socket), resources=small(), ttl=60) as held:
        with held.mem() as memory:
            memory[:4] = b"mine"
            assert bytes(memory[:4]) == b"mine" and len(memory) == MIB
        lease_id = held.lease_id
        state = await trio.to_thread.run_sync(shared_agent.describe, lease_id)
        assert state["runtime"]["state"] == "active"
    closed = await trio.to_thread.run_sync(shared_agent.wait_for, lease_id)
    assert (closed["runtime"]["state"], closed["runtime"]["ended"]) == ("reclaimed", "released")


async def test_it_renews_itself(shared_agent: HostAgent) -> None:
    path = str(shared_agent.socket)
    async with client.acquire(path, resources=small(), ttl=0.6) as held, held.scope():
        async with client.connect(path) as session:
            asked = parameters.Watch(held.lease_id)
            async with session.follow(asked, replies.WatchReply) as changes:
                async for change in changes:
                    if any(lease.runtime.generation >= 3 for lease in change.leases):
                        break
        held.check()


async def test_the_scope_closes_before_the_agent_acts(shared_agent: HostAgent) -> None:
    """The agent stops answering: what we hold is given up by us, in time."""
    path = str(shared_agent.socket)
    with pytest.raises(LeaseLost):
        async with client.acquire(path, resources=small(), ttl=1, bind="deadline") as held:
            deadline_ns = held.lease.runtime.deadline_boottime_ns
            with shared_agent.stopped(shared_agent.pid):
                async with held.scope():
                    await trio.sleep_forever()
    assert client.session.boot_clock_ns() < deadline_ns + NS_PER_S
    await trio.to_thread.run_sync(shared_agent.wait_for, held.lease_id)


async def test_a_notice_and_a_revocation(shared_agent: HostAgent) -> None:
    path = str(shared_agent.socket)
    async with client.acquire(path, resources=small(), ttl=60, bind="deadline") as held:
        await trio.to_thread.run_sync(
            lambda: shared_agent.call(
                "Admin.Revoke", admin=True, lease_id=held.lease_id, grace_ns=30 * NS_PER_S
            )
        )
        with trio.fail_after(20):
            notice = await held.notice.wait()
        assert notice.reason == "operator_revoke"
        await held.done()
    closed = await trio.to_thread.run_sync(shared_agent.wait_for, held.lease_id)
    assert closed["runtime"]["state"] == "reclaimed"


async def test_a_lease_that_is_taken_at_once(shared_agent: HostAgent) -> None:
    path = str(shared_agent.socket)
    with pytest.raises(LeaseLost, match="operator_revoke"):
        async with (
            client.acquire(path, resources=small(), ttl=60, bind="deadline") as held,
            held.scope(),
        ):
            await trio.to_thread.run_sync(
                lambda: shared_agent.call("Admin.Revoke", admin=True, lease_id=held.lease_id)
            )
            await trio.sleep_forever()


async def test_what_cannot_be_had(shared_agent: HostAgent) -> None:
    with pytest.raises(Refused) as caught:
        async with client.acquire(str(shared_agent.socket), resources=small(1 << 60)):
            raise AssertionError("granted")
    assert caught.value.refusal.reason == "no_capacity"
    with pytest.raises(AgentUnavailable):
        async with client.acquire("/nowhere/io.leased", resources=small()):
            raise AssertionError("granted")


async def test_a_session_survives_the_agent(agent: HostAgent) -> None:
    """The agent is killed and started again under a held lease: the holder notices nothing."""
    path = str(agent.socket)
    async with client.acquire(path, resources=small(), ttl=20, bind="deadline") as held:
        await held.renew()
        before = held.generation
        await trio.to_thread.run_sync(lambda: (agent.kill(), agent.start()))
        await held.renew()
        assert held.generation == before + 1
        held.check()
    closed = await trio.to_thread.run_sync(agent.wait_for, held.lease_id)
    assert closed["runtime"]["ended"] == "released"


def test_without_async(shared_agent: HostAgent) -> None:
    with plain.acquire(str(shared_agent.socket), resources=small(), ttl=60) as held:
        with held.mem() as memory:
            memory[0] = 7
        held.renew()
        held.check()
    assert shared_agent.wait_for(held.lease_id)["runtime"]["state"] == "reclaimed"
    listed = plain.run(str(shared_agent.socket), lambda session: session.leases(closed=True))
    assert held.lease_id in [lease.lease_id for lease in listed.leases]
    devices = plain.call(str(shared_agent.socket), "io.leased.Device.List")
    assert devices["resources"]


GIVES_BACK = """
import select, sys
from leased.client import plain
from leased.wire.objects import Ask
for early in (True, False) * 10:
    with plain.acquire(sys.argv[1], resources=[Ask("mem", 4096, page_size=4096)]) as held:
        memory = held.mem()
        memory[:4] = b"mine"
        if early:
            held.release()
            plain.run(sys.argv[1], lambda session: session.wait(held.lease_id, until="closed"))
    plain.run(sys.argv[1], lambda session: session.wait(held.lease_id, until="closed"))
print("alive")
"""


def lives_on(agent: HostAgent, script: str) -> None:
    """In a process of its own: who were killed could not say so."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(agent.socket)],
        env={**os.environ, **agent.sockets()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "alive\n", (done.returncode, done.stderr[-2000:])


def test_who_gives_a_lease_back_lives_on(shared_agent: HostAgent) -> None:
    """Memory that is held past its lease costs the holder its life; the library holds none."""
    lives_on(shared_agent, GIVES_BACK)


GIVES_UP = """
import sys, trio
from leased import client

async def main():
    for tenths_ms in range(80):
        with trio.move_on_after(tenths_ms % 40 * 0.0001):
            async with client.acquire(sys.argv[1], mem="64KiB", ttl=60):
                await trio.sleep_forever()

trio.run(main)
print("alive")
"""


def test_who_gives_up_asking_lives_on(shared_agent: HostAgent) -> None:
    """At any moment: what was granted to it by then is nobody's, and it no lost holder."""
    lives_on(shared_agent, GIVES_UP)


def test_foreign_clients(shared_agent: HostAgent) -> None:
    """tests/interop over again, with the real agent behind the socket. In a process of its own:
    who keeps memory past its lease is killed."""
    pytest.importorskip("varlink")
    pytest.importorskip("asyncvarlink")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            str(REPOSITORY / "tests" / "interop"),
        ],
        env={**os.environ, "LEASED_VARLINK_ADDRESS": f"unix:{shared_agent.socket}"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for lease in shared_agent.call("Lease.List")["leases"]:
        shared_agent.call("Lease.Release", lease_id=lease["lease_id"])


def test_varlinkctl(shared_agent: HostAgent) -> None:
    tool = next((p for p in map(Path, ("/usr/bin/varlinkctl",)) if p.exists()), None)
    if tool is None:
        print("NOT PROVEN: varlinkctl (this host has none)")
        pytest.skip("not proven: varlinkctl (this host has none)")
    done = subprocess.run(
        [tool, "call", str(shared_agent.socket), "io.leased.Device.List", "{}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resources"]
