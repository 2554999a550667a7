# SPDX-License-Identifier: Apache-2.0
"""A conversation as an exchange: what is sent on the left, what comes back on the right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from leased.wire import parameters
from leased.wire.complaints import blamed_parameter
from leased.wire.conversation import PIPELINE_MAX, Call, Conversation
from leased.wire.description import TENANT_INTERFACES
from leased.wire.replies import EmptyReply, encode
from tests.doubles.varlink_calls import described

LEASE = "0123456789abcdef0123456789abcdef"
SERVICE = described()
DESCRIBE = {"method": "io.leased.Lease.Describe", "parameters": {"lease_id": LEASE}}


def message(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\0"


def sent(conversation: Conversation) -> list[dict[str, Any]]:
    """Every message that may be sent now, decoded; none may carry descriptors."""
    out: list[dict[str, Any]] = []
    for wire, fds in conversation.take():
        assert not fds
        assert wire.endswith(b"\0")
        out += [msgspec.json.decode(part) for part in wire[:-1].split(b"\0")]
    return out


def fault_of(*values: bytes, fd_count: int = 0) -> str:
    """Why the peer's bytes end a fresh conversation; checks that it says so and is finished."""
    conversation = Conversation(SERVICE)
    for value in values:
        assert conversation.receive(value, fd_count) == []
    assert conversation.fault is not None
    assert conversation.finished
    assert [reply["error"] for reply in sent(conversation)] == ["io.leased.Lease.ProtocolError"]
    assert conversation.receive(message(DESCRIBE)) == []
    return str(conversation.fault)


def test_a_call_is_decoded_into_its_parameters() -> None:
    (call,) = Conversation(SERVICE).receive(message(DESCRIBE))
    assert call.method.name == "io.leased.Lease.Describe"
    assert call.parameters == parameters.Describe(LEASE)
    assert (call.more, call.oneway, call.fd_count) == (False, False, 0)


def test_null_is_absent_everywhere() -> None:
    asked = {
        "method": "io.leased.Lease.Renew",
        "parameters": {"lease_id": LEASE, "command_id": None, "ttl_ns": None},
        "more": None,
        "oneway": None,
        "upgrade": None,
    }
    (renew,) = Conversation(SERVICE).receive(message(asked))
    assert renew.parameters == parameters.Renew(LEASE)
    for empty in (None, {}):
        asked = {"method": "io.leased.Device.List", "parameters": empty}
        (listing,) = Conversation(SERVICE).receive(message(asked))
        assert listing.parameters == parameters.DeviceList()


@pytest.mark.parametrize(
    "bad",
    [
        b"\0",
        b"{\0",
        b"hello\0",
        b"\xff\xfe\0",
        b"[]\0",
        b"3\0",
        b"null\0",
        b'"io.leased.Lease.List"\0',
        b"{}\0",
        b'{"method":3}\0',
        b'{"method":"io.leased.Lease.List","parameters":[]}\0',
        b'{"method":"io.leased.Lease.List","parameters":7}\0',
        b'{"method":"io.leased.Lease.List","sneaky":1}\0',
        b'{"method":"io.leased.Lease.List","more":1}\0',
        b'{"method":"io.leased.Lease.List"} trailing\0',
        b'{"method":"io.leased.Lease.Describe","parameters":{"lease_id":"\xff"}}\0',
        b'{"method":"io.leased.Lease.List","more":true,"oneway":true}\0',
        b'{"method":"io.leased.Lease.List","more":true,"upgrade":true}\0',
        b'{"method":"io.leased.Lease.List","oneway":true,"upgrade":true}\0',
        b'{"method":"io.leased.Lease.List","parameters":' + b"[" * 100_000 + b"\0",
    ],
)
def test_bytes_that_are_not_the_protocol_end_the_conversation(bad: bytes) -> None:
    fault_of(bad)


def test_a_message_that_is_too_long_ends_the_conversation() -> None:
    assert "longer" in fault_of(b"x" * (1 << 20), b"x")


def test_extension_keys_with_a_dot_are_overlooked() -> None:
    asked = {**DESCRIBE, "com.example.trace": {"id": 3}}
    (call,) = Conversation(SERVICE).receive(message(asked))
    assert call.parameters == parameters.Describe(LEASE)


