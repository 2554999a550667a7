# SPDX-License-Identifier: Apache-2.0
"""The session against a small agent on a real socket: answers, errors, timeouts, retries, descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from leased.client import AgentUnavailable, CallTimeout, Refused, RemoteError, connect, want
from leased.client.session import Session
from leased.terms.errors import (
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    InvalidParameter,
    NoSuchLease,
    PermissionDenied,
    ProtocolError,
)
from leased.terms.reply import Refusal, RefusalReason
from leased.wire import objects, parameters, replies
from trio.testing import MockClock

from tests.doubles.varlink_server import MEM_BYTES, SmallAgent, idl_texts

NOBODY = "00" * 16


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "io.leased")


@pytest.fixture
def settings() -> dict[str, object]:
    """The trio clock is the boot clock of both ends; chance always says a half."""
    return {"clock_ns": trio_ns, "chance": lambda: 0.5, "send_pidfd": False}


def trio_ns() -> int:
    return round(trio.current_time() * 1e9)


@pytest.fixture
async def agent(
    path: str, nursery: trio.Nursery, settings: dict[str, object]
) -> AsyncIterator[SmallAgent]:
    small = SmallAgent(trio_ns)
    await nursery.start(small.serve, path)
    yield small


@pytest.fixture
async def session(
    agent: SmallAgent, path: str, settings: dict[str, object]
) -> AsyncIterator[Session]:
    async with connect(path, **settings) as open_session:
        yield open_session


async def granted(session: Session, **asked: object) -> replies.AcquireReply:
    given: dict[str, object] = {"resources": want(mem=4096), "command_id": session.command_id()}
    acquire = parameters.Acquire(**{**given, **asked})  # type: ignore[arg-type]
    reply, fds = await session.ask_with_fds(acquire, replies.AcquireReply)
    for fd in fds:
        os.close(fd)
    return reply


async def test_the_service_describes_itself(autojump_clock: MockClock, session: Session) -> None:
    info = await session.info()
    assert info.interfaces[0] == "org.varlink.service"
    for name in info.interfaces:
        assert await session.interface(name) == idl_texts()[name]


async def test_the_life_of_a_lease_call_by_call(autojump_clock: MockClock, session: Session, agent: SmallAgent) -> None:
    lease = (await granted(session, ttl_ns=30 * 10**9)).lease
    assert lease.context.ttl_ns == 30 * 10**9
    assert lease.runtime.remaining_ns == 30 * 10**9
    await trio.sleep(10)
    assert (await session.describe(lease.lease_id)).runtime.remaining_ns == 20 * 10**9
    renewed = await session.renew(lease.lease_id)
    assert (renewed.generation, renewed.deadline_boottime_ns) == (2, trio_ns() + 30 * 10**9)
    assert [item.lease_id for item in (await session.leases()).leases] == [lease.lease_id]
    assert (await session.join(lease.lease_id)).environment == {"LEASE_ID": lease.lease_id}
    assert (await session.release(lease.lease_id)).runtime.ended == "released"
    why = await session.why(lease.lease_id)
    assert why.lease is not None
    assert why.lease.runtime.state == "revoking"
    assert agent.connections == 2, "one for the calls and one for the list"


async def test_devices_and_plans(autojump_clock: MockClock, session: Session) -> None:
    listed = await session.devices()
    assert [resource.kind for resource in listed.resources] == ["mem", "gpu"]
    assert (await session.plan(want(mem="1MiB"))).grantable
    refused = await session.plan(want(mem="2GiB"))
    assert refused.refusal is not None
    assert refused.refusal.reason == "no_capacity"


async def test_a_refusal_says_its_numbers_and_the_next_step(autojump_clock: MockClock, session: Session) -> None:
    with pytest.raises(Refused) as caught:
        await granted(session, resources=want(mem="2GiB"))
    refusal = caught.value.refusal
    assert (refusal.limit, refusal.requested) == (MEM_BYTES, 2 * MEM_BYTES)
    assert refusal.seconds_until_retry == 2
    assert "no_capacity" in str(caught.value)
    assert "2 s" in str(caught.value)
    assert caught.value.exit_status == EX_TEMPFAIL


async def test_errors_are_typed(autojump_clock: MockClock, session: Session) -> None:
    with pytest.raises(NoSuchLease):
        await session.renew(NOBODY)
    with pytest.raises(NoSuchLease):
        async with session.follow(parameters.Watch(NOBODY), replies.WatchReply) as changes:
            await anext(aiter(changes))
    with pytest.raises(InvalidParameter) as caught:
        await session.renew("not an id")
    assert caught.value.parameter == "lease_id"
    with pytest.raises(InvalidParameter, match="unknown field"):
        await session.call("io.leased.Lease.List", {"colour": "red"})
    with pytest.raises(PermissionDenied):
        await session.holders("gpu:GPU-1")
    with pytest.raises(RemoteError, match="MethodNotFound"):
        await session.call("io.leased.Lease.Steal")
    assert await session.leases() is not None, "the connection has survived all that"


async def test_calls_by_name_and_streams_by_name(autojump_clock: MockClock, session: Session) -> None:
    reply = await session.call("io.leased.Device.List")
    assert reply["resources"][0]["resource_id"] == "mem:node0:4096"
    async with session.follow_any("io.leased.Lease.Watch") as changes:
        first = await anext(aiter(changes))
    assert first == {"sequence": 0, "leases": [], "gap": False}


async def test_a_stream_ends_with_its_last_reply(autojump_clock: MockClock, session: Session) -> None:
    await granted(session)
    async with session.follow(parameters.List(), replies.ListReply) as pages:
        assert [len(page.leases) async for page in pages] == [1]


async def test_every_call_has_a_timeout(autojump_clock: MockClock, session: Session, agent: SmallAgent) -> None:
    agent.hang.append(parameters.DeviceList)
    began = trio.current_time()
    with pytest.raises(CallTimeout) as caught:
        await session.devices()
    assert trio.current_time() - began == session.timeout_s
    assert caught.value.exit_status == EX_UNAVAILABLE
    agent.hang.clear()
    assert (await session.devices()).resources, "on a new connection, in step"


async def test_a_cancelled_call_leaves_no_stale_reply(autojump_clock: MockClock, session: Session, agent: SmallAgent) -> None:
    agent.hang.append(parameters.DeviceList)
    with trio.move_on_after(1):
        await session.devices()
    assert (await session.leases()).leases == []


async def test_a_lost_reply_is_asked_for_again_with_the_same_command_id(
    autojump_clock: MockClock, session: Session, agent: SmallAgent
) -> None:
    agent.drop_reply.append(parameters.Acquire)
    reply = await granted(session)
    first, second = agent.calls(parameters.Acquire)
    assert first.call.parameters == second.call.parameters
    assert reply.attached
    assert len(agent.leases) == 1


async def test_each_logical_request_has_an_id_of_its_own(
    autojump_clock: MockClock, session: Session, agent: SmallAgent
) -> None:
    lease_id = (await granted(session)).lease.lease_id
    await session.renew(lease_id)
    agent.drop_reply.append(parameters.Renew)
    await session.renew(lease_id)
    ids = [seen.call.parameters.command_id for seen in agent.calls(parameters.Renew)]  # type: ignore[union-attr]
    assert len(ids) == 3
    assert ids[0] != ids[1] == ids[2]


async def test_no_agent_is_said_at_once(autojump_clock: MockClock, path: str, settings: dict[str, object]) -> None:
    began = trio.current_time()
    async with connect(path, **settings) as session:
        with pytest.raises(AgentUnavailable, match="no agent at"):
            await session.devices()
    assert trio.current_time() == began


async def test_an_agent_that_restarts_is_waited_for(
    autojump_clock: MockClock, path: str, settings: dict[str, object], nursery: trio.Nursery
) -> None:
    agent = SmallAgent(trio_ns)

    async def serve_again(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                await inner.start(agent.serve, path)
                task_status.started(scope)

    scope = await nursery.start(serve_again)
    async with connect(path, **settings) as session:
        await session.devices()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        os.unlink(path)

        async def come_back() -> None:
            await trio.sleep(3)
            await nursery.start(agent.serve, path)

        nursery.start_soon(come_back)
        assert (await session.devices()).resources
        assert 3 <= trio.current_time() < 6
        nursery.cancel_scope.cancel()


async def test_waiting_is_bounded_by_the_agent_and_then_by_us(
    autojump_clock: MockClock, session: Session, agent: SmallAgent
) -> None:
    lease_id = (await granted(session)).lease.lease_id
    agent.refuse[parameters.Wait] = Refusal(RefusalReason.WAIT_EXPIRED)
    with pytest.raises(Refused):
        await session.wait(lease_id, until="ended", timeout_s=5)
    assert agent.calls(parameters.Wait)[0].call.parameters == parameters.Wait(
        lease_id, "ended", 5 * 10**9
    )
    agent.hang.append(parameters.Wait)
    began = trio.current_time()
    with pytest.raises(CallTimeout):
        await session.wait(lease_id, timeout_s=5)
    assert trio.current_time() - began == 5 + session.timeout_s


@pytest.mark.parametrize("send", [True, False])
async def test_the_callers_pidfd_goes_with_acquire_and_join_where_the_kernel_needs_it(
    autojump_clock: MockClock, agent: SmallAgent, path: str, settings: dict[str, object], send: bool
) -> None:
    async with connect(path, **{**settings, "send_pidfd": send}) as session:
        acquire = parameters.Acquire(want(mem=4096))
        reply, fds = await session.ask_with_fds(acquire, replies.AcquireReply, prove=True)
        assert os.fstat(fds[0]).st_size == 4096
        os.close(fds[0])
        await session.join(reply.lease.lease_id)
        await session.describe(reply.lease.lease_id)
    expected = [os.getpid()] if send else []
    assert agent.calls(parameters.Acquire)[0].pids == expected
    assert agent.calls(parameters.Join)[0].pids == expected
    assert agent.calls(parameters.Describe)[0].pids == []


async def test_whether_the_kernel_proves_us_is_asked_of_the_kernel(
    autojump_clock: MockClock, agent: SmallAgent, path: str, settings: dict[str, object]
) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    async with connect(path, **{**settings, "send_pidfd": None}) as session:
        lease_id = (await granted(session)).lease.lease_id
        await session.join(lease_id)
    assert agent.calls(parameters.Join)[0].pids == ([] if release >= (6, 5) else [os.getpid()])


async def test_descriptors_of_a_reply_nobody_takes_are_closed(
    autojump_clock: MockClock, session: Session, agent: SmallAgent
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    await session.call(
        "io.leased.Lease.Acquire", {"resources": [{"kind": "mem", "capacity": 4096}]}
    )
    session.close()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "nonsense",
    [b"{}x\0", b"[]\0", b"\xff\0", b'{"parameters":{"resources":3}}\0', b'{"parameters":7}\0'],
)
async def test_an_agent_that_talks_nonsense_is_a_protocol_error(
    autojump_clock: MockClock, path: str, settings: dict[str, object], nursery: trio.Nursery, nonsense: bytes
) -> None:
    async def babble(task_status: trio.TaskStatus[None]) -> None:
        plain = socket.socket(socket.AF_UNIX)
        plain.bind(path)
        plain.listen()
        with trio.socket.from_stdlib_socket(plain) as listener:
            task_status.started()
            while True:
                sock, _ = await listener.accept()
                with sock:
                    await sock.recv(65536)
                    await sock.send(nonsense)
                    await sock.recv(65536)

    await nursery.start(babble)
    async with connect(path, **settings) as session:
        with pytest.raises(ProtocolError):
            await session.devices()
    nursery.cancel_scope.cancel()


async def test_two_tasks_share_a_session_without_mixing_replies(
    autojump_clock: MockClock, session: Session, agent: SmallAgent
) -> None:
    ids = [(await granted(session)).lease.lease_id for _ in range(8)]

    async def check(lease_id: str) -> None:
        for _ in range(5):
            assert (await session.describe(lease_id)).lease_id == lease_id

    async with trio.open_nursery() as crowd:
        for lease_id in ids:
            crowd.start_soon(check, lease_id)


def describe_want(**asked: object) -> list[tuple[str, int]]:
    return [(ask.kind, ask.capacity) for ask in want(**asked)]  # type: ignore[arg-type]


def test_wants_are_exact() -> None:
    assert describe_want(gpu=2, cpu="500m", mem="1.5GiB") == [
        ("gpu", 2000),
        ("cpu", 500),
        ("mem", 3 << 29),
    ]
    assert describe_want(cpu="1.25", block="2T") == [("cpu", 1250), ("block", 2 << 40)]
    assert want(mem="4KiB", tier="cxl", node=1, page_size="2MiB") == [
        objects.Ask("mem", 4096, tier="cxl", node=1, page_size=2 << 20)
    ]
    assert want(cpu=2, exclusive=True)[0].exclusive is True


@pytest.mark.parametrize(
    "asked",
    [{}, {"mem": "lots"}, {"mem": "0.3KiB"}, {"cpu": "1.2345"}, {"mem": 1, "tier": "tape"}],
)
def test_wants_that_cannot_be_meant_are_refused(asked: dict[str, object]) -> None:
    make: Callable[..., object] = want
    with pytest.raises(InvalidParameter):
        make(**asked)
