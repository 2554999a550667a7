# SPDX-License-Identifier: Apache-2.0
"""The listener on real sockets: limits, peers that do not read, peers that lie about descriptors,
peers that are gone, and nothing left over when they are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased.hardware.clock import BootClock
from leased.service.api.listener import TOGETHER
from leased.service.api.receiving import READ_BYTES
from leased.service.config import Sockets
from leased.terms.command import Caller
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_MS, NS_PER_S
from tests.doubles.calling import House, Visitor, memory, message, open_house
from tests.doubles.scarcity import descriptors_left
from tests.doubles.serving import descriptors

ROOT = Caller(0, 0, 4242, TenantId("root"))
ACQUIRE = {"resources": memory(), "bind": "deadline"}


# ---- many at once --------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_all_who_ask_in_one_turn_are_answered_whatever_the_others_send(
    tmp_path: Path,
) -> None:
    """Many more than are read by one call, the first of whom send more than fits into it."""
    heavy = b'{"method":"' + b"x" * (READ_BYTES - 11)  # a message that has only begun
    async with open_house(tmp_path, limits=Sockets(connections_per_uid_max=400)) as house:
        callers: list[Visitor] = []
        for _ in range(2 * TOGETHER + 3):
            callers.append(house.visit(uid=2000))
            await callers[-1].call("Lease.List")
        for at, caller in enumerate(callers):
            wire = heavy if at % TOGETHER < 6 else message("Lease.List")
            assert os.write(caller.sock.fileno(), wire) == len(wire)  # nobody has a turn meanwhile
        callers[TOGETHER + 8].close()
        for at, caller in enumerate(callers):
            if at % TOGETHER >= 6 and at != TOGETHER + 8:
                assert "leases" in (await caller.answer())["parameters"]


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_one_uid_has_so_many_connections(tmp_path: Path) -> None:
    limits = Sockets(connections_per_uid_max=3, connections_max=100)
    async with open_house(tmp_path, limits=limits) as house:
        held = [house.visit(uid=1000) for _ in range(3)]
        for visitor in held:
            await visitor.call("Lease.List")
        surplus = house.visit(uid=1000)
        refused = await surplus.answer()
        assert refused["error"].endswith("PermissionDenied")
        assert "uid 1000 has 3 connections" in refused["parameters"]["why"]
        assert await surplus.ended()
        await house.visit(uid=2000).call("Lease.List")
        held[0].close()
        await trio.sleep(1)
        await house.visit(uid=1000).call("Lease.List")


@pytest.mark.autojump
async def test_all_together_have_so_many_connections(tmp_path: Path) -> None:
    limits = Sockets(connections_per_uid_max=100, connections_max=4)
    async with open_house(tmp_path, limits=limits) as house:
        for uid in (1000, 1000, 2000, 0):
            await house.visit(uid=uid).call("Lease.List")
        surplus = house.visit(uid=1001)
        assert (await surplus.answer())["error"].endswith("PermissionDenied")
        assert house.agent.listener is not None and house.agent.listener.connections == 4


@pytest.mark.autojump
async def test_one_uid_has_no_more_connections_than_it_leaves(tmp_path: Path) -> None:
    """Nor have two of them together: whoever comes next finds room."""
    limits = Sockets(connections_per_uid_max=32, connections_max=32)
    async with open_house(tmp_path, limits=limits) as house:
        for uid, share in ((1000, 16), (2000, 8), (1001, 4)):
            for _ in range(share):
                await house.visit(uid=uid).call("Lease.List")
            surplus = house.visit(uid=uid)
            refused = await surplus.answer()
            assert refused["error"].endswith("PermissionDenied")
            assert f"{share} are left for all" in refused["parameters"]["why"]
            assert await surplus.ended()
        for _ in range(8):
            await house.visit(operator=True).call("Lease.List")


@pytest.mark.autojump
async def test_one_uid_has_no_more_sent_of_requests_than_it_leaves(tmp_path: Path) -> None:
    limits = Sockets(message_bytes_max=4096, unfinished_bytes_max=32768)
    async with open_house(tmp_path, limits=limits) as house:
        for uid, share in ((1000, 4), (2000, 2), (1001, 1)):
            held = [house.visit(uid=uid) for _ in range(share)]
            for visitor in held:
                await visitor.send(b"{" + b" " * 4095)
            surplus = house.visit(uid=uid)
            await surplus.call("Lease.List")
            await surplus.send(message("Lease.List") + b"{" + b" " * 4095)
            await surplus.answer()
            refused = await surplus.answer()
            assert refused["error"].endswith("ProtocolError")
            assert f"uid {uid} has too much sent" in refused["parameters"]["why"]
            assert await surplus.ended()
        # What is whole counts no longer, nor does what has gone.
        await held[0].send(b"\0")
        assert (await held[0].answer())["error"].endswith("ProtocolError")
        for _ in range(20):
            await house.visit(uid=1001).send(b"{" + b" " * 4095 + b"\0")
        again = house.visit(uid=1001)
        await again.send(message("Lease.List")[:-1] + b" " * 3000)
        await again.send(b"\0")
        assert "leases" in (await again.answer())["parameters"]
        house.leave()
        await trio.sleep(1)
        assert house.agent.listener is not None
        assert house.agent.listener.unfinished_bytes == 0


@pytest.mark.autojump
async def test_a_message_has_so_many_bytes(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits=Sockets(message_bytes_max=4096)) as house:
        me = house.visit()
        await me.send(b"{" + b" " * 8192)
        assert (await me.answer())["error"].endswith("ProtocolError")
        assert await me.ended()


@pytest.mark.autojump
async def test_one_connection_has_so_many_calls_unanswered(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits=Sockets(calls_queued_max=4)) as house:
        house.agent.journal.gate.shut()
        house.agent.submit(house.host.acquire(1))
        me = house.visit()
        await me.send(message("Lease.List") * 5)
        await trio.sleep(1)
        house.agent.journal.gate.open()
        answers = [await me.answer() for _ in range(5)]
        assert ["error" in answer for answer in answers] == [False] * 4 + [True]
        assert await me.ended()


# ---- peers that do not read ----------------------------------------------------------------------


async def _much_to_say(house: House) -> None:
    for _ in range(150):
        await house.agent.lease(1, caller=ROOT, ttl_s=3600)


@pytest.mark.autojump
async def test_a_peer_that_does_not_read_is_cut_off_in_time(tmp_path: Path) -> None:
    limits = Sockets(write_timeout_ns=10 * NS_PER_S)
    async with open_house(tmp_path, limits=limits) as house:
        await _much_to_say(house)
        deaf, other = house.visit(), house.visit()
        await deaf.send(message("Lease.List") * 16)
        await trio.sleep(8)
        assert house.agent.listener is not None
        await other.call("Lease.List")
        assert house.agent.listener.connections == 2, "it has time to read"
        await trio.sleep(5)
        assert house.agent.listener.connections == 1
        await other.call("Lease.List")


@pytest.mark.autojump
async def test_a_peer_that_reads_slowly_gets_everything_in_order(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits=Sockets(write_timeout_ns=10 * NS_PER_S)) as house:
        await _much_to_say(house)
        slow = house.visit()
        calls = [message("Lease.List"), message("Device.List")] * 8
        await slow.send(b"".join(calls))
        await trio.sleep(5)
        answers = [await slow.answer() for _ in calls]
        assert ["leases" in one["parameters"] for one in answers] == [True, False] * 8
        assert len(answers[-2]["parameters"]["leases"]) == 150
        await trio.sleep(60)
        await slow.call("Lease.List")


@pytest.mark.autojump
async def test_descriptors_that_cannot_be_sent_yet_arrive_later_or_are_closed(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, limits=Sockets(write_timeout_ns=10 * NS_PER_S)) as house:
        await _much_to_say(house)
        slow, deaf = house.visit(), house.visit()
        calls = message("Lease.List") * 12 + message("Lease.Acquire", **ACQUIRE)
        for visitor in (slow, deaf):
            await visitor.send(calls)
        await trio.sleep(5)
        for _ in range(12):
            await slow.answer()
        answer = await slow.answer()
        assert answer["parameters"]["fds"] and len(slow.fds) == 1
        before = descriptors()
        await trio.sleep(10)
        house.dispose()
        assert descriptors() == before - 3, "socket, pidfd, memory of the deaf"


# ---- a kernel that does not name its peers -------------------------------------------------------


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.autojump
async def test_who_is_not_named_is_known_by_what_it_says_after_an_answer(
    operator: bool, tmp_path: Path
) -> None:
    async with open_house(tmp_path, names_peers=False) as house:
        me = house.visit(operator=operator)
        asked = {"resources": memory(), "bind": "process"}
        name, told = await me.refused("Lease.Acquire", **asked)
        assert name == "PermissionDenied" and "ask again" in told["why"]
        await me.call("Lease.Acquire", **asked)
        assert house.agent.holders.lives(os.getpid())
        if not operator:
            with open("/dev/null", "rb") as null:
                await me.send(message("Lease.List"), [null.fileno()])
            assert "descriptors are not taken" in (await me.answer())["parameters"]["why"]


# ---- descriptors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["malformed", "unknown method", "in pieces", "too many"])
@pytest.mark.autojump
async def test_descriptors_with_calls_that_go_nowhere_do_not_pile_up(
    kind: str, named: bool, tmp_path: Path
) -> None:
    async with open_house(tmp_path, names_peers=named) as house:
        await house.visit().call("Lease.List")
        before = descriptors()
        me = house.visit()
        await me.call("Lease.List")
        own = descriptors() - before
        data = {
            "malformed": message("Lease.Acquire", resources=[]),
            "unknown method": message("Lease.Nonsense"),
            "in pieces": b'{"meth',
            "too many": message("Lease.Acquire", **ACQUIRE),
        }[kind]
        with open("/dev/null", "rb") as null, contextlib.suppress(EOFError, OSError):
            for _ in range(40):
                await me.send(data, [null.fileno()] * (5 if kind == "too many" else 1))
                if kind != "in pieces":
                    await me.answer()
        await trio.sleep(1)
        house.dispose()
        extra = descriptors() - before - own
        assert extra <= 0, f"{extra} descriptors of a peer are kept for calls that never come"


@pytest.mark.autojump
async def test_descriptors_behind_a_fault_are_not_kept_while_an_earlier_call_takes_its_time(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit(operator=True)
        lease = (await me.call("Lease.Acquire", **ACQUIRE))["lease"]["lease_id"]
        before = descriptors()
        await me.send(message("Lease.Wait", lease_id=lease) + b"no JSON\0")
        await trio.sleep(0.1)  # of one read with what follows it would be carried out no more
        with open("/dev/null", "rb") as null:
            for _ in range(20):
                await me.send(b"x", [null.fileno()] * 16)
                await trio.sleep(0.1)
                house.dispose()
        assert descriptors() <= before
        await house.visit().call("Lease.Release", lease_id=lease)
        assert (await me.answer())["parameters"]["lease"]["lease_id"] == lease
        assert (await me.answer())["error"].endswith("ProtocolError")
        assert await me.ended()


@pytest.mark.autojump
async def test_a_descriptor_goes_with_its_own_call(tmp_path: Path) -> None:
    """A call that is refused takes its descriptor with it, and the next one has its own."""
    async with open_house(tmp_path) as house:
        boss = house.visit(operator=True)
        lease = (await boss.call("Lease.Acquire", **ACQUIRE))["lease"]["lease_id"]
        pidfd = os.pidfd_open(os.getpid())
        with open("/dev/null", "rb") as null:
            await boss.ask("Admin.Adopt", fds=[null.fileno()], lease_id=1)
            assert "InvalidParameter" in (await boss.answer())["error"]
            await boss.ask("Admin.Adopt", fds=[pidfd], lease_id=lease)
            answer = await boss.answer()
        os.close(pidfd)
        assert "error" not in answer, answer
        assert house.host.devices.adoptions.moved == [(lease, os.getpid())]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.autojump
async def test_connections_leave_nothing_behind(named: bool, tmp_path: Path) -> None:
    async with open_house(tmp_path, names_peers=named) as house:
        await house.visit().call("Lease.List")
        await trio.sleep(1)
        before = descriptors()
        for number in range(20):
            me = house.visit()
            if number % 4 == 1:
                await me.call("Lease.List")  # who says something is known, on any kernel
                await me.call("Lease.Acquire", resources=memory(), bind="process", ttl_ns=10**9)
            elif number % 4 == 2:
                await me.ask("Lease.Watch", more=True)
                await me.answer()
            elif number % 4 == 3:
                await me.send(b"\xff\0")
                await me.answer()
            me.close()
        await trio.sleep(10)
        house.dispose()
        assert descriptors() == before
        assert house.agent.listener is not None and house.agent.listener.connections == 1


# ---- peers that are gone -------------------------------------------------------------------------

_GONE = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(sys.stdin.buffer.read())
"""


