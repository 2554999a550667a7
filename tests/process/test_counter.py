# SPDX-License-Identifier: Apache-2.0
"""The real agent with its log bound to a TPM's counter (swtpm): what was put back is not served,
and neither is anything while the TPM does not answer."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.counter import INDEX, Tpm
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote
from tests.process.test_fail_closed import await_service

pytestmark = pytest.mark.root

EX_DATAERR, EX_CONFIG = 65, 78


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Tpm]:
    with Tpm(tmp_path / "tpm") as one:
        one.define()
        yield one


@pytest.fixture
def agent(tpm: Tpm) -> Iterator[HostAgent]:
    bound = f'[log]\nepoch = "1s"\n[log.counter]\nindex = "{INDEX}"\ntcti = "{tpm.tcti}"\n'
    with HostAgent(limits=f'{bound}period = "1s"\napart = "1ms"\n') as one:
        one.start_reaper()
        yield one


def value(tpm: Tpm) -> int:
    return int.from_bytes(tpm.ask("nvread", INDEX, "-s", "8"), "big")


def test_a_state_that_was_put_back_is_not_served(agent: HostAgent, tpm: Tpm) -> None:
    agent.start()
    agent.acquire(ttl_ms=60_000, bind="deadline")
    agent.kill()
    old = agent.directory / "old"
    shutil.copytree(agent.audit, old)
    agent.start()
    agent.acquire()
    assert agent.stop() == 0
    newest = agent.directory / "newest"
    agent.audit.rename(newest)

    shutil.copytree(old, agent.audit)
    status, said = agent.refused()
    assert status == EX_DATAERR and "an earlier state of the directory was put back" in said
    # An auditor with nothing but the directory finds nothing wrong with it, as it should be.
    agent.leasectl("verify", "--log", str(agent.audit))
    agent.start(flags=("--fail-closed",))
    with pytest.raises(Remote) as refused:
        agent.acquire()
    assert refused.value.parameters["what"] == "ROLLED_BACK"

    shutil.rmtree(agent.audit)
    newest.rename(agent.audit)
    agent.signal(signal.SIGHUP)
    await_service(agent)
    agent.acquire()
    judge(agent)


def test_it_is_advanced_while_the_agent_runs(agent: HostAgent, tpm: Tpm) -> None:
    agent.start()
    begun, until = value(tpm), time.monotonic() + PATIENCE_S
    while value(tpm) < begun + 2:
        assert time.monotonic() < until, agent.log()[-2000:]
        agent.call("Lease.List")
    agent.kill()
    agent.start()
    assert "Traceback" not in agent.log()


def test_without_its_tpm_the_agent_serves_nobody(agent: HostAgent, tpm: Tpm) -> None:
    agent.start()
    assert agent.stop() == 0
    tpm.stop()
    status, said = agent.refused()
    assert status == EX_CONFIG and "cannot be read" in said and "Traceback" not in said
    agent.start(flags=("--fail-closed",))
    with pytest.raises(Remote) as refused:
        agent.acquire()
    assert refused.value.parameters["reason"] == "audit_unavailable"
    tpm.start()
    agent.signal(signal.SIGHUP)
    await_service(agent)
    agent.acquire()


def test_what_was_put_back_on_purpose_is_taken_once(agent: HostAgent, tpm: Tpm) -> None:
    agent.start()
    agent.kill()
    old = agent.directory / "old"
    shutil.copytree(agent.audit, old)
    agent.start()
    agent.stop()
    shutil.rmtree(agent.audit)
    shutil.copytree(old, agent.audit)
    _, said = agent.refused()
    word = said.split('accept = "')[1].split('"')[0]
    text = agent.config.read_text()
    agent.config.write_text(text.replace("[log.counter]", f'[log.counter]\naccept = "{word}"'))
    agent.start()
    agent.acquire()
    agent.stop()
    shutil.rmtree(agent.audit)
    shutil.copytree(old, agent.audit)
    assert agent.refused()[0] == EX_DATAERR


def test_the_doctor_compares_them(agent: HostAgent, tpm: Tpm) -> None:
    root = agent.directory / "root"
    (root / "etc/leased").mkdir(parents=True)
    config = f'[paths]\nstate_dir = "/state"\n[log.counter]\nindex = "{INDEX}"\n'
    (root / "etc/leased/leased.toml").write_text(f'{config}tcti = "{tpm.tcti}"\n')

    def told() -> dict[str, str]:
        done = agent.leasectl("doctor", "--json", "--root", str(root), check=None)
        return next(one for one in json.loads(done.stdout)["findings"] if one["check"] == "counter")

    assert told()["grade"] == "ok" and "never advanced" in told()["found"]
    agent.start()
    agent.stop()
    shutil.copytree(agent.audit, root / "state/audit")
    assert told()["grade"] == "ok" and "agree" in told()["found"]
    agent.start()
    agent.stop()
    assert told()["grade"] == "fail" and told()["found"].startswith("ROLLED_BACK")
    tpm.stop()
    assert told()["grade"] == "fail" and "cannot be read" in told()["found"]
