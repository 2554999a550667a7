# SPDX-License-Identifier: Apache-2.0
"""How the stream is cut never shows, and no bytes whatever do more than end the conversation."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.terms.command import Caller
from leased.terms.errors import InvalidParameter, PermissionDenied, ProtocolError
from leased.terms.identity import TenantId
from leased.wire.answers import encode_error
from leased.wire.calls import to_command
from leased.wire.conversation import Call, Conversation
from leased.wire.framing import Framing
from leased.wire.parameters import METHODS
from leased.wire.replies import EmptyReply, encode
from tests.doubles.varlink_calls import described

SERVICE = described()
CALLER = Caller(1, 1, 1, TenantId("t"))
LEASE = "0123456789abcdef0123456789abcdef"
SETTINGS = settings(derandomize=True, deadline=None, max_examples=300)

scraps = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.just(LEASE),
    st.sampled_from(["mem", "gpu", "process", "scavenger", "\x00", "\ud800"]),
)
values = st.recursive(
    scraps,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "capacity", "lease_id", "ttl_ns", "resources", "bind", "document", "x.y"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(sorted(METHODS)) | scraps,
        "parameters": values,
        "more": scraps,
        "oneway": scraps,
        "upgrade": scraps,
        "com.example.x": values,
        "odd": scraps,
    },
)
sensible = st.sampled_from(
    [
        {"method": "io.leased.Lease.Renew", "parameters": {"lease_id": LEASE}},
        {"method": "io.leased.Lease.List", "parameters": None},
        {"method": "io.leased.Device.List"},
        {"method": "org.varlink.service.GetInfo"},
        {"method": "io.leased.Lease.Describe", "parameters": {}},
        {"method": "io.leased.Lease.Release", "parameters": {"lease_id": LEASE}, "oneway": True},
    ]
)


def as_json(value: Any) -> bytes:
    """JSON, also of what our encoder never writes: lone surrogates, infinities, huge numbers."""
    import json

    return json.dumps(value).encode("utf-8", "surrogatepass")


messages = st.one_of(
    headers.map(as_json),
    sensible.map(as_json),
    sensible.map(as_json),
    sensible.map(as_json),
    st.binary(max_size=40),
    st.binary(max_size=6).map(lambda tail: as_json({"method": "x"}) + tail),
)


@st.composite
def cuts(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """`stream` in pieces, none of them empty."""
    places = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    edges = [0, *places, len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


def replay(pieces: list[bytes]) -> tuple[list[Any], list[bytes], str]:
    """What a conversation makes of the pieces: its calls, all it says, and why it ended."""
    conversation = Conversation(SERVICE, message_bytes_max=600)
    calls: list[Any] = []
    said: list[bytes] = []
    for piece in pieces:
        for call in conversation.receive(piece):
            calls.append((call.method.name, call.parameters, call.more, call.oneway))
            conversation.answer(call, carried_out(call))
        said += [wire for wire, _ in conversation.take()]
    assert conversation.unanswered == 0
    return calls, [b"".join(said)], str(conversation.fault)


def carried_out(call: Call) -> bytes:
    """The answer of a service that can only fail in typed ways."""
    try:
        to_command(call, CALLER, lambda: bytes(16), pid=1)
    except (InvalidParameter, PermissionDenied) as error:
        return encode_error(error)
    return encode(EmptyReply())


@SETTINGS
@given(data=st.data(), parts=st.lists(messages, max_size=8), tail=st.binary(max_size=10))
def test_the_same_bytes_give_the_same_calls_however_they_are_cut(
    data: st.DataObject, parts: list[bytes], tail: bytes
) -> None:
    stream = b"".join(part + b"\0" for part in parts) + tail
    whole = replay([stream] if stream else [])
    assert replay(data.draw(cuts(stream))) == whole
    assert replay([stream[i : i + 1] for i in range(len(stream))]) == whole


@SETTINGS
@given(stream=st.binary(max_size=300), data=st.data(), ceiling=st.integers(1, 40))
def test_framing_is_the_split_of_the_whole(
    stream: bytes, data: st.DataObject, ceiling: int
) -> None:
    framing = Framing(ceiling)
    got = [message for piece in data.draw(cuts(stream)) for message in framing.receive(piece)]
    *complete, rest = stream.split(b"\0")
    fitting: list[bytes] = []
    for message in complete:
        if len(message) > ceiling:
            break
        fitting.append(message)
    assert got == fitting
    assert framing.overrun == (len(fitting) < len(complete) or len(rest) > ceiling)


@settings(SETTINGS, max_examples=600)
@given(part=messages)
def test_any_message_is_a_call_an_answer_or_the_end(part: bytes) -> None:
    if b"\0" in part:
        part = part.replace(b"\0", b"?")
    conversation = Conversation(SERVICE)
    calls = conversation.receive(part + b"\0")
    said = b"".join(wire for wire, _ in conversation.take())
    if calls:
        assert conversation.fault is None
        (call,) = calls
        conversation.answer(call, carried_out(call))
    elif conversation.fault is not None:
        assert isinstance(conversation.fault, ProtocolError)
        assert conversation.finished
        assert b"ProtocolError" in said
    else:
        decoded = msgspec.json.decode(part)
        assert decoded.get("oneway") is True or said.startswith((b'{"error":', b'{"parameters":'))


@SETTINGS
@given(
    answers=st.permutations(range(6)),
    oneway=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_answers_leave_in_order_whatever_order_they_are_given_in(
    answers: list[int], oneway: list[bool]
) -> None:
    conversation = Conversation(SERVICE)
    stream = b"".join(
        as_json({"method": "io.leased.Lease.List", "oneway": flag}) + b"\0" for flag in oneway
    )
    calls = conversation.receive(stream)
    said = b""
    for number in answers:
        conversation.answer(calls[number], b"%d\0" % number)
        said += b"".join(wire for wire, _ in conversation.take())
    assert said == b"".join(b"%d\0" % number for number in range(6) if not oneway[number])
