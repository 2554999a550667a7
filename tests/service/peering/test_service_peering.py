# SPDX-License-Identifier: Apache-2.0
"""Connecting remote peers behind real sockets: what each gets, who may, and what a driver that
fails, a lease that has ended or a caller who means nothing gets.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from leased.hardware.rdma.protocol import MAY_ATOMIC, MAY_READ, MAY_WRITE
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.resource import Inventory, TierKind
from tests.doubles.calling import House, Visitor, memory, open_house
from tests.doubles.devices import small_inventory
from tests.doubles.peers import PEERS_MAX
from tests.doubles.serving import Host

pytestmark = pytest.mark.autojump

ONE = "mem:rdma-0000000000000001:node0:4096"
OTHER = "mem:rdma-0000000000000002:node0:4096"
PEER = {"gid": "fe80:" + "0000:" * 6 + "0002", "qp_number": 17, "packet_number": 4711}


def remote_host() -> Host:
    """One pool of memory, which two RDMA devices reach."""
    [pool] = small_inventory().resources
    ways = [
        msgspec.structs.replace(pool, resource_id=resource_id, tier=TierKind.REMOTE)
        for resource_id in (ONE, OTHER)
    ]
    return Host(inventory=Inventory((pool, *ways)))


def pinned(*resource_ids: str) -> list[dict[str, Any]]:
    """One page of each."""
    return [{"kind": "mem", "capacity": 4096, "resource_id": one} for one in resource_ids]


async def acquired(visitor: Visitor, *resource_ids: str) -> str:
    """A lease of one page through each device; its id."""
    asked = pinned(*resource_ids)
    reply = await visitor.call("Lease.Acquire", resources=asked, bind="deadline")
    lease_id: str = reply["lease"]["lease_id"]
    return lease_id


def peers(house: House, lease_id: str) -> list[Any]:
    """Who is connected."""
    found = house.host.peers.connected.get(LeaseId(bytes.fromhex(lease_id)), {})
    return list(found.values())


async def test_a_peer_gets_our_end_and_a_key_for_each_region(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        me = house.visit()
        lease = await acquired(me, ONE, ONE)
        reply = await me.call("Lease.Connect", lease_id=lease, **PEER)
        assert reply["gid"] == "fe80:" + "0000:" * 6 + "0007"
        assert [one["resource_id"] for one in reply["regions"]] == [ONE, ONE]
        assert all((one["address"], one["length"]) == (0, 4096) for one in reply["regions"])
        assert len({one["key"] for one in reply["regions"]}) == 2
        [peer] = peers(house, lease)
        assert (peer.gid, peer.qp_number, peer.psn) == ("fe80" + "0" * 24 + "0002", 17, 4711)
        assert peer.access == MAY_READ | MAY_WRITE | MAY_ATOMIC
        await me.call("Lease.Connect", lease_id=lease, access="read", mtu=512, **PEER)
        assert (peers(house, lease)[1].access, peers(house, lease)[1].mtu_bytes) == (MAY_READ, 512)
        await me.call("Lease.Disconnect", lease_id=lease, qp_number=reply["qp_number"])
        assert len(peers(house, lease)) == 1
        name, why = await me.refused(
            "Lease.Disconnect", lease_id=lease, qp_number=reply["qp_number"]
        )
        assert (name, why["errno"]) == ("DeviceError", errno.ENOENT)


async def test_a_lease_on_several_devices_must_say_which(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        me = house.visit()
        lease = await acquired(me, ONE, OTHER)
        name, why = await me.refused("Lease.Connect", lease_id=lease, **PEER)
        assert name == "CallerError" and "resource_id" in why["why"]
        reply = await me.call("Lease.Connect", lease_id=lease, resource_id=OTHER, **PEER)
        assert [one["resource_id"] for one in reply["regions"]] == [OTHER]


async def test_what_cannot_be_meant_is_refused_in_words(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        me = house.visit()
        plain = await me.call("Lease.Acquire", resources=memory(), bind="deadline")
        plain_id = plain["lease"]["lease_id"]
        name, why = await me.refused("Lease.Connect", lease_id=plain_id, **PEER)
        assert name == "CallerError" and "rdma" in why["why"]
        lease = await acquired(me, ONE)
        name, _ = await me.refused("Lease.Connect", lease_id=lease, resource_id=OTHER, **PEER)
        assert name == "CallerError"
        for wrong in (
            {"gid": "fe80::1"},
            {"gid": "zz" * 16},
            {"qp_number": 1 << 24},
            {"packet_number": -1},
            {"mtu": 0},
            {"access": "everything"},
            {"lid": 1 << 16},
        ):
            name, _ = await me.refused("Lease.Connect", lease_id=lease, **{**PEER, **wrong})
            assert name == "InvalidParameter", wrong
        assert not peers(house, lease)


async def test_nobody_else_connects_to_anothers_lease(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        mine, theirs = house.visit(uid=1000), house.visit(uid=2000)
        lease = await acquired(mine, ONE)
        for method in ("Connect", "Disconnect"):
            named = PEER if method == "Connect" else {"qp_number": 1}
            name, _ = await theirs.refused(f"Lease.{method}", lease_id=lease, **named)
            assert name == "NoSuchLease"
        assert not peers(house, lease)


@pytest.mark.parametrize("when", ["revoking", "reclaimed"])
async def test_nobody_is_connected_to_a_lease_that_has_ended(when: str, tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        me = house.visit()
        lease = await acquired(me, ONE)
        if when == "revoking":
            house.host.reaper.gates["revoke"].shut()
        await me.call("Lease.Release", lease_id=lease)
        await trio.sleep(5)
        name, why = await me.refused("Lease.Connect", lease_id=lease, **PEER)
        assert name == "CallerError" and "ended" in why["why"]


async def test_an_owner_that_fails_or_is_full_is_a_typed_error(tmp_path: Path) -> None:
    async with open_house(tmp_path, host=remote_host()) as house:
        me = house.visit()
        lease = await acquired(me, ONE)
        house.host.peers.fault = lambda verb: DeviceError("rdma", errno.ENETUNREACH, "find it")
        name, why = await me.refused("Lease.Connect", lease_id=lease, **PEER)
        assert (name, why["errno"], why["detail"]) == ("DeviceError", errno.ENETUNREACH, "find it")
        house.host.peers.fault = lambda verb: None
        for _ in range(PEERS_MAX):
            await me.call("Lease.Connect", lease_id=lease, **PEER)
        name, why = await me.refused("Lease.Connect", lease_id=lease, **PEER)
        assert (name, why["errno"]) == ("DeviceError", errno.EUSERS)