@pytest.mark.autojump
async def test_who_sends_no_more_has_its_answers_first(tmp_path: Path) -> None:
    """`printf ... | socat - UNIX:...` shuts down its sending half: a grant that was under way went
    to nobody, and lived out its term."""
    async with open_house(tmp_path) as house:
        house.agent.journal.gate.shut()
        me, half, waits = house.visit(), house.visit(), house.visit()
        await me.send(message("Lease.Acquire", **ACQUIRE) + message("Lease.List"))
        await half.send(message("Lease.List") + b'{"method"')
        await waits.ask("Lease.Watch", more=True)
        for visitor in (me, half, waits):
            visitor.sock.shutdown(socket.SHUT_WR)
        await trio.sleep(1)
        house.agent.journal.gate.open()
        assert (await me.answer())["parameters"]["lease"]["lease_id"] and len(me.fds) == 1
        assert len((await me.answer())["parameters"]["leases"]) == 1
        assert await me.ended()
        await half.answer()
        assert await half.ended()
        await waits.answer()
        listener = house.agent.listener
        assert listener is not None and listener.connections == 1, "who watches is told more"
        waits.close()
        await trio.sleep(1)
        assert listener.connections == 0


@pytest.mark.autojump
async def test_who_is_gone_before_being_let_in_gets_no_lease(tmp_path: Path) -> None:
    """The process has been reaped; only its bytes are left in the socket."""
    async with open_house(tmp_path) as house:
        subprocess.run(
            [sys.executable, "-c", _GONE, str(tmp_path / "user")],
            input=message("Lease.Acquire", resources=memory(), bind="process"),
            check=True,
        )
        await trio.sleep(10)
        live = [one for one in house.agent.lessor.table.leases.values() if one.ended is None]
        assert not live, "bound to a process that does not exist"
        assert house.agent.listener is not None and house.agent.listener.connections == 0
        await house.visit().call("Lease.List")


