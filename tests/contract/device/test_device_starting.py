# SPDX-License-Identifier: Apache-2.0
"""Workers come of a fork server: it outlives each of them, none of them outlives it, and whoever
gives up leaves nobody behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from leased.hardware.block.calls import Nothing
from leased.hardware.calls import Batch
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.forkserver import ORDER
from leased.hardware.starting import STARTING_NS, Starter
from leased.hardware.worker import receive_answers, send
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S
from tests.doubles.workers import servers_of, workers_of

ENDS_S = 60

pytestmark = pytest.mark.quiet


@pytest.fixture
def starter() -> Iterator[Starter]:
    one = Starter()
    yield one
    one.close()
    assert servers_of(os.getpid()) == []


async def ended(pidfd: int) -> None:
    with trio.fail_after(ENDS_S):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)


async def answered(sock: socket.socket) -> None:
    """The worker serves."""
    send(sock, Batch(1, ()), ())
    with trio.fail_after(ENDS_S):
        await trio.lowlevel.wait_readable(sock)
    answers, _ = receive_answers(sock, bytearray(4096))
    assert answers.number == 1


def sockets_of(pid: int) -> list[str]:
    """The numbers of the sockets that a process has, besides those that everybody inherits."""
    fds = f"/proc/{pid}/fd"
    numbers = [number for number in os.listdir(fds) if int(number) > 2]
    return [one for one in numbers if os.readlink(f"{fds}/{one}").startswith("socket:")]


async def test_a_worker_has_its_own_socket_and_no_others(starter: Starter) -> None:
    (one, first), (other, second) = await starter.start(), await starter.start("block")
    for sock, child in ((one, first), (other, second)):
        await answered(sock)
        assert len(sockets_of(child.pid)) == 1 and not child.ended
    one.close()
    assert first.wait(ENDS_S) and not second.ended, "each ends with its own socket"
    other.close()
    assert second.wait(ENDS_S)
    first.close()
    second.close()


async def test_what_comes_with_a_workers_birth_is_closed_by_exec(starter: Starter) -> None:
    """A vendor's library may start programs of its own: they would keep the worker's socket."""
    sock, child = await starter.start()
    await answered(sock)
    [its] = sockets_of(child.pid)
    flags = Path(f"/proc/{child.pid}/fdinfo/{its}").read_text("ascii").split("flags:")[1].split()[0]
    assert int(flags, 8) & os.O_CLOEXEC and not os.get_inheritable(child._pidfd)
    sock.close()
    assert child.wait(ENDS_S)
    child.close()


async def test_those_that_end_are_buried_and_the_next_one_comes_of_the_same_server(
    starter: Starter,
) -> None:
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    child.kill()
    assert child.wait(ENDS_S)
    with trio.fail_after(ENDS_S):
        while os.path.exists(f"/proc/{child.pid}"):
            await trio.lowlevel.checkpoint()
    sock.close()
    child.close()
    again, living = await starter.start()
    assert servers_of(os.getpid()) == [server]
    again.close()
    assert living.wait(ENDS_S)
    living.close()


async def test_nobody_outlives_the_server_and_the_next_order_starts_another(
    starter: Starter,
) -> None:
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    pidfd = os.pidfd_open(server)
    os.kill(server, signal.SIGKILL)
    await ended(pidfd)
    assert child.wait(ENDS_S), "killed with its parent"
    again, living = await starter.start()
    assert servers_of(os.getpid()) != [server] and not living.ended
    for each, process in ((sock, child), (again, living)):
        each.close()
        process.close()


async def test_who_gives_up_leaves_nobody_and_the_next_order_has_its_own_answer(
    starter: Starter, mock_clock: trio.testing.MockClock
) -> None:
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    os.kill(server, signal.SIGSTOP)

    async def give_up() -> None:
        with trio.move_on_after(1) as scope:
            await starter.start()
        assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(2)
    os.kill(server, signal.SIGCONT)
    again, living = await starter.start()
    with trio.fail_after(ENDS_S * 1000):
        while sorted((child.pid, living.pid)) != workers_of(os.getpid()):
            await trio.lowlevel.checkpoint()
    assert servers_of(os.getpid()) == [server], "late is not dead"
    for each, process in ((sock, child), (again, living)):
        each.close()
        assert process.wait(ENDS_S)
        process.close()


async def test_a_server_that_answers_nobody_is_replaced(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_ns = 0
    starter = Starter(lambda: now_ns)
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    os.kill(server, signal.SIGSTOP)

    async def give_up() -> None:
        with trio.move_on_after(1):
            await starter.start()

    for seconds in (0, STARTING_NS, 1):
        now_ns += seconds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            assert servers_of(os.getpid()) == [server], "slow is not dead"
            mock_clock.jump(2)
    assert child.wait(ENDS_S), "and it is killed, with its workers"
    again, living = await starter.start()
    assert set(servers_of(os.getpid())) - {server}
    for each, process in ((sock, child), (again, living)):
        each.close()
        process.close()
    starter.close()


@pytest.mark.parametrize("more", [0, 1])
async def test_a_host_without_room_for_a_process_says_so(starter: Starter, more: int) -> None:
    """The socket that comes with the order finds no room, or the pidfd that is to be sent."""
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    before = resource.prlimit(server, resource.RLIMIT_NOFILE)
    resource.prlimit(server, resource.RLIMIT_NOFILE, (3 + more, before[1]))
    with pytest.raises(OSError, match="open files") as refused:
        await starter.start()
    assert refused.value.errno == errno.EMFILE
    resource.prlimit(server, resource.RLIMIT_NOFILE, before)
    again, living = await starter.start()
    with trio.fail_after(ENDS_S):
        while sorted((child.pid, living.pid)) != workers_of(os.getpid()):
            await trio.lowlevel.checkpoint()
    assert servers_of(os.getpid()) == [server]
    for each, process in ((sock, child), (again, living)):
        each.close()
        process.close()


async def test_a_crew_starts_one_server_and_ends_it() -> None:
    crew = Crew(HardwareConfig(call_budget_ns=ENDS_S * NS_PER_S))
    try:
        for name in ("one", "other"):
            await crew.ask(name, ())
        assert len(workers_of(os.getpid())) == 2
        with pytest.raises(DeviceError, match="nothing of the kind"):
            await crew.task("one", "nothing of the kind", "", Nothing(), Nothing)
        assert len(servers_of(os.getpid())) == 1
    finally:
        crew.close()
    assert servers_of(os.getpid()) == workers_of(os.getpid()) == []


async def test_an_agent_that_ends_with_unread_answers_is_no_fault(
    capfd: pytest.CaptureFixture[str],
) -> None:
    starter = Starter()
    sock, child = await starter.start()
    [server] = servers_of(os.getpid())
    pidfd = os.pidfd_open(server)
    link = starter._sock
    assert link is not None
    [mine, its] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.kill(server, signal.SIGSTOP)
    for number in (7, 8):
        socket.send_fds(link, [ORDER.pack(number)], [its.fileno()])
    os.kill(server, signal.SIGCONT)
    with trio.fail_after(ENDS_S):
        await trio.lowlevel.wait_readable(link)
    link.close()
    await ended(pidfd)
    assert child.wait(ENDS_S) and capfd.readouterr().err == ""
    for each in (sock, mine, its, child):
        each.close()
    starter.close()


async def test_who_is_dismissed_while_it_works_has_not_answered() -> None:
    """The driver is let go of, and somebody listens to it: that ended the whole agent."""
    crew = Crew(HardwareConfig(call_budget_ns=ENDS_S * NS_PER_S))
    try:
        await crew.ask("ear", ())
        [ear] = workers_of(os.getpid())
        os.kill(ear, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(DeviceError, match="ended"):
                    await crew.ask("ear", ())

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            crew.dismiss("ear")
    finally:
        crew.close()


async def test_who_is_dismissed_while_it_is_started_does_not_come() -> None:
    """A driver is let go of: nobody is to open it a moment later."""
    crew = Crew(HardwareConfig(call_budget_ns=ENDS_S * NS_PER_S))
    try:
        await crew.ask("other", ())
        [other] = workers_of(os.getpid())
        [server] = servers_of(os.getpid())
        os.kill(server, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(DeviceError, match="ended"):
                    await crew.ask("gauge", ())

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            crew.dismiss("gauge")
            os.kill(server, signal.SIGCONT)
        with trio.fail_after(ENDS_S):
            while workers_of(os.getpid()) != [other]:
                await trio.lowlevel.checkpoint()
    finally:
        crew.close()
