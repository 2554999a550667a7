# SPDX-License-Identifier: Apache-2.0
"""Every reason to refuse, provoked over the socket of an agent: what the caller is told, what is
sealed, and what `why` says of it afterwards.

Rule: the table has every reason of the closed set, so a new one fails here until somebody shows how
it comes about. Whether a refusal is sealed and when it could be otherwise stands in its row.

Does not judge the numbers (`unit/lessor`, `stateful`).
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio

from leased.ctl.refusals import ADVICE
from leased.terms import command as commands
from leased.terms.bounds import Bounds, publish
from leased.terms.errors import DeviceError
from leased.terms.event import Refused
from leased.terms.moment import NS_PER_S
from leased.terms.policy_text import read_policy
from leased.terms.reply import RefusalReason
from leased.terms.resource import Health, Inventory, ResourceKind
from tests.doubles.calling import House, Visitor, memory, open_house
from tests.doubles.devices import Fault, small_inventory
from tests.doubles.serving import Host

pytestmark = pytest.mark.autojump

ACME, BETA = 1000, 2000
POOL = "mem:node0:4096"
PAGES = 100
ID, OTHER = "ab" * 16, "cd" * 16
KINDS = frozenset(kind.name.lower() for kind in ResourceKind)

Why = dict[str, Any]
Provoke = Callable[[House, Visitor], Awaitable[tuple[str, dict[str, Any]]]]
"""Brings an agent so far, and returns the call that is refused."""


ASKED: Final[tuple[str, dict[str, Any]]] = ("", {})
"""The call was made already."""


class Row(NamedTuple):
    """How a reason comes about. `sealed`: it is the last word on a request for a lease. `again`:
    there is a moment at which it may be otherwise. `rule` is the key of the policy that says so.
    """

    provoke: Provoke
    sealed: bool = False
    again: bool = False
    rule: str = ""
    policy: dict[str, Any] = {}


def ask(pages: int = 1, **how: object) -> tuple[str, dict[str, Any]]:
    """A request for memory."""
    return "Lease.Acquire", {"resources": memory(pages), "bind": "deadline", **how}


async def has(me: Visitor, pages: int = 1, **how: object) -> str:
    """The id of a lease that was granted."""
    method, named = ask(pages, **how)
    lease: str = (await me.call(method, **named))["lease"]["lease_id"]
    return lease


def plainly(*call: Any, **named: Any) -> Provoke:
    """Nothing has to happen before it."""

    async def provoke(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
        return call[0] if isinstance(call[0], tuple) else ask(*call, **named)

    return provoke


def after(pages: int, *call: Any, **named: Any) -> Provoke:
    """The caller has a lease already."""

    async def provoke(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
        await has(me, pages)
        return ask(*call, **named)

    return provoke


async def busy(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await has(me, PAGES)
    other = house.visit(uid=BETA)
    method, named = ask(command_id=ID, wait_ns=600 * NS_PER_S)
    await other.ask(method, **named)
    await trio.sleep(1)
    return ask(command_id=ID)


async def queue_full(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await has(me, PAGES)
    method, named = ask(wait_ns=600 * NS_PER_S)
    await house.visit(uid=BETA).ask(method, **named)
    await trio.sleep(1)
    return ask(wait_ns=600 * NS_PER_S)


async def cordoned(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await house.visit(operator=True).call("Admin.Drain", resource_id=POOL)
    return ask()


async def unhealthy(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    health = commands.ObserveHealth(house.host.command_id(), POOL, Health.SICK, 7)
    await house.agent.sequencer.ask_own(health)
    return ask()


async def deadline_passed(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    """The hardware takes longer than the lease was to last."""
    gate = house.host.devices.gates["prepare"]
    gate.shut()
    method, named = ask(ttl_ns=NS_PER_S, command_id=OTHER)
    await me.ask(method, **named)
    await trio.sleep(5)
    gate.open()
    return ASKED


async def not_renewable(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    lease = await has(me)
    await me.call("Lease.Release", lease_id=lease)
    return "Lease.Renew", {"lease_id": lease}


async def still_held(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    return "Admin.LetGo", {"kind": "gpu"}


async def not_fenced(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    return "Admin.Unfence", {"lease_id": await has(me)}


async def draining(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    return "Lease.Renew", {"lease_id": await told(house, me)}


async def told(house: House, me: Visitor) -> str:
    """A lease that has to go within half a minute."""
    lease = await has(me, ttl_ns=600 * NS_PER_S)
    boss = house.visit(operator=True)
    await boss.call("Admin.Drain", resource_id=POOL, grace_ns=30 * NS_PER_S)
    return lease


async def device_failed(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    fault = Fault(DeviceError("mem_create", errno.ENOMEM))
    house.host.devices.fault = lambda verb, lease: fault if verb == "prepare" else None
    return ask()


async def audit_unavailable(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    """The journal has room for the ends of leases only."""
    house.agent.journal.short = True
    return ask()


async def stopping(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await house.agent.sequencer.ask_own(commands.Stop(house.host.command_id()))
    return ask()


async def fast(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await has(me)
    return ask()


async def fast_calls(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await me.call("Lease.List")
    return "Lease.List", {}


async def throttled(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await has(me)
    method, named = ask()
    assert (await me.refused(method, **named))[1]["reason"] == "tenant_capacity"
    return ask()


async def burst_ended(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    lease = await has(me, 2, ttl_ns=50 * NS_PER_S)
    await trio.sleep(20)
    await me.call("Lease.Renew", lease_id=lease)
    await trio.sleep(39)
    return "Lease.Renew", {"lease_id": lease}


async def backfill_ended(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    """What a large request waits for is lent until it can have it."""
    await has(house.visit(uid=BETA), PAGES - 10, ttl_ns=60 * NS_PER_S)
    method, named = ask(PAGES, wait_ns=600 * NS_PER_S)
    await house.visit(uid=BETA).ask(method, **named)
    await trio.sleep(1)
    lease = await has(me, 5, ttl_ns=20 * NS_PER_S)
    for _ in range(3):
        await trio.sleep(15)
        await me.call("Lease.Renew", lease_id=lease)
    return "Lease.Renew", {"lease_id": lease}


async def stale_policy(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    boss = house.visit(operator=True)
    await boss.call("Admin.SetPolicy", document='{"generation": 7}')
    return "Admin.SetPolicy", {"document": '{"generation": 7}'}


async def not_preempted(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    return ask(requeue_of=await has(me))


async def not_notified(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    return "Lease.Extend", {"lease_id": await has(me), "needed_ns": NS_PER_S}


async def notice_limit(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    lease = await told(house, me)
    return "Lease.Extend", {"lease_id": lease, "needed_ns": 500 * NS_PER_S}


async def notice_final(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    lease = await has(me, ttl_ns=600 * NS_PER_S)
    boss = house.visit(operator=True)
    await boss.call("Admin.Revoke", lease_id=lease, grace_ns=30 * NS_PER_S)
    return "Lease.Extend", {"lease_id": lease, "needed_ns": 60 * NS_PER_S}


async def command_id_used(house: House, me: Visitor) -> tuple[str, dict[str, Any]]:
    await has(me, command_id=ID)
    return ask(2, command_id=ID)


def mine(**limits: Any) -> dict[str, Any]:
    """A policy that limits one tenant."""
    return {"tenants": {"acme": limits}}


def divided(**how: Any) -> dict[str, Any]:
    """A policy that divides memory."""
    return {"tenants": {"acme": {}, "beta": {}}, "allocation": {"mem": how}}


ROWS: Final[dict[str, Row]] = {
    "busy": Row(busy),
    "no_capacity": Row(after(PAGES, 1), sealed=True, again=True),
    "no_such_resource": Row(
        plainly(("Lease.Acquire", {"resources": [{"kind": "net", "capacity": 1}]})), sealed=True
    ),
    "tenant_leases": Row(
        after(1), True, True, "tenants.acme.leases_max", policy=mine(leases_max=1)
    ),
    "tenant_capacity": Row(after(1), True, True, "tenants.acme.mem", policy=mine(mem="4KiB")),
    "node_leases": Row(after(1), True, True, "leases_max", policy={"leases_max": 1}),
    "queue_full": Row(queue_full, True, True, "waiting_max", policy={"waiting_max": 1}),
    "wait_expired": Row(after(PAGES, 1, wait_ns=5 * NS_PER_S), sealed=True, again=True),
    "ttl_too_short": Row(plainly(1, ttl_ns=1), sealed=True),
    "ttl_too_long": Row(plainly(1, ttl_ns=10**18), sealed=True),
    "capacity_granule": Row(
        plainly(("Lease.Acquire", {"resources": [{"kind": "mem", "capacity": 5000}]})), sealed=True
    ),
    "cordoned": Row(cordoned, sealed=True),
    "unhealthy": Row(unhealthy, sealed=True),
    "deadline_passed": Row(deadline_passed),
    "not_renewable": Row(not_renewable),
    "still_held": Row(still_held),
    "not_fenced": Row(not_fenced),
    "draining": Row(draining),
    "device_failed": Row(device_failed),
    "audit_unavailable": Row(audit_unavailable),
    "stopping": Row(stopping),
    "level": Row(plainly(1, level="critical"), True, rule="tenant_default.level_max"),
    "duration": Row(
        plainly(1, ttl_ns=60 * NS_PER_S),
        sealed=True,
        rule="tenants.acme.duration_max",
        policy=mine(duration_max="10s"),
    ),
    "budget": Row(
        plainly(PAGES, ttl_ns=10_000 * NS_PER_S),
        sealed=True,
        rule="tenants.acme.budgets",
        policy=mine(budgets=[{"period": "day", "of": "mem", "capacity_seconds": 1}]),
    ),
    "submit_rate": Row(
        fast,
        sealed=True,
        again=True,
        rule="tenants.acme.submit_rate",
        policy=mine(submit_rate="1/h"),
    ),
    "api_rate": Row(
        fast_calls, again=True, rule="tenants.acme.api_rate", policy=mine(api_rate="1/h")
    ),
    "throttled": Row(
        throttled,
        sealed=True,
        again=True,
        rule="tenants.acme",
        policy={"when_over": "throttle", **mine(mem="4KiB")},
    ),
    "burst_ended": Row(
        burst_ended,
        rule="tenants.acme.mem",
        policy=mine(mem={"limit": "4KiB", "mode": "burst", "burst": "8KiB", "burst_ttl": "1m"}),
    ),
    "share": Row(
        plainly(20),
        sealed=True,
        rule="allocation.mem.max_share",
        policy=divided(strategy="fair_share", min_share="0%", max_share="10%"),
    ),
    "reserved": Row(
        plainly(20),
        sealed=True,
        rule="allocation.mem.reservations",
        policy=divided(strategy="reservation", reservations={"beta": "360KiB"}, borrow_idle=False),
    ),
    "backfill_ended": Row(backfill_ended),
    "stale_policy": Row(stale_policy),
    "not_preempted": Row(not_preempted, sealed=True),
    "not_notified": Row(not_notified),
    "notice_limit": Row(notice_limit, rule="preemption.checkpoint_max_standard"),
    "notice_final": Row(notice_final),
    "command_id_used": Row(command_id_used),
}


def test_every_reason_is_provoked_and_has_its_advice() -> None:
    reasons = [reason.name.lower() for reason in RefusalReason]
    assert sorted(ROWS) == sorted(reasons), "a reason that nobody provokes, or none"
    assert sorted(ADVICE) == sorted(reasons)


def host_of(row: Row) -> Host:
    """A host under the row's policy, whose memory says how long its teardown takes."""
    [memory_pool] = small_inventory(PAGES).resources
    second = NS_PER_S // 10
    bounds = Bounds(second, second, second, second)
    inventory = Inventory((publish(memory_pool, bounds),), small_inventory().absences)
    return Host(inventory=inventory, policy=read_policy(row.policy))


