# SPDX-License-Identifier: Apache-2.0
"""Boot: what an agent makes of the sealed history and of what the reaper still holds."""

from __future__ import annotations

import os
import subprocess

import msgspec
import pytest
import trio

from leased.durable.sealkey import load_seal_key
from leased.service.recovery import seal_repair
from leased.terms.command import Drain, Release, Renew
from leased.terms.event import Fenced, NodeStarted, Recovered, Revoked, TeardownBegun
from leased.terms.identity import LeaseId
from leased.terms.lease import Ending, LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Changed, Granted
from leased.terms.teardown import TeardownStep
from tests.doubles.clock import FakeClock
from tests.doubles.desk import ACME, OPERATOR
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import CountedEntropy, open_on, write_batches
from tests.doubles.reaper import Slot
from tests.doubles.serving import Host, descriptors

pytestmark = pytest.mark.autojump

PAGES = 1024


async def test_what_the_reaper_holds_goes_on_to_the_same_deadline() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            lease = await agent.lease(3, ttl_s=30)
        await trio.sleep(7)
        async with host.agent() as agent:
            found = agent.at(lease.lease_id)
            assert (found.state, found.deadline_ns) == (LeaseState.ACTIVE, lease.deadline_ns)
            assert agent.custodian.of(lease.lease_id).fds, "its descriptors came back"
            renewed = await agent.ask(Renew(host.command_id(), ACME, lease.lease_id))
            assert isinstance(renewed, Changed) and renewed.lease.generation == 1
            await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert agent.free == PAGES * 4096
    assert host.sealed(lease.lease_id).count("Reclaimed") == 1


async def test_every_renewal_that_the_reaper_missed_reaches_it_after_the_start() -> None:
    """Sealed, and then the agent died before it told the reaper: all of them, not the first."""
    async with Host().standing() as host:
        async with host.agent() as agent:
            leases = [await agent.lease(ttl_s=60) for _ in range(4)]
            await trio.sleep(10)
            host.reaper.gates["renew"].shut()
            for lease in leases:
                agent.submit(Renew(host.command_id(), ACME, lease.lease_id))
            await trio.sleep(1)
            renewed = [agent.at(lease.lease_id) for lease in leases]
            assert all(lease.generation == 1 for lease in renewed)
        host.reaper.gates["renew"].open()
        async with host.agent():
            await trio.sleep(1)
            held = [host.reaper.slots[lease.lease_id] for lease in leases]
            assert [slot.deadline_ns for slot in held] == [one.deadline_ns for one in renewed]


async def test_a_grant_that_was_never_armed_is_torn_down() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            host.devices.gates["prepare"].shut()
            box = agent.submit(host.acquire(3))
            await host.devices.gates["prepare"].reached.wait()
            [lease] = agent.lessor.table.leases.values()
        host.devices.gates["prepare"].open()
        async with host.agent() as agent:
            await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert agent.free == PAGES * 4096
            assert agent.at(lease.lease_id).reason is RevocationReason.GRANT_FAILED
        assert not box.replies


async def test_a_grant_whose_time_was_over_before_it_was_made_is_torn_down() -> None:
    """It was ended by time while its memory was being made, and then the agent was killed: what
    was never made is not missed."""
    async with Host().standing() as host:
        async with host.agent() as agent:
            host.devices.gates["prepare"].shut()
            agent.submit(host.acquire(3, ttl_s=5))
            await host.devices.gates["prepare"].reached.wait()
            [lease] = agent.lessor.table.leases.values()
            await agent.until(lease.lease_id, LeaseState.REVOKING)
        host.devices.gates["prepare"].open()
        async with host.agent() as agent:
            ended = await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert ended.ended is Ending.EXPIRED
            assert agent.free == PAGES * 4096


async def test_a_lease_that_the_reaper_lost_is_fenced_for_its_descriptors_are_gone() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            lost, kept = await agent.lease(3), await agent.lease(5)
        await host.reaper.disarm_many([lost.lease_id])
        async with host.agent() as agent:
            await agent.until(lost.lease_id, LeaseState.FENCED)
            assert agent.at(lost.lease_id).reason is RevocationReason.REAPER_LOST
            assert agent.at(kept.lease_id).state is LeaseState.ACTIVE
            assert agent.free == (PAGES - 8) * 4096


async def test_another_boot_ends_every_lease_at_the_last_sealed_moment() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            leases = [await agent.lease(pages, ttl_s=3600) for pages in (3, 5)]
            await trio.sleep(100)
            await agent.ask(Renew(host.command_id(), ACME, leases[0].lease_id))
        ended_ns = max(moment.boot_ns for _, _, moment in host.chain())
        await trio.sleep(1000)
        host.reboot(2)
        async with host.agent() as agent:
            for one in leases:
                await agent.until(one.lease_id, LeaseState.RECLAIMED)
            assert agent.free == PAGES * 4096
            assert isinstance(await agent.ask(host.acquire(PAGES)), Granted)
    events = [event for _, event, _ in host.chain()]
    revoked = [one for one in events if isinstance(one, Revoked)]
    assert {one.lease_id for one in revoked} == {one.lease_id for one in leases}
    assert {one.reason for one in revoked} == {RevocationReason.NODE_REBOOT}
    assert {one.effective_ns for one in revoked} == {ended_ns}
    assert len({one.boot_id for one in events if isinstance(one, NodeStarted)}) == 2


async def test_a_deadline_that_passed_meanwhile_counts_from_when_it_passed() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            lease = await agent.lease(3, ttl_s=5)
        await trio.sleep(60)
        assert host.reaper.slots[lease.lease_id].cut is not None, "nobody had to be there"
        async with host.agent() as agent:
            ended = await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert ended.ended is Ending.EXPIRED and ended.cut_ns == lease.deadline_ns
    [begun] = [event for _, event, _ in host.chain() if isinstance(event, TeardownBegun)]
    assert begun.effective_ns == lease.deadline_ns


