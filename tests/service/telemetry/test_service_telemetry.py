# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what was read, when, and how much of the lease's life it covers; what was not read is
missing, not zero.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from leased.service.telemetry.sampling import CLOSELY_EVERY, DEFAULTS, Telemetry
from leased.service.telemetry.streaming import Streaming
from leased.terms.command import Acquire, Release
from leased.terms.event import Reclaimed
from leased.terms.lease import BOUND_TO_NOTHING, Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Granted
from leased.terms.resource import Allotment, Ask, Inventory, ResourceKind
from leased.terms.sample import Attributes, Reading, Sample
from leased.terms.teardown import Utilization
from tests.doubles.desk import ACME, cores, mem
from tests.doubles.leases import lease
from tests.doubles.observer import FileObserver
from tests.doubles.serving import Agent, Host

pytestmark = pytest.mark.autojump

BUSY = (("leased.gpu.engine", "sm"),)


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
    """The leaf has used so much in all, a quarter of it in the kernel."""
    system_us = total_us // 4
    (cgroup / "cpu.stat").write_text(
        f"usage_usec {total_us}\nuser_usec {total_us - system_us}\nsystem_usec {system_us}\n"
    )


def telemetry_of(host: Host, leases: tuple[Lease, ...] = (), **settings: int) -> Telemetry:
    """Telemetry alone, over the host's observer."""
    return Telemetry(
        clock=host.clock,
        custodian=Agent(host).custodian,
        live_leases=lambda: leases,
        observer=host.observer,
        settings=Streaming(**settings),
    )


def newest(telemetry: Telemetry) -> dict[tuple[str, str, Attributes], int]:
    """Everything but what telemetry says of itself."""
    return {
        (one.name, one.resource_id, one.attributes): one.value
        for one in telemetry.read()
        if one.resource_id != "agent"
    }


async def test_the_closing_record_says_how_much_was_used_and_how_much_was_seen(
    tmp_path: Path,
) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        used_us = 0
        # Ten seconds each: idle, half, all of the core, and nothing again.
        for share in (None, 0, 500, 1000, 0):
            used_us += 0 if share is None else share * 10_000
            burn(tmp_path, used_us)
            await agent.telemetry.sample()
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


async def test_memory_cannot_be_seen_in_use_and_that_is_what_the_record_says() -> None:
    async with Host().standing() as host, host.agent() as agent:
        lease = await agent.lease(3)
        await agent.telemetry.sample()
        await trio.sleep(20)
        await agent.telemetry.sample()
        await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
        await agent.until(lease.lease_id, LeaseState.RECLAIMED)
    [closed] = [event for _, event, _ in host.chain() if isinstance(event, Reclaimed)]
    assert closed.utilization_mean_pm is None and closed.utilization_max_pm is None
    assert (closed.sample_count, closed.coverage_pm) == (0, 0)


async def test_one_sample_is_no_coverage(tmp_path: Path) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 500)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        burn(tmp_path, 10**9)
        await agent.telemetry.sample()
        assert agent.telemetry.utilization(lease) == Utilization()
        assert host.clock.now().boot_ns > 0


async def test_a_counter_that_goes_back_or_vanishes_is_not_counted(tmp_path: Path) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        for total_us in (50_000_000, 10_000, None, 5_010_000):
            if total_us is None:
                (tmp_path / "cpu.stat").unlink()
            else:
                burn(tmp_path, total_us)
            await agent.telemetry.sample()
            await trio.sleep(10)
        used = agent.telemetry.utilization(lease)
        assert (used.sample_count, used.mean_pm) == (1, 250), "5 s of the 20 s that were seen"
        assert used.coverage_pm == 500
        assert host.reaper.slots


async def test_what_cannot_be_read_is_missing_and_not_zero(tmp_path: Path) -> None:
    host = Host()
    host.observer.root = tmp_path
    telemetry = telemetry_of(host)
    await telemetry.sample()
    assert newest(telemetry) == {}
    nodes, pressure = tmp_path / "sys/devices/system/node", tmp_path / "proc/pressure"
    (nodes / "node0").mkdir(parents=True)
    (nodes / "node0" / "meminfo").write_text(
        "Node 0 MemTotal: 4096 kB\nNode 0 MemFree: 1024 kB\nNode 0 MemUsed: 3072 kB\n"
        "Node 0 HugePages_Total: 4\n"
    )
    (nodes / "node0" / "numastat").write_text("numa_hit 17\nnuma_miss nonsense\n")
    (nodes / "possible").mkdir()
    pressure.mkdir(parents=True)
    (pressure / "cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=4321\n")
    (pressure / "io").write_text("nonsense\n")
    await telemetry.sample()
    state = "system.memory.state"
    waited = (("leased.pressure.resource", "cpu"), ("leased.pressure.kind", "some"))
    assert newest(telemetry) == {
        ("system.memory.usage", "mem:node0", ((state, "free"),)): 1024 * 1024,
        ("system.memory.usage", "mem:node0", ((state, "used"),)): 3072 * 1024,
        ("system.memory.limit", "mem:node0", ()): 4096 * 1024,
        ("leased.memory.numa.allocations", "mem:node0", (("leased.numa.event", "numa_hit"),)): 17,
        ("leased.pressure.time", "host", waited): 4_321_000,
    }
    assert {one.sampled_ns for one in telemetry.read()} == {host.clock.now().boot_ns}


