# SPDX-License-Identifier: Apache-2.0
"""Collecting: how fast `leased-collector` verifies and keeps what a real agent serves over TLS.

Rule: both are the installed programs, on loopback, and both write to the same disk. A record
counts when its segment is durable and the cursor has moved over it. The collector's start is in
the time on the clock; its processor time is told apart from that of a pull that finds nothing new,
which is what starting, shaking hands and ending costs.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from leased.chain.certificate import Role
from leased.hardware.identity import node_id, read_machine_id
from tests.bench.history import extend_history
from tests.bench.loadgen import Figures
from tests.bench.running_agent import RunningAgent
from tests.doubles.fleet_pki import FleetPki


def measure_collect(
    directory: Path, *, records: int, rounds: int, say: Callable[[str], None]
) -> Figures:
    """Records per second from the node's disk to the collector's, each round into an empty
    archive."""
    pki = FleetPki(directory / "pki")
    node = pki.issue(Role.NODE, node_id(read_machine_id()).hex())
    listener = (
        f'[listener]\ncertificate = "{node}"\nkey = "{node.with_suffix(".key")}"\n'
        f'ca = "{pki.ca}"\nport = 0\n'
    )
    agent = RunningAgent(directory / "pulled", more=listener)
    audit = agent.state / "audit"
    rows: list[tuple[float, float, float]] = []
    found: Figures = {}
    try:
        agent.start()
        agent.stop()
        say(f"making a history of {records:,} records")
        extend_history(audit, records)
        agent.start()
        said = re.findall(
            r"may connect to port (\d+)", (directory / "pulled/agent.log").read_text()
        )
        url = f"https://localhost:{said[-1]}"
        command = (sys.executable, "-m", "leased.ctl.main", "audit", "enrolment")
        enrolment = _run(*command, "--log", str(audit), "--with-seal-key")
        for number in range(rounds):
            name = f"c{number}"
            certificate = pki.issue(Role.COLLECTOR, name)
            config = directory / f"{name}.toml"
            config.write_text(
                f'[pull]\nca = "{pki.ca}"\ncertificate = "{certificate}"\n'
                f'key = "{certificate.with_suffix(".key")}"\n'
            )
            program = (sys.executable, "-m", "leased.collector.main", "--state")
            state = str(directory / name)
            _run(*program, state, "enrol", "node", url, "-", given=enrolment)
            words = (*program, state, "pull", "--once", "--json", "--config", str(config))
            found, took_s, cpu_s = _pull(words)
            if found["verdict"] != "OK" or found["size"] < records:
                raise SystemExit(f"bench: not all was pulled: {found}")
            _, _, idle_s = _pull(words)
            rows.append((took_s, cpu_s, idle_s))
            say(
                f"{found['size']:,} records pulled in {took_s:.2f} s, {cpu_s:.2f} s of processor"
                f" ({idle_s:.2f} s with nothing new)"
            )
    finally:
        agent.close()
    size = found["size"]
    return {
        "records": size,
        "records_per_s": statistics.median(size / took for took, _, _ in rows),
        "records_per_cpu_s": statistics.median(size / (cpu - idle) for _, cpu, idle in rows),
        "start_cpu_s": statistics.median(idle for _, _, idle in rows),
    }


def _pull(words: tuple[str, ...]) -> tuple[Figures, float, float]:
    """Pull to the end: what it says of the node, seconds on the clock, seconds of processor."""
    began = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(words[2:])} ended with {process.returncode}")
    [found] = json.loads(out[out.rindex('{\n  "version"') :])["nodes"]
    return found, time.monotonic() - began, used.ru_utime + used.ru_stime


def _run(*words: str, given: str = "") -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(words[2:])}: {done.stderr[-2000:]}")
    return done.stdout
