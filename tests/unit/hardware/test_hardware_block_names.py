# SPDX-License-Identifier: Apache-2.0
"""Names that stay: namespaces by identity, mappings by lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.hardware.block.names import (
    identity_in,
    identity_of,
    is_raw,
    lease_in,
    mapping_name,
    mapping_path,
    mapping_uuid,
    number_of,
    resource_id,
)
from leased.terms.identity import LeaseId
from leased.terms.resource import Allotment, ResourceKind, Shape, capacity_id, shape_of
from tests.doubles.leases import lease

ID = LeaseId(bytes(range(16)))
NATIVE = Path(__file__).resolve().parents[3] / "native"


@pytest.mark.parametrize(
    ("said", "identity", "last"),
    [
        ({"nguid": "0025385b-71b0-0a1c-0001", "eui": "00 25"}, "0025385b71b00a1c0001", "nguid"),
        ({"nguid": "00000000-0000-0000-0000-0000", "eui": "00 25 38 5B"}, "0025385b", "eui"),
        ({"eui": "00 00 00 00 00 00 00 00", "uuid": "5F6C1FD6-0CF2"}, "5f6c1fd60cf2", "uuid"),
        ({"wwid": "nvme.1b36-6c65-51454d5"}, "nvme.1b36-6c65-51454d5", "wwid"),
        ({"wwid": "a wwid, with/what:no id has"}, "a_wwid_with_what_no_id_has", "wwid"),
        ({}, "", "wwid"),
    ],
)
def test_the_identity_is_the_first_that_says_anything(
    said: dict[str, str], identity: str, last: str
) -> None:
    asked: list[str] = []

    def told(name: str) -> str | None:
        asked.append(name)
        return said.get(name)

    assert identity_of(told) == identity
    assert asked[-1] == last, "nothing is read in vain"


def test_a_raw_namespace_is_another_way_to_the_same_bytes() -> None:
    plain, raw = resource_id("aa01"), resource_id("aa01", raw=True)
    assert identity_in(plain) == identity_in(raw) == "aa01"
    assert (
        capacity_id(raw) == plain and shape_of(raw) is Shape.RAW and shape_of(plain) is Shape.CRYPT
    )
    assert is_raw(Allotment(raw, ResourceKind.BLOCK, None, 1))
    assert not is_raw(Allotment(plain, ResourceKind.BLOCK, None, 1))


def test_a_mapping_is_found_by_its_lease_and_leads_back_to_it() -> None:
    assert mapping_uuid(ID, 3) == f"LEASED-{ID.hex()}-3"
    assert mapping_path(ID, 3) == f"/dev/mapper/{mapping_name(ID, 3)}"
    assert lease_in(mapping_uuid(ID, 3)) == ID
    for stranger in ("", "LVM-abc", "LEASED-xyz-0", f"LEASED-{ID.hex()}", f"CRYPT-{ID.hex()}-0"):
        assert lease_in(stranger) is None


def test_the_reaper_says_the_same_uuid() -> None:
    header = " ".join((NATIVE / "reaper_protocol.h").read_text("utf-8").split())
    assert '"LEASED-<lease id in hex>-<number>"' in header
    assert '"LEASED-%s-%u"' in (NATIVE / "reaper/cutter.c").read_text("utf-8")


def test_the_number_is_the_place_among_the_namespaces_of_the_lease() -> None:
    memory = Allotment("mem:node0:4096", ResourceKind.MEM, None, 4096)
    disks = [Allotment(f"block:aa0{n}", ResourceKind.BLOCK, None, 1) for n in range(3)]
    held = lease(disks[0], memory, disks[1], disks[2])
    assert [number_of(held, disk) for disk in disks] == [0, 1, 2]
