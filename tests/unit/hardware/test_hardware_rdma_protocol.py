# SPDX-License-Identifier: Apache-2.0
"""leased-rdma's packets: what is believed of an answer, and what is not."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.hardware.rdma import protocol
from leased.hardware.rdma.protocol import Where
from leased.terms.errors import DeviceError

GID = bytes(range(16))


def answer(kind: int, serial: int, failure: int = 0, body: bytes = b"") -> bytes:
    """As leased-rdma answers."""
    head = protocol.HEADER.pack(protocol.MAGIC, protocol.VERSION, kind | 0x80, serial, failure)
    return head + body


def test_an_answer_belongs_to_its_request() -> None:
    raw = answer(protocol.CONNECT, 7, body=b"body")
    assert protocol.open_answer(raw, protocol.CONNECT, 7) == b"body"
    assert protocol.open_answer(raw, protocol.CONNECT, 8) is None, "somebody else's"
    assert protocol.open_answer(raw, protocol.STATE, 7) is None


def test_a_failure_is_raised_with_what_failed() -> None:
    raw = answer(protocol.OPEN, 1, errno.ENOMEM, b"register the memory")
    with pytest.raises(DeviceError) as caught:
        protocol.open_answer(raw, protocol.OPEN, 1)
    assert (caught.value.errno, caught.value.detail) == (errno.ENOMEM, "register the memory")


def test_another_version_is_refused() -> None:
    raw = protocol.HEADER.pack(protocol.MAGIC, protocol.VERSION + 1, 0x81, 1, 0)
    with pytest.raises(DeviceError) as caught:
        protocol.open_answer(raw, protocol.OPEN, 1)
    assert caught.value.errno == errno.EPROTO


def test_what_does_not_fit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(DeviceError):
        protocol.encode_open(Where("x" * 64, 1, 0))
    with pytest.raises(DeviceError):
        protocol.encode_open(Where("rxe0", 1, 0), sizes=[4096] * 17)


def test_a_state_tells_regions_and_peers() -> None:
    head = protocol.STATE_HEAD.pack(42, 1, GID, 3, 1024, 2, 1, 9, 0)
    regions = protocol.REGION.pack(0, 4096) + protocol.REGION.pack(0, 8192)
    regions += bytes(14 * protocol.REGION.size)
    peers = protocol.PEER.pack(GID, 17, 18, 3, 7) + bytes(63 * protocol.PEER.size)
    state = protocol.decode_state(head + regions + peers)
    assert (state.pid, state.windows, state.lid, state.events) == (42, True, 3, 9)
    assert state.regions == ((0, 4096), (0, 8192))
    assert [peer.qp_number for peer in state.peers] == [17]
    with pytest.raises(DeviceError):
        protocol.decode_state((head + regions + peers)[:-1])
    lie = protocol.STATE_HEAD.pack(42, 1, GID, 3, 1024, 17, 1, 9, 0)
    with pytest.raises(DeviceError):
        protocol.decode_state(lie + regions + peers)


def test_a_connection_is_shown_without_its_keys() -> None:
    body = protocol.CONNECTED.pack(17, 5, 1024, 3, *range(100, 116))
    connection = protocol.decode_connection(body, 2)
    assert connection.rkeys == (100, 101)
    assert "100" not in repr(connection)


@given(st.binary(max_size=protocol.STATE_BYTES + 8))
def test_no_bytes_break_it(raw: bytes) -> None:
    for decode in (
        protocol.decode_state,
        protocol.decode_closed,
        protocol.decode_reached,
        protocol.decode_done,
        lambda body: protocol.open_answer(body, protocol.OPEN, 1),
    ):
        try:
            decode(raw)
        except DeviceError:
            continue
