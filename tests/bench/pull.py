# SPDX-License-Identifier: Apache-2.0
"""Pulling: how fast a collector gets and verifies a node's log over mutual TLS on loopback, and
what a tenant feels of it meanwhile.

Rule: the node is the real agent in a process of its own, with a history that the real sealer made.
The puller checks all that a collector must before it persists: frames, links, hashes, every body,
every lease, the root of its own tree against the node's signed note; told beside it is the same
without bodies and leases, which is what a witness must do. One page is fetched while the one before
is verified.

Does not store what it pulls.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leased.chain.certificate import Role
from leased.chain.grammar import Grammar
from leased.chain.head import GENESIS
from leased.chain.note import open_note, parse_checkpoint, parse_key
from leased.chain.page import split_page
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier, check_bodies
from leased.hardware.identity import node_id, read_machine_id
from tests.bench.history import extend_history
from tests.bench.loadgen import Figures
from tests.bench.running_agent import RunningAgent, cpu_seconds
from tests.bench.table import Say
from tests.doubles.fleet_pki import FleetPki

CALLS = 400

LISTENER = """
[listener]
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
address = "127.0.0.1"
port = 0
"""


def measure_pull(directory: Path, *, records: int, rounds: int, say: Say) -> Figures:
    """Records per second, with and without bodies; the agent's processor time for it; how long a
    call to the agent takes in quiet and while it is pulled."""
    pki = FleetPki(directory / "pki")
    node = pki.issue(Role.NODE, node_id(read_machine_id()).hex())
    listener = LISTENER.format(certificate=node, key=node.with_suffix(".key"), ca=pki.ca)
    agent = RunningAgent(directory / "pulled", more=listener)
    agent.start()
    agent.stop()
    say(f"making a history of {records:,} records")
    extend_history(agent.state / "audit", records)
    agent.start()
    try:
        [port] = re.findall(r"may connect to port (\d+)", agent.said())[-1:]
        puller = Puller(int(port), pki.ca, pki.issue(Role.COLLECTOR, "bench"))
        quiet = _call_latencies(agent, CALLS)
        rates, bodies, cpu_s = [], [], []
        for _ in range(rounds):
            before = cpu_seconds(agent.pid)
            rates.append(puller.pull(check=False))
            cpu_s.append(cpu_seconds(agent.pid) - before)
            bodies.append(puller.pull(check=True))
        busy = _call_latencies_while(agent, puller)
    finally:
        agent.close()
    figures: Figures = {
        "records": puller.records,
        "bytes": puller.size,
        "records_per_s": statistics.median(rates),
        "with_bodies_per_s": statistics.median(bodies),
        "agent_cpu_us_per_record": statistics.median(cpu_s) / puller.records * 1e6,
        "call_quiet_ns": quiet,
        "call_pulled_ns": busy,
    }
    say(f"{puller.records:,} records: {figures['records_per_s']:,.0f}/s pulled and verified")
    return figures


class Puller:
    """One connection that pulls the whole log, again and again."""

    def __init__(self, port: int, ca: Path, certificate: Path) -> None:
        self.port, self.files = port, (ca, certificate)
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._peer = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        self._peer.request("GET", "/audit/v1/logs")
        [self._log] = json.loads(self._peer.getresponse().read())
        self._log_id = bytes.fromhex(self._log["log_id"])
        self._key = parse_key(self._log["vkey"])
        self.records = self.size = 0

    def pull(self, *, check: bool) -> float:
        """Pull and verify all there is; records per second. `check`: bodies and leases, too."""
        verifier = Verifier(
            self._log_id,
            GENESIS,
            EMPTY,
            origin=self._log["origin"],
            public_key=self._key.public_key,
            epoch_ns=self._log["epoch_ns"],
            bodies=check,
        )
        first, self.size, grammar = 0, 0, Grammar()
        began = time.perf_counter()
        with ThreadPoolExecutor(1) as fetching:
            page = self._fetch(first)
            while True:
                end, trailer = split_page(page, self._log_id)
                if end == 0:
                    break
                first, self.size = trailer.next_seq, self.size + end
                coming = fetching.submit(self._fetch, first)
                walk = verifier.feed(page, stop=end)
                if check:
                    check_bodies(walk)
                    grammar.follow(walk)
                tree = verifier.verified().frontier
                signed = parse_checkpoint(open_note(trailer.note, [self._key]).text)
                if (signed.size, signed.root) != (tree.size, tree.root()):
                    raise SystemExit("bench: the note is of another tree")
                page = coming.result()
        self.records = first
        return first / (time.perf_counter() - began)

    def _fetch(self, first: int) -> bytes:
        self._peer.request("GET", f"/audit/v1/{self._log['log_id']}/records?from={first}")
        answer = self._peer.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"bench: {answer.status} {body[:300]!r}")
        return body


def _call_latencies(agent: RunningAgent, calls: int) -> list[int]:
    """(p50, p99) of one call after the other to the agent's local socket."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        agent.call("io.leased.Audit.Head")
        taken.append(time.perf_counter_ns() - began)
    taken.sort()
    return [taken[calls // 2], taken[calls * 99 // 100]]


def _call_latencies_while(agent: RunningAgent, puller: Puller) -> list[int]:
    """The same while a collector, in a process of its own, pulls at full speed."""
    collector = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.pull", str(puller.port), *map(str, puller.files)],
        stdout=subprocess.PIPE,
    )
    try:
        assert collector.stdout is not None
        collector.stdout.readline()  # it has pulled everything once
        return _call_latencies(agent, CALLS)
    finally:
        collector.kill()
        collector.wait()


def main() -> None:
    """Pull again and again until killed: port, CA, certificate."""
    port, ca, certificate = sys.argv[1:]
    puller = Puller(int(port), Path(ca), Path(certificate))
    while True:
        puller.pull(check=False)
        print("pulled", flush=True)


if __name__ == "__main__":
    main()
