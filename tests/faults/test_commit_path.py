# SPDX-License-Identifier: Apache-2.0
"""Every system call of the commit path fails once, in the real daemon.

The n-th call fails with EIO or with ENOSPC (strace), or is the last (`tests/doubles/killed.c`); n
rises until nothing is hit any more. What the client was told before is its ledger: all of it is in
the chain afterwards. One state directory goes through all of it, so every start is a recovery from
the fault before.

`LEASED_FAULTS` bounds n (0: no bound).
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.doubles.host import not_proven
from tests.doubles.host_agent import HostAgent, mem
from tests.doubles.killed import SIGKILLED, Killed
from tests.doubles.ledger import Ledger
from tests.doubles.story import judge, tell
from tests.doubles.wire_peer import Remote

pytestmark = [pytest.mark.root, pytest.mark.slow]

BOUND = int(os.environ.get("LEASED_FAULTS", "0")) or 1000
EX_SOFTWARE, EX_OSERR = 70, 71
ENDED = "the log failed"
KILL = "killed"


def traced(call: str, fault: str, n: int) -> tuple[str, ...]:
    """What goes before the command. `when` counts each thread's own calls: the disk thread's."""
    return (
        *("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"),
        *("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}"),
    )


@pytest.fixture(scope="module")
def can_trace() -> None:
    if shutil.which("strace") is None:
        not_proven("faults of the commit path", "there is no strace")
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "true"]
    )
    if done.returncode:
        not_proven("faults of the commit path", "strace cannot trace here")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (call, fault)
        for call in ("pwrite64", "fdatasync")
        for fault in ("error=EIO", "error=ENOSPC", KILL)
    ],
)
@pytest.mark.usefixtures("can_trace")
def test_every_call_fails_once(call: str, fault: str, killed: Killed) -> None:
    ledger, statuses = Ledger(), []
    with HostAgent() as agent:
        agent.start_reaper()  # of its own, or strace would follow it
        agent.start()  # makes the log, and the spare that is wanted
        agent.stop()
        for n in range(1, BOUND):
            if fault == KILL:
                agent.launch(environment=killed.at(call, n))
            else:
                agent.launch(traced(call, fault, n))
            if agent.ready() and ledger.fill(agent):
                agent.stop() if fault == KILL else agent.stop_traced()
                break
            statuses.append(agent.wait_traced())
            ledger.assert_kept(tell(agent))
        agent.start()
        assert ledger.fill(agent)
        for lease in agent.call("Lease.List", admin=True)["leases"]:
            if lease["runtime"].get("ended") is None:
                agent.call("Lease.Release", lease_id=lease["lease_id"])
            assert agent.wait_for(lease["lease_id"])["runtime"]["state"] == "reclaimed"
        ledger.assert_kept(judge(agent))
        said = agent.log()
    print(f"{call} {fault}: {len(statuses)} faults, statuses {sorted(set(statuses))}")
    assert len(statuses) >= 8, "the commit path was not hit"
    if fault == KILL:
        assert set(statuses) <= set(SIGKILLED)
    else:
        # Ended, and said why; never carried on. The first writes of all are the self-test's: of
        # memory that is made, and overwritten.
        assert set(statuses) <= {EX_OSERR, EX_SOFTWARE, 78}, statuses
        assert statuses.count(EX_OSERR) == said.count("selftest: errno") <= 2
        assert said.count("rrno") + said.count(ENDED) >= len(statuses)
    assert "Traceback" not in said, said[said.index("Traceback") :][:3000]


def test_a_failed_commit_answers_nobody(can_trace: None) -> None:
    """Whoever waited for the failed commit gets the end of the connection and no answer."""
    with HostAgent() as agent:
        agent.start_reaper()
        agent.start()
        agent.stop()
        # The start itself commits once or twice; the grant is one of the next.
        for n in range(5, 13):
            agent.launch(traced("fdatasync", "error=EIO", n))
            if not agent.ready():
                agent.wait_traced()
                continue
            with agent.connect() as peer:
                try:
                    granted = peer.call("Lease.Acquire", resources=[mem(4096)], bind="deadline")
                except (EOFError, ConnectionError):
                    agent.wait_traced()
                    return
                except Remote as refused:
                    raise AssertionError(f"answered after a failed commit: {refused}") from refused
            with pytest.raises((EOFError, ConnectionError, FileNotFoundError)):
                for _ in range(50):
                    agent.call("Lease.Renew", lease_id=granted["lease"]["lease_id"])
            agent.wait_traced()
        raise AssertionError("no grant was hit")
