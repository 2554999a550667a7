# SPDX-License-Identifier: Apache-2.0
"""The third boot, after the power cut: nothing that was acknowledged is lost, nothing is held
twice, all comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import host
from host import ADMIN, call, prop

SOURCE = Path("/usr/src/leased")
CONFIGURATION = Path("/etc/leased/leased.toml")

ACKED = json.loads(os.environ["LEASED_ACKED"])


def test_the_agent_serves_after_the_power_cut() -> None:
    host.serving()


def test_the_chain_verifies() -> None:
    verdict = json.loads(host.leasectl("verify", "--json"))
    assert verdict["verdict"] == "ok"


def test_every_acknowledged_grant_is_in_the_chain() -> None:
    chain = {record["sequence"]: record for record in host.records()}
    assert len(ACKED) >= 100
    for promise in ACKED:
        assert promise["lease_id"] in json.dumps(chain[promise["sequence"]]), promise
    for promise in (ACKED[0], ACKED[-1]):
        said = host.leasectl("verify", "--head", promise["hash"])
        assert f"record {promise['sequence']} has the head" in said


def test_every_lease_of_the_storm_is_over_and_clean() -> None:
    def taken() -> list[str]:
        resources = call("Device.List")["resources"]
        return [r["resource_id"] for r in resources if r["use"]["free"] != r["capacity"]]

    host.eventually("everything is free", lambda: not taken())
    closed = [record["lease_id"] for record in host.records("--kind", "Reclaimed")]
    assert len(set(closed)) == len(closed), "no lease was closed twice"
    assert {promise["lease_id"] for promise in ACKED} <= set(closed)
    counts = call("Admin.Status", ADMIN)["leases"]
    assert (counts["active"], counts["fenced"]) == (0, 0)


def test_it_leases_again() -> None:
    host.offered("mem:node0:4096")
    connection = host.Connection()
    lease = connection.acquire(host.memory(4096, node=0))["lease"]
    connection.close_fds()
    connection.call("Lease.Release", lease_id=lease["lease_id"])
    assert host.closed(lease["lease_id"])["state"] == "reclaimed"


def install(*words: str) -> str:
    """packaging/install as an operator runs it."""
    return host.run(str(SOURCE / "packaging" / "install"), "--no-apt", *words, seconds=1200)


def test_the_program_is_replaced_under_a_running_lease_and_the_configuration_is_kept() -> None:
    script = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import host, time;"
        "c = host.Connection(); g = c.acquire(host.memory(4096, node=1), ttl_s=3000);"
        "print(g['lease']['lease_id'], flush=True); time.sleep(3000)"
    )
    words = ["runuser", "-u", "alice", "--", sys.executable, "-c", script]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    lease_id = holder.stdout.readline().strip()
    before = host.describe(lease_id)
    pids = [host.main_pid(unit) for unit in ("leased.service", "leased-reaper.service")]
    CONFIGURATION.write_text(CONFIGURATION.read_text() + "# ours\n")
    text = CONFIGURATION.read_text()
    (wheel,) = Path("/wheels").glob("leased-*.whl")
    said = install("--wheel", str(wheel), "--find-links", "/wheels")
    host.serving()
    journal = host.run("journalctl", "-b", "--no-pager", "-u", "leased.service")
    assert "Traceback" not in journal, "a worker of half a program"
    after = [host.main_pid(unit) for unit in ("leased.service", "leased-reaper.service")]
    assert not set(pids) & set(after), "both are new processes"
    now = host.describe(lease_id)
    assert now["state"] == "active"
    assert now["deadline_boottime_ns"] == before["deadline_boottime_ns"]
    call("Admin.Revoke", ADMIN, lease_id=lease_id)
    assert host.closed(lease_id)["state"] == "reclaimed"
    holder.wait()
    assert CONFIGURATION.read_text() == text
    assert "leased.toml.new" in said
    assert CONFIGURATION.with_name("leased.toml.new").exists()


def test_it_can_be_taken_off_again_and_the_chain_stays() -> None:
    """The last test of all. What is leased is taken back by the agent, before it goes."""
    words = ["runuser", "-u", "alice", "--", "leasectl", "--timeout", "180", "run", "--mem", "4KiB"]
    holder = subprocess.Popen([*words, "--ttl", "50min", "--", "sleep", "3000"])
    host.eventually("it is leased", lambda: call("Lease.List", ADMIN)["leases"])
    said = install("--uninstall")
    assert "take back what is leased (1)" in said
    assert "This host is drained" in said
    holder.wait(host.HANGS_S)
    for path in ("/opt/leased", "/run/leased", "/usr/local/bin/leasectl"):
        assert not Path(path).exists(), path
    for unit in ("leased.service", "leased.socket", "leased-reaper.service", "leased.slice"):
        assert prop(unit, "ActiveState") == "inactive", unit
        assert not Path("/usr/local/lib/systemd/system", unit).exists()
    assert not list(Path("/usr/local").rglob("*leased*"))
    assert list(Path("/var/lib/leased/audit").iterdir())
    assert Path("/etc/leased/leased.toml").exists()
