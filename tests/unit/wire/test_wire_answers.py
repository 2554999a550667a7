# SPDX-License-Identifier: Apache-2.0
"""Replies and errors to bytes: what is answered shows every number, in the shape of its method."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from leased.ports import Access
from leased.terms import reply as answers
from leased.terms.bounds import Bounds, publish
from leased.terms.command import Caller
from leased.terms.errors import (
    ChainError,
    DeviceError,
    InvalidParameter,
    NoSuchLease,
)
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import (
    AccountingTag,
    Ending,
    Lease,
    LeaseState,
    Priority,
    RevocationReason,
    Subject,
    Trust,
)
from leased.terms.moment import NS_PER_MS, NS_PER_S, Moment
from leased.terms.policy import Policy, digest
from leased.terms.resource import Absence, Allotment, Inventory, ResourceKind, TierKind
from leased.wire import objects, parameters, replies
from leased.wire.answers import LIST_PAGE, encode_error, encode_reply
from leased.wire.portrayal import environment_of, portray_notice
from tests.doubles.lease_table import INVENTORY, USE
from tests.doubles.varlink_calls import called

CALLER = Caller(1000, 100, 4711, TenantId("acme"))
DRAWN = b"\xee" * 16
LEASE_ID = LeaseId(bytes(range(16)))
COMMAND_ID = CommandId(bytes(range(16, 32)))
BOOT_ID = b"\xb0" * 16
RKEY = objects.Access("mem:0", "LEASE_RKEY", "0x5ec2e7")
NOW = Moment(BOOT_ID, 100 * NS_PER_S, 1_700_000_000 * NS_PER_S)


def lease(**changes: Any) -> Lease:
    whole = Lease(
        lease_id=LEASE_ID,
        command_id=COMMAND_ID,
        subject=Subject(
            tenant=TenantId("acme"),
            uid=1000,
            gid=100,
            cgroup=LEASE_ID.hex(),
            workload="train",
            tag=AccountingTag("cc-1", project="apollo"),
            priority=Priority.GUARANTEED,
            trust=Trust.ROOT,
            allotments=(Allotment("mem:node0:4096", ResourceKind.MEM, TierKind.HBM, 8192),),
            rate_hash=bytes(32),
        ),
        state=LeaseState.ACTIVE,
        boot_id=BOOT_ID,
        granted_ns=90 * NS_PER_S,
        deadline_ns=150 * NS_PER_S,
        ttl_ns=60 * NS_PER_S,
        generation=3,
        pid=4711,
        grace_ns=10 * NS_PER_S,
        granted_wall_ns=5,
        granted_sequence=17,
    )
    return msgspec.structs.replace(whole, **changes)


def decoded(wire: bytes) -> dict[str, Any]:
    assert wire.endswith(b"\0")
    assert wire.count(b"\0") == 1
    value = msgspec.json.decode(wire[:-1])
    assert isinstance(value, dict)
    return value


ID = {"lease_id": LEASE_ID.hex()}
RESOURCES = {"resources": [{"kind": "gpu", "capacity": 1000}]}
POLICY = '{"generation":4}'


def test_a_renewal_is_answered_in_four_fields() -> None:
    wire = encode_reply(called("io.leased.Lease.Renew", ID), answers.Changed(lease()), NOW)
    assert decoded(wire) == {
        "parameters": {
            "lease_id": LEASE_ID.hex(),
            "generation": 3,
            "deadline_boottime_ns": 150 * NS_PER_S,
            "state": "active",
        }
    }


PORTRAYED = {
    "lease_id": LEASE_ID.hex(),
    "context": {
        "command_id": COMMAND_ID.hex(),
        "ttl_ns": 60 * NS_PER_S,
        "grace_ns": 10 * NS_PER_S,
        "priority": "guaranteed",
        "workload": "train",
        "accounting_tag": {"cost_center": "cc-1", "project": "apollo"},
    },
    "runtime": {
        "state": "active",
        "generation": 3,
        "tenant": "acme",
        "uid": 1000,
        "gid": 100,
        "pid": 4711,
        "trust": "root",
        "cgroup": LEASE_ID.hex(),
        "allotments": [
            {"resource_id": "mem:node0:4096", "kind": "mem", "capacity": 8192, "tier": "hbm"}
        ],
        "boot_id": BOOT_ID.hex(),
        "granted_boottime_ns": 90 * NS_PER_S,
        "granted_wall_ns": 5,
        "deadline_boottime_ns": 150 * NS_PER_S,
        "remaining_ns": 50 * NS_PER_S,
        "fenced": [],
        "granted_sequence": 17,
    },
}


def test_a_lease_shows_what_was_asked_and_what_is() -> None:
    call = called("io.leased.Lease.Describe", ID)
    wire = encode_reply(call, answers.Changed(lease()), NOW, access=[RKEY])
    access = {"resource_id": "mem:0", "name": "LEASE_RKEY", "value": "0x5ec2e7"}
    assert decoded(wire) == {"parameters": {"lease": PORTRAYED, "access": [access]}}


def test_no_repr_shows_a_capability() -> None:
    assert RKEY.value not in repr(RKEY) and RKEY.value not in repr(Access("", "", RKEY.value))


def test_several_values_of_one_name_have_commas_between() -> None:
    gpus = [objects.Access(f"gpu:{one}", "CUDA_VISIBLE_DEVICES", one) for one in ("A", "B")]
    assert environment_of([*gpus, RKEY]) == {
        "CUDA_VISIBLE_DEVICES": "A,B",
        "LEASE_RKEY": "0x5ec2e7",
    }


def test_nothing_remains_of_a_lease_past_its_deadline_or_of_another_boot() -> None:
    call = called("io.leased.Lease.Describe", ID)
    late = Moment(BOOT_ID, 151 * NS_PER_S, 0)
    other = Moment(bytes(16), 100 * NS_PER_S, 0)
    for moment in (late, other):
        wire = encode_reply(call, answers.Changed(lease()), moment)
        assert decoded(wire)["parameters"]["lease"]["runtime"]["remaining_ns"] == 0


def test_an_ended_lease_says_how_and_why() -> None:
    ended = lease(
        state=LeaseState.FENCED,
        ended=Ending.REVOKED,
        reason=RevocationReason.PRIORITY_PREEMPTION,
        cut_ns=6,
        drain_deadline_ns=5,
        fenced=lease().subject.allotments,
    )
    wire = encode_reply(called("io.leased.Lease.Why", ID), answers.Explained(ended), NOW)
    runtime = decoded(wire)["parameters"]["lease"]["runtime"]
    assert (runtime["state"], runtime["ended"]) == ("fenced", "revoked")
    assert runtime["reason"] == "priority_preemption"
    assert (runtime["cut_boottime_ns"], runtime["drain_deadline_boottime_ns"]) == (6, 5)
    assert runtime["fenced"][0]["capacity"] == 8192


def test_a_grant_lists_its_descriptors_and_its_receipt() -> None:
    wire = encode_reply(
        called("io.leased.Lease.Acquire", RESOURCES),
        answers.Granted(lease(), 17, b"\xaa" * 32, attached=True),
        NOW,
        fds=[objects.LeaseFd("mem:node0:4096", 0, "memory"), objects.LeaseFd("", 1, "notify")],
    )
    assert decoded(wire)["parameters"] == {
        "lease": PORTRAYED,
        "fds": [
            {"resource_id": "mem:node0:4096", "index": 0, "purpose": "memory"},
            {"resource_id": "", "index": 1, "purpose": "notify"},
        ],
        "access": [],
        "attached": True,
        "sequence": 17,
        "record_hash": "aa" * 32,
    }


@pytest.mark.parametrize("reason", list(answers.RefusalReason))
def test_every_refusal_is_a_typed_error_with_all_its_numbers(reason: answers.RefusalReason) -> None:
    refusal = answers.Refusal(reason, "gpu", 4, 3, 2, retry_at_ns=101 * NS_PER_S + 1)
    assert decoded(encode_reply(called("io.leased.Lease.Renew", ID), refusal, NOW)) == {
        "error": "io.leased.Lease.Refused",
        "parameters": {
            "reason": reason.name.lower(),
            "what": "gpu",
            "limit": 4,
            "usage": 3,
            "requested": 2,
            "retry_at_boottime_ns": 101 * NS_PER_S + 1,
            "seconds_until_retry": 2,
        },
    }


def test_a_refusal_that_waiting_does_not_help_has_no_time() -> None:
    refusal = answers.Refusal(answers.RefusalReason.TTL_TOO_LONG)
    given = decoded(encode_reply(called("io.leased.Lease.Renew", ID), refusal, NOW))["parameters"]
    assert "retry_at_boottime_ns" not in given
    assert "seconds_until_retry" not in given


def test_a_retry_time_that_has_passed_is_now() -> None:
    refusal = answers.Refusal(answers.RefusalReason.BUSY, retry_at_ns=1)
    wire = encode_reply(called("io.leased.Lease.Renew", ID), refusal, NOW)
    assert decoded(wire)["parameters"]["seconds_until_retry"] == 0


def test_a_plan_holds_its_refusal() -> None:
    refusal = answers.Refusal(answers.RefusalReason.NO_CAPACITY, "mem", 1, 1, 1)
    call = called("io.leased.Lease.Plan", RESOURCES)
    given = decoded(encode_reply(call, answers.Planned(refusal, ("a",), 2), NOW))["parameters"]
    assert given["grantable"] is False
    assert given["refusal"]["reason"] == "no_capacity"
    assert (given["resource_ids"], given["position"]) == (["a"], 2)
    given = decoded(encode_reply(call, answers.Planned(None, ("a",)), NOW))["parameters"]
    assert given == {"grantable": True, "resource_ids": ["a"], "removals": [], "cost_nano": 0}


def test_a_list_in_one_piece_or_in_pages() -> None:
    leases = tuple(lease(lease_id=bytes([n % 256, n // 256]) + bytes(14)) for n in range(600))
    waiting = ((COMMAND_ID, 1, answers.RefusalReason.NO_CAPACITY),)
    listed = answers.Listed(leases, waiting)
    one = decoded(encode_reply(called("io.leased.Lease.List"), listed, NOW))
    assert len(one["parameters"]["leases"]) == 600
    assert one["parameters"]["waiting"] == [
        {"command_id": COMMAND_ID.hex(), "position": 1, "reason": "no_capacity"}
    ]
    wire = encode_reply(called("io.leased.Lease.List", more=True), listed, NOW)
    pages = [msgspec.json.decode(part) for part in wire[:-1].split(b"\0")]
    assert [page.get("continues", False) for page in pages] == [True, True, False]
    assert [len(page["parameters"]["leases"]) for page in pages] == [LIST_PAGE, LIST_PAGE, 88]
    joined = [item for page in pages for item in page["parameters"]["leases"]]
    assert joined == one["parameters"]["leases"]
    empty = encode_reply(called("io.leased.Lease.List", more=True), answers.Listed(()), NOW)
    assert decoded(empty) == {"parameters": {"leases": [], "waiting": []}}


def test_the_first_reply_of_a_watch_is_the_state_and_says_more_follows() -> None:
    whole = called("io.leased.Lease.Watch", more=True)
    first = decoded(encode_reply(whole, answers.Listed((lease(),)), NOW, sequence=41))
    assert first["continues"] is True
    assert first["parameters"]["sequence"] == 41
    assert first["parameters"]["leases"] == [PORTRAYED]
    one = called("io.leased.Lease.Watch", ID, more=True)
    assert decoded(encode_reply(one, answers.Changed(lease()), NOW))["continues"] is True
    devices = called("io.leased.Device.Watch", more=True)
    wire = encode_reply(devices, answers.Inventoried(INVENTORY, USE), NOW, sequence=2)
    assert decoded(wire)["continues"] is True


def test_an_inventory_shows_resources_use_and_absences() -> None:
    bounds = Bounds(5 * NS_PER_S, NS_PER_S + 1, 0, 7 * NS_PER_S)
    known, *others = INVENTORY.resources
    absences = (Absence(ResourceKind.BLOCK, "no namespace"),)
    inventory = Inventory((publish(known, bounds), *others), absences, ("a note",))
    call = called("io.leased.Device.List")
    told = answers.Inventoried(inventory, USE, (1, 2, 3))
    given = decoded(encode_reply(call, told, NOW))["parameters"]
    memory, gpu = given["resources"]
    assert memory["use"] == {
        "free": 1 << 30,
        "leased": 0,
        "teardown": 0,
        "fenced": 0,
        "cordoned": False,
    }
    assert (memory["tier"], memory["evidence"]) == ("dram", "measured")
    assert gpu["attributes"] == {"model": "H200"}
    assert memory["bounds"] == {
        "cut_ns": 5 * NS_PER_S,
        "scrub_ns": 1001 * NS_PER_MS,
        "overwrite_ns": 0,
        "prove_ns": 7 * NS_PER_S,
    }
    assert "teardown_ms" not in memory["attributes"] and "bounds" not in gpu
    assert given["graces"] == {"release_ns": 1, "preempt_ns": 2, "max_ns": 3}
    assert given["absences"] == [{"kind": "block", "why": "no namespace"}]
    assert given["notes"] == ["a note"]


def test_what_was_done_is_answered_in_the_shape_of_the_method() -> None:
    drain = called("io.leased.Admin.Drain")
    done = answers.Done((LEASE_ID,))
    assert decoded(encode_reply(drain, done, NOW))["parameters"] == {"affected": [LEASE_ID.hex()]}
    resume = called("io.leased.Admin.Resume")
    assert decoded(encode_reply(resume, done, NOW))["parameters"] == {}
    policy = called("io.leased.Admin.SetPolicy", {"document": POLICY})
    given = decoded(encode_reply(policy, answers.InForce(digest(Policy()), 4), NOW))["parameters"]
    assert given == {"policy_hash": digest(Policy()).hex()}


def test_missing_and_forbidden_are_typed_errors() -> None:
    call = called("io.leased.Lease.Describe", ID)
    assert decoded(encode_reply(call, answers.Missing(LEASE_ID), NOW)) == {
        "error": "io.leased.Lease.NoSuchLease",
        "parameters": {"lease_id": LEASE_ID.hex()},
    }
    forbidden = decoded(encode_reply(call, answers.Forbidden(), NOW))
    assert forbidden["error"] == "io.leased.Lease.PermissionDenied"


def test_every_error_keeps_its_name_and_its_fields() -> None:
    assert decoded(encode_error(DeviceError("scrub", 5, "stuck"))) == {
        "error": "io.leased.Lease.DeviceError",
        "parameters": {"verb": "scrub", "errno": 5, "detail": "stuck"},
    }
    broken = decoded(encode_error(ChainError("fork", "two heads", sequence=3, offset=4, file="s")))
    assert broken["error"] == "io.leased.Audit.ChainBroken"
    assert broken["parameters"] == {
        "verdict": "fork",
        "why": "two heads",
        "sequence": 3,
        "offset": 4,
        "file": "s",
    }
    refused = decoded(encode_error(InvalidParameter("ttl_ns", "too long")))
    assert refused["parameters"] == {"parameter": "ttl_ns"}
    assert refused["io.leased.why"] == "too long"
    assert decoded(encode_error(NoSuchLease("x")))["parameters"] == {"why": "x"}


def test_a_notice_says_until_when() -> None:
    reason = RevocationReason.OPERATOR_DRAIN
    notice = portray_notice(lease(), reason, 130 * NS_PER_S + 1, NOW)
    assert notice == objects.Notice(LEASE_ID.hex(), "operator_drain", 130 * NS_PER_S + 1, 30)


def test_frames_are_base64_on_the_wire_and_bytes_here() -> None:
    wire = replies.encode(replies.ReadReply(1, 2, b"\x00\xff"))
    assert decoded(wire)["parameters"]["frames"] == "AP8="
    given = msgspec.json.encode(decoded(wire)["parameters"])
    assert msgspec.json.decode(given, type=replies.ReadReply).frames == b"\x00\xff"


def test_no_reply_struct_leaves_out_what_its_interface_requires() -> None:
    """Leaving out defaults may only ever leave out null; another default would be lost."""
    for module in (objects, replies, parameters):
        for struct in vars(module).values():
            if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)):
                continue
            if struct.__struct_config__.omit_defaults:
                assert [d for d in struct.__struct_defaults__ if d is not None] == [], struct
