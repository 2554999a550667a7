# SPDX-License-Identifier: Apache-2.0
"""A request that comes again under its command id: the same one, or another."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from leased.terms.command import Acquire, SetPolicy
from leased.terms.lease import (
    BOUND_TO_CGROUP,
    BOUND_TO_NOTHING,
    AccountingTag,
    LeaseState,
    Level,
    Priority,
)
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy
from leased.terms.reply import Granted, Refusal, RefusalReason
from leased.terms.resource import Ask, Resource, ResourceKind, Shape, TierKind
from tests.doubles.desk import ACME, ANY_LEVEL, OPERATOR, PAGE, Desk, ask_mem, cores, mem, tenant

GPUS = tuple(
    Resource(f"gpu:GPU-{one}", ResourceKind.GPU, None, 1000, 1000, attributes=(("model", "H200"),))
    for one in range(4)
)
BUDGET = Resource(f"mem:budget:node0:{PAGE}", ResourceKind.MEM, TierKind.DRAM, 0, PAGE, 0)
B300 = (("model", "B300"),)
CORE, GPU = Ask(ResourceKind.CPU, 1500), Ask(ResourceKind.GPU, 1000, count=2)
ASKS = (ask_mem(10), CORE, GPU, ask_mem(20, node=1))
FIRST: dict[str, Any] = {
    "asks": ASKS,
    "ttl_ns": 20 * NS_PER_S,
    "priority": Priority.STANDARD,
    "grace_ns": 5 * NS_PER_S,
    "workload": "train",
    "tag": AccountingTag("cc-1"),
    "bind_pid": ACME.pid,
}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("resources", {"asks": (ask_mem(11), *ASKS[1:])}),
    ("resources", {"asks": ASKS[:3]}),
    ("resources", {"asks": (*ASKS, ask_mem(1))}),
    ("resources", {"asks": (ASKS[1], ASKS[0], *ASKS[2:])}),
    ("resources", {"asks": (ASKS[0], Ask(ResourceKind.CPU, 1600), *ASKS[2:])}),
    ("resources", {"asks": (*ASKS[:2], Ask(ResourceKind.GPU, 1000, count=3), ASKS[3])}),
    ("resources", {"asks": (*ASKS[:2], Ask(ResourceKind.GPU, 1000, count=1 << 60), ASKS[3])}),
    ("resources", {"asks": (*ASKS[:3], ask_mem(20, node=0))}),
    ("resources", {"asks": (msgspec.structs.replace(ASKS[0], shape=Shape.BUDGET), *ASKS[1:])}),
    ("resources", {"asks": (msgspec.structs.replace(ASKS[0], tier=TierKind.HBM), *ASKS[1:])}),
    ("resources", {"asks": (msgspec.structs.replace(ASKS[0], granule=2 << 20), *ASKS[1:])}),
    ("resources", {"asks": (msgspec.structs.replace(ASKS[0], resource_id="mem:x"), *ASKS[1:])}),
    (
        "resources",
        {"asks": (*ASKS[:2], msgspec.structs.replace(GPU, attributes=B300), ASKS[3])},
    ),
    ("ttl_ns", {"ttl_ns": 21 * NS_PER_S}),
    ("priority", {"priority": Priority.SCAVENGER}),
    ("level", {"level": Level.BACKGROUND, "priority": Priority.STANDARD}),
    ("grace_ns", {"grace_ns": 4 * NS_PER_S}),
    ("workload", {"workload": None}),
    ("accounting_tag", {"tag": AccountingTag("cc-2")}),
    ("bind", {"bind_pid": BOUND_TO_CGROUP}),
    ("bind", {"bind_pid": BOUND_TO_NOTHING}),
    ("tenant", {"caller": tenant("beta", ACME.uid)}),
]
SAME: list[dict[str, Any]] = [
    {},
    {"wait_ns": 30 * NS_PER_S},
    {"bind_pid": 77, "caller": msgspec.structs.replace(ACME, pid=77)},
    {"ttl_ns": Policy().ttl_ns_default},
]


def desk() -> Desk:
    """A host with something of all that is asked for."""
    return Desk(mem(0, 1000), mem(1, 1000), BUDGET, *cores(4), *GPUS, policy=ANY_LEVEL)


def first_of(desk: Desk, **changed: Any) -> Acquire:
    return Acquire(desk.command_id(), ACME, **{**FIRST, **changed})


def again(acquire: Acquire, **changed: Any) -> Acquire:
    return msgspec.structs.replace(acquire, **changed)


def granted(desk: Desk, acquire: Acquire) -> Granted:
    reply = desk.say(acquire)
    assert isinstance(reply, Granted), reply
    return reply


def used(what: str) -> Refusal:
    return Refusal(RefusalReason.COMMAND_ID_USED, what)


@pytest.mark.parametrize("restarted", [False, True], ids=["live", "restarted"])
@pytest.mark.parametrize(("what", "changed"), OTHERS)
def test_another_request_under_a_used_id_is_refused(
    what: str, changed: dict[str, Any], restarted: bool
) -> None:
    host = desk()
    acquire = first_of(host)
    lease = host.activate(granted(host, acquire).lease)
    if restarted:
        host.restart(known=[lease.lease_id])
    sealed, before = len(host.history), host.at(lease)
    assert host.say(again(acquire, **changed)) == used(what)
    assert (len(host.history), host.at(lease)) == (sealed, before)
    reply = host.say(acquire)
    assert isinstance(reply, Granted) and reply.attached


@pytest.mark.parametrize("restarted", [False, True], ids=["live", "restarted"])
@pytest.mark.parametrize("changed", SAME)
def test_the_same_request_finds_its_lease_at_every_stage(
    changed: dict[str, Any], restarted: bool
) -> None:
    host = desk()
    acquire = first_of(host)
    retry = again(acquire, **changed)

    def found(state: LeaseState) -> None:
        if restarted:
            host.restart(known=[lease.lease_id])
        reply = host.say(retry)
        assert isinstance(reply, Granted) and reply.attached and reply.lease.state is state

    lease = granted(host, acquire).lease
    reply = host.say(retry)
    assert isinstance(reply, Granted) and reply.attached, "while it is prepared"
    lease = host.activate(lease)
    found(LeaseState.ACTIVE)
    host.renew(lease, 40)
    found(LeaseState.ACTIVE)
    lease = host.at(lease)
    host.release(lease)
    host.reclaim(lease)
    found(LeaseState.RECLAIMED)
    assert host.say(again(acquire, workload="other")) == used("workload")


@pytest.mark.parametrize(("what", "changed"), OTHERS)
def test_another_request_does_not_join_one_that_waits(what: str, changed: dict[str, Any]) -> None:
    host = desk()
    full = host.grant(ask_mem(995, node=0)), host.grant(ask_mem(1000, node=1))
    acquire = first_of(host, wait_ns=60 * NS_PER_S)
    assert host.say(acquire) is None
    assert host.say(again(acquire, **changed)) == used(what)
    assert host.say(again(acquire, wait_ns=NS_PER_S)) is None, "a retry goes on waiting"
    for lease in full:
        host.release(host.activate(lease))
        host.reclaim(lease)
    assert isinstance(host.answers[acquire.command_id], Granted)


def test_who_names_no_length_and_no_notice_may_ask_again_after_a_policy_changed() -> None:
    host = desk()
    acquire = first_of(host, ttl_ns=Policy().ttl_ns_default, grace_ns=None)
    granted(host, acquire)
    longer = msgspec.structs.replace(
        ANY_LEVEL, ttl_ns_default=90 * NS_PER_S, grace_ns_preempt=NS_PER_S
    )
    host.say(SetPolicy(host.command_id(), OPERATOR, longer, b"p" * 32, b"r" * 32))
    reply = host.say(again(acquire, ttl_ns=90 * NS_PER_S))
    assert isinstance(reply, Granted) and reply.attached


def test_a_level_is_told_from_another_as_long_as_it_is_known() -> None:
    host = desk()
    acquire = first_of(host, level=Level.CRITICAL, priority=Priority.GUARANTEED)
    lease = host.activate(granted(host, acquire).lease)
    assert host.say(again(acquire, level=None)) == used("level")
    host.release(lease)
    host.reclaim(lease)
    reply = host.say(acquire)
    assert isinstance(reply, Granted) and reply.attached
    assert host.say(again(acquire, level=None)) == used("level")


def test_a_retry_finds_a_lease_of_its_level_that_was_fenced() -> None:
    host = desk()
    acquire = first_of(host, level=Level.CRITICAL, priority=Priority.GUARANTEED)
    lease = host.activate(granted(host, acquire).lease)
    host.release(lease)
    host.cut(lease)
    host.scrub(lease, clean=False)
    assert host.at(lease).state is LeaseState.FENCED
    reply = host.say(acquire)
    assert isinstance(reply, Granted) and reply.attached
