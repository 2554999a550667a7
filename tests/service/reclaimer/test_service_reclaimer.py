# SPDX-License-Identifier: Apache-2.0
"""The reclaimer: cut, scrub, proof, each failure fencing exactly what it leaves unproven, and
nobody waiting for somebody else's worker.
"""

from __future__ import annotations

import errno

import msgspec
import pytest
import trio

from leased.service.reclaimer import LATE_ASKED_MAX
from leased.terms.command import ObserveHealth, Release, Revoke, Unfence
from leased.terms.errors import DeviceError
from leased.terms.event import AccessCut, Fenced, Reclaimed, Scrubbed
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Changed, Granted, Refusal, RefusalReason
from leased.terms.resource import Ask, Health, Inventory, ResourceKind, Shape, TierKind
from leased.terms.teardown import CutReport, TeardownStep
from tests.doubles.desk import ACME, OPERATOR
from tests.doubles.devices import Fault, replace_capacity, small_inventory
from tests.doubles.serving import Agent, Host, descriptors

pytestmark = pytest.mark.autojump

PAGE = 4096
PAGES = 1024
STORY = [
    "Allocated",
    "Activated",
    "Released",
    "TeardownBegun",
    "AccessCut",
    "Scrubbed",
    "Reclaimed",
]


async def release(agent: Agent, lease: Lease) -> None:
    """The tenant gives it back."""
    reply = await agent.ask(Release(agent.host.command_id(), ACME, lease.lease_id))
    assert isinstance(reply, Changed)


async def test_the_whole_story_of_a_lease() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(3)
        await release(agent, lease)
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        await trio.sleep(1)
        assert agent.free == PAGES * PAGE
        assert not len(agent.custodian) and not host.reaper.slots and not host.devices.held
        assert host.peers.forgotten == [lease.lease_id]
    assert host.sealed(lease.lease_id) == STORY
    steps = [
        event for _, event, _ in host.chain() if isinstance(event, AccessCut | Scrubbed | Reclaimed)
    ]
    assert all(len(event.evidence) == 32 and any(event.evidence) for event in steps)


async def test_capacity_is_not_there_before_the_proof() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(PAGES)
        gate = host.devices.gates["prove"]
        gate.shut()
        await release(agent, lease)
        await gate.reached.wait()
        await trio.sleep(5)
        assert isinstance(await agent.ask(host.acquire(1)), Refusal)
        gate.open()
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert isinstance(await agent.ask(host.acquire(PAGES)), Granted)


async def test_quiet_is_when_nothing_is_torn_down() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(3)
        await agent.reclaimer.quiet()
        gate = host.devices.gates["prove"]
        gate.shut()
        await release(agent, lease)
        await gate.reached.wait()
        with trio.move_on_after(5) as waited:
            await agent.reclaimer.quiet()
        assert waited.cancelled_caught
        gate.open()
        await agent.reclaimer.quiet()
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)


async def test_only_a_release_spares_the_holder() -> None:
    async with Host().standing() as host, host.agent() as agent:
        host.reaper.gates["disarm"].shut()
        given_back, taken, expired = [await agent.lease(ttl_s=20) for _ in range(3)]
        await release(agent, given_back)
        await agent.ask(Revoke(host.command_id(), OPERATOR, taken.lease_id))
        await agent.until(expired.lease_id, LeaseState.RECLAIMED)
        spared = {one: host.reaper.slots[one].spared for one in host.reaper.slots}
        assert spared == {
            given_back.lease_id: True,
            taken.lease_id: False,
            expired.lease_id: False,
        }


# ---- what fails, fences --------------------------------------------------------------------------

FAILURES = {
    "the reaper does not answer": TeardownStep.KILL,
    "the holder does not die": TeardownStep.KILL,
    "the scrub fails": TeardownStep.SCRUB,
    "the scrub fails, applied": TeardownStep.SCRUB,
    "the scrub leaves residue": TeardownStep.READ_BACK,
    "the proof fails": TeardownStep.COUNTERS,
    "the proof fails, applied": TeardownStep.COUNTERS,
    "everything is unproven": TeardownStep.COUNTERS,
}


