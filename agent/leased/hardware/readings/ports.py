# SPDX-License-Identifier: Apache-2.0
"""Ports: what RDMA devices count, by node GUID and port.

Rule: these files ask the driver, so only a worker reads them. A counter that a device does not
have (soft-RoCE has few) is missing; a 32-bit error counter that stands at its end is no number any
more.

Does not open a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leased.hardware.readings.host import numbers, text
from leased.hardware.sysfs import list_names
from leased.terms import series
from leased.terms.sample import Reading

CLASS = "sys/class/infiniband"
_WORD_BYTES = 4
"""port_xmit_data and port_rcv_data count words of four bytes."""

_MOVED = (
    ("hw.network.io", "transmit", ("counters/port_xmit_data",), _WORD_BYTES),
    ("hw.network.io", "receive", ("counters/port_rcv_data",), _WORD_BYTES),
    ("hw.network.packets", "transmit", ("counters/port_xmit_packets", "hw_counters/sent_pkts"), 1),
    ("hw.network.packets", "receive", ("counters/port_rcv_packets", "hw_counters/rcvd_pkts"), 1),
)
_ERRORS = (
    "counters/symbol_error",
    "counters/link_downed",
    "counters/port_rcv_errors",
    "counters/port_xmit_discards",
    "hw_counters/duplicate_request",
    "hw_counters/out_of_seq_request",
    "hw_counters/retry_exceeded_err",
)
_STUCK = (0xFFFF, 0xFFFFFFFF, 0xFF)


def read_ports(devices_max: int, root: Path = Path("/")) -> Iterator[Reading]:
    """Every port of the first `devices_max` devices."""
    for name in list_names(root / CLASS)[:devices_max]:
        guid = text(root / CLASS / name / "node_guid").strip().replace(":", "")
        if not guid.strip("0"):
            continue
        for number in list_names(root / CLASS / name / "ports"):
            if number.isdecimal():
                yield from _port(f"rdma:{guid}", number, root / CLASS / name / "ports" / number)


def _port(subject: str, number: str, directory: Path) -> Iterator[Reading]:
    port = (series.PORT, number)
    state = text(directory / "state").partition(":")[0].strip()
    if state.isdecimal():
        yield Reading("hw.network.up", subject, int(state == "4"), (port,))
    for name, direction, files, unit in _MOVED:
        counted = _first(directory, files)
        if counted is not None:
            way = (port, (series.NETWORK_DIRECTION, direction))
            yield Reading(name, subject, counted * unit, way)
    for file in _ERRORS:
        counted = _first(directory, (file,))
        if counted is not None and counted not in _STUCK:
            kind = (port, (series.ERROR_TYPE, file.rpartition("/")[2]))
            yield Reading("leased.network.errors", subject, counted, kind)


def _first(directory: Path, files: tuple[str, ...]) -> int | None:
    for file in files:
        counted = numbers([text(directory / file).strip()])
        if counted:
            return counted[0]
    return None
