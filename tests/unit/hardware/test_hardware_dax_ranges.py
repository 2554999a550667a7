# SPDX-License-Identifier: Apache-2.0
"""Device-dax ranges from trees of /sys: an identity that outlives names, and what is leased."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import msgspec
import pytest

from leased.hardware.dax.config import DaxConfig
from leased.hardware.dax.lost import read_lost, why_lost
from leased.hardware.dax.ranges import Range, read_ranges
from leased.hardware.dax.regions import recreate
from leased.hardware.dax.survey import describe, why_not
from leased.hardware.nodes import Node, Speed
from leased.terms.errors import DeviceError
from leased.terms.resource import Evidence, TierKind
from tests.doubles.sysfs_trees import dax, write

ND = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region1/dax1.0"
CXL = "sys/devices/platform/ACPI0017:00/root0/decoder0.0"
UUID = "279c6134-f4e4-4011-a5c8-e2a2d0dbb82b"
GIB = 1 << 30
CPU_NODE = Node(0, True, 64 * GIB, 10, Speed(90, 90, 200_000, 200_000), None, ())


def range_files(size: int, *, node: int = 1, start: int = 0x100600000) -> dict[str, str]:
    return {
        "size": str(size),
        "align": str(2 << 20),
        "target_node": str(node),
        "resource": hex(start),
    }


def persistent(root: Path, *, driver: str = "device_dax") -> None:
    """As the machine of `tests/vm` shows the namespace that ndctl made (Linux 6.1)."""
    write(root, {f"{ND}/uuid": UUID, f"{ND}/dax_region/id": "1"})
    dax(root, "dax1.0", ND, range_files(250 << 20), driver)


def cxl(root: Path, *, uuid: str = "", serials: tuple[str, ...] = ("0xa1", "0xb2")) -> None:
    """A region over two cards, as Documentation/ABI/testing/sysfs-bus-cxl has it."""
    region = f"{CXL}/region0"
    write(root, {f"{region}/uuid": uuid, f"{region}/interleave_ways": str(len(serials))})
    (root / "sys/bus/cxl/devices").mkdir(parents=True)
    for at, serial in enumerate(serials):
        endpoint = f"sys/devices/platform/ACPI0017:00/root0/port1/endpoint{at + 2}"
        decoder = f"{endpoint}/decoder{at + 2}.0"
        card = f"sys/devices/pci0000:0c/0000:0d:00.{at}/mem{at}"
        write(root, {f"{decoder}/dpa_resource": "0x40000000", f"{card}/serial": serial})
        (root / endpoint / "uport").symlink_to(root / card)
        (root / f"sys/bus/cxl/devices/decoder{at + 2}.0").symlink_to(root / decoder)
        write(root, {f"{region}/target{at}": f"decoder{at + 2}.0"})
    dax(root, "dax0.0", f"{region}/dax_region0", range_files(64 * GIB, node=2))


def only(root: Path) -> Range:
    [one] = read_ranges(root)
    return one


def test_persistent_memory_is_known_by_its_namespace(tmp_path: Path) -> None:
    persistent(tmp_path)
    one = only(tmp_path)
    assert one.resource_id == f"mem:dax-{UUID}" and one.path == "/dev/dax1.0"
    assert (one.size_bytes, one.align_bytes, one.node) == (250 << 20, 2 << 20, 1)
    assert one.is_persistent and one.whole and one.driver == "device_dax"
    assert one.region == str(tmp_path / ND)


def test_a_cxl_region_is_known_by_its_uuid_or_the_cards_it_is_made_of(tmp_path: Path) -> None:
    cxl(tmp_path / "cards")
    assert only(tmp_path / "cards").identity == "cxl-a1-b2-40000000"
    cxl(tmp_path / "named", uuid=UUID)
    assert only(tmp_path / "named").identity == UUID
    cxl(tmp_path / "zero", uuid="00000000-0000-0000-0000-000000000000")
    assert only(tmp_path / "zero").identity == "cxl-a1-b2-40000000"


def test_cards_without_a_number_of_their_own_are_known_by_their_place(tmp_path: Path) -> None:
    cxl(tmp_path, serials=("0xa1", "0x0"))
    assert only(tmp_path).identity == "phys-100600000"


def test_memory_that_the_firmware_set_aside_is_known_by_its_place(tmp_path: Path) -> None:
    dax(tmp_path, "dax0.0", "sys/devices/platform/hmem.0", range_files(GIB, start=0x4000000000))
    assert only(tmp_path).identity == "phys-4000000000"


def test_the_name_is_no_part_of_the_identity(tmp_path: Path) -> None:
    persistent(tmp_path / "before")
    write(tmp_path / "after", {f"{ND}/uuid": UUID})
    dax(tmp_path / "after", "dax7.3", ND, range_files(250 << 20))
    before, after = only(tmp_path / "before"), only(tmp_path / "after")
    assert before.identity == after.identity and before.name != after.name


def test_memory_that_the_firmware_set_aside_and_nobody_has_is_named(tmp_path: Path) -> None:
    """Its driver is called `hmem`, and only the module `dax_hmem`: it was looked for by that."""
    (tmp_path / "sys/devices/platform/hmem.0").mkdir(parents=True)
    keeper, devices = (tmp_path / "sys/bus/platform" / it for it in ("drivers/hmem", "devices"))
    keeper.mkdir(parents=True)
    devices.mkdir()
    (devices / "hmem.0").symlink_to(tmp_path / "sys/devices/platform/hmem.0")
    (devices / "hmem_platform.0").symlink_to(tmp_path / "sys/devices/platform/hmem.0")
    [one] = read_lost(tmp_path)
    assert one.identity == "" and why_lost(one).endswith(f"echo hmem.0 > {keeper}/bind")


def test_an_empty_seed_is_no_range(tmp_path: Path) -> None:
    dax(tmp_path, "dax0.0", "sys/devices/platform/hmem.0", range_files(0))
    assert read_ranges(tmp_path) == ()


@pytest.mark.parametrize(
    ("driver", "config", "why"),
    [
        ("device_dax", DaxConfig(persistent=True), ""),
        ("device_dax", DaxConfig(), "persistent = true"),
        ("kmem", DaxConfig(persistent=True), "ordinary memory of node 1"),
        ("", DaxConfig(persistent=True), "no driver"),
    ],
)
def test_what_is_not_leased_says_why(
    tmp_path: Path, driver: str, config: DaxConfig, why: str
) -> None:
    persistent(tmp_path, driver=driver)
    told = why_not(only(tmp_path), config)
    assert (why in told) if why else told == ""
    surveyed = describe(read_ranges(tmp_path), (CPU_NODE,), (), config)
    assert len(surveyed.resources) == (not why)
    assert bool(surveyed.notes) == bool(why) == bool(surveyed.absences)


def test_a_part_of_a_region_is_not_leased(tmp_path: Path) -> None:
    for name in ("dax0.0", "dax0.1"):
        dax(tmp_path, name, "sys/devices/platform/hmem.0", range_files(GIB))
    assert all("part of its region" in why_not(one, DaxConfig()) for one in read_ranges(tmp_path))


def test_a_range_is_leased_whole_with_its_limit_and_never_said_to_be_measured(
    tmp_path: Path,
) -> None:
    persistent(tmp_path / "nd")
    cxl(tmp_path / "cxl")
    slow = ((2, Speed(250, 250, 30_720, 30_720)),)
    for root, tier, evidence in (
        ("nd", TierKind.PMEM, Evidence.EMULATED),
        ("cxl", TierKind.CXL, Evidence.NOT_RUN),
    ):
        ranges = read_ranges(tmp_path / root)
        surveyed = describe(ranges, (CPU_NODE,), slow, DaxConfig(persistent=True))
        [one] = surveyed.resources
        assert (one.tier, one.evidence) == (tier, evidence)
        assert one.capacity == one.granule == ranges[0].size_bytes
        assert "pinned" in one.limits[0] and surveyed.absences == ()


def test_where_there_is_none_the_survey_says_so() -> None:
    [absence] = describe((), (CPU_NODE,), (), DaxConfig()).absences
    assert "no such range" in absence.why


def bus_of_cxl(root: Path) -> None:
    """With a range of it, and who keeps that."""
    cxl(root)
    probing = {"sys/bus/dax/drivers_autoprobe": "1", "sys/bus/dax/drivers_probe": ""}
    write(root, {**probing, "dev/dax0.0": "", "other/bind": ""})


def test_what_a_tenant_can_lock_keeps_no_range_from_being_recreated(tmp_path: Path) -> None:
    """The bus and its switch are readable by anybody, and whoever reads may lock."""
    bus_of_cxl(tmp_path)
    one = msgspec.structs.replace(only(tmp_path), keeper=str(tmp_path / "other"))
    bus = tmp_path / "sys/bus/dax"
    held = [os.open(path, os.O_RDONLY) for path in (bus, bus / "drivers_autoprobe")]
    for fd in held:
        fcntl.flock(fd, fcntl.LOCK_EX)
    done = threading.Thread(target=recreate, args=(one, tmp_path), daemon=True)
    done.start()
    done.join(20)
    for fd in held:
        os.close(fd)
    assert not done.is_alive()


def test_two_ranges_that_are_recreated_at_a_time_do_not_probe_for_each_other(
    tmp_path: Path,
) -> None:
    """The switch is the host's: the kernel would make ordinary memory of the second one, for good,
    and with what is on it."""
    bus_of_cxl(tmp_path)
    switch, slow = tmp_path / "sys/bus/dax/drivers_autoprobe", tmp_path / "slow/bind"
    slow.parent.mkdir()
    os.mkfifo(slow)  # whoever writes to it waits for a reader
    first, second = (
        threading.Thread(
            target=recreate,
            args=(msgspec.structs.replace(only(tmp_path), keeper=str(tmp_path / name)), tmp_path),
            daemon=True,
        )
        for name in ("slow", "other")
    )
    first.start()
    while switch.read_text("ascii").strip() != "0":
        first.join(0.001)
    second.start()
    second.join(0.3)
    assert second.is_alive() and switch.read_text("ascii").strip() == "0"
    reader = os.open(slow, os.O_RDONLY)
    for each in (first, second):
        each.join(5)
    os.close(reader)
    assert not second.is_alive() and switch.read_text("ascii").strip() == "1"


def test_a_region_whose_driver_is_not_known_is_not_written_to_the_working_directory(
    tmp_path: Path,
) -> None:
    bus_of_cxl(tmp_path)
    with pytest.raises(DeviceError, match="not known which driver region0 was of"):
        recreate(msgspec.structs.replace(only(tmp_path), keeper=""), tmp_path)


def test_why_a_range_did_not_come_back_is_the_kernels_word(tmp_path: Path) -> None:
    """A refused `new_id` was ENODEV, after two seconds of asking again."""
    bus_of_cxl(tmp_path)
    one = msgspec.structs.replace(only(tmp_path), keeper=str(tmp_path / "other"))
    (tmp_path / "sys/bus/dax/devices/dax0.0/driver").unlink()
    with pytest.raises(DeviceError, match="did not come back.*new_id: dax0.0") as told:
        recreate(one, tmp_path)
    assert told.value.errno == errno.ENOENT