@pytest.mark.parametrize("reason", ROWS)
async def test_a_refusal_is_typed_dated_sealed_and_explained(
    reason: str, tmp_path: Path
) -> None:
    row = ROWS[reason]
    async with open_house(tmp_path, host=host_of(row)) as house:
        me = house.visit(uid=ACME)
        method, named = await row.provoke(house, me)
        asker = house.visit(operator=True) if method.startswith("Admin.") else me
        if method == "Lease.Acquire":
            named = {"command_id": OTHER, "bind": "deadline", **named}
        before = len(house.host.chain())
        if method:
            await asker.ask(method, **named)
        answer = await asker.answer()
        name, why = answer.get("error", "").rpartition(".")[2], answer["parameters"]
        assert (name, why["reason"]) == ("Refused", reason)
        rule = why.get("rule", "")
        assert rule.startswith(row.rule) and bool(rule) == bool(row.rule), why
        assert ("retry_at_boottime_ns" in why) == row.again, why
        sealed = [one for _, one, _ in house.host.chain()[before:] if isinstance(one, Refused)]
        assert [RefusalReason(one.reason).name.lower() for one in sealed] == [reason] * row.sealed
        for one in sealed:
            assert one.command_id.hex() == named["command_id"] and one.tenant == "acme"
            numbers = [why[key] for key in ("limit", "usage", "requested")]
            assert [one.limit, one.usage, one.requested] == numbers
            kind = "" if one.resource_kind is None else one.resource_kind.name.lower()
            what = why["what"].partition(":")[0]
            assert kind == (what if what in KINDS else "")
        await explained(house, row, named, why)


async def explained(house: House, row: Row, named: dict[str, Any], why: Why) -> None:
    """`why` says of a request that was refused what the caller was told, to whoever may know it,
    and of a lease that could not go on what it is.
    """
    boss = house.visit(operator=True)
    if row.sealed:
        told = await boss.call("Lease.Why", lease_id=named["command_id"])
        left = {"seconds_until_retry"}  # that counts down
        said, again = (
            {k: v for k, v in one.items() if k not in left} for one in (why, told["refusal"])
        )
        assert said == again and "position" not in told and "lease" not in told
        name, _ = await house.visit(uid=BETA).refused("Lease.Why", lease_id=named["command_id"])
        assert name == "NoSuchLease", "it is nobody else's business"
    elif "lease_id" in named:
        told = await boss.call("Lease.Why", lease_id=named["lease_id"])
        assert told["lease"]["lease_id"] == named["lease_id"]
