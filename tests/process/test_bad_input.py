# SPDX-License-Identifier: Apache-2.0
"""Bad input against the real socket: each gets its typed error, and the agent is as it was.

After every test the agent answers, no lease and no memory is left over, and it has no more open
descriptors than before.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from random import Random

import pytest

from tests.doubles.host_agent import NS_PER_MS, NS_PER_S, PATIENCE_S, HostAgent, denied, mem
from tests.doubles.wire_peer import Peer, Remote, message

pytestmark = pytest.mark.root

INVALID = "org.varlink.service.InvalidParameter"
PROTOCOL = "io.leased.Lease.ProtocolError"
NOBODY = "00" * 16
GET_INFO = b'{"method":"org.varlink.service.GetInfo"}\0'


def open_fds(agent: HostAgent) -> int:
    return len(os.listdir(f"/proc/{agent.pid}/fd"))


@pytest.fixture
def agent(shared_agent: HostAgent) -> Iterator[HostAgent]:
    """The shared agent, which must be afterwards as it was before."""
    shared_agent.call("Lease.List")
    before, resources = open_fds(shared_agent), shared_agent.call("Device.List")["resources"]
    yield shared_agent
    assert shared_agent.call("Lease.List")["leases"] == []
    until = time.monotonic() + PATIENCE_S
    # Closed as soon as the agent has seen that we have; one of them is the listing's own.
    while (now := open_fds(shared_agent)) > before + 1 and time.monotonic() < until:
        select.select([], [], [], 0.01)
    assert now <= before + 1, f"{now - before} descriptors were left open"
    assert shared_agent.call("Device.List")["resources"] == resources


# ---- frames ------------------------------------------------------------------------------------

NOT_THE_PROTOCOL = {
    "no JSON": b"\x16\x03\x01\x02\x00\x01\0",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\0",
    "an array": b"[1,2]\0",
    "a number": b"7\0",
    "nothing": b"\0",
    "no method": b"{}\0",
    "a method that is no text": b'{"method":7}\0',
    "an unknown key": b'{"method":"io.leased.Lease.List","why":1}\0',
    "two roots": b'{"method":"io.leased.Lease.List"}{}\0',
    "bad utf-8": b'{"method":"\xff\xfe"}\0',
    "parameters that are a list": b'{"method":"io.leased.Lease.List","parameters":[]}\0',
    "more and oneway": b'{"method":"io.leased.Lease.List","more":true,"oneway":true}\0',
    "deep": b'{"method":"io.leased.Lease.List","parameters":' + b"[" * 100_000 + b"\0",
    "deep inside": b'{"method":"io.leased.Lease.List","parameters":{"closed":'
    + b'{"a":' * 50_000
    + b"1"
    + b"}" * 50_000
    + b"}}\0",
}


@pytest.mark.parametrize("what", NOT_THE_PROTOCOL)
def test_bytes_that_are_not_the_protocol_end_the_connection(agent: HostAgent, what: str) -> None:
    with agent.connect() as peer:
        # The call before them is answered, the one behind them is not.
        peer.send(GET_INFO + NOT_THE_PROTOCOL[what] + GET_INFO)
        assert peer.reply()["product"] == "leased"
        with pytest.raises(Remote) as caught:
            peer.reply()
        assert caught.value.name in (PROTOCOL, INVALID)
        if caught.value.name == PROTOCOL:
            assert caught.value.parameters["why"]
            assert peer.ended()


def test_a_message_that_is_too_long(agent: HostAgent) -> None:
    with agent.connect() as peer, pytest.raises((Remote, ConnectionError)) as caught:
        peer.send(b'{"method":"' + b"x" * (1 << 20) + b'"}\0')
        peer.reply()
    assert isinstance(caught.value, ConnectionError) or caught.value.name == PROTOCOL


def test_a_message_that_never_ends_is_not_kept(agent: HostAgent) -> None:
    with agent.connect() as peer, pytest.raises((Remote, ConnectionError)):
        for _ in range(64):
            peer.send(b"x" * (64 << 10))
        peer.reply()


def test_how_bytes_are_cut_does_not_show(agent: HostAgent) -> None:
    frames = b"".join(
        [
            message("Lease.Describe", lease_id=NOBODY),
            message("Device.List"),
            message("Lease.Plan", resources=[mem(4096)]),
        ]
    )

    def answers(pieces: list[bytes]) -> list[object]:
        with agent.connect() as peer:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for piece in pieces:
                peer.send(piece)
            return [peer.answer() for _ in range(3)]

    whole = answers([frames])
    random = Random(7)
    assert answers([bytes([byte]) for byte in frames]) == whole
    cuts = sorted(random.sample(range(1, len(frames)), 7))
    pieces = [frames[a:b] for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True)]
    assert answers(pieces) == whole


def test_hostile_bytes_at_random(agent: HostAgent) -> None:
    seed = int(os.environ.get("LEASED_FUZZ_SEED", "11"))
    print(f"seed {seed}")
    random = Random(seed)
    good = message("Lease.Acquire", resources=[mem(4096)], ttl_ns=NS_PER_S, bind="deadline")
    for _ in range(150):
        raw = bytearray(good * random.randrange(1, 4))
        for _ in range(random.randrange(1, 6)):
            at = random.randrange(len(raw))
            raw[at : at + random.randrange(3)] = random.randbytes(random.randrange(4))
        with agent.connect() as peer:
            try:
                peer.send(bytes(raw))
                peer.sock.shutdown(socket.SHUT_WR)
                while True:
                    peer.answer()
            except (EOFError, ConnectionError):
                pass
    # What was granted all the same, by luck, ends soon.
    for lease in agent.call("Lease.List")["leases"]:
        agent.call("Lease.Release", lease_id=lease["lease_id"])
        agent.wait_for(lease["lease_id"])


def test_more_calls_than_may_wait(agent: HostAgent) -> None:
    with agent.connect() as peer:
        peer.send(message("Lease.Acquire", resources=[mem(1 << 60)]) * 200)
        names = set()
        try:
            while True:
                names.add(peer.answer()["error"])
        except (EOFError, ConnectionError):
            pass
        assert names <= {"io.leased.Lease.Refused", PROTOCOL} and PROTOCOL in names


def test_a_reader_that_does_not_read_costs_only_itself(agent: HostAgent) -> None:
    with agent.connect() as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.sock.setblocking(False)
        try:
            for _ in range(2000):
                deaf.sock.send(GET_INFO)
        except (BlockingIOError, ConnectionError):
            pass
        agent.call("Lease.List")


def test_a_client_that_hangs_up_in_the_middle(agent: HostAgent) -> None:
    for cut in (1, 20, 60):
        with agent.connect() as peer:
            peer.send(message("Lease.Acquire", resources=[mem(4096)])[:cut])


# ---- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("io.leased.Lease.Nothing", "org.varlink.service.MethodNotFound"),
        ("com.example.Lease.Acquire", "org.varlink.service.InterfaceNotFound"),
        ("Lease", "org.varlink.service.InterfaceNotFound"),
        ("io.leased.Admin.Status", "org.varlink.service.InterfaceNotFound"),
        ("io.leased.Lease.Watch", "org.varlink.service.ExpectedMore"),
        ("x" * 10_000, "org.varlink.service.InterfaceNotFound"),
    ],
)
def test_methods_that_are_not_there(agent: HostAgent, method: str, name: str) -> None:
    with agent.connect() as peer:
        peer.send(json.dumps({"method": method}).encode() + b"\0")
        with pytest.raises(Remote) as caught:
            peer.reply()
        assert caught.value.name == name
        peer.call("Lease.List")  # the connection goes on


def ask(*resources: dict, **more: object) -> dict:
    return {"resources": list(resources), "ttl_ns": NS_PER_S, **more}


REFUSED_PARAMETERS = {
    "nothing asked": (ask(), "resources"),
    "no resources": ({}, "resources"),
    "zero": (ask({"kind": "mem", "capacity": 0}), "capacity"),
    "negative": (ask({"kind": "mem", "capacity": -4096}), "capacity"),
    "a fraction": (ask({"kind": "mem", "capacity": 4096.5}), "capacity"),
    "text": (ask({"kind": "mem", "capacity": "4096"}), "capacity"),
    "beyond 64 bits": (ask({"kind": "mem", "capacity": 1 << 64}), "capacity"),
    "far beyond": (ask({"kind": "mem", "capacity": 10**400}), "capacity"),
    "an unknown kind": (ask({"kind": "tape", "capacity": 1}), "kind"),
    "an unknown field": (ask({"kind": "mem", "capacity": 4096, "colour": "red"}), "colour"),
    "too many asks": (ask(*[mem(4096)] * 65), "resources"),
    "a TTL of nothing": (ask(mem(4096), ttl_ns=0), "ttl_ns"),
    "a TTL below nothing": (ask(mem(4096), ttl_ns=-1), "ttl_ns"),
    "a TTL beyond 64 bits": (ask(mem(4096), ttl_ns=1 << 63), "ttl_ns"),
    "a wait below nothing": (ask(mem(4096), wait_ns=-1), "wait_ns"),
    "an id that is none": (ask(mem(4096), command_id="zz"), "command_id"),
    "an unknown priority": (ask(mem(4096), priority="urgent"), "priority"),
    "an unknown bind": (ask(mem(4096), bind="thread"), "bind"),
    "a label with a newline": (ask(mem(4096), workload="a\nb"), "workload"),
    "a label that ends with one": (ask(mem(4096), workload="a\n"), "workload"),
}


@pytest.mark.parametrize("what", REFUSED_PARAMETERS)
def test_what_cannot_be_meant_names_its_parameter(agent: HostAgent, what: str) -> None:
    asked, parameter = REFUSED_PARAMETERS[what]
    for method in ("Lease.Acquire", "Lease.Plan"):
        given = {key: value for key, value in asked.items() if key != "command_id"}
        given = asked if method == "Lease.Acquire" else given
        if given == asked or what != "an id that is none":
            with pytest.raises(Remote) as caught:
                agent.call(method, **given)
            assert caught.value.name == INVALID, caught.value
            assert parameter in caught.value.parameters["parameter"]


DENIED = {
    "huge": (ask(mem(1 << 60)), "no_capacity"),
    "more than everything together": (ask(*[mem(1 << 60)] * 8), "no_capacity"),
    "the same twice over": (None, "no_capacity"),
    "half a page": (ask(mem(4097)), "capacity_granule"),
    "too short": (ask(mem(4096), ttl_ns=NS_PER_MS), "ttl_too_short"),
    "too long": (ask(mem(4096), ttl_ns=(1 << 63) - 1), "ttl_too_long"),
    "nowhere": (ask(mem(4096, resource_id="mem:node77:4096")), "no_such_resource"),
    "a node that is not there": (ask(mem(4096, node=77)), "no_such_resource"),
    "a kind that is not there": (ask({"kind": "net", "capacity": 1}), "no_such_resource"),
}


@pytest.mark.parametrize("what", DENIED)
def test_what_cannot_be_had_is_denied_with_its_reason(agent: HostAgent, what: str) -> None:
    asked, reason = DENIED[what]
    if asked is None:  # each fits, both together do not: all or nothing
        [memory] = agent.call("Device.List")["resources"]
        half = memory["capacity"] // 2 // 4096 * 4096 + 4096
        asked = ask(mem(half), mem(half))
    with denied(reason):
        agent.call("Lease.Acquire", **asked)
    assert agent.call("Lease.Plan", **asked)["refusal"]["reason"] == reason


def test_leases_that_are_not_there(agent: HostAgent) -> None:
    for method in ("Renew", "Release", "Done", "Describe", "Why", "Join", "Wait"):
        with pytest.raises(Remote) as caught:
            agent.call(f"Lease.{method}", lease_id=NOBODY)
        assert caught.value.name == "io.leased.Lease.NoSuchLease", method
    for bad in ("", "zz", NOBODY.upper() + "A", "0" * 31, "0" * 33, 7, None):
        with pytest.raises(Remote) as caught:
            agent.call("Lease.Renew", lease_id=bad)
        assert caught.value.name == INVALID, bad


# ---- descriptors -------------------------------------------------------------------------------


both_doors = pytest.mark.parametrize("admin", [False, True], ids=["users", "operators"])


@contextlib.contextmanager
def refused(*names: str, admin: bool, told: bool = True) -> Iterator[None]:
    """By the agent, or at the users' door by the kernel already (Linux 6.16 and later). `told`: by
    an answer, and not by the end of the connection alone."""
    try:
        with pytest.raises(Remote) as caught:
            yield
    except PermissionError:
        assert not admin
    except (EOFError, ConnectionError):
        assert not told
    else:
        assert caught.value.name in names


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


@both_doors
def test_descriptors_with_the_wrong_message(agent: HostAgent, null: int, admin: bool) -> None:
    for data in (message("Lease.List"), message("com.example.Nothing"), GET_INFO):
        with agent.connect(admin=admin) as peer, refused(PROTOCOL, admin=admin):
            peer.send(data, [null])
            try:
                peer.reply()
            finally:
                assert peer.ended()


@both_doors
def test_more_descriptors_than_a_call_takes(agent: HostAgent, null: int, admin: bool) -> None:
    for count in (2, 16, 17, 200):
        with agent.connect(admin=admin) as peer, refused(PROTOCOL, admin=admin, told=False):
            peer.send(message("Lease.Acquire", resources=[mem(4096)]), [null] * count)
            try:
                peer.reply()
            finally:
                assert peer.ended()


@both_doors
def test_descriptors_in_the_middle_of_a_message(agent: HostAgent, null: int, admin: bool) -> None:
    whole = message("Lease.Acquire", resources=[mem(4096)])
    with agent.connect(admin=admin) as peer, refused(PROTOCOL, admin=admin):
        peer.send(whole[:10])
        # Its own read, so that the descriptors come with the rest and nothing else.
        agent.call("Lease.List")
        peer.send(whole[10:], [null])
        peer.reply()


def test_a_pidfd_of_somebody_else_proves_nothing(agent: HostAgent) -> None:
    """Nor anything else: no user may send a descriptor along."""
    other = os.pidfd_open(1)
    names = (PROTOCOL, "io.leased.Lease.PermissionDenied")
    try:
        with agent.connect() as peer, refused(*names, admin=False):
            asked = {"resources": [mem(4096)], "ttl_ns": NS_PER_S, "bind": "process"}
            peer.call("Lease.Acquire", fds=[other], **asked)
    finally:
        os.close(other)


# ---- too many ----------------------------------------------------------------------------------


def test_more_connections_than_one_user_may_have(agent: HostAgent) -> None:
    peers: list[Peer] = []
    try:
        with pytest.raises((Remote, EOFError, ConnectionError)) as caught:
            for _ in range(300):
                peers.append(agent.connect())
                peers[-1].call("org.varlink.service.GetInfo")
        assert 200 < len(peers) <= 257
        if isinstance(caught.value, Remote):
            assert caught.value.name == "io.leased.Lease.PermissionDenied"
        agent.call("Admin.Status", admin=True)  # the operator is not shut out by a tenant
    finally:
        for peer in peers:
            peer.close()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:  # until the agent has seen that they have gone
        with contextlib.suppress(Remote, EOFError, ConnectionError):
            agent.call("Lease.List")
            return
    raise AssertionError("the agent did not let anybody in again")
