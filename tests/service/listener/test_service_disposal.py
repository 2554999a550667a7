# SPDX-License-Identifier: Apache-2.0
"""Descriptors that hold up whoever closes them last, sent to an agent that everybody waits for.

What they are here is a TCP socket that lingers: its last close waits until its peer has read. It
takes no right of any kind to make one, and no turn of the agent may close it. And a file of FUSE,
whose every close waits for its server, in a way that also the end of a process waits for.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.hardware.clock import BootClock
from leased.service.api.disposal import OWED_MAX, Disposal
from leased.service.api.listener import Listener
from leased.service.closed import Closed
from leased.service.config import Config, Sockets
from leased.service.holders import Holders
from leased.terms.errors import StateError
from tests.doubles.calling import House, Visitor, memory, message, open_house
from tests.doubles.lingering import held_pipe
from tests.doubles.serving import descriptors
from tests.doubles.stuck_files import stuck_files
from tests.doubles.varlink_calls import described

LINGER_S = 20
"""How long an agent would be held up."""

BRIEF_S = LINGER_S / 2


class Linger:
    """Sockets whose last close waits. Whoever has been sent `sock` is alone with it once it is
    closed here; at the end of the block none waits any longer."""

    def __init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._peers: list[socket.socket] = []

    def sock(self) -> socket.socket:
        """One, with more in it than its peer takes."""
        sock = socket.create_connection(self._door.getsockname())
        self._peers.append(self._door.accept()[0])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        return sock

    def end(self) -> None:
        """The peers hang up."""
        self._door.close()
        for peer in self._peers:
            peer.close()


@pytest.fixture
def linger() -> Iterator[Linger]:
    """What they are made by."""
    made = Linger()
    yield made
    made.end()


def send(me: Visitor, data: bytes, sock: socket.socket, more: int = 0, flags: int = 0) -> None:
    """The socket, behind `more` of the same, which is ours no longer."""
    fds = array.array("i", [*[me.sock.fileno()] * more, sock.fileno()])
    plain = socket.socket(fileno=os.dup(me.sock.fileno()))
    with plain, sock:
        plain.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], flags)


KINDS = {
    "for no call": b"{",
    "for a method that takes none": message("Lease.List"),
    "for a method that takes a pidfd": message(
        "Lease.Acquire", resources=memory(), bind="process"
    ),
    "that is no protocol": b"\xff\0",
}


async def _answers(house: House, began_s: float) -> None:
    await house.visit().call("Lease.List")
    assert time.monotonic() - began_s < BRIEF_S, "everybody waited for one that lingers"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "too many", "out of band", "behind a byte out of band"])
@pytest.mark.autojump
async def test_a_descriptor_that_lingers_holds_up_nobody(
    kind: str, named: bool, linger: Linger, tmp_path: Path
) -> None:
    async with open_house(tmp_path, names_peers=named) as house:
        me, began_s = house.visit(), time.monotonic()
        await me.call("Lease.List")
        if kind == "too many":
            send(me, message("Lease.List"), linger.sock(), more=40)
        elif kind == "out of band":
            send(me, b"x", linger.sock(), flags=socket.MSG_OOB)
        elif kind == "behind a byte out of band":
            send(me, b"x", linger.sock(), flags=socket.MSG_OOB)
            send(me, b"y", linger.sock(), flags=socket.MSG_OOB)
        else:
            send(me, KINDS[kind], linger.sock())
        await trio.sleep(1)
        await _answers(house, began_s)
        me.close()
        await trio.sleep(1)
        await _answers(house, began_s)
        linger.end()


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.autojump
async def test_what_nobody_reads_of_who_is_not_let_in_holds_up_nobody(
    flags: int, linger: Linger, tmp_path: Path
) -> None:
    async with open_house(tmp_path, limits=Sockets(connections_per_uid_max=2)) as house:
        inside, began_s = house.visit(), time.monotonic()
        await inside.call("Lease.List")
        await house.visit().call("Lease.List")
        surplus = house.visit()
        send(surplus, b"{", linger.sock(), flags=flags)
        await trio.sleep(1)
        await inside.call("Lease.List")
        assert time.monotonic() - began_s < BRIEF_S, "everybody waited for one that lingers"
        assert (await surplus.answer())["error"].endswith("PermissionDenied")
        assert await surplus.ended(), "that it is over is told at once"
        linger.end()


def _close(file: int) -> None:
    with contextlib.suppress(OSError):  # until its server has ended
        os.close(file)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.autojump
async def test_a_file_that_nobody_can_close_is_not_taken(named: bool, tmp_path: Path) -> None:
    """A thread that closes one can be ended by nobody, and would keep the whole agent from it."""
    (tmp_path / "files").mkdir()
    with stuck_files(tmp_path / "files") as files:
        async with open_house(tmp_path, names_peers=named) as house:
            me = house.visit()
            await me.call("Lease.List")
            before = descriptors()
            file = os.open(files / "one", os.O_RDWR)
            with socket.socket(fileno=os.dup(me.sock.fileno())) as plain:
                socket.send_fds(plain, [message("Lease.Acquire", resources=memory())], [file])
            threading.Thread(target=_close, args=[file], daemon=True).start()
            while os.path.exists(f"/proc/self/fd/{file}"):
                os.sched_yield()  # before anything is forked: that would have to close it, too
            refused = await me.answer()
            assert refused["error"].endswith(("ProtocolError", "PermissionDenied")), refused
            assert "descriptors are not taken" in refused["parameters"]["why"]
            assert await me.ended()
            house.dispose()
            me.close()
            assert descriptors() <= before
            assert not (await house.visit().call("Lease.List"))["leases"]


@pytest.mark.autojump
async def test_who_sends_its_own_end_keeps_no_place(tmp_path: Path) -> None:
    """While nobody reads it that end is open, whoever has closed it."""
    async with open_house(tmp_path) as house:
        me, other = house.visit(), house.visit()
        assert house.agent.listener is not None
        await me.ask("Lease.Watch", more=True)
        await other.call("Lease.List")
        await me.send(b"x", [me.sock.fileno()])
        me.close()
        await other.call("Lease.List")
        assert house.agent.listener.connections == 1


@pytest.mark.autojump
async def test_who_owes_many_sends_no_more(linger: Linger, tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        other, began_s = house.visit(uid=2000), time.monotonic()
        await other.call("Lease.List")
        assert house.agent.listener is not None
        with held_pipe(os.getuid()) as (reading, writing):
            os.close(writing)
            house.agent.listener.disposal.take(os.getuid(), [reading])
            for _ in range(OWED_MAX // 16 + 1):
                send(house.visit(operator=True), message("Lease.List"), linger.sock(), more=15)
                await trio.sleep(1)
            kept = descriptors()
            for _ in range(5):
                refused = house.visit()
                assert "take long to close" in (await refused.answer())["parameters"]["why"]
                refused.close()
            assert descriptors() <= kept
            await other.call("Lease.List")
            assert time.monotonic() - began_s < BRIEF_S, "everybody waited for one that lingers"
        linger.end()


async def test_an_agent_that_is_closed_is_held_up_by_nobody(linger: Linger, tmp_path: Path) -> None:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with door:
        door.bind(str(tmp_path / "user"))
        door.listen(64)
        clock = BootClock()
        listener = Listener(
            doors=[(door, described(), False)],
            dispatch=Closed(StateError("the log cannot be used"), clock),
            holders=Holders(lambda _command, _deliver=None: None, lambda _lease_id: None),
            clock=clock,
            limits=Sockets(),
            tenant_of=Config().tenant_of,
        )
        listener.names_peers = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            me, other = Visitor(tmp_path / "user"), Visitor(tmp_path / "user")
            began_s = time.monotonic()
            acquire = message("Lease.Acquire", resources=memory(), bind="process")
            send(me, acquire, linger.sock())
            assert "error" in await me.answer()
            await other.refused("Lease.List")
            assert time.monotonic() - began_s < BRIEF_S, "everybody waited for one that lingers"
            linger.end()
            nursery.cancel_scope.cancel()
        me.close()
        other.close()


def test_one_uid_holds_up_no_other() -> None:
    disposal = Disposal()
    with held_pipe(os.getuid()) as (stuck, writing):
        os.close(writing)
        quick, other = os.pipe()
        disposal.take(1000, [stuck])
        disposal.take(2000, [quick])
        with open(other, "wb", buffering=0) as end, pytest.raises(BrokenPipeError):
            while True:
                end.write(b"x")
                os.sched_yield()
        assert disposal.owed(1000) == 1


def test_who_closes_is_put_where_systemd_does_not_wait_for_it(tmp_path: Path) -> None:
    procs = tmp_path / "keeper" / "cgroup.procs"
    procs.parent.mkdir()
    procs.touch()
    with held_pipe(os.getuid()) as (stuck, writing):
        os.close(writing)
        Disposal(str(tmp_path)).take(1000, [stuck])
        while not (pid := procs.read_text()):
            os.sched_yield()
        while not Path("/proc", pid, "cmdline").read_bytes().startswith(b"sh\0"):
            os.sched_yield()  # not yet: it is put there before it becomes that


DISPOSES = """
import signal, sys
from leased.service.api.disposal import Disposal
print(flush=True)
disposal = Disposal()
for fd in sys.argv[1:]:
    input()
    disposal.take(1000, [int(fd)])
signal.pause()
"""


def test_what_nobody_can_close_keeps_no_process_from_its_end() -> None:
    """The first, and what comes behind it."""
    with held_pipe(os.getuid()) as first, held_pipe(os.getuid()) as second:
        readings = [first[0], second[0]]
        words = [sys.executable, "-c", DISPOSES, *map(str, readings)]
        both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(words, pass_fds=readings, **both) as agent:
            assert agent.stdin is not None and agent.stdout is not None
            assert agent.stdout.readline() == b"\n"
            for reading, writing in (first, second):
                os.close(writing)
                os.close(reading)
                agent.stdin.write(b"\n")
                agent.stdin.flush()
                while Path(f"/proc/{agent.pid}/fd/{reading}").exists():
                    os.sched_yield()
            agent.kill()
            assert agent.wait(BRIEF_S) == -signal.SIGKILL
