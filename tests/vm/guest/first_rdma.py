# SPDX-License-Identifier: Apache-2.0
"""Memory that remote peers reach, through the units as they are installed: leased at one end of a
cable, written and read from the other until the lease ends, with the agent there, killed, or
stopped.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host
import pytest
from host import ADMIN, LIVES_S, MIB, Connection, Failed, call, eventually
from remote_peer import REFUSED, RemotePeer

CABLE = str(Path(__file__).with_name("soft-rdma"))
NEAR, FAR = "rxe0", "rxe1"
CORE = Path("/sys/devices/system/cpu/cpu1/online")
EACH_MINUTE_S = 60
"""How often the agent looks if nobody tells it anything."""


@pytest.fixture(scope="module")
def resource_id() -> Iterator[str]:
    """Node 0's memory by way of the near end, which the agent finds by itself."""
    host.serving()
    host.run(CABLE, "up")
    guid = Path(f"/sys/class/infiniband/{NEAR}/node_guid").read_text().strip().replace(":", "")
    name = f"mem:rdma-{guid}:node0:4096"
    eventually("the device is offered", lambda: name in offered())
    yield name
    host.run(CABLE, "down")
    eventually("the device is not offered any more", lambda: name not in offered())


@pytest.fixture
def connection(resource_id: str) -> Iterator[Connection]:
    opened = Connection()
    yield opened
    opened.close()
    for lease in call("Lease.List", ADMIN)["leases"]:
        call("Admin.Revoke", ADMIN, lease_id=lease["lease_id"])


@pytest.fixture
def peer(resource_id: str) -> Iterator[RemotePeer]:
    made = RemotePeer(FAR)
    yield made
    made.close()


def offered() -> dict[str, dict[str, Any]]:
    """What is leased here and well, by id."""
    listed = call("Device.List")["resources"]
    return {one["resource_id"]: one for one in listed if one["health"] == "ok"}


def objects() -> int:
    """What programs have made on the near device, by the kernel's own list."""
    kinds = ("qp", "mr", "pd", "ctx", "cq")
    rows = [r for kind in kinds for r in json.loads(host.run("rdma", "-j", "res", "show", kind))]
    return sum(row["ifname"] == NEAR and "pid" in row for row in rows)


def lease_region(connection: Connection, resource_id: str) -> str:
    """A MiB that peers reach; the lease's id. Bound to its cgroup: who is bound dies at the
    deadline, and we have to see what becomes of the peers."""
    ask = {"kind": "mem", "capacity": MIB, "resource_id": resource_id}
    granted = connection.acquire(ask, bind="cgroup", ttl_s=LIVES_S)
    [access] = granted["access"]
    assert access["name"] == "LEASE_RDMA" and access["resource_id"] == resource_id
    told = dict(part.split("=") for part in access["value"].split(";")[1:])
    assert (told["device"], told["address"], told["length"]) == (NEAR, "0", str(MIB))
    assert not connection.fds, "nobody gets the memory itself"
    return str(granted["lease"]["lease_id"])


def connect(connection: Connection, lease_id: str, peer: RemotePeer, **how: Any) -> int:
    """Both ends of a connection; the key."""
    ours = connection.call("Lease.Connect", lease_id=lease_id, **peer.end, **how)
    [region] = ours.pop("regions")
    assert (region["address"], region["length"]) == (0, MIB)
    peer.ask("connect", **ours)
    return int(region["key"])


def assert_nothing_is_left(lease_id: str, ended: str, before: dict[str, int], name: str) -> None:
    """Proven, and free again."""
    closed = host.closed(lease_id)
    assert (closed["state"], closed["ended"]) == ("reclaimed", ended), closed
    eventually("it is offered", lambda: name in offered())
    assert host.free(name) == before
    assert not host.leaf(lease_id).exists()
    assert objects() == 0


# ---- seen ----------------------------------------------------------------------------------------


def test_the_device_is_offered_with_its_bounds(resource_id: str) -> None:
    mine = offered()[resource_id]
    assert (mine["tier"], mine["evidence"]) == ("remote", "emulated")
    assert mine["attributes"]["device"] == NEAR and mine["attributes"]["windows"] == "2B"
    beside = offered()["mem:node0:4096"]["bounds"]
    assert mine["bounds"]["scrub_ns"] > beside["scrub_ns"]
    assert mine["bounds"]["prove_ns"] > beside["prove_ns"]
    said = host.leasectl("devices", "--json")
    assert resource_id in said
    host.leasectl("doctor")


# ---- a lease's life ------------------------------------------------------------------------------


def test_a_peer_reads_and_writes_until_the_deadline(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    before = host.free(resource_id)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer)
    written = os.urandom(512)
    assert peer.write(key, written, 4096) == 0
    read = peer.ask("read", address=4096, key=key, length=512)
    assert (read["status"], read["data"]) == (0, written.hex())
    peer.tell("race", address=0, key=key)
    assert peer.answer() == {"racing": True}
    deadline_ns = host.end_in(lease_id, 2)
    told = peer.answer()
    assert told["status"] in REFUSED
    assert told["failed_ns"] >= deadline_ns, "until then it reads"
    assert_nothing_is_left(lease_id, "expired", before, resource_id)
    [cut] = [one for one in host.history(lease_id) if one["kind"] == "AccessCut"]
    print(
        f"deadline -> last byte {(told['last_ns'] - deadline_ns) / 1e6:+.2f} ms,"
        f" -> failure at the peer {(told['failed_ns'] - deadline_ns) / 1e6:+.2f} ms",
        cut,
    )
    assert host.came_at(deadline_ns, cut["effective_ns"])
    assert told["posted_ns"] <= cut["effective_ns"], "nothing that was asked for later"


