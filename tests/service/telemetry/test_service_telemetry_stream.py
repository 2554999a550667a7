# SPDX-License-Identifier: Apache-2.0
"""The stream: what is packed, kept, dropped and said, against a receiver in a process of its own
that shares no code with ours, over real TLS with certificates on both sides."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from leased.chain.certificate import Role
from leased.hardware.clock import BootClock
from leased.ports import Clock
from leased.service.telemetry.buffer import Batch, Buffer
from leased.service.telemetry.otlp import Origin, encode
from leased.service.telemetry.sender import Sender
from leased.service.telemetry.stream import POINTS_MAX, Stream
from leased.service.telemetry.streaming import Streaming
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_S
from leased.terms.sample import Sample
from tests.doubles.clock import FakeClock
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import CountedEntropy
from tests.doubles.otlp_receiver import Receiver, receiver

NODE = "0123456789abcdef0123456789abcdef"
ORIGIN = Origin(NODE, "host7", "1.2.3")
LEASE = LeaseId(b"\xab" * 16)


def power(number: int, *, at_ns: int = 5, watts: int = 250) -> Sample:
    """A GPU's power."""
    gpu = (("hw.type", "gpu"),)
    return Sample("hw.power", f"gpu:GPU-{number}", watts * 1000, at_ns, gpu)


class Quick:
    """A clock that does not wait: a test of retries is not a test of patience."""

    def __init__(self) -> None:
        self._real = BootClock()
        self.slept_ns: list[int] = []
        self.now = self._real.now

    async def sleep_until(self, boot_ns: int) -> None:
        self.slept_ns.append(boot_ns - self.now().boot_ns)
        await trio.lowlevel.checkpoint()


class Line:
    """A sender that runs, and what it counted and said."""

    def __init__(self, authority: FleetPki, url: str, clock: Clock, **settings: Any) -> None:
        node = authority.directory / f"node-{NODE}.pem"
        if not node.exists():
            authority.issue(Role.NODE, NODE)
        told = {
            "endpoint": url,
            "ca": str(authority.ca),
            "certificate": str(node),
            "key": str(node.with_suffix(".key")),
            "timeout_ns": 20 * NS_PER_S,
            **settings,
        }
        self.buffer = Buffer(1 << 20)
        self.counts: dict[str, int] = {}
        self.said: list[str] = []
        self.sender = Sender(
            settings=Streaming(**told),
            buffer=self.buffer,
            clock=clock,
            entropy=CountedEntropy(),
            version="1.2.3",
            count=lambda name, more: self.counts.update({name: self.counts.get(name, 0) + more}),
            say=self.said.append,
        )

    def put(self, *samples: Sample) -> None:
        message = encode(ORIGIN, samples, BootClock().now())
        self.buffer.put(Batch(len(samples), gzip.compress(message)))

    async def emptied(self) -> None:
        with trio.fail_after(30):
            while len(self.buffer):
                await trio.lowlevel.checkpoint()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> FleetPki:
    made = FleetPki(tmp_path_factory.mktemp("pki"))
    made.issue(Role.COLLECTOR, "main")
    return made


def serve(authority: FleetPki, *statuses: str) -> Any:
    return receiver(authority.directory / "collector-main.pem", authority.ca, *statuses)


@asynccontextmanager
async def running(line: Line) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.sender.run)
        yield
        nursery.cancel_scope.cancel()


async def see(one: Receiver) -> dict[str, Any]:
    return await trio.to_thread.run_sync(one.next)


# ---- over real TLS -------------------------------------------------------------------------------


