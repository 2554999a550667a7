# SPDX-License-Identifier: Apache-2.0
"""Calls to commands: what is asked arrives exact, and who asks is never read from the call."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from leased.terms import command as commands
from leased.terms.command import Caller, Command
from leased.terms.errors import (
    ConfigError,
    InvalidParameter,
    PermissionDenied,
)
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import (
    AccountingTag,
    Priority,
    RevocationReason,
)
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import CapacityLimit, Policy, TenantLimits, digest
from leased.terms.resource import Ask, ResourceKind, TierKind
from leased.wire.calls import to_command
from tests.doubles.varlink_calls import called

CALLER = Caller(1000, 100, 4711, TenantId("acme"))
DRAWN = b"\xee" * 16
LEASE_ID = LeaseId(bytes(range(16)))
COMMAND_ID = CommandId(bytes(range(16, 32)))
BOOT_ID = b"\xb0" * 16
NOW = Moment(BOOT_ID, 100 * NS_PER_S, 1_700_000_000 * NS_PER_S)


def commanded(method: str, given: dict[str, Any] | None = None, *, pid: int = 0) -> Command | None:
    return to_command(called(method, given), CALLER, lambda: DRAWN, pid=pid)


ID = {"lease_id": LEASE_ID.hex()}
WITH_COMMAND = {**ID, "command_id": COMMAND_ID.hex()}
POLICY = '{"generation":4,"tenants":{"acme":{"leases_max":2,"gpu":2}}}'
MEANT = Policy(
    generation=4,
    tenants=((TenantId("acme"), TenantLimits(2, None, (CapacityLimit(ResourceKind.GPU, 2000),))),),
)


@pytest.mark.parametrize(
    ("method", "given", "command"),
    [
        ("Lease.Renew", ID, commands.Renew(DRAWN, CALLER, LEASE_ID, None)),
        (
            "Lease.Renew",
            {**WITH_COMMAND, "ttl_ns": 7},
            commands.Renew(COMMAND_ID, CALLER, LEASE_ID, 7),
        ),
        ("Lease.Release", WITH_COMMAND, commands.Release(COMMAND_ID, CALLER, LEASE_ID)),
        ("Lease.Done", ID, commands.Release(DRAWN, CALLER, LEASE_ID)),
        ("Lease.Describe", ID, commands.Describe(DRAWN, CALLER, LEASE_ID)),
        ("Lease.Join", ID, commands.Describe(DRAWN, CALLER, LEASE_ID)),
        ("Lease.Wait", ID, commands.Describe(DRAWN, CALLER, LEASE_ID)),
        ("Lease.Why", ID, commands.Why(DRAWN, CALLER, LEASE_ID)),
        ("Lease.List", {"closed": True}, commands.ListLeases(DRAWN, CALLER, True)),
        ("Device.List", None, commands.ListResources(DRAWN, CALLER)),
        ("Device.Holders", {"resource_id": "gpu:x"}, None),
        ("Audit.Head", None, None),
        (
            "Admin.Revoke",
            {**WITH_COMMAND, "reason": "maintenance", "grace_ns": 9},
            commands.Revoke(COMMAND_ID, CALLER, LEASE_ID, RevocationReason.MAINTENANCE, 9),
        ),
        (
            "Admin.Revoke",
            ID,
            commands.Revoke(DRAWN, CALLER, LEASE_ID, RevocationReason.OPERATOR_REVOKE, 0),
        ),
        ("Admin.Drain", None, commands.Drain(DRAWN, CALLER, "", None)),
        (
            "Admin.Drain",
            {"resource_id": "gpu:x", "grace_ns": 0},
            commands.Drain(DRAWN, CALLER, "gpu:x", 0),
        ),
        ("Admin.Resume", {"resource_id": "gpu:x"}, commands.Resume(DRAWN, CALLER, "gpu:x")),
        (
            "Admin.Fence",
            {"resource_id": "cpu:1", "capacity": 1000},
            commands.Fence(DRAWN, CALLER, "cpu:1", 1000),
        ),
        ("Admin.Unfence", ID, commands.Unfence(DRAWN, CALLER, LEASE_ID, "")),
        (
            "Admin.Unfence",
            {"resource_id": "cpu:1"},
            commands.Unfence(DRAWN, CALLER, None, "cpu:1"),
        ),
        (
            "Admin.SetPolicy",
            {"document": POLICY, "rate_hash": "ab" * 32},
            commands.SetPolicy(
                DRAWN,
                CALLER,
                MEANT,
                digest(MEANT),
                b"\xab" * 32,
            ),
        ),
    ],
)
def test_a_call_means_its_command(
    method: str, given: dict[str, Any] | None, command: Command | None
) -> None:
    assert commanded(f"io.leased.{method}", given) == command


def test_a_watch_begins_with_what_is() -> None:
    whole = called("io.leased.Lease.Watch", more=True)
    one = called("io.leased.Lease.Watch", ID, more=True)
    assert to_command(whole, CALLER, lambda: DRAWN) == commands.ListLeases(DRAWN, CALLER)
    assert to_command(one, CALLER, lambda: DRAWN) == commands.Describe(DRAWN, CALLER, LEASE_ID)


ASKED = {
    "command_id": COMMAND_ID.hex(),
    "resources": [
        {"kind": "mem", "capacity": 4096, "tier": "cxl", "node": 1, "page_size": 4096},
        {"kind": "cpu", "capacity": 2000, "exclusive": True},
        {"kind": "gpu", "capacity": 1000, "resource_id": "gpu:GPU-1"},
    ],
    "ttl_ns": 5,
    "priority": "scavenger",
    "wait_ns": 6,
    "grace_ns": 7,
    "workload": "train",
    "accounting_tag": {"cost_center": "cc", "budget_group": "b", "flags": 2},
}


def test_an_acquire_arrives_exact() -> None:
    assert commanded("io.leased.Lease.Acquire", ASKED, pid=4711) == commands.Acquire(
        command_id=COMMAND_ID,
        caller=CALLER,
        asks=(
            Ask(ResourceKind.MEM, 4096, TierKind.CXL, 1, None, 4096),
            Ask(ResourceKind.CPU, 2000, exclusive=True),
            Ask(ResourceKind.GPU, 1000, resource_id="gpu:GPU-1"),
        ),
        ttl_ns=5,
        priority=Priority.SCAVENGER,
        wait_ns=6,
        grace_ns=7,
        workload="train",
        tag=AccountingTag("cc", "", "", "b", 2),
        bind_pid=0,
    )


@pytest.mark.parametrize("method", ["Acquire", "Plan"])
@pytest.mark.parametrize("flags", [1, 3])
def test_what_is_on_no_bill_is_not_for_who_pays_it_to_say(method: str, flags: int) -> None:
    asked = {
        "resources": [{"kind": "gpu", "capacity": 1000}],
        "accounting_tag": {"cost_center": "cc", "flags": flags},
    }
    call = called(f"io.leased.Lease.{method}", asked)
    with pytest.raises(PermissionDenied):
        to_command(call, CALLER, lambda: DRAWN)
    operator = msgspec.structs.replace(CALLER, operator=True)
    assert to_command(call, operator, lambda: DRAWN) is not None


def test_memory_alone_is_bound_to_the_caller_and_needs_its_pidfd() -> None:
    asked = {"resources": [{"kind": "mem", "capacity": 4096}]}
    bound = commanded("io.leased.Lease.Acquire", asked, pid=4711)
    assert isinstance(bound, commands.Acquire)
    assert bound.bind_pid == 4711
    with pytest.raises(PermissionDenied):
        commanded("io.leased.Lease.Acquire", asked)
    unbound = commanded("io.leased.Lease.Acquire", {**asked, "bind": "cgroup"}, pid=4711)
    assert isinstance(unbound, commands.Acquire)
    assert unbound.bind_pid == 0


def test_a_plan_needs_no_pidfd_and_holds_the_same_request() -> None:
    asked = {name: value for name, value in ASKED.items() if name != "command_id"}
    plan = commanded("io.leased.Lease.Plan", asked)
    acquire = commanded("io.leased.Lease.Acquire", ASKED)
    assert isinstance(plan, commands.Plan)
    assert isinstance(acquire, commands.Acquire)
    assert msgspec.structs.replace(plan.acquire, command_id=COMMAND_ID) == acquire


def test_the_length_of_a_lease_defaults_to_what_is_handed_in() -> None:
    call = called("io.leased.Lease.Acquire", {"resources": [{"kind": "gpu", "capacity": 1000}]})
    command = to_command(call, CALLER, lambda: DRAWN, ttl_ns_default=99)
    assert isinstance(command, commands.Acquire)
    assert (command.ttl_ns, command.command_id) == (99, DRAWN)


@pytest.mark.parametrize(
    "identity",
    ["", "00", "AB" * 16, "g" * 32, "0" * 31, "0" * 33, "00 " * 10 + "00", "é" * 32],
)
def test_an_id_is_32_lower_case_hex_digits(identity: str) -> None:
    for method, given in (
        ("Renew", {"lease_id": identity}),
        ("Renew", {**ID, "command_id": identity}),
        ("Describe", {"lease_id": identity}),
    ):
        with pytest.raises(InvalidParameter):
            commanded(f"io.leased.Lease.{method}", given)


def test_unfence_wants_exactly_one_of_its_two() -> None:
    for given in ({}, {**ID, "resource_id": "cpu:1"}):
        with pytest.raises(InvalidParameter):
            commanded("io.leased.Admin.Unfence", given)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{",
    ],
)
def test_a_policy_that_is_none_is_refused(document: str) -> None:
    with pytest.raises(InvalidParameter):
        commanded("io.leased.Admin.SetPolicy", {"document": document})


def test_a_policy_that_contradicts_itself_is_refused_by_name() -> None:
    for document, named in (
        ('{"generation":-1}', "policy.generation = -1"),
        ('{"limit_of_everything":3}', "policy.limit_of_everything: unknown key"),
        ('{"tenants":{"no such name":{}}}', "policy.tenants = 'no such name'"),
        ('{"tenants":{"a":{"tape":1}}}', "policy.tenants.a.tape: unknown key"),
        ('{"ttl_default":"1ms"}', "policy.ttl_default = 1ms: below policy.ttl_min"),
    ):
        with pytest.raises(ConfigError, match=named):
            commanded("io.leased.Admin.SetPolicy", {"document": document})


def test_a_policy_hash_must_be_one() -> None:
    for text in ("ab", "AB" * 32, "zz" * 32, "ab " * 21 + "a"):
        with pytest.raises(InvalidParameter):
            commanded("io.leased.Admin.SetPolicy", {"document": "{}", "rate_hash": text})