@pytest.mark.parametrize(
    ("method", "given", "blamed"),
    [
        ("Describe", {}, "lease_id"),
        ("Describe", None, "lease_id"),
        ("Describe", {"lease_id": LEASE, "extra": 1}, "extra"),
        ("Renew", {"lease_id": LEASE, "ttl_ns": 1.5}, "ttl_ns"),
        ("Renew", {"lease_id": LEASE, "ttl_ns": 2**63}, "ttl_ns"),
        ("Renew", {"lease_id": LEASE, "ttl_ns": -1}, "ttl_ns"),
        ("Acquire", {"resources": []}, "resources"),
        ("Acquire", {"resources": [{"kind": "mem", "capacity": "1G"}]}, "resources[0].capacity"),
        ("Acquire", {"resources": [{"kind": "tape", "capacity": 1}]}, "resources[0].kind"),
        ("Acquire", {"resources": [{"kind": "mem"}]}, "resources[0].capacity"),
        (
            "Acquire",
            {"resources": [{"kind": "mem", "capacity": 1}], "workload": "a\nb"},
            "workload",
        ),
    ],
)
def test_a_wrong_parameter_is_named_and_the_conversation_goes_on(
    method: str, given: object, blamed: str
) -> None:
    conversation = Conversation(SERVICE)
    asked = {"method": f"io.leased.Lease.{method}", "parameters": given}
    assert conversation.receive(message(asked)) == []
    (reply,) = sent(conversation)
    assert reply["error"] == "org.varlink.service.InvalidParameter"
    assert reply["parameters"] == {"parameter": blamed}
    assert reply["io.leased.why"]
    assert conversation.fault is None
    assert len(conversation.receive(message(DESCRIBE))) == 1


def test_unknown_methods_and_interfaces_are_told_apart() -> None:
    conversation = Conversation(described(TENANT_INTERFACES))
    for name in ("io.leased.Lease.Steal", "io.leased.Admin.Revoke", "nonsense"):
        assert conversation.receive(message({"method": name})) == []
    assert sent(conversation) == [
        {
            "error": "org.varlink.service.MethodNotFound",
            "parameters": {"method": "io.leased.Lease.Steal"},
        },
        {
            "error": "org.varlink.service.InterfaceNotFound",
            "parameters": {"interface": "io.leased.Admin"},
        },
        {"error": "org.varlink.service.InterfaceNotFound", "parameters": {"interface": ""}},
    ]


def test_a_stream_must_be_asked_for_with_more() -> None:
    conversation = Conversation(SERVICE)
    assert conversation.receive(message({"method": "io.leased.Lease.Watch"})) == []
    assert sent(conversation)[0]["error"] == "org.varlink.service.ExpectedMore"
    (call,) = conversation.receive(message({"method": "io.leased.Lease.Watch", "more": True}))
    assert call.more


def test_nothing_can_be_upgraded() -> None:
    conversation = Conversation(SERVICE)
    assert conversation.receive(message({**DESCRIBE, "upgrade": True})) == []
    assert sent(conversation)[0]["error"] == "org.varlink.service.MethodNotImplemented"


def test_oneway_calls_are_carried_out_and_never_answered() -> None:
    conversation = Conversation(SERVICE)
    calls = conversation.receive(
        message({**DESCRIBE, "oneway": True})
        + message({"method": "io.leased.Lease.Nope", "oneway": True})
        + message({"method": "org.varlink.service.GetInfo", "oneway": True})
        + message(DESCRIBE)
    )
    assert [call.oneway for call in calls] == [True, False]
    for call in calls:
        conversation.answer(call, encode(EmptyReply()))
    assert sent(conversation) == [{"parameters": {}}]


def numbered(number: int) -> bytes:
    return message({"parameters": {"n": number}})


def test_answers_leave_in_the_order_of_their_calls() -> None:
    conversation = Conversation(SERVICE)
    first, second, third = conversation.receive(message(DESCRIBE) * 3)
    conversation.answer(third, numbered(3))
    conversation.answer(second, numbered(2))
    assert sent(conversation) == []
    conversation.answer(first, numbered(1))
    assert [reply["parameters"]["n"] for reply in sent(conversation)] == [1, 2, 3]
    assert conversation.unanswered == 0


def test_a_stream_holds_back_what_was_asked_after_it() -> None:
    conversation = Conversation(SERVICE)
    watch, after = conversation.receive(
        message({"method": "io.leased.Lease.Watch", "more": True}) + message(DESCRIBE)
    )
    conversation.answer(after, numbered(9))
    conversation.answer(watch, numbered(1), continues=True)
    conversation.answer(watch, numbered(2), continues=True)
    assert [reply["parameters"]["n"] for reply in sent(conversation)] == [1, 2]
    conversation.answer(watch, numbered(3))
    assert [reply["parameters"]["n"] for reply in sent(conversation)] == [3, 9]


def test_questions_about_the_service_wait_their_turn_too() -> None:
    conversation = Conversation(SERVICE)
    (call,) = conversation.receive(
        message(DESCRIBE) + message({"method": "org.varlink.service.GetInfo"})
    )
    assert sent(conversation) == []
    conversation.answer(call, numbered(1))
    first, info = sent(conversation)
    assert first["parameters"] == {"n": 1}
    assert info["parameters"]["product"] == "leased"


def test_answers_with_descriptors_get_a_write_of_their_own() -> None:
    conversation = Conversation(SERVICE)
    calls = conversation.receive(message(DESCRIBE) * 4)
    for number, call in enumerate(calls):
        conversation.answer(call, numbered(number), (40, 41) if number == 2 else ())
    assert conversation.take() == [
        (numbered(0) + numbered(1), ()),
        (numbered(2), (40, 41)),
        (numbered(3), ()),
    ]
    assert conversation.take() == []


