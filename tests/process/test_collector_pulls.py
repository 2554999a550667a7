# SPDX-License-Identifier: Apache-2.0
"""`leased-collector pull` against the real agent, process to process: enrolled with the seal key,
verified, cosigned and acknowledged; and a host put back to an earlier state is found out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from leased.chain.certificate import Role
from leased.hardware.identity import node_id, read_machine_id
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host_agent import HostAgent
from tests.doubles.story import judge


class Collector:
    """The installed program, with a state directory of its own."""

    def __init__(self, directory: Path, pki: FleetPki, name: str) -> None:
        certificate = pki.issue(Role.COLLECTOR, name)
        self.name = name
        self.state, self.config = directory / name, directory / f"{name}.toml"
        self.config.write_text(
            f'[pull]\nname = "{name}.example"\nca = "{pki.ca}"\ncertificate = "{certificate}"\n'
            f'key = "{certificate.with_suffix(".key")}"\ntimeout = "20s"\n'
        )
        self.key = self.run("cosigner", "--config", str(self.config)).stdout.strip()

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "leased.collector.main", "--state", str(self.state)]
        return subprocess.run(
            [*program, *words], input=given, capture_output=True, text=True, timeout=60
        )

    def pull(self) -> tuple[int, dict]:
        done = self.run("pull", "--once", "--json", "--config", str(self.config))
        last = done.stdout[done.stdout.rindex('{\n  "version"') :]
        [node] = json.loads(last)["nodes"]
        return done.returncode, node


def port_of(agent: HostAgent) -> int:
    return int(re.findall(r"may connect to port (\d+)", agent.log())[-1])


def let_in(agent: HostAgent, pki: FleetPki, *collectors: Collector) -> None:
    """Give the agent a door for these."""
    node = pki.issue(Role.NODE, node_id(read_machine_id()).hex())
    text = f"""
[listener]
certificate = "{node}"
key = "{node.with_suffix(".key")}"
ca = "{pki.ca}"
port = 0
"""
    for one in collectors:
        text += f'[[listener.collectors]]\nname = "{one.name}"\nkey = "{one.key}"\n'
    agent.config.write_text(agent.config.read_text("utf-8") + text, "utf-8")


def test_two_collectors_and_a_host_that_is_put_back(tmp_path: Path) -> None:
    with HostAgent() as agent:
        pki = FleetPki(agent.directory / "pki")
        west, east = (Collector(tmp_path, pki, name) for name in ("west", "east"))
        let_in(agent, pki, west, east)
        agent.start()
        url = f"https://localhost:{port_of(agent)}"
        words = ("audit", "enrolment", "--log", str(agent.audit), "--with-seal-key")
        enrolment = agent.leasectl(*words).stdout
        for one in (west, east):
            done = one.run("enrol", "alpha", url, "-", given=enrolment)
            assert done.returncode == 0, done.stderr
        for one in (west, east):
            agent.acquire(ttl_ms=60_000)
            status, found = one.pull()
            assert (status, found["verdict"]) == (0, "OK"), found
            assert 0 < found["cosigned_size"] <= found["size"]
        acked = agent.leasectl(
            "audit", "log", "--log", str(agent.audit), "--kind", "HeadCountersigned", "--json"
        )
        assert len(acked.stdout.splitlines()) == 2
        done = west.run("check")
        assert done.returncode == 0 and "0 damaged" in done.stdout
        log = str(west.state / "log")
        assert agent.leasectl("verify", "--log", log).returncode == 0

        # The whole disk is put back to an earlier state, and the host goes on from there.
        agent.stop()
        backup = tmp_path / "backup"
        shutil.copytree(agent.audit, backup)
        agent.start()
        for _ in range(5):
            agent.acquire(ttl_ms=60_000)
        west.run("enrol", "alpha", f"https://localhost:{port_of(agent)}", "-", given=enrolment)
        status, found = west.pull()
        assert (status, found["verdict"]) == (0, "OK"), found
        judge(agent)
        agent.stop()
        shutil.rmtree(agent.audit)
        shutil.copytree(backup, agent.audit)
        agent.start()
        west.run("enrol", "alpha", f"https://localhost:{port_of(agent)}", "-", given=enrolment)
        status, found = west.pull()
        assert status == 65 and found["verdict"] in ("ROLLBACK", "FORK"), found
        shown = west.run("verdict", "--json")
        assert shown.returncode == 65
        [case] = json.loads(shown.stdout)["verdicts"]
        vkey = json.loads(enrolment)["vkey"]
        judged = agent.leasectl(
            "evidence", "verify", "--key", vkey, "--collector", west.key, case["evidence"][0]
        )
        assert judged.returncode == 0 and "signed a tree" in judged.stdout, judged.stderr
        assert west.pull()[0] == 65, "until an operator resolves it"


def test_a_collector_follows_the_node_to_its_new_key(tmp_path: Path) -> None:
    with HostAgent() as agent:
        pki = FleetPki(agent.directory / "pki")
        west = Collector(tmp_path, pki, "west")
        let_in(agent, pki, west)
        agent.start()
        words = ("audit", "enrolment", "--log", str(agent.audit))
        enrolment = agent.leasectl(*words).stdout
        url = f"https://localhost:{port_of(agent)}"
        assert west.run("enrol", "alpha", url, "-", given=enrolment).returncode == 0
        for _ in range(2):
            agent.acquire(ttl_ms=60_000)
            status, found = west.pull()
            assert (status, found["verdict"]) == (0, "OK"), found
            agent.leasectl("admin", "rotate-key")
        agent.acquire(ttl_ms=60_000)
        status, found = west.pull()
        assert (status, found["verdict"]) == (0, "OK"), found
        # One that was enrolled with the first key finds its way over both rotations.
        late = Collector(tmp_path, pki, "late")
        assert late.run("enrol", "alpha", url, "-", given=enrolment).returncode == 0
        status, found = late.pull()
        assert (status, found["verdict"]) == (0, "OK"), found
        judge(agent)
