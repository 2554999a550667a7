# SPDX-License-Identifier: Apache-2.0
"""The agent's telemetry in the collector: two programs, mutual TLS, one fleet's certificates; and
what the collector then says of a lease that did nothing and of one that worked."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leased.chain.certificate import Role
from leased.collector.telemetry.decoding import PACKED_BYTES_MAX
from leased.collector.telemetry.receiver import AT_ONCE_MAX
from leased.hardware.clock import BootClock
from leased.hardware.identity import node_id, read_machine_id
from leased.service.telemetry.otlp import Origin, encode
from leased.terms.sample import Sample
from tests.doubles.collector_server import CollectorServer
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.gpu_host import REPOSITORY, mock_machine
from tests.doubles.host_agent import HostAgent

NODE = node_id(read_machine_id()).hex()
HTTPS = r"serving https://127\.0\.0\.1:(\d+)$"
WAIT = "import sys; print(1, flush=True); sys.stdin.read()"


class Site:
    """A collector that takes telemetry, and a fleet's certificates."""

    def __init__(self, directory: Path) -> None:
        self.pki = FleetPki(directory / "pki")
        own = self.pki.issue(Role.COLLECTOR, "main")
        (directory / "collector").mkdir()
        self.collector = CollectorServer(
            http=(
                'tls_listen = ["127.0.0.1:0"]\nlisten = ["127.0.0.1:0"]\n'
                f'certificate = "{own}"\ncertificate_key = "{own.with_suffix(".key")}"\n'
                f'client_ca = "{self.pki.ca}"'
            ),
            governance=f'fleet = "{self.pki.fleet}"',
            directory=directory / "collector",
        )

    port = 0

    def ask(self, *words: str) -> Any:
        """A verb of the collector."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "leased.collector.main",
                "--state",
                str(self.collector.state),
                *words,
                "--json",
            ],
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/agent"},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    def post(self, certificate: Path | None, body: bytes, **headers: str) -> tuple[int, bytes]:
        """One request of whoever shows this certificate."""
        context = self.pki.client(certificate)
        link = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=30)
        told = {"Content-Type": "application/x-protobuf", **headers}
        try:
            link.request("POST", "/v1/metrics", body, told)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.collector:
        made.port = int(made.collector.wait_for(HTTPS)[1])
        yield made


def message(node: str, value: int = 1000) -> bytes:
    clock = BootClock()
    gpu = (("hw.type", "gpu"),)
    sample = Sample("hw.power", "gpu:1", value, clock.now().boot_ns, gpu)
    return encode(Origin(node, "host", "1"), [sample], clock.now())


def test_only_nodes_of_the_fleet_speak_and_each_for_itself(site: Site, tmp_path: Path) -> None:
    node = site.pki.issue(Role.NODE, NODE)
    assert site.post(node, message(NODE)) == (200, b"")
    status, body = site.post(node, message("f" * 32))
    assert status == 403 and b"sent by node" in body
    assert site.post(None, message(NODE))[0] == 401
    assert site.post(site.pki.issue(Role.SCRAPER, "p"), message(NODE))[0] == 401
    with pytest.raises((ssl.SSLError, ConnectionError)):
        stranger = FleetPki(tmp_path / "stranger")
        site.post(stranger.issue(Role.NODE, NODE), message(NODE))
    assert site.post(node, b"nonsense" * 99)[0] == 400
    assert site.post(node, message(NODE), **{"Content-Type": "application/json"})[0] == 415
    assert site.post(node, message(NODE), **{"Content-Encoding": "gzip"})[0] == 400
    assert site.post(node, b"x" * (PACKED_BYTES_MAX + 1))[0] == 413
    assert site.post(node, message(NODE, value=2000)) == (200, b""), "it still serves"


def _points(count: int) -> bytes:
    """A request of so many points of which nothing is said: two bytes of each."""
    message = b"\x0a\x00" * count
    for number in (5, 2, 2, 1):  # gauge, metrics, scope_metrics, resource_metrics
        size, length = len(message), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        message = bytes([number << 3 | 2]) + length + bytes([size]) + message
    return message


def _peak_mib(pid: int) -> int:
    told = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [one for one in told if one.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def test_a_node_that_sends_bombs_takes_no_memory(site: Site) -> None:
    """16 KB took 1.3 GB."""
    assert site.collector.process is not None
    node, before = site.pki.issue(Role.NODE, NODE), _peak_mib(site.collector.process.pid)
    for count, status in ((8_000_000, 400), (1_000_000, 403)):
        body = gzip.compress(_points(count))
        answer = site.post(node, body, **{"Content-Encoding": "gzip"})
        assert answer[0] == status and len(body) < 20_000
    assert site.post(node, message(NODE)) == (200, b"")
    assert _peak_mib(site.collector.process.pid) < before + 150


def test_a_node_that_begins_many_requests_keeps_two(site: Site) -> None:
    """Each is kept in memory until it is whole, or half a minute is over."""
    node = site.pki.issue(Role.NODE, NODE)
    context = site.pki.client(node)
    with contextlib.ExitStack() as stack:
        for _ in range(AT_ONCE_MAX):
            link = http.client.HTTPSConnection("localhost", site.port, context=context, timeout=30)
            stack.callback(link.close)
            link.putrequest("POST", "/v1/metrics")
            for name, value in (
                ("Content-Type", "application/x-protobuf"),
                ("Content-Length", "9"),
                ("Expect", "100-continue"),
            ):
                link.putheader(name, value)
            link.endheaders()
            # It asks for the body where it is about to read it.
            assert link.sock.recv(100).startswith(b"HTTP/1.1 100")
        assert site.post(node, message(NODE))[0] == 429
        other = site.pki.issue(Role.NODE, "f" * 32)
        assert site.post(other, message("f" * 32)) == (200, b"")


def telemetry_of(site: Site) -> str:
    node = site.pki.issue(Role.NODE, NODE)
    return (
        f'[telemetry]\ninterval = "1s"\nendpoint = "https://localhost:{site.port}"\n'
        f'ca = "{site.pki.ca}"\ncertificate = "{node}"\nkey = "{node.with_suffix(".key")}"\n'
    )


GPUS = """
[hardware.gpu]
root = "{root}"
mps_dir = "{root}/mps"
release_budget = "2s"
settle_apart = "50ms"
"""


@pytest.mark.root
def test_the_collector_knows_a_gpu_that_works_from_one_that_only_is_held(site: Site) -> None:
    with mock_machine(["H100", "H100"]) as machine:
        told = GPUS.format(root=machine.root)
        with HostAgent(hardware=told, more=telemetry_of(site)) as agent:
            agent.start()
            held = [
                _run(agent, "--gpu", f"uuid={machine.uuid(0)}", trick="spin"),
                _run(agent, "--gpu", f"uuid={machine.uuid(1)}", trick="small"),
                _run(agent, "--mem", "1MiB"),
            ]
            try:
                classes = _classes(site, {"healthy", "idle", "unknown"})
            finally:
                for process in held:
                    process.kill()
                    process.communicate()
    for one in classes.values():
        assert one["node"] == NODE and one["tenant"], one
    assert classes["idle"]["kind"] == classes["healthy"]["kind"] == "gpu"
    assert classes["healthy"]["utilization"]["mean_pm"] > 900
    assert classes["idle"]["unused_pm"] == 1000
    # Memory that was handed out: nobody can see how much of it is used.
    assert classes["unknown"]["kind"] == "mem" and classes["unknown"]["unused_pm"] is None
    assert list(site.ask("heat")["nodes"]) == [NODE]
    told = site.collector.ask("GET", "/v1/governance/optimize/waste?last=1h&waste=idle").json
    [idle] = told["leases"]
    assert (idle["lease_id"], idle["unused"]) == (classes["idle"]["lease"], 1)
    assert idle["samples"] >= 6 and 0.5 <= idle["coverage"] <= 1
    [hot] = site.collector.ask("GET", "/v1/governance/heat").json["nodes"]
    assert hot["node"] == NODE and 0 <= hot["heat"] <= 1
    wrong = site.collector.ask("GET", "/v1/governance/optimize/waste?last=9999999d")
    assert wrong.status == 422


def _classes(site: Site, wanted: set[str]) -> dict[str, Any]:
    """One lease of each class, as soon as the collector tells of all of them."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = {one["class"]: one for one in site.ask("waste")["leases"]}
        known = [one for one in found.values() if one["kind"] == "mem"]
        if wanted <= set(found) and known:
            return found
    raise AssertionError(f"only {found}")


def _run(agent: HostAgent, *words: str, trick: str = "") -> subprocess.Popen[str]:
    """`leasectl run` with a holder of a GPU, or of nothing but its lease."""
    holder = ("-m", "tests.hostile.cuda_holders", trick, "") if trick else ("-c", WAIT)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "leased.ctl.main", "run", "--ttl", "60s", *words, "--"),
            *(sys.executable, *holder),
        ],
        env={**os.environ, **agent.sockets(), "PYTHONPATH": f"{REPOSITORY}/agent:{REPOSITORY}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process
