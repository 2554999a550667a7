# SPDX-License-Identifier: Apache-2.0
"""The real agent prunes: not before all collectors of its quorum have cosigned, and `leasectl` says
whom it waits for. What is left is proven by both verifiers, as it lies and as it was exported, and
a collector that comes later has the rest from another's copy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from leased.chain.epochs import EPOCH_NS
from leased.durable.log import open_log
from leased.hardware.identity import read_machine_id
from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_S, Moment
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host_agent import HostAgent
from tests.process.test_collector_pulls import Collector, let_in, port_of
from tests.vectors import verify_independent
from tests.vectors.c2sp_independent import Broken


def make_log(
    agent: HostAgent, segment_bytes: int = 16 * 1024, epoch_ns: int = EPOCH_NS
) -> None:
    """A log whose segments hold seconds of this test and not a day."""
    moment = Moment(
        BootId(bytes(16)), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
    )
    open_log(
        agent.audit,
        moment=moment,
        entropy=lambda: os.urandom(16),
        machine_id=read_machine_id(),
        origin="test/node",
        segment_bytes=segment_bytes,
        epoch_ns=epoch_ns,
    ).close()


class Site:
    """An agent with short segments, and collectors of which it takes two."""

    def __init__(self, agent: HostAgent, tmp_path: Path) -> None:
        self.agent, self.pki = agent, FleetPki(agent.directory / "pki")
        self.west, self.east = (Collector(tmp_path, self.pki, name) for name in ("west", "east"))
        let_in(agent, self.pki, self.west, self.east)
        text = agent.config.read_text("utf-8").replace("port = 0\n", "port = 0\nquorum = 2\n", 1)
        agent.config.write_text(text, "utf-8")
        make_log(agent, epoch_ns=NS_PER_S)  # what an open epoch rests on is not pruned
        agent.start()
        words = ("audit", "enrolment", "--log", str(agent.audit), "--with-seal-key")
        self.enrolment = agent.leasectl(*words).stdout
        self.enrol()

    def enrol(self, *more: Collector) -> None:
        url = f"https://localhost:{port_of(self.agent)}"
        for one in more or (self.west, self.east):
            done = one.run("enrol", "alpha", url, "-", given=self.enrolment)
            assert done.returncode == 0, done.stderr

    def again(self) -> None:
        """Another start, which prunes what may go."""
        assert self.agent.stop() == 0
        self.agent.start()
        self.enrol()

    def lease(self, count: int) -> None:
        for _ in range(count):
            lease = self.agent.acquire()
            self.agent.call("Lease.Release", lease_id=lease["lease_id"])
            self.agent.wait_for(lease["lease_id"])

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.agent.audit.glob("seg-*"))

    def awaited(self) -> list[dict]:
        words = ("audit", "acknowledged", "--config", str(self.agent.config))
        done = self.agent.leasectl(*words, "--json")
        return json.loads(done.stdout)["collectors"]


def test_two_of_two_must_have_cosigned_before_anything_goes(tmp_path: Path) -> None:
    with HostAgent(limits='[log]\nretention = "1s"\n') as agent:
        site = Site(agent, tmp_path)
        for count in (8, 8, 9):
            site.lease(count)
            agent.leasectl("admin", "rotate-key")
        assert site.west.pull()[1]["verdict"] == "OK"
        site.again()
        before = site.segments()
        assert len(before) > 4 and before[0] == "seg-0000000000000000.log", "east is awaited"
        told = {one["name"]: one for one in site.awaited()}
        assert told["west"]["acknowledged"] > 25 and not told["west"]["awaited"]
        assert told["east"] == {"name": "east", "acknowledged": 0, "awaited": True}
        shown = agent.leasectl("audit", "acknowledged", "--config", str(agent.config)).stdout
        assert "waits for east" in shown, shown

        for one in (site.east, site.west):
            assert one.pull()[1]["verdict"] == "OK"
        site.again()
        assert len(site.segments()) < len(before), "east is back, and it goes on"
        check_what_is_left(site, tmp_path)
        check_who_comes_late(site, tmp_path)


def check_what_is_left(site: Site, tmp_path: Path) -> None:
    """Both verifiers, over the log, over a copy of it, and over what a policy says of it."""
    agent, policy, copy = site.agent, tmp_path / "policy", tmp_path / "copy"
    log = ("--log", str(agent.audit))
    policy.write_text(
        f"witness west {site.west.key}\nwitness east {site.east.key}\n"
        "group both all west east\nquorum both\n"
    )
    agent.leasectl("verify", *log, check=66)
    agent.leasectl("verify", *log, "--policy", str(policy))
    agent.leasectl("audit", "export", *log, "--format", "log", str(copy))
    agent.leasectl("verify", "--log", str(copy), check=66)
    told = json.loads(
        agent.leasectl("verify", "--log", str(copy), "--policy", str(policy), "--json").stdout
    )
    read = verify_independent.read_policy(policy.read_bytes())
    assert verify_independent.verify(copy, leases=True, policy=read)[1] == told["head"]
    other = policy.read_text("utf-8").replace(site.east.key, Collector(tmp_path, site.pki, "x").key)
    read = verify_independent.read_policy(other.encode())
    with pytest.raises(Broken):
        verify_independent.verify(copy, policy=read)
    check_what_is_remembered(site, copy, told)
    lines = agent.leasectl("audit", "log", *log, "--json").stdout.splitlines()
    first = json.loads(lines[0])
    assert first["sequence"] == told["first_sequence"] > 0
    told_boot = first["boot_id"] is not None
    says = first["kind"] in ("NodeStarted", "EpochSealed")
    assert told_boot == says, "which boot it was is not here any more"
    assert json.loads(lines[-1])["boot_id"] is not None
    for sequence in (first["sequence"], told["next_sequence"] - 1):
        proof = agent.leasectl("audit", "prove", str(sequence)).stdout
        file = tmp_path / "proof.json"
        file.write_text(proof)
        vkey = json.loads(agent.leasectl("audit", "enrolment", *log).stdout)["vkey"]
        agent.leasectl("audit", "check-proof", "--key", vkey, str(file))


def check_what_is_remembered(site: Site, copy: Path, told: dict) -> None:
    """A head of what is gone is no sign of a fork; that of the last that is gone is compared."""
    begins, log = told["first_sequence"], ("--log", str(copy))
    header = sorted(copy.glob("seg-*"))[0].read_bytes()
    for head, status in (
        (f"{begins}:{header[48:80].hex()}", 0),
        (header[48:80].hex(), 0),
        (f"{begins}:{'ab' * 32}", 65),
        (f"{begins - 1}:{'ab' * 32}", 66),
        ("ab" * 32, 66),
        (f"{begins + 1}:{'ab' * 32}", 65),
    ):
        done = site.agent.leasectl("verify", *log, "--head", head, check=status)
        shown = done.stdout + done.stderr
        assert ("FORK_OR_ROLLBACK" in shown) == (status == 65), shown
        assert ("which were pruned" in shown) == (status == 66), shown
    denied = site.agent.leasectl("audit", "prove", "0", check=65)
    assert f"record 0 was pruned, as all before {begins}" in denied.stderr, denied.stderr


def check_who_comes_late(site: Site, tmp_path: Path) -> None:
    """It has the same records, from a copy and from the node."""
    late = Collector(tmp_path, site.pki, "late")
    site.enrol(late)
    done = late.run("import", "alpha", str(site.west.state))
    assert done.returncode == 0 and "signed by the node" in done.stdout, done.stderr
    status, found = late.pull()
    assert (status, found["verdict"]) == (0, "OK"), found
    assert site.west.pull()[1]["verdict"] == "OK"
    records = [one.run("check").stdout for one in (late, site.west)]
    assert all("0 damaged" in text for text in records), records