def test_a_release_ends_everything_in_order(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    before = host.free(resource_id)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer, access="read")
    assert peer.read(key) == 0
    connection.call("Lease.Release", lease_id=lease_id)
    assert_nothing_is_left(lease_id, "released", before, resource_id)
    assert peer.read(key) in REFUSED
    with pytest.raises(Failed) as refused:
        connection.call("Lease.Connect", lease_id=lease_id, **peer.end)
    assert refused.value.name in ("io.leased.Lease.NoSuchLease", "io.leased.Lease.CallerError")


def test_an_operators_word_ends_it(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    before = host.free(resource_id)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer)
    assert peer.read(key) == 0
    holders = host.leasectl("--admin", "holders", resource_id)
    print(holders)
    assert "leased-rdma" in holders and lease_id[:8] in holders
    call("Admin.Revoke", ADMIN, lease_id=lease_id)
    assert_nothing_is_left(lease_id, "revoked", before, resource_id)
    assert peer.read(key) in REFUSED


def test_a_device_that_is_renamed_ends_its_lease_all_the_same(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    """It is who it is by its GUID."""
    before = host.free(resource_id)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer)
    host.run("rdma", "dev", "set", NEAR, "name", "renamed0")
    try:
        assert peer.read(key) == 0
        connection.call("Lease.Release", lease_id=lease_id)
        host.closed(lease_id)
    finally:
        host.run("rdma", "dev", "set", "renamed0", "name", NEAR)
    assert_nothing_is_left(lease_id, "released", before, resource_id)
    assert peer.read(key) in REFUSED


def test_an_owner_that_dies_ends_its_lease(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    before = host.free(resource_id)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer)
    [room] = host.leaf(lease_id).glob("rdma-*")
    os.kill(int((room / "cgroup.procs").read_text()), signal.SIGKILL)
    assert_nothing_is_left(lease_id, "revoked", before, resource_id)
    assert peer.read(key) in REFUSED


def test_a_device_that_is_removed_ends_its_lease_and_is_offered_when_it_is_back(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    """Who removes it waits for whoever has its verbs open: for the owner, which is ended at once
    and not with the look of each minute."""
    for state, is_there in (("0", False), ("1", True)):  # a look, from which the minute counts
        CORE.write_text(state)
        eventually("the core is seen", lambda there=is_there: ("cpu:1" in offered()) is there)
    lease_id = lease_region(connection, resource_id)
    key = connect(connection, lease_id, peer)
    assert peer.read(key) == 0
    before = len(host.journal("LEASE_EVENT=InventoryChanged"))
    began = time.monotonic()
    host.run("rdma", "link", "delete", NEAR)
    took_s = time.monotonic() - began
    try:
        closed = host.closed(lease_id)
        assert (closed["state"], closed["reason"]) == ("reclaimed", "device_unhealthy"), closed
        assert took_s < EACH_MINUTE_S - 15, "somebody told of it"
        assert peer.read(key) in REFUSED
        eventually("it is not offered", lambda: resource_id not in offered())
    finally:
        host.run("rdma", "link", "add", NEAR, "type", "rxe", "netdev", "cable0")
    eventually("it is offered", lambda: resource_id in offered())
    host.journal("LEASE_EVENT=InventoryChanged", least=before + 2)
    connection.call("Lease.Release", lease_id=lease_region(connection, resource_id))
    eventually("nothing is left", lambda: objects() == 0)


# ---- the agent is not there ----------------------------------------------------------------------

AGENT = ("leased.service", "leased.socket", "leased-admin.socket")


def test_peers_notice_nothing_of_a_killed_agent_and_deadlines_hold(
    connection: Connection, peer: RemotePeer, resource_id: str
) -> None:
    before = host.free(resource_id)
    long, short = (lease_region(connection, resource_id) for _ in range(2))
    other, later = RemotePeer(FAR), RemotePeer(FAR)
    key, short_key = connect(connection, long, peer), connect(connection, short, other)
    other.tell("race", address=0, key=short_key)
    assert other.answer() == {"racing": True}
    deadline_ns = host.end_in(short, 10)
    os.kill(host.main_pid("leased.service"), signal.SIGKILL)
    host.run("systemctl", "stop", *AGENT)
    try:
        told = other.answer()
        assert told["status"] in REFUSED
        assert told["failed_ns"] >= deadline_ns
        print(f"no agent: deadline -> last byte {(told['last_ns'] - deadline_ns) / 1e6:+.2f} ms")
        assert peer.read(key) == 0, "the neighbour's go on"
        other.close()
    finally:
        host.run("systemctl", "start", *reversed(AGENT))
        host.serving()
    again = Connection()
    try:
        ended = host.closed(short)
        assert ended["state"] == "reclaimed"
        assert host.came_at(deadline_ns, ended["cut_boottime_ns"])
        assert told["posted_ns"] <= ended["cut_boottime_ns"] < host.started_ns("leased.service")
        assert host.describe(long)["state"] == "active" and peer.read(key) == 0
        late_key = connect(again, long, later)
        assert later.write(late_key, b"again") == 0
        again.call("Lease.Release", lease_id=long)
        assert_nothing_is_left(long, "released", before, resource_id)
        assert peer.read(key) in REFUSED and later.read(late_key) in REFUSED
    finally:
        later.close()
        again.close()


def test_the_chain_holds() -> None:
    host.leasectl("verify")