async def test_how_many_wait_is_told_in_each_round() -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        await lease_of_cores(agent, 2000)

        def told(samples: list[Sample]) -> list[int]:
            return [one.value for one in samples if one.name == "leased.queue.depth"]

        assert told(await agent.telemetry.sample()) == [0]
        core = (Ask(ResourceKind.CPU, 1000),)
        waits = {"wait_ns": 60 * NS_PER_S, "bind_pid": BOUND_TO_NOTHING}
        for _ in range(2):
            agent.submit_turn(Acquire(host.command_id(), ACME, core, 600 * NS_PER_S, **waits))
        await trio.sleep(1)
        assert told(await agent.telemetry.sample()) == [2]
        assert 'leased_queue_depth{resource="agent"} 2' in agent.telemetry.expose()
        await trio.sleep(60)
        assert told(await agent.telemetry.sample()) == [0]
    assert told(await telemetry_of(host).sample()) == [], "who cannot tell says nothing"


async def test_it_samples_at_its_interval(tmp_path: Path) -> None:
    host = Host()
    telemetry = telemetry_of(host)
    rounds: list[int] = []
    telemetry.told.append(lambda samples: rounds.append(len(samples)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(telemetry.run)
        await trio.sleep(0.1)
        first = telemetry.read(resource_id="agent")[0]
        await trio.sleep(DEFAULTS.interval_ns / NS_PER_S)
        second = telemetry.read(resource_id="agent")[0]
        assert second.sampled_ns - first.sampled_ns == DEFAULTS.interval_ns
        assert telemetry.read(resource_id="gpu") == []
        await trio.sleep(7 * DEFAULTS.interval_ns / NS_PER_S)
        nursery.cancel_scope.cancel()
    assert len(rounds) == 9
    looks = [source for source, _ in host.observer.asked if source in ("closely", "device")]
    assert looks.index("closely", 1) == CLOSELY_EVERY, "drives are not woken at every round"


async def test_a_lease_that_is_fenced_leaves_no_series_behind(tmp_path: Path) -> None:
    async with host_with_cores().standing() as host, host.agent() as agent:
        lease = await lease_of_cores(agent, 1000)
        agent.custodian.set_cgroup(lease.lease_id, str(tmp_path))
        burn(tmp_path, 1)
        await agent.telemetry.sample()
        await trio.sleep(10)
        await agent.telemetry.sample()
        host.devices.unclean.add(lease.lease_id)
        await agent.ask(Release(host.command_id(), ACME, lease.lease_id))
        await agent.until(lease.lease_id, LeaseState.FENCED)
        await agent.telemetry.sample()
        assert agent.telemetry.read(lease_id=lease.lease_id) == []


async def test_a_sentinel_of_a_driver_never_leaves_the_process() -> None:
    host = Host()
    telemetry = telemetry_of(host)
    gpu = (("hw.type", "gpu"),)
    host.observer.gpu_readings = [
        Reading("hw.power", "gpu:GPU-1", 0xFFFFFFFF, gpu),
        Reading("hw.energy", "gpu:GPU-1", 2**64 - 1, gpu),
        Reading("leased.gpu.active", "gpu:GPU-1", -1, BUSY),
        Reading("hw.gpu.memory.usage", "gpu:GPU-1", 2**64 - 1),
        Reading("nobody.knows", "gpu:GPU-1", 1),
        Reading("hw.temperature", "gpu:GPU-1", -1000, gpu),
    ]
    brought = await telemetry.sample()
    assert [one.name for one in brought if one.resource_id == "gpu:GPU-1"] == ["hw.temperature"]
    [counted] = [one for one in brought if one.name == "leased.telemetry.rejected"]
    assert (counted.value, counted.attributes) == (5, (("leased.telemetry.source", "gpu"),))


async def test_a_source_that_hangs_costs_its_own_look_and_its_values_grow_stale() -> None:
    host = Host()
    telemetry = telemetry_of(host)
    host.observer.gpu_readings = [Reading("leased.gpu.active", "gpu:GPU-1", 500_000, BUSY)]
    await telemetry.sample()
    host.observer.hangs.add("gpu")
    for _ in range(2):
        await trio.sleep(10)
        await telemetry.sample()
    [old] = telemetry.read(resource_id="gpu:GPU-1")
    now_ns = host.clock.now().boot_ns
    assert now_ns - old.sampled_ns == 20 * NS_PER_S and not telemetry.is_fresh(old, now_ns)
    own = {(one.name, one.attributes): one for one in telemetry.read(resource_id="agent")}
    failed = own["leased.telemetry.failures", (("leased.telemetry.source", "gpu"),)]
    assert failed.value == 2 and telemetry.is_fresh(failed, now_ns)


async def test_what_a_drive_says_itself_is_asked_more_rarely_and_stays_fresh_longer() -> None:
    host = Host()
    telemetry = telemetry_of(host)
    sensor = (("hw.type", "physical_disk"), ("hw.sensor_location", "composite"))
    host.observer.other_readings = [
        Reading("hw.temperature", "block:a", 40_000, sensor),
        Reading("system.disk.io_time", "block:a", 1),
    ]
    await telemetry.sample()
    fresh = {}
    for _ in range(7):
        await trio.sleep(10)
        now_ns = host.clock.now().boot_ns
        for one in telemetry.read(resource_id="block:a"):
            fresh.setdefault(one.name, []).append(telemetry.is_fresh(one, now_ns))
    assert fresh == {
        "system.disk.io_time": [True] + 6 * [False],
        "hw.temperature": 6 * [True] + [False],
    }


def leases_of(host: Host, count: int, *allotments: Allotment) -> tuple[Lease, ...]:
    """Active leases that nobody granted."""
    now_ns = host.clock.now().boot_ns
    return tuple(
        msgspec.structs.replace(lease(*allotments), state=LeaseState.ACTIVE, granted_ns=now_ns)
        for _ in range(count)
    )


async def test_a_round_looks_at_a_bounded_number_of_leases_and_each_has_its_turn() -> None:
    host = Host()
    leases = leases_of(host, 7, Allotment("cpu:1", ResourceKind.CPU, None, 1000))
    telemetry = telemetry_of(host, leases, leases_max=3)
    seen: list[bytes] = []
    for _ in range(7):
        seen += [
            one.lease_id
            for one in await telemetry.sample()
            if one.name == "leased.lease.capacity" and one.lease_id is not None
        ]
    assert {count for source, count in host.observer.asked if source == "lease"} == {3}
    assert {seen.count(one.lease_id) for one in leases} == {3}, "every one as often as any other"
    [postponed] = [one for one in telemetry.read() if one.name == "leased.telemetry.postponed"]
    assert postponed.value == 7 * 4


def share_of(brought: list[Sample], kind: str) -> list[int]:
    """What a round says that a lease used of that kind, in ppm."""
    return [
        one.value
        for one in brought
        if one.name == "leased.lease.utilization" and one.attributes[0][1] == kind
    ]


async def test_a_gpu_lease_is_as_busy_as_its_gpus_are_and_unknown_while_one_is_not_seen() -> (
    None
):
    host = Host()
    two = [Allotment(f"gpu:GPU-{n}", ResourceKind.GPU, None, 1000) for n in (1, 2)]
    [one] = leases_of(host, 1, *two)
    telemetry = telemetry_of(host, (one,))
    host.observer.gpu_readings = [Reading("leased.gpu.active", "gpu:GPU-1", 900_000, BUSY)]
    for _ in range(3):
        assert share_of(await telemetry.sample(), "gpu") == []
        await trio.sleep(10)
    task = (("hw.gpu.task", "general"),)
    host.observer.gpu_readings.append(Reading("hw.gpu.utilization", "gpu:GPU-2", 100_000, task))
    assert share_of(await telemetry.sample(), "gpu") == [], "the span begins here"
    await trio.sleep(10)
    assert share_of(await telemetry.sample(), "gpu") == [500_000]
    used = telemetry.utilization(one)
    assert (used.mean_pm, used.sample_count) == (500, 1)


async def test_a_drive_is_used_while_an_operation_is_under_way() -> None:
    host = Host()
    [one] = leases_of(host, 1, Allotment("block:nguid.1", ResourceKind.BLOCK, None, 10**9))
    telemetry = telemetry_of(host, (one,))
    for busy_s in (100, 103):
        host.observer.other_readings = [
            Reading("system.disk.io_time", "block:nguid.1", busy_s * NS_PER_S)
        ]
        brought = await telemetry.sample()
        await trio.sleep(10)
    assert share_of(brought, "block") == [300_000]


async def test_a_budget_is_used_as_far_as_it_is_charged(tmp_path: Path) -> None:
    host = Host()
    budget = Allotment("mem:budget:node0:4096", ResourceKind.MEM, None, 1 << 20)
    [one] = leases_of(host, 1, budget)
    agent = Agent(host)
    agent.custodian.set_cgroup(one.lease_id, str(tmp_path))
    telemetry = Telemetry(
        clock=host.clock,
        custodian=agent.custodian,
        live_leases=lambda: (one,),
        observer=FileObserver(host.clock),
    )
    (tmp_path / "memory.current").write_text(f"{1 << 18}\n")
    (tmp_path / "memory.max").write_text("max\n")
    await telemetry.sample()
    await trio.sleep(10)
    brought = await telemetry.sample()
    assert share_of(brought, "mem") == [250_000]
    assert "leased.lease.memory.limit" not in {one.name for one in brought}, "max is no number"