def spoil(host: Host, lease: Lease, failure: str) -> None:
    """Let the teardown of `lease`, and of nobody else, fail."""
    applied = failure.endswith("applied")
    if failure == "the reaper does not answer":
        host.reaper.revoke_errors[lease.lease_id] = DeviceError("revoke", errno.ETIMEDOUT)
    elif failure == "the holder does not die":
        host.reaper.cut_takes_ns[lease.lease_id] = 60 * NS_PER_S
    elif failure == "the scrub leaves residue":
        host.devices.unclean.add(lease.lease_id)
    elif failure == "everything is unproven":
        host.devices.pin(lease, *lease.subject.allotments)
    else:
        verb = "scrub" if "scrub" in failure else "prove"
        fault = Fault(DeviceError(verb, errno.EIO), applied=applied)
        host.devices.fault = lambda asked, one: (
            fault if (asked, one.lease_id) == (verb, lease.lease_id) else None
        )


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_step_that_fails_fences_the_lease_and_nothing_else(failure: str) -> None:
    async with Host().standing() as host, host.agent() as agent:
        bad, good = await agent.lease(5), await agent.lease(7)
        spoil(host, bad, failure)
        await release(agent, bad)
        await release(agent, good)
        await agent.until(bad.lease_id, LeaseState.FENCED)
        await agent.until(good.lease_id, LeaseState.RECLAIMED)
        assert agent.free == (PAGES - 5) * PAGE
        assert isinstance(await agent.ask(host.acquire(PAGES - 4)), Refusal)
        assert isinstance(await agent.ask(host.acquire(PAGES - 5)), Granted)
        [fenced] = [event for _, event, _ in host.chain() if isinstance(event, Fenced)]
        assert fenced.lease_id == bad.lease_id
        assert fenced.step == FAILURES[failure]
        assert fenced.fenced == bad.subject.allotments
        host.devices.unfence(bad)
        unfenced = await agent.ask(Unfence(host.command_id(), OPERATOR, bad.lease_id))
        if fenced.step == TeardownStep.KILL:
            assert isinstance(unfenced, Refusal), "somebody may still be in"
            assert unfenced.reason is RefusalReason.STILL_HELD
        else:
            assert isinstance(unfenced, Changed) and agent.free == 5 * PAGE
            await trio.sleep(1)
            assert bad.lease_id in host.peers.forgotten


async def test_a_teardown_that_is_asked_for_twice_does_not_reach_who_comes_after() -> None:
    """An operator lifts a fence twice, before anybody has seen the end of access. Of two teardowns
    side by side the second took the devices from the lease that was granted after the first."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(5)
        spoil(host, lease, "the reaper does not answer")
        await release(agent, lease)
        await agent.until(lease.lease_id, LeaseState.FENCED)
        host.reaper.revoke_errors.clear()
        gate = host.devices.gates["scrub"]
        gate.shut()
        for _ in range(3):
            await agent.ask(Unfence(host.command_id(), OPERATOR, lease.lease_id))
        await gate.reached.wait()
        await trio.sleep(5)
        gate.open()
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        await trio.sleep(5)
    scrubs = [leases for verb, leases in host.devices.calls if verb == "scrub"]
    assert scrubs == [(lease.lease_id,)]


async def test_what_an_operator_has_given_back_is_not_taken_from_who_has_it_now() -> None:
    """Its hardware was back, and its teardown tried again; the operator did not wait for that."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(5)
        spoil(host, lease, "the scrub fails, applied")
        await release(agent, lease)
        await agent.until(lease.lease_id, LeaseState.FENCED)
        gate = host.reaper.gates["revoke"]
        gate.shut()
        for health in (Health.GONE, Health.OK):
            name = lease.subject.allotments[0].resource_id
            await agent.ask(ObserveHealth(host.command_id(), name, health, cause=0))
        await gate.reached.wait()
        host.devices.unfence(lease)
        given_back = await agent.ask(Unfence(host.command_id(), OPERATOR, lease.lease_id))
        assert isinstance(given_back, Changed)
        assert isinstance(await agent.ask(host.acquire(1)), Granted)
        before = len(host.devices.calls)
        gate.open()
        await trio.sleep(5)
    assert [verb for verb, leases in host.devices.calls[before:] if lease.lease_id in leases] == []


async def test_what_is_asked_again_while_it_fails_is_tried_again() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(5)
        spoil(host, lease, "the reaper does not answer")
        await release(agent, lease)
        await agent.until(lease.lease_id, LeaseState.FENCED)
        host.reaper.revoke_errors.clear()
        gate = host.devices.gates["scrub"]
        gate.shut()
        host.devices.unclean.add(lease.lease_id)
        await agent.ask(Unfence(host.command_id(), OPERATOR, lease.lease_id))
        await gate.reached.wait()
        await agent.ask(Unfence(host.command_id(), OPERATOR, lease.lease_id))
        gate.open()
        await agent.until(lease.lease_id, LeaseState.FENCED)
        await trio.sleep(5)
    scrubs = [leases for verb, leases in host.devices.calls if verb == "scrub"]
    assert scrubs == [(lease.lease_id,)] * 2


