# SPDX-License-Identifier: Apache-2.0
"""What is only listed for now: GPUs on the bus, NVMe namespaces; and who the node is."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.hardware.calls import CgroupFacts, Survey
from leased.hardware.config import HardwareConfig
from leased.hardware.gpu.calls import Where
from leased.hardware.gpu.examining import list_bus
from leased.hardware.identity import node_id, read_machine_id
from leased.hardware.survey import survey
from leased.terms.errors import StateError
from leased.terms.resource import ResourceKind


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_only_display_controllers_of_nvidia_are_gpus(tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/pci/devices"
    for address, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x8086", "0x030000"),
    ):
        write(devices / address / "vendor", vendor)
        write(devices / address / "class", kind)
    assert list_bus(Where(str(tmp_path)), []).addresses == ("0000:01:00.0",)


def test_a_part_that_cannot_be_read_costs_its_own_kind_only(tmp_path: Path) -> None:
    write(tmp_path / "sys/devices/system/node/has_memory", "zero")
    call = Survey(HardwareConfig(), CgroupFacts("", (), (), ("no cgroup2",)))
    found = survey(call, tmp_path)
    why = {absence.kind: absence.why for absence in found.absences}
    assert "zero" in why[ResourceKind.MEM]
    assert "no cgroup2" in why[ResourceKind.CPU]
    assert set(why) == {ResourceKind.MEM, ResourceKind.CPU, ResourceKind.NET}
    assert "cgroup: no cgroup2" in found.notes


def test_the_node_id_is_stable_and_hides_the_machine_id(tmp_path: Path) -> None:
    write(tmp_path / "etc/machine-id", "0123456789abcdef0123456789abcdef")
    machine = read_machine_id(tmp_path)
    assert machine.hex() == "0123456789abcdef0123456789abcdef"
    node = node_id(machine)
    assert node == node_id(machine) and len(node) == 16
    assert node[6] >> 4 == 4 and node[8] >> 6 == 2
    assert machine.hex() not in node.hex() and node != node_id(b"\1" * 16)


@pytest.mark.parametrize("text", ["", "uninitialized", "0" * 32, "xyz" * 10 + "ab"])
def test_a_machine_without_an_id_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "etc/machine-id", text)
    with pytest.raises(StateError, match="systemd-machine-id-setup"):
        read_machine_id(tmp_path)