async def test_a_foreign_receiver_gets_every_point_as_it_was_read(authority: FleetPki) -> None:
    with serve(authority) as one:
        clock = BootClock()
        line = Line(authority, one.url, clock)
        now = clock.now()
        async with running(line):
            line.put(
                power(1, at_ns=now.boot_ns - 7 * NS_PER_S, watts=321),
                Sample(
                    "leased.lease.cpu.time",
                    "",
                    1_500_000_000,
                    now.boot_ns,
                    (("cpu.mode", "user"),),
                    LEASE,
                    1000,
                    "acme",
                    now.boot_ns - 60 * NS_PER_S,
                ),
                Sample(
                    "hw.temperature",
                    "block:a",
                    -5_500,
                    now.boot_ns,
                    (("hw.type", "physical_disk"), ("hw.sensor_location", "1")),
                ),
                Sample("system.memory.limit", "mem:node0", 2**45 + 1, now.boot_ns),
            )
            seen = await see(one)
            await line.emptied()
    assert seen["path"] == "/v1/metrics"
    assert seen["from"] == [f"spiffe://{authority.fleet}/node/{NODE}"]
    points = {point["name"]: point for point in seen["points"]}
    watts = points["hw.power"]
    assert (watts["value"], watts["unit"], watts["kind"]) == (321.0, "W", "gauge")
    assert watts["attributes"] == {
        "hw.type": "gpu",
        "leased.resource.id": "gpu:GPU-1",
        "hw.id": "gpu:GPU-1",
    }
    assert abs(watts["time"] - (now.wall_ns - 7 * NS_PER_S)) < NS_PER_S, "when it was read"
    spent = points["leased.lease.cpu.time"]
    assert (spent["value"], spent["unit"], spent["kind"]) == (1.5, "s", "sum")
    assert spent["attributes"] == {
        "cpu.mode": "user",
        "leased.lease.id": LEASE.hex(),
        "leased.tenant": "acme",
    }
    assert abs(spent["time"] - spent["start"] - 60 * NS_PER_S) < NS_PER_S
    assert points["hw.temperature"]["value"] == -5.5
    assert points["system.memory.limit"]["value"] == 2**45 + 1
    assert watts["resource"] == {
        "service.name": "leased",
        "service.version": "1.2.3",
        "service.instance.id": NODE,
        "host.id": NODE,
        "host.name": "host7",
    }
    assert line.counts == {} and line.said == []


async def test_a_receiver_that_asks_us_to_wait_is_asked_again_when_it_said(
    authority: FleetPki,
) -> None:
    with serve(authority, "429:17", "503", "drop") as one:
        clock = Quick()
        line = Line(authority, one.url, clock)
        async with running(line):
            line.put(power(1))
            for _ in range(4):
                assert len((await see(one))["points"]) == 1
            await line.emptied()
    first, second = (ns / NS_PER_S for ns in clock.slept_ns)
    assert 16.9 < first <= 17.0 and 1.0 <= second <= 2.0, "later each time"
    # The connection that was dropped had been idle: it is opened anew, and that is no failure.
    assert line.counts == {}
    assert len(line.said) == 2 and "429" in line.said[0] and "nothing was lost" in line.said[1]


async def test_what_a_receiver_will_not_have_is_not_sent_twice(authority: FleetPki) -> None:
    with serve(authority, "400", "400", "partial", "301") as one:
        line = Line(authority, one.url, Quick())
        async with running(line):
            for number in range(1, 6):
                line.put(power(number), power(number + 10))
                seen = await see(one)
                assert seen["points"][0]["attributes"]["hw.id"] == f"gpu:GPU-{number}"
            await line.emptied()
    assert line.counts == {"refused": 2 + 2 + 1 + 2}
    assert [text.rpartition(": ")[2] for text in line.said] == [
        "it answered 400",
        "one of them is odd",
        "it answered 301",
    ]


async def test_a_receiver_that_lies_is_believed_no_more_than_can_be(authority: FleetPki) -> None:
    """Two such answers were more than a counter holds, and the end of the agent."""
    with serve(authority, "lie", "lie") as one:
        line = Line(authority, one.url, Quick())
        async with running(line):
            for number in range(2):
                line.put(power(number), power(number + 10))
                await see(one)
            await line.emptied()
    assert line.counts == {"refused": 4}
    assert len(line.said) == 1 and line.said[0].isprintable() and len(line.said[0]) < 400