async def test_a_proof_that_misses_a_part_fences_that_part() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(8)
        missing = replace_capacity(lease.subject.allotments[0], 3 * PAGE)
        host.devices.pin(lease, missing)
        await release(agent, lease)
        fenced = await agent.until(lease.lease_id, LeaseState.FENCED)
        assert fenced.fenced == (missing,)
        assert agent.free == (PAGES - 3) * PAGE


async def test_what_is_missing_of_a_budget_is_asked_for_until_it_is_back() -> None:
    [pool] = small_inventory(PAGES).resources
    budget = msgspec.structs.replace(pool, resource_id="mem:budget:node0:4096")
    async with Host(inventory=Inventory((pool, budget))).standing() as host, host.agent() as agent:
        leases = []
        for asked in (8, 6):
            acquire = msgspec.structs.replace(
                host.acquire(1),
                asks=(Ask(ResourceKind.MEM, asked * PAGE, shape=Shape.BUDGET),),
            )
            reply = await agent.ask(acquire)
            assert isinstance(reply, Granted), reply
            leases.append(await agent.until(reply.lease.lease_id, LeaseState.ACTIVE))
        comes_back, stays = leases
        for lease in leases:
            host.devices.pin(lease, replace_capacity(lease.subject.allotments[0], PAGE))
            await release(agent, lease)
            await agent.until(lease.lease_id, LeaseState.FENCED)
        await trio.sleep(30)
        host.devices.unfence(comes_back)
        await agent.until(comes_back.lease_id, LeaseState.RECLAIMED)
        await trio.sleep(600)
        assert agent.at(stays.lease_id).state is LeaseState.FENCED
        proofs = [step for one, step, _ in agent.reports if one == stays.lease_id]
        assert proofs.count("proof") == 1 + LATE_ASKED_MAX
        [_, _] = [event for _, event, _ in host.chain() if isinstance(event, Fenced)]


# ---- nobody waits for somebody else's worker -----------------------------------------------------


@pytest.mark.parametrize("verb", ["scrub", "prove"])
async def test_a_worker_that_hangs_fences_its_lease_and_stalls_no_other(verb: str) -> None:
    async with Host().standing() as host, host.agent() as agent:
        hung, other, third = [await agent.lease(5) for _ in range(3)]
        host.devices.hangs[verb, hung.lease_id] = 20.0
        await release(agent, hung)
        await trio.sleep(1)
        await release(agent, other)
        await agent.until(other.lease_id, LeaseState.RECLAIMED, within_s=1)
        with trio.fail_after(1):
            await agent.lease(5)
        await agent.until(hung.lease_id, LeaseState.FENCED)
        assert agent.at(third.lease_id).state is LeaseState.ACTIVE
        [fenced] = [event for _, event, _ in host.chain() if isinstance(event, Fenced)]
        assert (fenced.lease_id, fenced.errno) == (hung.lease_id, errno.ETIMEDOUT)


async def test_a_grant_that_is_still_prepared_does_not_hold_up_who_ends_with_it() -> None:
    async with Host().standing() as host, host.agent() as agent:
        ends_ns = 10 * NS_PER_S
        other = await agent.lease(5, ttl_s=10)
        gate = host.devices.gates["prepare"]
        gate.shut()
        hung = agent.submit(host.acquire(5, ttl_s=(other.deadline_ns - _now(host)) / NS_PER_S))
        await gate.reached.wait()
        await trio.sleep(ends_ns / NS_PER_S + 1)
        assert agent.at(other.lease_id).state is LeaseState.RECLAIMED
        assert not hung.replies
        gate.open()
        assert isinstance(await hung.reply(), Refusal)


async def test_a_holder_that_takes_long_to_die_does_not_hold_up_who_ends_with_it() -> None:
    async with Host().standing() as host, host.agent() as agent:
        slow, other = await agent.lease(1), await agent.lease(1)
        host.reaper.cut_takes_ns[slow.lease_id] = 4 * NS_PER_S
        began_ns = host.clock.now().boot_ns
        async with trio.open_nursery() as nursery:
            nursery.start_soon(release, agent, slow)
            nursery.start_soon(release, agent, other)
        await agent.until(other.lease_id, LeaseState.RECLAIMED)
        assert host.clock.now().boot_ns - began_ns < NS_PER_S
        await agent.until(slow.lease_id, LeaseState.RECLAIMED)
        assert host.clock.now().boot_ns - began_ns >= 4 * NS_PER_S


