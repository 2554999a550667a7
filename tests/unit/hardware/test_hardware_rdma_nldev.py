# SPDX-License-Identifier: Apache-2.0
"""The kernel's lists of RDMA devices and objects, from bytes that a real kernel sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.hardware.rdma import nldev
from leased.hardware.rdma.nldev import Object
from leased.terms.errors import DeviceError

CAPTURE = Path(__file__).resolve().parents[2] / "vectors/nldev.txt"
DEAD, ALIVE = 0, 441


def captured(name: str) -> list[bytes]:
    """The payloads of that dump, and each message whole."""
    for line in CAPTURE.read_text("ascii").splitlines():
        word, _, rest = line.partition(" ")
        if word == name:
            return [bytes.fromhex(part) for part in rest.split()]
    raise KeyError(name)


def payloads(name: str) -> list[bytes]:
    """What the messages say, without the end of the dump."""
    return [
        payload
        for raw in captured(name)
        for kind, _, _, payload in nldev.messages(raw)
        if kind not in (2, 3)
    ]


def rows(kind: str) -> list[Object]:
    """The objects of that kind."""
    return [row for payload in payloads(kind) for row in nldev.rows(kind, payload)]


def test_a_device_is_known_by_its_guid() -> None:
    [link] = map(nldev.link, payloads("links"))
    assert (link.number, link.name, link.protocol, link.ports) == (0, "rxe0", "roce", 1)
    assert link.guid == "d434c2fffee9cb70"


def test_a_port_tells_its_state_and_its_network_device() -> None:
    [port] = map(nldev.port, payloads("ports"))
    assert port == (1, 4, 5, "rx0")


def test_an_object_tells_its_maker_and_what_it_belongs_to() -> None:
    assert rows("context") == [
        Object("context", 9, DEAD, "", 9, -1, 0),
        Object("context", 10, ALIVE, "", 10, -1, 0),
    ]
    assert rows("domain") == [
        Object("domain", 0, 0, "ib_core", -1, 0, 0),
        Object("domain", 6, DEAD, "", 9, 6, 0),
        Object("domain", 7, ALIVE, "", 10, 7, 0),
    ]
    assert rows("region") == [
        Object("region", 5, DEAD, "", -1, 6, 8192),
        Object("region", 6, ALIVE, "", -1, 7, 4096),
    ]
    assert rows("queue") == [
        Object("queue", 20, ALIVE, "", -1, 7, 0),
        Object("queue", 1, 0, "ib_core", -1, -1, 0),
    ]
    assert rows("completions") == [
        Object("completions", 0, 0, "ib_core", -1, -1, 0),
        Object("completions", 5, ALIVE, "", 10, -1, 0),
    ]
    assert rows("receives") == []


def test_a_request_is_what_the_kernel_reads() -> None:
    raw = nldev.request(nldev.RES_MR_GET, 7, ((nldev.DEV_INDEX, b"\3\0\0\0"),), 0x300)
    assert raw.hex() == "180000000d14010307000000000000000800010003000000"
    [(kind, flags, serial, payload)] = nldev.messages(raw)
    assert (kind, flags, serial) == (5 << 10 | 13, 0x301, 7)
    assert list(nldev.attributes(payload)) == [(1, b"\3\0\0\0")]


@pytest.mark.parametrize("name", ["links", "ports", "domain", "region"])
def test_what_is_cut_short_is_refused_and_not_half_believed(name: str) -> None:
    [raw] = [raw for raw in captured(name) if len(raw) > 20]
    for length in range(16, len(raw) - 1):
        with pytest.raises(DeviceError):
            list(nldev.messages(raw[:length]))


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    try:
        for _, _, _, payload in nldev.messages(raw):
            for kind in nldev.KINDS:
                list(nldev.rows(kind, payload))
            nldev.link(payload)
            nldev.port(payload)
    except DeviceError:
        pass