async def test_a_receiver_that_hangs_has_a_deadline(authority: FleetPki) -> None:
    with serve(authority, "hang") as one:
        line = Line(authority, one.url, Quick(), timeout_ns=NS_PER_S)
        async with running(line):
            line.put(power(1))
            await see(one)
            await see(one)
            await line.emptied()
    assert "no answer in time" in line.said[0]


async def test_an_answer_in_crumbs_is_none(authority: FleetPki) -> None:
    """To take each of its pieces apart was the agent's turn."""
    with serve(authority, "crumbs") as one:
        line = Line(authority, one.url, Quick())
        async with running(line):
            line.put(power(1))
            await see(one)
            await see(one)
            await line.emptied()
    assert "the answer does not end" in line.said[0]


async def test_a_receiver_that_says_when_in_no_number_of_this_world(authority: FleetPki) -> None:
    """What it says is a receiver's own: it ends nobody else."""
    odd = ("1 Jan 99999999999 00:00:00 GMT", "9" * 5000, "soon")
    with serve(authority, *(f"503:{one}" for one in odd)) as one:
        line = Line(authority, one.url, Quick(), retry_ns_max=NS_PER_S)
        async with running(line):
            line.put(power(1))
            for _ in odd:
                await see(one)
            await see(one)
            await line.emptied()


async def test_a_receiver_of_another_authority_gets_nothing(
    authority: FleetPki, tmp_path: Path
) -> None:
    stranger = FleetPki(tmp_path / "stranger")
    with receiver(stranger.issue(Role.COLLECTOR, "main"), authority.ca) as one:
        line = Line(authority, one.url, Quick(), retry_ns_max=NS_PER_S)
        async with running(line):
            line.put(power(1))
            with trio.fail_after(30):
                while not line.said:
                    await trio.lowlevel.checkpoint()
        assert len(line.buffer) == 1
    assert "certificate does not hold" in line.said[0]


async def test_a_receiver_that_does_not_know_us_says_so(
    authority: FleetPki, tmp_path: Path
) -> None:
    stranger = FleetPki(tmp_path / "stranger")
    node = stranger.issue(Role.NODE, NODE)
    with serve(authority) as one:
        line = Line(
            authority, one.url, Quick(), certificate=str(node), key=str(node.with_suffix(".key"))
        )
        async with running(line):
            line.put(power(1))
            with trio.fail_after(30):
                while not line.said:
                    await trio.lowlevel.checkpoint()
    assert len(line.buffer) == 1 and "takes nothing" in line.said[0]


async def test_certificates_are_replaced_under_a_running_sender(
    authority: FleetPki, tmp_path: Path
) -> None:
    node = tmp_path / "node.pem"
    with serve(authority, "drop") as one:
        line = Line(
            authority, one.url, Quick(), certificate=str(node), key=str(node.with_suffix(".key"))
        )
        async with running(line):
            line.put(power(1))
            with trio.fail_after(30):
                while not line.said:
                    await trio.lowlevel.checkpoint()
            assert "No such file" in line.said[0]
            made = authority.issue(Role.NODE, "f" * 32)
            node.with_suffix(".key").write_bytes(made.with_suffix(".key").read_bytes())
            node.write_bytes(made.read_bytes())
            assert (await see(one))["from"] == [f"spiffe://{authority.fleet}/node/{'f' * 32}"]
            await line.emptied()


# ---- packing and dropping ------------------------------------------------------------------------


def test_a_full_buffer_drops_the_oldest_and_says_how_much() -> None:
    buffer = Buffer(100)
    batches = [Batch(points, b"x" * 40) for points in (1, 2, 4, 8)]
    assert [buffer.put(one) for one in batches] == [0, 0, 1, 2]
    assert (buffer.bytes, len(buffer), buffer.dropped_points) == (80, 2, 3)
    assert not buffer.take(batches[1]), "it was dropped while it was being sent"
    assert buffer.take(batches[2]) and buffer.bytes == 40
    assert buffer.put(Batch(16, b"x" * 101)) == 8 + 16, "one that never fits takes all with it"
    assert buffer.bytes == 0 and len(buffer) == 0


