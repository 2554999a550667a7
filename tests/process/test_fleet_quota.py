# SPDX-License-Identifier: Apache-2.0
"""A quota of the whole fleet on two real agents: from a request to the collector's API, over mutual
TLS, to what each of them grants, refuses and takes back.

Rule: the collector serves and pulls for real, and both agents are the program, each with a machine
id of its own. What both have granted is added up after every step, and is never above the quota.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.chain.certificate import Role
from leased.collector.governance.divider import SEEN_NS
from leased.hardware.identity import node_id
from leased.terms.quantity import parse_duration
from tests.doubles.collector_server import PATIENCE_S, REPOSITORY, CollectorServer
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host_agent import HostAgent
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root

TENANT = "uid-0"
MIB = 1 << 20
PIECE = 16 * MIB
OWN_MACHINE_ID = 'mount --bind "$1" /etc/machine-id && shift && exec "$@"'


class Fleet:
    """A collector that serves and pulls, and nodes of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = FleetPki(directory / "pki")
        certificate = self.pki.issue(Role.COLLECTOR, "west")
        files = f'certificate = "{certificate}"\n{{}} = "{certificate.with_suffix(".key")}"\n'
        tls = files.format("certificate_key")
        (directory / "collector").mkdir()
        # Whoever has too much when the grace is over has as long to leave as a borrower has.
        ground = directory / "collector" / "policy.toml"
        ground.write_text('ttl_min = "500ms"\n[borrowing]\ngrace = "2s"\n')
        self.collector = CollectorServer(
            http=f'listen = ["127.0.0.1:0"]\ntls_listen = ["127.0.0.1:0"]\n{tls}'
            f'client_ca = "{self.pki.ca}"',
            governance=f'fleet = "{self.pki.fleet}"\npolicy_file = "policy.toml"',
            more=f'[pull]\nname = "west.example"\nca = "{self.pki.ca}"\n{files.format("key")}'
            'pace = "100ms"',
            directory=directory / "collector",
        )
        self.collector.start()
        said = re.search(r"https://127\.0\.0\.1:(\d+)", "\n".join(self.collector.said))
        self.tls_port = int((said or self.collector.wait_for(r"https://127\.0\.0\.1:(\d+)"))[1])
        at = ("--config", str(self.collector.config))
        self.policy_key = self.run("key", *at).strip()
        self.cosigner = self.run("cosigner", *at).strip()
        self.puller: subprocess.Popen[bytes] | None = None
        self.nodes: list[HostAgent] = []

    def command(self, *words: str) -> list[str]:
        program = [sys.executable, "-m", "leased.collector.main"]
        return [*program, "--state", str(self.collector.state), *words]

    def run(self, *words: str, given: str = "") -> str:
        command = self.command(*words)
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def add(self, agent: HostAgent, name: str, machine_id: str) -> None:
        """Start an agent as a node of the fleet."""
        (agent.directory / "machine-id").write_text(machine_id + "\n")
        node = node_id(bytes.fromhex(machine_id)).hex()
        certificate = self.pki.issue(Role.NODE, node)
        key = certificate.with_suffix(".key")
        text = (
            f'[listener]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{self.pki.ca}"\n'
            f'port = 0\n[[listener.collectors]]\nname = "west.example"\nkey = "{self.cosigner}"\n'
            f'[collector]\nurl = "https://localhost:{self.tls_port}"\nfleet = "{self.pki.fleet}"\n'
            f'policy_key = "{self.policy_key}"\nca = "{self.pki.ca}"\n'
            f'certificate = "{certificate}"\ncertificate_key = "{key}"\nretry = "1s"\n'
        )
        agent.config.write_text(agent.config.read_text("utf-8") + text, "utf-8")
        inside = ("unshare", "--mount", "sh", "-ec", OWN_MACHINE_ID, "sh")
        agent.start(wrap=(*inside, str(agent.directory / "machine-id")))
        port = re.findall(r"may connect to port (\d+)", agent.log())[-1]
        words = ("audit", "enrolment", "--log", str(agent.audit), "--with-seal-key")
        enrolment = agent.leasectl(*words).stdout
        self.run("enrol", name, f"https://localhost:{port}", "-", given=enrolment)
        self.nodes.append(agent)

    def pull(self) -> None:
        """Follow the nodes from now on."""
        with open(self.directory / "pull.log", "wb") as log:
            self.puller = subprocess.Popen(
                self.command("pull", "--config", str(self.collector.config)),
                env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
                stdout=log,
                stderr=log,
            )

    def patch(self, **fields: object) -> None:
        path = f"/v1/governance/quotas/{TENANT}"
        answer = self.collector.ask("PATCH", path, {"reason": "a test", **fields})
        assert answer.status == 200, answer

    def shares(self) -> list[dict]:
        """Who has which part, as the collector says."""
        found = self.collector.ask("GET", f"/v1/governance/shares/{TENANT}")
        assert found.status == 200, found
        return found.json["shares"]

    def close(self) -> None:
        if self.puller is not None:
            self.puller.terminate()
            self.puller.wait(PATIENCE_S)
        self.collector.stop()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


