# SPDX-License-Identifier: Apache-2.0
"""The verb adopt against a canned agent: what is asked, whether it stays, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.canned_agent import LEASE_ID, CannedAgent, Script, lease

ADOPT = "io.leased.Admin.Adopt"
PATIENCE_S = 30
ME = str(os.getpid())


def script(**more: object) -> Script:
    """An agent that adopts, and whose leases never end."""
    renewed = {
        "lease_id": LEASE_ID,
        "generation": 2,
        "deadline_boottime_ns": 10**18,
        "state": "active",
    }
    found: Script = {
        ADOPT: {"lease": lease(deadline_boottime_ns=10**18)},
        "io.leased.Lease.Renew": renewed,
        "io.leased.Lease.Describe": {"lease": lease(), "access": []},
        "io.leased.Lease.List": {"leases": [lease()], "waiting": []},
    }
    found.update(more)  # type: ignore[arg-type]
    return found


def start(agent: CannedAgent, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "leased.ctl.main", "--socket", agent.path, "adopt", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def test_it_asks_for_what_running_work_can_have(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        words = ("--gpu", "1", "--mem", "1GiB", "--block", "id=block:x", "--for", "4h")
        status, out, err = finish(start(agent, "--pid", ME, *words, "--json"))
        asked = agent.asked(ADOPT)
    assert status == 0, err
    assert json.loads(out)["pid"] == os.getpid()
    assert [one.get("shape") for one in asked["resources"]] == ["budget", None, "raw"]
    assert asked["ttl_ns"] == 4 * 3600 * 10**9 and "lease_id" not in asked and "pid" not in asked


def test_into_a_lease_that_is_there(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        status, out, err = finish(start(agent, LEASE_ID[:6], "--pid", ME))
        assert agent.asked(ADOPT)["lease_id"] == LEASE_ID
    assert status == 0 and "are in 7fa30000" in out, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pid", "2147483647", "--gpu", "1"), "no process"),
        (("--pid", "2147483648", "--gpu", "1"), "no process"),
        (("--pid", "0", "--gpu", "1"), "no process"),
        (("--pid", "-1", "--gpu", "1"), "no process"),
        (("--pid", ME, "--gpu", "1", "--wait", "5s"), "does not wait"),
        (("--pid", ME), "say what is wanted"),
        (("--pid", ME, "--gpu", "1", "--for", "4h", "--ttl", "1h"), "ttl: --for says how long"),
        ((LEASE_ID[:6], "--pid", ME, "--for", "4h"), "for: the lease has its end"),
        ((LEASE_ID[:6], "--pid", ME, "--gpu", "1"), "gpu: the lease has it, or not"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        status, _, err = finish(start(agent, *words))
        assert not [method for method, _ in agent.calls if method == ADOPT]
    assert status == 65 and said in err


def test_it_stays_until_the_lease_is_over(tmp_path: Path) -> None:
    """The work has ended by itself: its leaf ran empty."""
    over = lease(state="reclaimed", ended="released")
    watched = [{"sequence": 1, "leases": [over], "gap": False}]
    told: Script = {
        "io.leased.Lease.Watch": watched,  # type: ignore[dict-item]
        "io.leased.Lease.Describe": {"lease": over, "access": []},
    }
    with CannedAgent(tmp_path, script(**told)) as agent:
        status, out, err = finish(start(agent, "--pid", ME, "--gpu", "1"))
    assert status == 0, err
    assert out.splitlines()[-1] == "7fa30000 reclaimed (released)"


def test_a_lease_that_was_lost_is_79(tmp_path: Path) -> None:
    over = lease(state="revoking", ended="revoked", reason="operator_revoke")
    watched = [{"sequence": 1, "leases": [over], "gap": False}]
    told: Script = {
        "io.leased.Lease.Watch": watched,  # type: ignore[dict-item]
        "io.leased.Lease.Describe": {"lease": over, "access": []},
    }
    with CannedAgent(tmp_path, script(**told)) as agent:
        status, out, _ = finish(start(agent, "--pid", ME, "--gpu", "1"))
    assert status == 79 and "revoked: operator_revoke" in out


def test_interrupted_it_says_when_the_end_will_be(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, script()) as agent:
        process = start(agent, "--pid", ME, "--gpu", "1")
        assert process.stdout is not None and "are in" in process.stdout.readline()
        assert process.stderr is not None and "ends in 42 s" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        status, _, err = finish(process)
        assert not [method for method, _ in agent.calls if method.endswith("Release")]
    assert status == 0 and "renewed no more" in err