@pytest.mark.autojump
async def test_what_is_sent_next_waits_for_there_to_be_something() -> None:
    buffer, got = Buffer(100), []

    async def reader() -> None:
        got.append(await buffer.oldest())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        buffer.put(Batch(1, b"a"))
    assert got == [Batch(1, b"a")]


class Packed:
    """A stream, and the requests that came of it."""

    def __init__(self, clock: FakeClock, fresh_ns: int = 15 * NS_PER_S) -> None:
        self.buffer = Buffer(1 << 22)
        self.counts: dict[str, int] = {}
        self.stream = Stream(
            origin=ORIGIN,
            buffer=self.buffer,
            clock=clock,
            is_fresh=lambda one, now_ns: now_ns - one.sampled_ns <= fresh_ns,
            count=lambda name, more: self.counts.update({name: self.counts.get(name, 0) + more}),
        )

    async def requests(self) -> list[list[tuple[str, float | None, int]]]:
        """What the tasks have packed by now: (resource, value, flags) of each point."""
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        await trio.testing.wait_all_tasks_blocked()
        found = []
        while len(self.buffer):
            batch = await self.buffer.oldest()
            self.buffer.take(batch)
            request = service.ExportMetricsServiceRequest.FromString(gzip.decompress(batch.body))
            points = [
                (
                    next(a.value.string_value for a in p.attributes if a.key == "hw.id"),
                    p.as_double if p.WhichOneof("value") else None,
                    p.flags,
                )
                for metric in request.resource_metrics[0].scope_metrics[0].metrics
                for p in metric.gauge.data_points
            ]
            assert len(points) == batch.points
            found.append(points)
        return found


@pytest.mark.autojump
async def test_a_series_that_knows_nothing_any_more_ends_once() -> None:
    clock = FakeClock()
    packed = Packed(clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(packed.stream.run)
        packed.stream.tell([power(n, at_ns=clock.now().boot_ns) for n in (1, 2)])
        assert await packed.requests() == [[("gpu:GPU-1", 250.0, 0), ("gpu:GPU-2", 250.0, 0)]]
        await trio.sleep(10)
        packed.stream.tell([power(1, at_ns=clock.now().boot_ns)])
        assert await packed.requests() == [[("gpu:GPU-1", 250.0, 0)]], "10 s are not stale"
        await trio.sleep(10)
        packed.stream.tell([power(1, at_ns=clock.now().boot_ns)])
        assert await packed.requests() == [[("gpu:GPU-1", 250.0, 0), ("gpu:GPU-2", None, 1)]]
        await trio.sleep(10)
        packed.stream.tell([power(1, at_ns=clock.now().boot_ns)])
        assert await packed.requests() == [[("gpu:GPU-1", 250.0, 0)]]
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_a_large_round_goes_in_pieces_and_one_that_comes_too_soon_is_counted() -> None:
    clock = FakeClock()
    packed = Packed(clock)
    large = [power(n, at_ns=clock.now().boot_ns) for n in range(2 * POINTS_MAX + 5)]
    packed.stream.tell(large[:7])
    packed.stream.tell(large)
    assert packed.counts == {"dropped": 7}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(packed.stream.run)
        assert [len(one) for one in await packed.requests()] == [POINTS_MAX, POINTS_MAX, 5]
        nursery.cancel_scope.cancel()


def test_the_packing_of_a_tenants_name_can_be_turned_off() -> None:
    sample = Sample("leased.lease.processes", "", 1, 5, (), LEASE, 1000, "acme")
    told = encode(ORIGIN, [sample], BootClock().now())
    hidden = encode(msgspec.structs.replace(ORIGIN, tenants=False), [sample], BootClock().now())
    assert b"acme" in told and b"acme" not in hidden and LEASE.hex().encode() in hidden