async def test_the_teardown_does_not_wait_for_the_log() -> None:
    """A report is left on the channel, and the next step begins."""
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(3)
        prove = host.devices.gates["prove"]
        prove.shut()
        agent.journal.gate.shut()
        released = agent.submit(Release(host.command_id(), ACME, lease.lease_id))
        await trio.sleep(5)
        assert not released.replies and lease.lease_id in host.devices.held
        assert ("scrub", (lease.lease_id,)) not in host.devices.calls, "before it was sealed"
        agent.journal.gate.open()
        await released.reply()
        agent.journal.gate.shut()
        with trio.fail_after(5):
            await prove.reached.wait()
        agent.journal.gate.open()
        prove.open()
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)


# ---- descriptors ---------------------------------------------------------------------------------


async def test_no_descriptor_is_left_over() -> None:
    async with Host().standing() as host, host.agent() as agent:
        await release(agent, await agent.lease(1))
        await trio.sleep(5)
        before = descriptors()
        for number in range(30):
            if number % 3 == 0:
                host.devices.fault = lambda verb, lease: (
                    Fault(DeviceError("mem_create", 12)) if verb == "prepare" else None
                )
                assert isinstance(await agent.ask(host.acquire(2)), Refusal)
                host.devices.fault = lambda verb, lease: None
            lease = await agent.lease(2, ttl_s=2)
            if number % 2:
                await release(agent, lease)
            if number % 5 == 0:
                host.devices.pin(lease, *lease.subject.allotments)
            await trio.sleep(5)
        assert descriptors() == before
        assert not len(agent.custodian), "a fenced lease is held by nobody"


def _now(host: Host) -> int:
    return host.clock.now().boot_ns


# ---- what remote peers reach ---------------------------------------------------------------------

REMOTE = "mem:rdma-0000000000000007:node0:4096"


def remote_inventory() -> Inventory:
    """The pool, and the same memory by way of an RDMA device."""
    [pool] = small_inventory(PAGES).resources
    other_way = msgspec.structs.replace(pool, resource_id=REMOTE, tier=TierKind.REMOTE)
    return Inventory((pool, other_way))


async def remote_lease(agent: Agent, *, ttl_s: float = 60) -> Lease:
    """One page that remote peers reach."""
    asked = msgspec.structs.replace(
        agent.host.acquire(1, ttl_s=ttl_s),
        asks=(Ask(ResourceKind.MEM, PAGE, shape=Shape.RDMA),),
    )
    reply = await agent.ask(asked)
    assert isinstance(reply, Granted), reply
    await agent.until(reply.lease.lease_id, LeaseState.ACTIVE)
    return agent.at(reply.lease.lease_id)


def cut_steps(agent: Agent, lease: Lease) -> list[TeardownStep]:
    """The steps of the lease's cut as they were published."""
    [report] = [raw for one, step, raw in agent.reports if (one, step) == (lease.lease_id, "cut")]
    return [step.step for step in msgspec.msgpack.decode(report, type=CutReport).steps]


async def test_peers_are_ended_in_order_before_the_cut() -> None:
    async with Host(inventory=remote_inventory()).standing() as host, host.agent() as agent:
        given_back, taken = await remote_lease(agent), await remote_lease(agent)
        await release(agent, given_back)
        await agent.ask(Revoke(host.command_id(), OPERATOR, taken.lease_id))
        for lease in (given_back, taken):
            await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert cut_steps(agent, lease)[0] is TeardownStep.OBJECT_REVOKE
        assert sorted(host.peers.withdrawn) == sorted([given_back.lease_id, taken.lease_id])


async def test_nobody_asks_an_owner_whom_the_deadline_has_killed() -> None:
    async with Host(inventory=remote_inventory()).standing() as host, host.agent() as agent:
        lease = await remote_lease(agent, ttl_s=5)
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert not host.peers.withdrawn


async def test_a_slow_withdrawal_delays_nobody_else() -> None:
    async with Host(inventory=remote_inventory()).standing() as host, host.agent() as agent:
        remote, plain = await remote_lease(agent), await agent.lease()
        host.peers.takes_s = 30
        await release(agent, remote)
        await release(agent, plain)
        await agent.until(plain.lease_id, LeaseState.RECLAIMED)
        assert agent.at(remote.lease_id).state is LeaseState.REVOKING
        await agent.until(remote.lease_id, LeaseState.RECLAIMED)
