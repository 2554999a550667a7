# SPDX-License-Identifier: Apache-2.0
"""A quota's way: from a PATCH at the collector's API to the first answer of a node that follows it.

Rule: the collector and the agent are the real programs; the agent asks its collector as it does in
production, and the same tenant asks the agent again and again. The clock runs from before the PATCH
is sent to after the first request that comes out otherwise: a refusal where the quota was taken
away, a grant where it was given back.

Does not choose a fleet: one node, over loopback without TLS.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from leased.collector.api.callers import hash_of
from tests.bench.loadgen import Figures
from tests.bench.table import Line, Say
from tests.doubles.collector_server import REPOSITORY, CollectorServer
from tests.doubles.host_agent import HostAgent
from tests.doubles.wire_peer import Remote

TENANT = "uid-0"
SECRET = "bench-secret"
PATIENCE_S = 60.0
BAR_S = 2.0
TOKENS = f'[[tokens]]\nname = "nodes"\nsha256 = "{hash_of(SECRET)}"\nscopes = ["node"]\n'
ACCESS = 'loopback = "write"\ntokens_file = "tokens.toml"'


def measure_quota(directory: Path, *, rounds: int, say: Say) -> Figures:
    """Seconds until a quota that was changed is in force, each way."""
    files = directory / "quota"
    files.mkdir()
    (files / "tokens.toml").write_text(TOKENS)
    (files / "token").write_text(SECRET + "\n")
    taken: list[float] = []
    given: list[float] = []
    with CollectorServer(access=ACCESS, directory=files) as collector:
        more = (
            f'[collector]\nurl = "http://127.0.0.1:{collector.port}"\n'
            f'policy_key = "{_policy_key(collector)}"\ntoken_file = "{files / "token"}"\n'
            'retry = "1s"\n'
        )
        with HostAgent(more=more) as agent:
            agent.start()
            _change(collector, agent, 0)  # until the node follows at all
            _change(collector, agent, None)
            for _ in range(rounds):
                taken.append(_change(collector, agent, 0))
                given.append(_change(collector, agent, None))
    say(f"{rounds} quotas taken away and given back, at most in {max(taken + given):.2f} s")
    return {
        "rounds": rounds,
        "taken_p50_s": statistics.median(taken),
        "taken_max_s": max(taken),
        "given_p50_s": statistics.median(given),
        "given_max_s": max(given),
    }


def quota_lines(found: Figures) -> list[Line]:
    """The slowest of all rounds, of both ways."""
    worst = max(found["taken_max_s"], found["given_max_s"])
    raw = (
        f"taken away p50 {found['taken_p50_s'] * 1000:.0f} ms, given back p50"
        f" {found['given_p50_s'] * 1000:.0f} ms, of {found['rounds']} each"
    )
    what = "a PATCHed quota in force on a node"
    return [Line(what, f"max {worst:.2f} s", f"<= {BAR_S:.0f} s", worst <= BAR_S, raw)]


def _policy_key(collector: CollectorServer) -> str:
    program = (sys.executable, "-m", "leased.collector.main", "--state", str(collector.state))
    words = (*program, "key", "--config", str(collector.config))
    environment = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _change(collector: CollectorServer, agent: HostAgent, leases: int | None) -> float:
    """Set how many leases the tenant may have; until the node does as it says."""
    reason = None if leases is None else "tenant_leases"
    body = {"reason": "measured", "max_leases": leases}
    began = time.monotonic()
    answer = collector.ask("PATCH", f"/v1/governance/quotas/{TENANT}", body)
    if answer.status != 200:
        raise SystemExit(f"bench: {answer}")
    while _outcome(agent) != reason:
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"bench: not in force after {PATIENCE_S:.0f} s: {agent.log()[-2000:]}")
    return time.monotonic() - began


def _outcome(agent: HostAgent) -> object:
    """Why a page is refused; None if it is granted, and then it is given back."""
    try:
        lease = agent.acquire()
    except Remote as refused:
        return refused.parameters.get("reason")
    agent.call("Lease.Release", lease_id=lease["lease_id"])
    return None