def take(agent: HostAgent) -> str | None:
    """One more piece; why not, if not."""
    try:
        agent.acquire(PIECE, ttl_ms=600_000)
    except Remote as refused:
        return str(refused.parameters["reason"])
    return None


def held(agent: HostAgent) -> int:
    """Pieces that are held, to the proof."""
    leases = agent.call("Lease.List", admin=True)["leases"]
    assert isinstance(leases, list)
    return len(leases)


def await_held(fleet: Fleet, agent: HostAgent, wanted: int, most: int) -> None:
    """Take until so many are held on this node; the fleet never has more than `most`."""
    until = time.monotonic() + PATIENCE_S
    while held(agent) < wanted:
        why = take(agent)
        assert why in (None, "tenant_capacity"), why
        assert sum(map(held, fleet.nodes)) <= most
        assert time.monotonic() < until, (fleet.shares(), agent.log()[-2000:])


def test_a_quota_of_the_fleet_on_two_agents(fleet: Fleet) -> None:
    with HostAgent() as first, HostAgent() as second:
        fleet.patch(memory_gb=0.5)  # 32 pieces
        fleet.add(first, "alpha", "a" * 31 + "1")
        fleet.add(second, "beta", "a" * 31 + "2")
        fleet.pull()
        # Whoever asks has more than half of it, for the other has nothing to do with it.
        await_held(fleet, first, 20, 32)
        await_held(fleet, second, 8, 32)
        for _ in range(20):
            for node in fleet.nodes:
                take(node)
                assert sum(map(held, fleet.nodes)) <= 32
        bounds = sum(row["bound"] for row in fleet.shares())
        assert bounds <= 0.5, fleet.shares()
        usage = fleet.collector.ask("GET", f"/v1/governance/usage/{TENANT}").json["quotas"]
        assert usage["memory_gb"]["per"] == "fleet", usage
        # Lowered: the next grant is refused at once on both, and what is too much is taken back
        # when the grace is over.
        began = time.monotonic()
        fleet.patch(memory_gb=0.25, grace_period="3s")
        while (why := [take(node) for node in fleet.nodes]) != ["tenant_capacity"] * 2:
            assert time.monotonic() - began < PATIENCE_S, why
        assert sum(map(held, fleet.nodes)) > 16
        # What was granted while the smaller share was on its way is borne for a minute.
        until = time.monotonic() + PATIENCE_S + (SEEN_NS + parse_duration("3s")) / 1e9
        while sum(map(held, fleet.nodes)) > 16:
            assert time.monotonic() < until, (
                fleet.shares(),
                [n.log()[-1000:] for n in fleet.nodes],
            )
        # Raised again: there is room on both.
        fleet.patch(memory_gb=1)
        for node in fleet.nodes:
            await_held(fleet, node, 18, 64)
        for node in fleet.nodes:
            judge(node)


def test_who_waits_in_a_queue_draws_what_another_node_leaves(fleet: Fleet) -> None:
    """Nothing is ever refused: that alone would have drawn it."""
    with HostAgent() as first, HostAgent() as second:
        fleet.patch(memory_gb=0.5)  # 32 pieces
        fleet.add(first, "alpha", "a" * 31 + "1")
        fleet.add(second, "beta", "a" * 31 + "2")
        fleet.pull()
        here = node_id(bytes.fromhex("a" * 31 + "1")).hex()
        until = time.monotonic() + PATIENCE_S
        bounds: dict[str, float] = {}
        # The first was alone, and may have had all of it.
        while len(bounds) < 2 or not 0 < bounds[here] <= 0.25:
            bounds = {row["node"]: row["bound"] for row in fleet.shares()}
            assert time.monotonic() < until, fleet.shares()
        for _ in range(24):  # three quarters of the quota, one after the other
            first.acquire(PIECE, ttl_ms=600_000, wait_ns=int(PATIENCE_S * 1e9))
            assert sum(map(held, fleet.nodes)) <= 32
        assert held(first) == 24 and held(second) == 0
        log = first.leasectl("audit", "log", "--log", str(first.audit), "--kind", "Refused")
        assert not log.stdout.strip(), log.stdout
        for node in fleet.nodes:
            judge(node)
