# SPDX-License-Identifier: Apache-2.0
"""The session against a small agent on a real socket: answers, errors, timeouts, retries,
descriptors.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator
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
from leased.wire import parameters, replies
from tests.doubles.lease_table import MEM_BYTES
from tests.doubles.varlink_calls import idl_texts
from tests.doubles.varlink_server import SmallAgent

NOBODY = "00" * 16


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "io.leased")


@pytest.fixture
def settings() -> dict[str, object]:
    """The trio clock is the boot clock of both ends; chance always says a half."""
    return {"clock_ns": trio_ns, "chance": lambda: 0.5, "is_named": True}


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


@pytest.mark.autojump
async def test_the_service_describes_itself(session: Session) -> None:
    info = await session.info()
    assert info.interfaces[0] == "org.varlink.service"
    for name in info.interfaces:
        assert await session.interface(name) == idl_texts()[name]


@pytest.mark.autojump
async def test_the_life_of_a_lease_call_by_call(session: Session, agent: SmallAgent) -> None:
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


@pytest.mark.autojump
async def test_devices_and_plans(session: Session) -> None:
    listed = await session.devices()
    assert [resource.kind for resource in listed.resources] == ["mem", "gpu"]
    assert (await session.plan(want(mem="1MiB"))).grantable
    refused = await session.plan(want(mem="2GiB"))
    assert refused.refusal is not None
    assert refused.refusal.reason == "no_capacity"


@pytest.mark.autojump
async def test_a_refusal_says_its_numbers_and_the_next_step(session: Session) -> None:
    with pytest.raises(Refused) as caught:
        await granted(session, resources=want(mem="2GiB"))
    refusal = caught.value.refusal
    assert (refusal.limit, refusal.requested) == (MEM_BYTES, 2 * MEM_BYTES)
    assert refusal.seconds_until_retry == 2
    assert "no_capacity" in str(caught.value)
    assert "2 s" in str(caught.value)
    assert caught.value.exit_status == EX_TEMPFAIL


@pytest.mark.autojump
async def test_errors_are_typed(session: Session) -> None:
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


@pytest.mark.autojump
async def test_calls_by_name_and_streams_by_name(session: Session) -> None:
    reply = await session.call("io.leased.Device.List")
    assert reply["resources"][0]["resource_id"] == "mem:node0:4096"
    async with session.follow_any("io.leased.Lease.Watch") as changes:
        first = await anext(aiter(changes))
    assert first == {"sequence": 0, "leases": [], "gap": False}


@pytest.mark.autojump
async def test_a_stream_ends_with_its_last_reply(session: Session) -> None:
    await granted(session)
    async with session.follow(parameters.List(), replies.ListReply) as pages:
        assert [len(page.leases) async for page in pages] == [1]


@pytest.mark.autojump
async def test_every_call_has_a_timeout(session: Session, agent: SmallAgent) -> None:
    agent.hang.append(parameters.DeviceList)
    began = trio.current_time()
    with pytest.raises(CallTimeout) as caught:
        await session.devices()
    assert trio.current_time() - began == session.timeout_s
    assert caught.value.exit_status == EX_UNAVAILABLE
    agent.hang.clear()
    assert (await session.devices()).resources, "on a new connection, in step"


@pytest.mark.autojump
async def test_a_cancelled_call_leaves_no_stale_reply(
    session: Session, agent: SmallAgent
) -> None:
    agent.hang.append(parameters.DeviceList)
    with trio.move_on_after(1):
        await session.devices()
    assert (await session.leases()).leases == []


@pytest.mark.autojump
async def test_a_lost_reply_is_asked_for_again_with_the_same_command_id(
    session: Session, agent: SmallAgent
) -> None:
    agent.drop_reply.append(parameters.Acquire)
    reply = await granted(session)
    first, second = agent.calls(parameters.Acquire)
    assert first.call.parameters == second.call.parameters
    assert reply.attached
    assert len(agent.leases) == 1


@pytest.mark.autojump
async def test_a_list_that_breaks_off_is_asked_for_again(
    session: Session, agent: SmallAgent
) -> None:
    """A drain that is seen through looks for hours, over restarts of the agent."""
    await granted(session)
    agent.drop_reply.append(parameters.List)
    assert len((await session.leases()).leases) == 1
    assert len(agent.calls(parameters.List)) == 2


async def test_no_free_descriptor_is_an_agent_that_cannot_be_reached(
    path: str, settings: dict[str, object]
) -> None:
    """Else a lease that is good is given back when a renewal or a watch has to connect anew."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.dup(0)
    os.close(next_free)
    async with connect(path, **settings) as session:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
        try:
            with pytest.raises(AgentUnavailable, match="Too many open files"):
                await session.devices()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.autojump