def test_calls_before_a_fault_are_still_answered_and_the_fault_comes_last() -> None:
    conversation = Conversation(SERVICE)
    first, second = conversation.receive(message(DESCRIBE) * 2 + b"rubbish\0" + message(DESCRIBE))
    assert conversation.fault is not None
    conversation.answer(second, numbered(2))
    assert sent(conversation) == []
    assert not conversation.finished
    conversation.answer(first, numbered(1))
    one, two, last = sent(conversation)
    assert (one["parameters"]["n"], two["parameters"]["n"]) == (1, 2)
    assert last["error"] == "io.leased.Lease.ProtocolError"
    assert conversation.finished


def test_too_many_calls_without_an_answer_end_the_conversation() -> None:
    conversation = Conversation(SERVICE)
    calls = conversation.receive(message(DESCRIBE) * (PIPELINE_MAX + 1))
    assert len(calls) == PIPELINE_MAX
    assert conversation.fault is not None
    conversation = Conversation(SERVICE)
    for _ in range(3 * PIPELINE_MAX):
        (call,) = conversation.receive(message(DESCRIBE))
        conversation.answer(call, numbered(0))
    assert conversation.fault is None


# ---- descriptors -------------------------------------------------------------------------------

JOIN = message({"method": "io.leased.Lease.Join", "parameters": {"lease_id": LEASE}})


def test_descriptors_belong_to_the_message_that_begins_in_their_read() -> None:
    conversation = Conversation(SERVICE)
    calls = conversation.receive(message(DESCRIBE) + JOIN, 1)
    assert [call.fd_count for call in calls] == [0, 1]


def test_descriptors_wait_for_the_rest_of_their_message() -> None:
    conversation = Conversation(SERVICE)
    assert conversation.receive(JOIN[:10], 1) == []
    assert conversation.receive(JOIN[10:30]) == []
    (call,) = conversation.receive(JOIN[30:])
    assert call.fd_count == 1
    conversation = Conversation(SERVICE)
    (describe,) = conversation.receive(message(DESCRIBE) + JOIN[:5], 1)
    assert describe.fd_count == 0
    (join,) = conversation.receive(JOIN[5:])
    assert join.fd_count == 1


def test_descriptors_in_the_middle_of_a_message_end_the_conversation() -> None:
    for middle in (JOIN[10:20], JOIN[10:]):
        conversation = Conversation(SERVICE)
        assert conversation.receive(JOIN[:10]) == []
        assert conversation.receive(middle, 1) == []
        assert conversation.fault is not None


def test_descriptors_with_a_method_that_takes_none_end_the_conversation() -> None:
    assert "descriptors" in fault_of(message(DESCRIBE), fd_count=1)
    assert "descriptors" in fault_of(JOIN, fd_count=2)
    assert "descriptors" in fault_of(message({"method": "no.such.Method"}), fd_count=1)


def test_which_methods_take_a_descriptor_is_documented() -> None:
    taking = [name for name, method in parameters.METHODS.items() if method.fds_max]
    assert taking == [
        "io.leased.Lease.Acquire",
        "io.leased.Lease.Join",
        "io.leased.Admin.Adopt",
    ]


def test_a_call_has_one_last_answer() -> None:
    conversation = Conversation(SERVICE)
    call: Call
    (call,) = conversation.receive(message(DESCRIBE))
    conversation.answer(call, numbered(1))
    with pytest.raises(AssertionError):
        conversation.answer(call, numbered(2))


def test_no_regular_expression_is_told() -> None:
    conversation = Conversation(SERVICE)
    asked = {"resources": [{"kind": "cpu", "capacity": 1000}], "workload": "a\nb"}
    conversation.receive(message({"method": "io.leased.Lease.Acquire", "parameters": asked}))
    [answer] = sent(conversation)
    assert "text without control characters" in str(answer) and "regex" not in str(answer)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workload": "x" * 129}, "Expected text of at most 128 characters"),
        ({"accounting_tag": {"cost_center": "x" * 129}}, "text of at most 128 characters"),
        ({"resources": []}, "Expected a list of 1 or more entries"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_what_is_too_long_is_told_in_words(given: dict[str, Any], says: str) -> None:
    conversation = Conversation(SERVICE)
    asked = {"resources": [{"kind": "cpu", "capacity": 1000}]} | given
    conversation.receive(message({"method": "io.leased.Lease.Acquire", "parameters": asked}))
    [answer] = sent(conversation)
    assert says in str(answer) and "`" not in str(answer)


def test_every_complaint_of_the_decoder_names_a_parameter() -> None:
    assert blamed_parameter("Object contains unknown field `x` - at `$.a[1]`") == "a[1].x"
    assert blamed_parameter("Expected `int`, got `str` - at `$.ttl_ns`") == "ttl_ns"
    assert blamed_parameter("anything else") == "parameters"
