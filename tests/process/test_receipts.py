# SPDX-License-Identifier: Apache-2.0
"""Receipts of the real agent: what a grant carries, what proves it, and what happens to all of that
when the key is replaced or the agent is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leased.durable.reader import read_log
from tests.doubles.host_agent import HostAgent, mem
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root


def _granted(agent: HostAgent) -> dict:
    """The whole answer to an Acquire."""
    with agent.connect() as peer:
        answer = peer.call("Lease.Acquire", resources=[mem(4096)], ttl_ns=60 * 10**9, bind="cgroup")
        peer.drop_fds()
    return answer


def _enrolment(agent: HostAgent, *words: str) -> dict:
    done = agent.leasectl("audit", "enrolment", "--log", str(agent.audit), *words)
    return json.loads(done.stdout)


def _check(agent: HostAgent, proof: Path, key: str, *words: str, status: int = 0) -> str:
    done = agent.leasectl("audit", "check-proof", str(proof), "--key", key, *words, check=status)
    return done.stdout + done.stderr


def test_a_grant_is_proven_to_whoever_knows_the_key(agent: HostAgent, tmp_path: Path) -> None:
    granted = _granted(agent)
    key = _enrolment(agent)["vkey"]
    assert granted["log_id"] == _enrolment(agent)["log_id"]
    receipt = tmp_path / "receipt.json"
    receipt.write_text(agent.leasectl("audit", "prove", granted["lease"]["lease_id"]).stdout)
    told = json.loads(receipt.read_text())
    assert told["sequence"] == granted["sequence"]
    assert told["record_hash"] == granted["record_hash"]
    # Nothing but hashes and the node's word: no tenant, no lease.
    assert granted["lease"]["lease_id"] not in receipt.read_text()
    agent.kill()  # judged without an agent
    assert "ok: record" in _check(agent, receipt, key, "--record", granted["record_hash"])
    assert "BAD_PROOF" in _check(agent, receipt, key, "--record", "00" * 32, status=65)
    alien = key.replace("+", "x+", 1)
    assert _check(agent, receipt, alien, status=65)
    for touched in (
        {**told, "sequence": told["sequence"] + 1},
        {**told, "path": told["path"][:-1]},
        {**told, "record_hash": "ab" * 32},
        {**told, "log_id": "ab" * 16},
        {**told, "size": told["size"] - 1},
        {**told, "checkpoint": told["checkpoint"].replace("\n" + str(told["size"]), "\n1")},
    ):
        receipt.write_text(json.dumps(touched))
        assert "BAD_" in _check(agent, receipt, key, status=65)
    receipt.write_text("{}")
    assert "BAD_PROOF" in _check(agent, receipt, key, status=65)
    # What is signed has eight digits of the log's id; it is said whole when it was compared whole.
    log_id = told["log_id"]
    for says, words, status, known in (
        (log_id, (), 0, None),
        (log_id, ("--log-id", log_id), 0, log_id),
        (log_id[:8] + "ab" * 12, (), 0, None),
        (log_id[:8] + "ab" * 12, ("--log-id", log_id), 65, None),
    ):
        receipt.write_text(json.dumps({**told, "log_id": says}))
        answer = _check(agent, receipt, key, *words, "--json", status=status)
        assert status or json.loads(answer)["log_id"] == known
    agent.start()


def test_the_command_line_keeps_a_receipt_and_proves_it(agent: HostAgent, tmp_path: Path) -> None:
    key, asked = _enrolment(agent)["vkey"], ("--mem", "4KiB", "--for", "1min")
    grant, receipt, proof = (tmp_path / name for name in ("grant.json", "receipt.json", "p.json"))
    grant.write_text(agent.leasectl("alloc", *asked, "--json").stdout)
    agent.leasectl("alloc", *asked, "--receipt", str(receipt))
    for kept in (grant, receipt):
        proof.write_text(agent.leasectl("audit", "prove", "--receipt", str(kept)).stdout)
        assert "ok: record" in _check(agent, proof, key, "--receipt", str(kept))
    # The second receipt is not the first one's, and a log that has another record is told as such.
    assert "BAD_PROOF" in _check(agent, proof, key, "--receipt", str(grant), status=65)
    told = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**told, "record_hash": "ab" * 32}))
    denied = agent.leasectl("audit", "prove", "--receipt", str(receipt), check=65)
    assert "BAD_PROOF" in denied.stderr and not denied.stdout
    receipt.write_text("[]")
    denied = agent.leasectl("audit", "prove", "--receipt", str(receipt), check=65)
    assert "no receipt" in denied.stderr
    # A receipt that cannot be kept hides no lease from whoever was granted it.
    lost = agent.leasectl("alloc", *asked, "--receipt", str(tmp_path / "no" / "where"), check=74)
    assert lost.stdout.startswith("export LEASE_ID=") and "no/where: No such" in lost.stderr
    agent.leasectl("audit", "prove", check=65)


def test_a_record_that_there_is_not_cannot_be_proven(agent: HostAgent) -> None:
    with pytest.raises(Remote, match="CallerError"):
        agent.call("Audit.Prove", sequence=10**6)
    with pytest.raises(Remote, match="CallerError"):
        agent.call("Audit.Prove", sequence=0, size=10**6)
    assert agent.call("Audit.Prove", sequence=0, size=1)["path"] == []


def test_a_log_goes_on_under_a_new_key(agent: HostAgent, tmp_path: Path) -> None:
    before = _enrolment(agent)
    told = json.loads(agent.leasectl("admin", "rotate-key", "--json").stdout)
    assert told["old_vkey"] == before["vkey"]
    granted = _granted(agent)
    receipt = tmp_path / "receipt.json"
    receipt.write_text(agent.leasectl("audit", "prove", str(granted["sequence"])).stdout)
    _check(agent, receipt, told["vkey"])
    _check(agent, receipt, told["old_vkey"], status=65)
    assert _enrolment(agent)["vkey"] == told["vkey"]
    assert _enrolment(agent)["first_public_key"] == before["first_public_key"]
    assert not (agent.audit / "node.key.next").exists()
    agent.kill()
    agent.start()
    again = json.loads(agent.leasectl("admin", "rotate-key", "--json").stdout)
    assert again["old_vkey"] == told["vkey"]
    agent.stop()
    opened = read_log(agent.audit)
    opened.close()
    assert opened.facts.verified.public_key is not None
    assert opened.facts.verified.signed_size > granted["sequence"]
    agent.start()
    with pytest.raises(Remote, match="InterfaceNotFound"):
        agent.call("io.leased.Admin.RotateKey")


def test_the_key_of_the_seals_is_shown_on_demand_alone(agent: HostAgent) -> None:
    without = _enrolment(agent)
    assert (without["seal_epoch"], without["seal_key"]) == (None, None)
    shown = _enrolment(agent, "--with-seal-key")
    assert shown["seal_epoch"] >= 0
    assert len(shown["seal_key"]) == 64
