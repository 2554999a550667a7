# SPDX-License-Identifier: Apache-2.0
"""What of the memory is offered to remote peers, through which device and address, and why not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from leased.hardware.rdma.calls import Ability, Seen
from leased.hardware.rdma.config import RdmaConfig, Windows
from leased.hardware.rdma.devices import (
    Gid,
    Port,
    RdmaDevice,
    ambiguous,
    is_leaving,
    named,
    place_of,
    read_devices,
)
from leased.hardware.rdma.nldev import Link, PortState
from leased.hardware.rdma.survey import CARD_LIMIT, OPEN_KEYS_LIMIT, survey
from leased.terms.errors import DeviceError
from leased.terms.resource import Evidence, Health, Resource, ResourceKind, TierKind, capacity_id

GUID = "0002c90300a1b2c3"
ABLE = Ability("", 1 << 62, windows=True, atomics=True)
V2 = Gid(3, "0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v2")


def device(name: str = "mlx5_0", guid: str = GUID, **how: object) -> RdmaDevice:
    """A card with one active port."""
    made = RdmaDevice(0, name, guid, "1.2", "roce", "mlx5", 0, (Port(1, 4, "eth0", (V2,)),))
    return msgspec.structs.replace(made, **how)


def memory(node: int, page_bytes: int = 4096) -> Resource:
    """1 GiB of it."""
    resource_id = f"mem:node{node}:{page_bytes}"
    return Resource(
        resource_id, ResourceKind.MEM, TierKind.DRAM, 1 << 30, page_bytes, node=node, limits=("x",)
    )


def surveyed(
    *devices: RdmaDevice, ability: Ability = ABLE, nodes: tuple[int, ...] = (0,), **config: object
) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
    """The survey of these devices and nodes."""
    seen = Seen(devices, (ability,) * len(devices), tuple(memory(node) for node in nodes))
    return survey(seen, RdmaConfig(**config), ("uncounted",))  # type: ignore[arg-type]


def test_a_device_is_another_way_to_the_same_memory() -> None:
    [resource], notes = surveyed(device())
    assert resource.resource_id == f"mem:rdma-{GUID}:node0:4096"
    assert capacity_id(resource.resource_id) == "mem:node0:4096"
    assert (resource.tier, resource.capacity, resource.granule) == (TierKind.REMOTE, 1 << 30, 4096)
    assert (resource.health, resource.evidence) == (Health.OK, Evidence.NOT_RUN)
    assert resource.limits == ("x", "uncounted", CARD_LIMIT)
    assert dict(resource.attributes)["windows"] == "2B"
    assert not notes


def test_a_software_device_is_emulated_and_says_nothing_of_cards() -> None:
    [resource], _ = surveyed(device("rxe0", driver="rxe"))
    assert resource.evidence is Evidence.EMULATED
    assert CARD_LIMIT not in resource.limits


def test_a_port_that_is_down_is_sick_and_still_there() -> None:
    down = Port(1, 1, "eth0", (V2,))
    [resource], notes = surveyed(device(ports=(down,)))
    assert resource.health is Health.SICK and not notes
    assert dict(resource.attributes)["port"] == "1 down"
    [resource], _ = surveyed(device(ports=(down, Port(2, 4, "eth1", (V2,)))))
    assert resource.health is Health.OK, "peers come through the port that is up"


def test_a_nodes_own_devices_offer_it_and_else_every_device() -> None:
    near = device("mlx5_0", "1" * 16, node=0)
    far = device("mlx5_1", "2" * 16, node=1)
    resources, _ = surveyed(near, far, nodes=(0, 1, 2))
    assert [one.resource_id for one in resources] == [
        f"mem:rdma-{'1' * 16}:node0:4096",
        f"mem:rdma-{'2' * 16}:node1:4096",
        f"mem:rdma-{'1' * 16}:node2:4096",
        f"mem:rdma-{'2' * 16}:node2:4096",
    ]


@pytest.mark.parametrize(
    ("offered", "ability", "config", "why"),
    [
        (device(protocol="iw"), ABLE, {}, "peers connect by iw"),
        (device(guid="0" * 16), ABLE, {}, "cannot be told apart"),
        (device(), Ability("load libibverbs.so.1: No such file"), {}, "load libibverbs"),
        (device(ports=()), ABLE, {}, "no port"),
        (device(ports=(Port(1, 4, "eth0", ()),)), ABLE, {}, "no port of it has an address"),
        (device(), ABLE, {"gid_index": 9}, "no port of it has an address"),
        (device(), ABLE, {"devices": ("mlx5_7",)}, "not named"),
    ],
)
def test_a_device_that_is_not_offered_says_why(
    offered: RdmaDevice, ability: Ability, config: dict[str, object], why: str
) -> None:
    resources, [note] = surveyed(offered, ability=ability, **config)
    assert not resources and why in note and offered.name in note


def test_devices_are_named_by_guid_or_name() -> None:
    for name in ("mlx5_0", GUID, "0002:c903:00a1:b2c3"):
        assert surveyed(device(), devices=(name,))[0], name
        assert named([device("other", "3" * 16), device()], name) == device()
    assert named([device()], "nobody") is None


def test_two_devices_of_one_guid_are_neither_offered() -> None:
    one, other = device("a"), device("b")
    assert ambiguous([one, other]) == {GUID}
    resources, notes = surveyed(one, other)
    assert not resources and len(notes) == 2


def test_without_windows_a_key_is_wider_and_that_is_said() -> None:
    blunt = msgspec.structs.replace(ABLE, windows=False)
    [resource], _ = surveyed(device(), ability=blunt)
    assert OPEN_KEYS_LIMIT in resource.limits
    [resource], _ = surveyed(device(), windows=Windows.NEVER)
    assert OPEN_KEYS_LIMIT in resource.limits


def test_the_address_that_is_routed_comes_first() -> None:
    link_local = Gid(0, "fe80:0000:0000:0000:0202:c9ff:fe00:0001", "RoCE v2")
    old = Gid(1, V2.text, "IB/RoCE v1")
    world = Gid(2, "2001:0db8:0000:0000:0000:0000:0000:0001", "RoCE v2")
    for gids, best in (
        ((link_local, old, world, V2), V2),
        ((link_local, old, world), world),
        ((link_local, old), link_local),
        ((old,), old),
    ):
        port = Port(1, 4, "eth0", gids)
        assert port.gid(-1) == best
        assert place_of(device(ports=(port,)), -1).gid_index == best.index
    assert Port(1, 4, "eth0", (old, V2)).gid(1) == old
    with pytest.raises(DeviceError):
        place_of(device(ports=()), -1)


class Kernel:
    """`nldev.Nldev` that lists one device."""

    def links(self) -> list[Link]:
        return [Link(4, "mlx5_0", GUID, "28.1", "roce", 1)]

    def ports(self, index: int) -> list[PortState]:
        assert index == 4
        return [PortState(1, 4, 5, "eth0")]

    def verbs_device(self, index: int) -> tuple[int, int]:
        assert index == 4
        return 1, 0xE7C0


def test_addresses_and_the_node_are_read_from_sysfs(tmp_path: Path) -> None:
    directory = tmp_path / "sys/class/infiniband/mlx5_0"
    port = directory / "ports/1"
    for name in ("gids", "gid_attrs/types"):
        (port / name).mkdir(parents=True)
    (directory / "device").mkdir()
    (directory / "device/numa_node").write_text("1\n")
    (directory / "node_guid").write_text("0002:c903:00a1:b2c3\n")
    for index in range(200):
        gid = V2.text if index in (3, 150) else ":".join(["0000"] * 8)
        (port / "gids" / str(index)).write_text(f"{gid}\n")
        if gid == V2.text:
            (port / "gid_attrs/types" / str(index)).write_text("RoCE v2\n")
    [found] = read_devices(Kernel(), tmp_path)  # type: ignore[arg-type]
    assert (found.driver, found.node, found.software) == ("mlx5", 1, False)
    assert found.ports[0].gids == (V2,), "beyond a long stretch of nothing there is nothing"
    assert is_leaving(GUID, tmp_path) and not is_leaving("1" * 16, tmp_path)