@pytest.mark.autojump
async def test_who_gave_up_before_the_agent_had_its_turn_gets_no_lease(tmp_path: Path) -> None:
    """The agent hung (SIGSTOP, a host that was suspended): whoever asked has gone."""
    async with open_house(tmp_path) as house:
        known, new = house.visit(), house.visit()
        lease = (await known.call("Lease.Acquire", **ACQUIRE))["lease"]["lease_id"]
        give_back = message("Lease.Release", lease_id=lease)
        asked = message("Lease.Acquire", **ACQUIRE)
        for visitor, said in ((known, give_back + asked), (new, asked)):
            with socket.socket(fileno=os.dup(visitor.sock.fileno())) as plain:
                plain.sendall(said)  # at once: the agent has no turn between the two
            visitor.close()
        await trio.sleep(1)
        events = house.host.sealed()
        assert events.count("Allocated") == 1, "nobody would have been told of the others"
        assert events.count("Released") == 1, "what gives something back is carried out"


@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.autojump
async def test_an_agent_out_of_descriptors_refuses_and_lives(left: int, tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me: Visitor = house.visit()
        await me.send(message("Lease.Acquire", resources=memory(), bind="process"))
        with descriptors_left(left):
            for _ in range(50):
                await trio.lowlevel.checkpoint()
        await trio.sleep(1)
        assert await house.visit().call("Lease.List")


class Turns(trio.abc.Instrument):
    """How often the listener has had its turn."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One task's turn."""
        self.count += task.name.endswith("Listener.run")


@pytest.mark.autojump
async def test_somebody_at_the_door_for_whom_there_is_no_descriptor_takes_no_processor(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        inside, waiting, turns = house.visit(), house.visit(), Turns()
        with descriptors_left(0):
            trio.lowlevel.add_instrument(turns)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(turns)
        assert 0 < turns.count < 10
        assert await waiting.call("Lease.List") and await inside.call("Lease.List")


async def test_who_waits_for_a_moment_needs_no_descriptor_for_it() -> None:
    """Somebody always waits: it would be the agent that ends."""
    clock = BootClock()
    with descriptors_left(0):
        due_ns = clock.boot_ns() + 150 * NS_PER_MS
        await clock.sleep_until(due_ns)
        assert due_ns <= clock.boot_ns()