@pytest.mark.parametrize("step", ["scrub", "prove"])
async def test_a_teardown_that_was_interrupted_is_done_again(step: str) -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            lease = await agent.lease(3)
            host.devices.gates[step].shut()
            await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
            await host.devices.gates[step].reached.wait()
            await trio.sleep(1)
        host.devices.gates[step].open()
        async with host.agent() as agent:
            await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            await trio.sleep(1)
            assert agent.free == PAGES * 4096 and not host.reaper.slots
    assert host.sealed(lease.lease_id).count("Reclaimed") == 1


async def test_a_lease_that_only_the_reaper_knows_is_forgotten() -> None:
    async with Host().standing() as host:
        async with host.agent():
            pass
        stranger = LeaseId(b"s" * 16)
        host.reaper.slots[stranger] = Slot(1, host.clock.now().boot_ns + 10**12, "", (), None)
        host.reaper.kept[stranger] = (os.memfd_create("stranger"),)
        async with host.agent() as agent:
            await trio.sleep(1)
            assert stranger not in host.reaper.slots and not len(agent.custodian)


async def test_a_drain_is_told_again() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            lease = await agent.lease(3, ttl_s=600, grace_s=60)
            await agent.ask(Drain(host.command_id(), OPERATOR, "", 60 * NS_PER_S))
            drained = agent.at(lease.lease_id)
            assert drained.state is LeaseState.DRAINING
        async with host.agent() as agent:
            found = agent.at(lease.lease_id)
            assert found.state is LeaseState.DRAINING
            assert found.drain_deadline_ns == drained.drain_deadline_ns
            ended = await agent.until(lease.lease_id, LeaseState.RECLAIMED)
            assert ended.reason is RevocationReason.OPERATOR_DRAIN


async def test_a_repaired_tail_is_put_on_record() -> None:
    async with Host().standing() as host:
        async with host.agent() as agent:
            await agent.lease(3)

        def torn(verb: str, name: str) -> tuple[bool, OSError] | None:
            return (True, OSError(5, "late")) if verb == "sync" and "anchor" not in name else None

        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            async with host.agent() as agent:
                host.disk.fault = torn
                agent.submit(host.acquire(1))
                await trio.sleep(1)
        host.disk.fault = None
        async with host.agent():
            await trio.sleep(1)
    [recovered] = [event for _, event, _ in host.chain() if isinstance(event, Recovered)]
    assert recovered.kept_records > 0
    names = host.sealed()
    assert names.index("Recovered") > names.index("NodeStarted")


async def test_an_epoch_that_ends_with_the_record_of_a_repair_leaves_no_key() -> None:
    disk, clock = MemoryDisk(), FakeClock()
    log = open_on(disk)
    write_batches(log, [3])
    end = log.journal.anchored.end_offset
    log.close()
    disk.closed = False
    disk.write(disk.open("seg-0000000000000000.log"), b"torn", end)
    log = open_on(disk, entropy=CountedEntropy(b"again"))
    assert log.recovered is not None
    await trio.sleep(2 * log.identity.epoch_ns / NS_PER_S)
    await seal_repair(log, log.sealer(), log.journal, clock, CountedEntropy(b"id"))
    assert log.ratchet is not None and log.ratchet.key.epoch > 0
    assert load_seal_key(disk, log.log_id) == log.ratchet.key
    log.close()


async def test_no_descriptor_of_the_roster_is_left_over() -> None:
    """Leases that go on, leases that ended meanwhile, leases bound to nobody: all with pidfds."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        async with Host().standing() as host:
            before = descriptors()
            async with host.agent() as agent:
                for ttl_s in (3, 3, 600):
                    lease = await agent.lease(1, ttl_s=ttl_s)
                    host.reaper.pidfds[lease.lease_id] = os.pidfd_open(child.pid)
            await trio.sleep(10)
            host.devices.gates["scrub"].shut()
            async with host.agent() as agent:
                await trio.sleep(1)
                host.devices.gates["scrub"].open()
                await trio.sleep(5)
                await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
                await agent.until(lease.lease_id, LeaseState.RECLAIMED)
                await trio.sleep(5)
            del agent
            assert not host.reaper.slots
            assert descriptors() == before
        child.communicate()


@pytest.mark.parametrize("step", [TeardownStep.KILL, TeardownStep.SCRUB])
async def test_a_step_that_was_well_once_and_is_not_when_it_is_repeated_fences(
    step: TeardownStep,
) -> None:
    """Sealed as done, and then the agent died: the next one begins from the cut again."""
    async with Host().standing() as host:
        gate = host.devices.gates["scrub" if step is TeardownStep.KILL else "prove"]
        async with host.agent() as agent:
            lease = await agent.lease(3)
            gate.shut()
            await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
            await gate.reached.wait()
            await trio.sleep(1)
        if step is TeardownStep.KILL:
            slot = host.reaper.slots[lease.lease_id]
            slot.cut = msgspec.structs.replace(slot.cut, clean=False)
        else:
            host.devices.unclean.add(lease.lease_id)
        gate.open()
        async with host.agent() as agent:
            await agent.until(lease.lease_id, LeaseState.FENCED)
            assert agent.free == (PAGES - 3) * 4096
        [fenced] = [event for _, event, _ in host.chain() if isinstance(event, Fenced)]
        assert (fenced.step, fenced.fenced) == (step, lease.subject.allotments)
        assert any(fenced.evidence)
