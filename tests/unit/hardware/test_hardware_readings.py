# SPDX-License-Identifier: Apache-2.0
"""What drives and ports count, from pages and trees as they come: units, and what is no number."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from leased.hardware.readings.drives import SMART_BYTES, parse_smart, read_stat
from leased.hardware.readings.host import read_host
from leased.hardware.readings.ports import read_ports
from leased.terms.series import SERIES

DISK = ("hw.type", "physical_disk")


def smart_page(*, kelvin: int = 310, used: int = 3, media: int = 0) -> bytes:
    """A page of log 02h as a drive sends it."""
    page = bytearray(SMART_BYTES)
    struct.pack_into("<BHBBB", page, 0, 0b100, kelvin, 97, 10, used)
    page[32:48] = (5).to_bytes(16, "little")
    page[48:64] = (7).to_bytes(16, "little")
    page[128:144] = (24).to_bytes(16, "little")
    page[144:160] = (2).to_bytes(16, "little")
    page[160:176] = media.to_bytes(16, "little")
    struct.pack_into("<8H", page, 200, 0, 315, 0, 0, 0, 0, 0, 0)
    return bytes(page)


def found(readings: object) -> dict[tuple[str, str], int]:
    """By series and its last attribute."""
    return {
        (one.series, one.attributes[-1][1] if one.attributes else ""): one.value
        for one in readings  # type: ignore[attr-defined]
    }


def test_a_smart_page_is_read_in_the_units_of_the_specification() -> None:
    told = found(parse_smart("block:a", smart_page(media=2**70)))
    assert told["hw.temperature", "composite"] == 36_850
    assert told["hw.temperature", "2"] == 41_850
    assert ("hw.temperature", "1") not in told, "0 K: there is no such sensor"
    assert told["leased.nvme.spare", "physical_disk"] == 970_000
    assert told["hw.physical_disk.endurance_utilization", "physical_disk"] == 30_000
    assert told["leased.nvme.data", "read"] == 5 * 512_000
    assert told["leased.nvme.data", "write"] == 7 * 512_000
    assert told["leased.nvme.power_on.time", "physical_disk"] == 86_400 * 10**9
    assert told["leased.nvme.warnings", "physical_disk"] == 4
    assert told["hw.errors", "unsafe_shutdown"] == 2
    assert not SERIES["hw.errors"].holds(told["hw.errors", "media"]), "2**70 is no number"


def test_a_page_that_was_cut_short_says_nothing() -> None:
    assert found(parse_smart("block:a", smart_page()[:100])) == {}


@given(st.binary(min_size=SMART_BYTES, max_size=SMART_BYTES))
def test_whatever_a_drive_sends_is_of_a_series_that_there_is(page: bytes) -> None:
    for one in parse_smart("block:a", page):
        described = SERIES[one.series]
        assert tuple(name for name, _ in one.attributes) == described.attributes


def test_the_block_layers_counters_are_bytes_and_ns(tmp_path: Path) -> None:
    stat = tmp_path / "sys/block/nvme0n1/stat"
    stat.parent.mkdir(parents=True)
    stat.write_text("  10 1 8 3   20 2 16 5   0 7 9 0 0 0 0 0 0\n")
    told = found(read_stat("block:a", "nvme0n1", tmp_path))
    assert told == {
        ("system.disk.operations", "read"): 10,
        ("system.disk.io", "read"): 8 * 512,
        ("system.disk.operation_time", "read"): 3_000_000,
        ("system.disk.operations", "write"): 20,
        ("system.disk.io", "write"): 16 * 512,
        ("system.disk.operation_time", "write"): 5_000_000,
        ("system.disk.io_time", ""): 7_000_000,
    }
    assert found(read_stat("block:a", "nvme9n9", tmp_path)) == {}


def port(root: Path, device: str, guid: str) -> Path:
    """One port of a device."""
    directory = root / "sys/class/infiniband" / device
    (directory / "ports/1/counters").mkdir(parents=True)
    (directory / "ports/1/hw_counters").mkdir()
    (directory / "node_guid").write_text(guid + "\n")
    return directory / "ports/1"


def test_ports_count_words_packets_and_errors(tmp_path: Path) -> None:
    one = port(tmp_path, "mlx5_0", "506b:4b03:00cd:6aa8")
    (one / "state").write_text("4: ACTIVE\n")
    (one / "counters/port_xmit_data").write_text("1000\n")
    (one / "counters/port_rcv_packets").write_text("7\n")
    (one / "counters/symbol_error").write_text("65535\n")
    (one / "counters/link_downed").write_text("2\n")
    soft = port(tmp_path, "rxe0", "0250:56ff:fe00:1")
    (soft / "state").write_text("1: DOWN\n")
    (soft / "hw_counters/sent_pkts").write_text("9\n")
    port(tmp_path, "unnamed", "0000:0000:0000:0000")
    told = {
        (one.subject, one.series, one.attributes[-1][1]): one.value
        for one in read_ports(9, tmp_path)
    }
    assert told == {
        ("rdma:506b4b0300cd6aa8", "hw.network.up", "1"): 1,
        ("rdma:506b4b0300cd6aa8", "hw.network.io", "transmit"): 4000,
        ("rdma:506b4b0300cd6aa8", "hw.network.packets", "receive"): 7,
        ("rdma:506b4b0300cd6aa8", "leased.network.errors", "link_downed"): 2,
        ("rdma:025056fffe001", "hw.network.up", "1"): 0,
        ("rdma:025056fffe001", "hw.network.packets", "transmit"): 9,
    }
    assert not list(read_ports(0, tmp_path))


def test_a_core_is_busy_when_it_is_not_idle_and_pools_are_told_by_node(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 10 0 5 700 30 0 0 1 0 0\nintr 1\n"
    )
    pool = tmp_path / "sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    (pool / "nr_hugepages").write_text("8\n")
    (pool / "free_hugepages").write_text("5\n")
    told = {
        (one.series, one.subject, one.attributes): one.value for one in read_host((1,), tmp_path)
    }
    tick_ns = 10_000_000
    assert told["leased.cpu.busy.time", "cpu:1", ()] == 16 * tick_ns
    assert ("leased.cpu.busy.time", "cpu:0", ()) not in told
    assert told["system.cpu.time", "cpu", (("cpu.mode", "steal"),)] == 8 * tick_ns
    state = "system.memory.linux.hugepages.state"
    name = "system.memory.linux.hugepages.usage"
    assert told[name, "mem:node1:2097152", ((state, "used"),)] == 3 << 21
    assert told[name, "mem:node1:2097152", ((state, "free"),)] == 5 << 21