async def test_each_logical_request_has_an_id_of_its_own(
    session: Session, agent: SmallAgent
) -> None:
    lease_id = (await granted(session)).lease.lease_id
    await session.renew(lease_id)
    agent.drop_reply.append(parameters.Renew)
    await session.renew(lease_id)
    asked = [seen.call.parameters for seen in agent.calls(parameters.Renew)]
    ids = [renew.command_id for renew in asked if isinstance(renew, parameters.Renew)]
    assert len(ids) == 3
    assert ids[0] != ids[1] == ids[2]


@pytest.mark.autojump
async def test_no_agent_is_said_at_once(path: str, settings: dict[str, object]) -> None:
    began = trio.current_time()
    async with connect(path, **settings) as session:
        with pytest.raises(AgentUnavailable, match="no agent at .*leasectl doctor"):
            await session.devices()
    assert trio.current_time() == began


@pytest.mark.autojump
async def test_an_agent_that_restarts_is_waited_for(
    path: str, settings: dict[str, object], nursery: trio.Nursery
) -> None:
    agent = SmallAgent(trio_ns)

    async def serve_again(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                await inner.start(agent.serve, path)
                task_status.started(scope)

    scope = await nursery.start(serve_again)
    retried_at: list[float] = []

    def note_retry() -> float:
        retried_at.append(trio.current_time())
        return 0.0

    async with connect(path, **{**settings, "chance": note_retry}) as session:
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
    gaps = [after - before for before, after in zip(retried_at, retried_at[1:], strict=False)]
    assert gaps[:2] == pytest.approx([0.05, 0.1])
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(1.0), "it backs off, and not for ever"


@pytest.mark.autojump
async def test_waiting_is_bounded_by_the_agent_and_then_by_us(
    session: Session, agent: SmallAgent
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


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.autojump
async def test_who_is_to_be_proven_says_something_first_where_the_kernel_needs_it(
    agent: SmallAgent, path: str, settings: dict[str, object], named: bool
) -> None:
    async with connect(path, **{**settings, "is_named": named}) as session:
        acquire = parameters.Acquire(want(mem=4096))
        lease_id = (await session.ask(acquire, replies.AcquireReply, prove=True)).lease.lease_id
        await session.join(lease_id)
        assert agent.heard.count(b"service.GetInfo") == (0 if named else 1)
    async with connect(path, **{**settings, "is_named": named}) as session:
        await session.describe(lease_id)  # which is nobody's act in particular
        await session.join(lease_id)
    assert agent.heard.count(b"service.GetInfo") == (0 if named else 1)


@pytest.mark.autojump
async def test_whether_the_kernel_proves_us_is_asked_of_the_kernel(
    agent: SmallAgent, path: str, settings: dict[str, object]
) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    async with connect(path, **{**settings, "is_named": None}) as session:
        acquire = parameters.Acquire(want(mem=4096))
        await session.ask(acquire, replies.AcquireReply, prove=True)
    assert agent.heard.count(b"service.GetInfo") == (0 if release >= (6, 5) else 1)


@pytest.mark.autojump
async def test_descriptors_of_a_reply_nobody_takes_are_closed(
    session: Session, agent: SmallAgent
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
@pytest.mark.autojump
async def test_an_agent_that_talks_nonsense_is_a_protocol_error(
    path: str, settings: dict[str, object], nursery: trio.Nursery, nonsense: bytes
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


@pytest.mark.autojump
async def test_descriptors_that_come_with_an_error_are_closed(
    path: str, settings: dict[str, object], nursery: trio.Nursery
) -> None:
    sent: list[int] = []

    async def mislead(task_status: trio.TaskStatus[None]) -> None:
        plain = socket.socket(socket.AF_UNIX)
        plain.bind(path)
        plain.listen()
        with trio.socket.from_stdlib_socket(plain) as listener:
            task_status.started()
            sock, _ = await listener.accept()
            with sock:
                await sock.recv(65536)
                reading, writing = os.pipe()
                with plain_of(sock) as plain_sock:
                    socket.send_fds(plain_sock, [b'{"error":"com.example.No"}\0'], [writing])
                os.close(writing)
                sent.append(reading)
                await sock.recv(65536)

    await nursery.start(mislead)
    async with connect(path, **settings) as session:
        with pytest.raises(RemoteError):
            await session.devices()
        assert os.read(sent[0], 1) == b"", "every writing end is closed, so reading ends"
    os.close(sent[0])
    nursery.cancel_scope.cancel()


def plain_of(sock: trio.socket.SocketType) -> socket.socket:
    """The socket without Trio around it; the descriptor stays the other's."""
    return socket.fromfd(sock.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


@pytest.mark.autojump
async def test_two_tasks_share_a_session_without_mixing_replies(
    session: Session, agent: SmallAgent
) -> None:
    ids = [(await granted(session)).lease.lease_id for _ in range(8)]

    async def check(lease_id: str) -> None:
        for _ in range(5):
            assert (await session.describe(lease_id)).lease_id == lease_id

    async with trio.open_nursery() as crowd:
        for lease_id in ids:
            crowd.start_soon(check, lease_id)
