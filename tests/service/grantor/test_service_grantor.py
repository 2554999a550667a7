# SPDX-License-Identifier: Apache-2.0
"""The grantor: a grant is answered only when it is prepared and armed, a renewal only when the
reaper has moved the deadline; whatever fails is a typed refusal and capacity that comes back.
"""

from __future__ import annotations

import errno
import os
import subprocess

import msgspec
import pytest
import trio
import trio.testing

from leased.lessor.table import end_ns
from leased.service.grantor import BATCH_MAX, QUICK_BYTES_MAX, Pace, pace_of
from leased.terms.command import Caller, Drain, Extend, Release, Renew
from leased.terms.errors import DeviceError, Shortage
from leased.terms.event import AccessCut, Reclaimed, Revoked
from leased.terms.identity import TenantId
from leased.terms.lease import Ending, LeaseState, Level, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Borrowing, CapacityLimit, Policy, TenantLimits
from leased.terms.reply import Changed, Granted, Refusal, RefusalReason
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.desk import ACME, BETA, OPERATOR
from tests.doubles.devices import Fault, small_inventory
from tests.doubles.leases import lease
from tests.doubles.serving import Host

PAGES = 1024
"""Of the fake host."""


# ---- the answer waits for the hardware -----------------------------------------------------------


async def test_a_grant_is_answered_after_prepare_and_arm(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        prepare, arm = host.devices.gates["prepare"], host.reaper.gates["arm"]
        prepare.shut()
        arm.shut()
        box = agent.submit(host.acquire(3))
        await prepare.reached.wait()
        await trio.sleep(5)
        assert not box.replies and not host.reaper.slots
        prepare.open()
        await arm.reached.wait()
        await trio.sleep(5)
        assert not box.replies, "answered before the reaper held it"
        assert "Allocated" in host.sealed() and "Activated" not in host.sealed()
        arm.open()
        reply = await box.reply()
        assert isinstance(reply, Granted) and not reply.attached
        assert reply.lease.state is LeaseState.ACTIVE
        assert reply.lease.lease_id in host.reaper.slots
        await agent.until(reply.lease.lease_id, LeaseState.ACTIVE)
        sequence, event, _ = next(
            entry for entry in host.chain() if type(entry[1]).__name__ == "Allocated"
        )
        assert reply.sequence == sequence, "the receipt names its own record"
        assert len(reply.record_hash) == 32


async def test_a_retry_while_it_is_prepared_is_answered_together_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        request = host.acquire(3)
        first = agent.submit(request)
        await gate.reached.wait()
        retry = agent.submit(request)
        await trio.sleep(5)
        assert not first.replies and not retry.replies
        gate.open()
        one, other = await first.reply(), await retry.reply()
        assert isinstance(one, Granted) and isinstance(other, Granted)
        assert one.lease.lease_id == other.lease.lease_id
        assert (one.attached, other.attached) == (False, True)
        assert [verb for verb, _ in host.devices.calls].count("prepare") == 1


async def test_a_retry_of_a_grant_that_then_fails_is_refused_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        host.devices.fault = lambda verb, lease: (
            Fault(DeviceError("mem_create", errno.ENOMEM)) if verb == "prepare" else None
        )
        request = host.acquire(3)
        first = agent.submit(request)
        await gate.reached.wait()
        retry = agent.submit(request)
        await trio.sleep(1)
        gate.open()
        for box in (first, retry):
            reply = await box.reply()
            assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEVICE_FAILED


async def test_what_is_not_there_is_refused_in_its_numbers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A pool is smaller than it was seen last: that is no failure of a device."""
    numbers = ("mem:node0:4096", 40960, 8192, PAGES * 4096, 7)
    async with Host().standing() as host, host.agent() as agent:
        fault = Fault(Shortage(*numbers))
        host.devices.fault = lambda verb, lease: fault if verb == "prepare" else None
        request = host.acquire(PAGES)
        reply = await agent.ask(request)
        assert reply == Refusal(RefusalReason.NO_CAPACITY, *numbers)
        while "Reclaimed" not in host.sealed():
            await trio.sleep(1)
        assert await agent.ask(request) == reply, "whoever asks again is told the same"


async def test_a_retry_that_is_being_sealed_when_the_grant_fails_is_refused_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The table says that it failed only when that is sealed, too: until then nobody is told that
    it is there."""
    async with Host().standing() as host, host.agent() as agent:
        gate, disk = host.devices.gates["prepare"], agent.journal.gate
        gate.shut()
        error = DeviceError("mem_create", errno.ENOMEM)
        host.devices.fault = lambda verb, lease: (
            Fault(error) if verb == "prepare" and _pages(lease) == 3 else None
        )
        request = host.acquire(3)
        first = agent.submit(request)
        await gate.reached.wait()
        disk.shut()
        other, retry = agent.submit(host.acquire(1)), agent.submit(request)
        await disk.reached.wait()
        gate.open()
        failed = await first.reply()
        disk.open()
        assert isinstance(failed, Refusal) and failed.reason is RefusalReason.DEVICE_FAILED
        assert await retry.reply() == failed
        assert isinstance(await other.reply(), Granted)


async def test_a_retry_of_a_grant_that_was_told_to_leave_waits_for_it_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        request = host.acquire(3)
        first = agent.submit(request)
        await gate.reached.wait()
        await agent.ask(Drain(host.command_id(), OPERATOR, "", 30 * NS_PER_S))
        retry = agent.submit(request)
        await trio.sleep(5)
        assert not retry.replies, "answered before the reaper held it"
        gate.open()
        for box in (first, retry):
            reply = await box.reply()
            assert isinstance(reply, Granted) and reply.lease.lease_id in host.reaper.slots


# ---- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["prepare", "prepare, applied", "arm"])
async def test_a_grant_that_fails_is_refused_and_its_capacity_comes_back(
    fails: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        if fails == "arm":
            host.reaper.arm_errors = _Everyone(errno.ENOSPC)
        else:
            fault = Fault(DeviceError("mem_create", errno.ENOMEM), applied="applied" in fails)
            host.devices.fault = lambda verb, lease: fault if verb == "prepare" else None
        before = agent.free
        reply = await agent.ask(host.acquire(PAGES))
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEVICE_FAILED
        assert reply.usage == (errno.ENOSPC if fails == "arm" else errno.ENOMEM)
        await trio.sleep(10)
        assert agent.free == before, "what could not be given must be there for others"
        assert not len(agent.custodian) and not host.reaper.slots
        host.reaper.arm_errors = {}
        host.devices.fault = lambda verb, lease: None
        assert (await agent.lease(PAGES)).state is LeaseState.ACTIVE
    names = host.sealed()
    assert names.count("Reclaimed") == 1 and names.count("Activated") == 1
    [revoked] = [event for _, event, _ in host.chain() if isinstance(event, Revoked)]
    assert revoked.reason is RevocationReason.GRANT_FAILED


async def test_one_of_a_batch_fails_to_prepare_and_one_to_arm_and_the_rest_is_granted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        sizes = {1: "prepare", 2: "arm", 3: "", 4: ""}
        fault = Fault(DeviceError("mem_create", errno.ENOMEM))
        host.devices.fault = lambda verb, lease: (
            fault if verb == "prepare" and _pages(lease) == 1 else None
        )
        host.reaper.gates["arm"].shut()
        boxes = {size: agent.submit(host.acquire(size)) for size in sizes}
        await host.reaper.gates["arm"].reached.wait()
        [second] = [one for one in agent.lessor.table.leases.values() if _pages(one) == 2]
        host.reaper.arm_errors[second.lease_id] = errno.EMFILE
        host.reaper.gates["arm"].open()
        outcomes = {size: await box.reply() for size, box in boxes.items()}
        assert [isinstance(outcomes[size], Granted) for size in sizes] == [False, False, True, True]
        await trio.sleep(10)
        assert agent.free == (PAGES - 7) * 4096
        assert len(agent.custodian) == 2 == len(host.reaper.slots)


async def test_a_deadline_during_prepare_ends_the_lease_and_is_not_answered_as_granted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        box = agent.submit(host.acquire(PAGES, ttl_s=2))
        await gate.reached.wait()
        await trio.sleep(10)
        [lease] = agent.lessor.table.leases.values()
        assert lease.ended is Ending.EXPIRED, "the table does not wait for a device"
        assert ("scrub", (lease.lease_id,)) not in host.devices.calls, "torn down while prepared"
        gate.open()
        reply = await box.reply()
        assert isinstance(reply, Refusal), "a lease that is over was handed out"
        assert reply.reason is RefusalReason.DEADLINE_PASSED
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert agent.free == PAGES * 4096
        await trio.sleep(1)
        assert not host.reaper.slots and not len(agent.custodian)


async def test_who_is_told_to_leave_while_the_grant_is_prepared_has_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The reaper cannot be told of an end of what it does not hold yet, and that is no late
    renewal."""
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        box = agent.submit(host.acquire(3))
        await gate.reached.wait()
        await agent.ask(Drain(host.command_id(), OPERATOR, "", 30 * NS_PER_S))
        await trio.sleep(2)
        gate.open()
        assert isinstance(reply := await box.reply(), Granted)
        told = await agent.until(reply.lease.lease_id, LeaseState.DRAINING)
        await trio.sleep(1)
        assert host.reaper.slots[told.lease_id].deadline_ns == end_ns(told) < told.deadline_ns
        ended = await agent.until(told.lease_id, LeaseState.RECLAIMED)
        assert ended.reason is RevocationReason.OPERATOR_DRAIN
        assert ended.cut_ns == end_ns(told)


async def test_the_ends_of_notices_go_ahead_however_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Beyond 64 none did: an agent that died then had told many until when, and the reaper not."""
    many = 2 * BATCH_MAX
    async with Host().standing() as host, host.agent() as agent:
        boxes = [agent.submit(host.acquire(1)) for _ in range(many)]
        held = [await box.reply() for box in boxes]
        assert all(isinstance(reply, Granted) for reply in held), held
        await agent.ask(Drain(host.command_id(), OPERATOR, "", 30 * NS_PER_S))
        assert sum(count for verb, count in host.reaper.calls if verb == "renew ahead") == many


@pytest.mark.parametrize("at", ["prepare", "arm"])
async def test_who_hangs_up_while_the_grant_is_prepared_is_not_cut_as_its_holder(
    at: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The process lives: it has given up waiting, and may ask again."""
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"] if at == "prepare" else host.reaper.gates["arm"]
        gate.shut()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            pidfd = os.pidfd_open(process.pid)
            agent.holders.enrol(process.pid, pidfd)
            request = host.acquire(3, bind_pid=process.pid)
            box = agent.submit(request)
            await gate.reached.wait()
            agent.holders.dismiss(process.pid)
            gate.open()
            assert isinstance(reply := await box.reply(), Granted)
            await trio.sleep(1)
            held = agent.lessor.table.leases[reply.lease.lease_id]
            assert held.state is LeaseState.ACTIVE, held.reason
            os.close(pidfd)
            await agent.ask(Release(host.command_id(), ACME, held.lease_id))
            await agent.until(held.lease_id, LeaseState.RECLAIMED)
            assert agent.holders.pidfd_for(process.pid) is None, "nobody is watched for nothing"


async def test_who_is_told_to_leave_by_the_order_that_grants_it_has_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it was granted is lent by somebody who waits for it: one look through the queue."""
    half = CapacityLimit(ResourceKind.MEM, PAGES // 2 * 4096)
    policy = Policy(
        tenant_default=TenantLimits(level_max=Level.CRITICAL),
        tenants=tuple(
            (one.tenant, TenantLimits(level_max=Level.CRITICAL, capacities=(half,)))
            for one in (ACME, BETA)
        ),
        borrowing=Borrowing(enabled=True, grace_ns=5 * NS_PER_S),
    )
    async with Host(policy=policy).standing() as host, host.agent() as agent:
        third = Caller(3000, 3000, 1, TenantId("third"))
        before = await agent.lease(PAGES, caller=third)
        asked = [
            msgspec.structs.replace(host.acquire(pages, caller=caller, wait_s=60), level=level)
            for pages, caller, level in (
                (PAGES // 4 * 3, ACME, Level.HIGH),
                (PAGES // 2, BETA, Level.NORMAL),
            )
        ]
        borrower, owner = [agent.submit(one) for one in asked]
        await agent.ask(Release(host.command_id(), third, before.lease_id))
        reply = await borrower.reply()
        assert isinstance(reply, Granted)
        told = agent.at(reply.lease.lease_id)
        assert told.state is LeaseState.DRAINING and told.generation == 1
        assert isinstance(await owner.reply(), Granted)
        ended = await agent.until(told.lease_id, LeaseState.RECLAIMED)
        assert ended.reason is RevocationReason.QUOTA_RECLAIM
        assert ended.cut_ns == end_ns(told)


async def test_a_grant_released_by_nobody_while_prepared_lives_for_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever asked has gone: what was sealed is carried out, and ends by its deadline."""
    async with Host().standing() as host, host.agent() as agent:
        gate = host.devices.gates["prepare"]
        gate.shut()
        request = host.acquire(3, ttl_s=20)
        box = agent.submit(request)
        await gate.reached.wait()
        agent.sequencer.forget_waiter(request.command_id, box)
        gate.open()
        await trio.sleep(1)
        [lease] = agent.lessor.table.leases.values()
        assert lease.state is LeaseState.ACTIVE
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
    assert host.sealed().count("Activated") == 1


@pytest.mark.parametrize(
    ("kind", "resource_id", "capacity", "pace"),
    [
        (ResourceKind.BLOCK, "block:raw:aa01", 1000, Pace.DEVICE),
        (ResourceKind.BLOCK, "block:aa01", 1 << 40, Pace.DEVICE),
        (ResourceKind.GPU, "gpu:GPU-1", 1000, Pace.DEVICE),
        (ResourceKind.MEM, "mem:dax-aa01", 1 << 40, Pace.DEVICE),
        (ResourceKind.MEM, "mem:budget:node0", 1 << 40, Pace.QUICK),
        (ResourceKind.CPU, "cpu:0", 1000, Pace.QUICK),
        (ResourceKind.MEM, "mem:node0:4096", QUICK_BYTES_MAX, Pace.QUICK),
        (ResourceKind.MEM, "mem:node0:4096", QUICK_BYTES_MAX + 4096, Pace.SLOW),
        (ResourceKind.MEM, "mem:rdma:node0:4096", QUICK_BYTES_MAX + 4096, Pace.SLOW),
    ],
)
def test_who_waits_for_a_driver_or_for_much_memory_delays_nobody(
    kind: ResourceKind, resource_id: str, capacity: int, pace: Pace
) -> None:
    assert pace_of(lease(Allotment(resource_id, kind, None, capacity))) is pace


async def test_a_large_grant_delays_nobody(autojump_clock: trio.testing.MockClock) -> None:
    pages = QUICK_BYTES_MAX // 4096 + 1
    async with (
        Host(inventory=small_inventory(2 * pages)).standing() as host,
        host.agent() as agent,
    ):
        host.devices.fault = lambda verb, lease: None
        gate = host.devices.gates["prepare"]
        gate.shut()
        large = agent.submit(host.acquire(pages))
        await gate.reached.wait()
        waiting = gate
        host.devices.gates["prepare"] = type(gate)()
        with trio.fail_after(5):
            assert isinstance(await agent.ask(host.acquire(1)), Granted)
        assert not large.replies
        waiting.open()
        assert isinstance(await large.reply(), Granted)


# ---- renewals ------------------------------------------------------------------------------------


async def test_a_renewal_is_answered_after_the_reaper_has_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=60)
        host.reaper.gates["renew"].shut()
        box = agent.submit(Renew(host.command_id(), ACME, lease.lease_id, 90 * NS_PER_S))
        await host.reaper.gates["renew"].reached.wait()
        await trio.sleep(5)
        assert not box.replies
        host.reaper.gates["renew"].open()
        reply = await box.reply()
        assert isinstance(reply, Changed)
        slot = host.reaper.slots[lease.lease_id]
        assert (slot.generation, slot.deadline_ns) == (1, reply.lease.deadline_ns)


async def test_a_late_renewal_loses_and_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """Sealed in time, at the reaper too late: the cut goes on and the chain says who won."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=10)
        await trio.sleep(9.5)
        host.reaper.gates["renew"].shut()
        box = agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
        await host.reaper.gates["renew"].reached.wait()
        await trio.sleep(2)
        assert host.reaper.slots[lease.lease_id].cut is not None, "the reaper waits for nobody"
        host.reaper.gates["renew"].open()
        reply = await box.reply()
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED
        ended = await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert ended.cut_ns is not None and ended.cut_ns == lease.deadline_ns
    [cut] = [event for _, event, _ in host.chain() if isinstance(event, AccessCut)]
    assert cut.by_reaper and len(cut.evidence) == 32 and any(cut.evidence)
    assert any(isinstance(event, Reclaimed) for _, event, _ in host.chain())


async def test_time_that_is_there_already_is_promised_when_the_reaper_has_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What asks for less than was given a moment ago waits with that, and is late with it."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=60)
        await agent.ask(Drain(host.command_id(), OPERATOR, "", 2 * NS_PER_S))
        await trio.sleep(1)
        gate = host.reaper.gates["renew"]
        gate.shut()
        boxes = [
            agent.submit(Extend(host.command_id(), ACME, lease.lease_id, seconds * NS_PER_S))
            for seconds in (30, 5)
        ]
        await gate.reached.wait()
        await trio.sleep(5)
        assert host.reaper.slots[lease.lease_id].cut is not None, "the reaper waits for nobody"
        assert not any(box.replies for box in boxes), "told until when before the reaper was"
        gate.open()
        for box in boxes:
            reply = await box.reply()
            assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEADLINE_PASSED


async def test_a_holder_that_does_not_die_does_not_hold_up_the_renewals_of_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        late = await agent.lease(ttl_s=10)
        other = await agent.lease(ttl_s=60)
        host.reaper.cut_takes_ns[late.lease_id] = 4 * NS_PER_S
        await trio.sleep(9.5)
        host.reaper.gates["renew"].shut()
        lost = agent.submit(Renew(host.command_id(), ACME, late.lease_id))
        await host.reaper.gates["renew"].reached.wait()
        await trio.sleep(1)
        host.reaper.gates["renew"].open()
        assert isinstance(await lost.reply(), Refusal)
        with trio.fail_after(0.5):
            reply = await agent.ask(Renew(host.command_id(), ACME, other.lease_id))
        assert isinstance(reply, Changed)


async def test_a_reaper_that_does_not_answer_a_renewal_ends_no_agent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`ReaperLink.renew_many` raises when nothing is known: the caller is told so and may ask
    again."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(ttl_s=60)
        host.reaper.renew_error = DeviceError("renew", errno.ETIMEDOUT)
        reply = await agent.ask(Renew(host.command_id(), ACME, lease.lease_id))
        assert isinstance(reply, Refusal) and reply.reason is RefusalReason.DEVICE_FAILED
        assert reply.usage == errno.ETIMEDOUT
        host.reaper.renew_error = None
        again = await agent.ask(Renew(host.command_id(), ACME, lease.lease_id))
        assert isinstance(again, Changed) and again.lease.generation == 2


async def test_a_stranger_cannot_renew_or_release(autojump_clock: trio.testing.MockClock) -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease()
        for command in (
            Renew(host.command_id(), BETA, lease.lease_id),
            Release(host.command_id(), BETA, lease.lease_id),
        ):
            assert type(await agent.ask(command)).__name__ == "Missing"
        assert agent.at(lease.lease_id).generation == 0


class _Everyone(dict):
    """The same error for every lease."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: object) -> int:
        return self._number


def _pages(lease: object) -> int:
    return lease.subject.allotments[0].capacity // 4096
