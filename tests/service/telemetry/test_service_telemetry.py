# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what was read, when, and how much of the lease's life it covers; what was not read is
missing, not zero.
"""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from leased.service.telemetry import INTERVAL_NS, Telemetry
from leased.terms.command import Acquire, Release
from leased.terms.event import Reclaimed
from leased.terms.lease import BOUND_TO_NOTHING, Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Granted
from leased.terms.resource import Ask, Inventory, ResourceKind
from leased.terms.teardown import Utilization
from tests.doubles.desk import ACME, cores, mem
from tests.doubles.serving import Agent, Host


def host_with_cores() -> Host:
    """Memory and two cores."""
    return Host(inventory=Inventory((mem(0, 1024), *cores(2))))


async def lease_of_cores(agent: Agent, milli: int) -> Lease:
    """An active lease of processor time."""
    request = Acquire(
        agent.host.command_id(),
        ACME,
        (Ask(ResourceKind.CPU, milli),),
        600 * NS_PER_S,
        bind_pid=BOUND_TO_NOTHING,
    )
    reply = await agent.ask(request)
    assert isinstance(reply, Granted), reply
    return await agent.until(reply.lease.lease_id, LeaseState.ACTIVE)


def burn(cgroup: Path, total_us: int) -> None:
    """The leaf has used so much in all."""
    (cgroup / "cpu.stat").write_text(f"usage_usec {total_us}\nuser_usec 1\nsystem_usec 2\n")


async def test_the_closing_record_says_how_much_was_used_and_how_much_was_seen(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        used_us = 0
        # Ten seconds each: idle, half, all of the core, and nothing again.
        for share in (None, 0, 500, 1000, 0):
            used_us += 0 if share is None else share * 10_000
            burn(tmp_path, used_us)
            agent.telemetry.sample()
            await trio.sleep(10)
        reply = await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
        assert type(reply).__name__ == "Changed"
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
        assert agent.telemetry.read(lease_id=lease.lease_id) == [], "its series end with it"
    [closed] = [event for _, event, _ in host.chain() if isinstance(event, Reclaimed)]
    assert closed.sample_count == 4
    assert closed.utilization_mean_pm == 375 and closed.utilization_max_pm == 1000
    assert closed.active_share_pm == 500
    assert closed.coverage_pm == 800, "40 of 50 seconds lie between two samples"


async def test_memory_cannot_be_seen_in_use_and_that_is_what_the_record_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(3)
        agent.telemetry.sample()
        await trio.sleep(20)
        agent.telemetry.sample()
        await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
    [closed] = [event for _, event, _ in host.chain() if isinstance(event, Reclaimed)]
    assert closed.utilization_mean_pm is None and closed.utilization_max_pm is None
    assert (closed.sample_count, closed.coverage_pm) == (0, 0)


async def test_one_sample_is_no_coverage(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 500)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        burn(tmp_path, 10**9)
        agent.telemetry.sample()
        assert agent.telemetry.utilization(lease) == Utilization()
        assert host.clock.now().boot_ns > 0


async def test_a_counter_that_goes_back_or_vanishes_is_not_counted(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        for total_us in (50_000_000, 10_000, None, 5_010_000):
            if total_us is None:
                (tmp_path / "cpu.stat").unlink()
            else:
                burn(tmp_path, total_us)
            agent.telemetry.sample()
            await trio.sleep(10)
        used = agent.telemetry.utilization(lease)
        assert (used.sample_count, used.mean_pm) == (1, 250), "5 s of the 20 s that were seen"
        assert used.coverage_pm == 500
        assert host.reaper.slots


async def test_what_cannot_be_read_is_missing_and_not_zero(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    nodes, pressure = tmp_path / "node", tmp_path / "pressure"
    host = Host()
    telemetry = Telemetry(
        clock=host.clock,
        custodian=Agent(host).custodian,
        live_leases=lambda: (),
        node_directory=str(nodes),
        pressure_directory=str(pressure),
    )
    telemetry.sample()
    assert telemetry.read() == []
    (nodes / "node0").mkdir(parents=True)
    (nodes / "node0" / "meminfo").write_text(
        "Node 0 MemTotal: 4096 kB\nNode 0 MemFree: 1024 kB\nNode 0 MemUsed: 3072 kB\n"
    )
    (nodes / "possible").mkdir()
    pressure.mkdir()
    (pressure / "cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=4321\n")
    (pressure / "io").write_text("nonsense\n")
    telemetry.sample()
    seen = {(one.name, one.resource_id): (one.value, one.unit) for one in telemetry.read()}
    assert seen == {
        ("memory.free", "mem:node0"): (1024 * 1024, "By"),
        ("memory.used", "mem:node0"): (3072 * 1024, "By"),
        ("pressure.some", "cpu"): (4_321_000, "ns"),
    }
    assert {one.sampled_ns for one in telemetry.read()} == {host.clock.now().boot_ns}


async def test_it_samples_at_its_interval(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "cpu").write_text("some total=1\n")
    host = Host()
    telemetry = Telemetry(
        clock=host.clock,
        custodian=Agent(host).custodian,
        live_leases=lambda: (),
        node_directory=str(tmp_path / "none"),
        pressure_directory=str(tmp_path),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(telemetry.run)
        await trio.sleep(0.1)
        [first] = telemetry.read()
        await trio.sleep(INTERVAL_NS / NS_PER_S)
        [second] = telemetry.read(resource_id="cpu")
        assert second.sampled_ns - first.sampled_ns == INTERVAL_NS
        assert telemetry.read(resource_id="gpu") == []
        nursery.cancel_scope.cancel()


async def test_a_lease_that_is_fenced_leaves_no_series_behind(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        burn(tmp_path, 1)
        agent.telemetry.sample()
        await trio.sleep(10)
        agent.telemetry.sample()
        host.devices.unclean.add(lease.lease_id)
        await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
        await agent.until(lease.lease_id, LeaseState.FENCED)
        agent.telemetry.sample()
        assert agent.telemetry.read(lease_id=lease.lease_id) == []
