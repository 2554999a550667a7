# SPDX-License-Identifier: Apache-2.0
"""A caller without any privilege: it can lease, and it can neither see nor touch what is another's.

Everything the other user does is done by a process of that user, whom the kernel names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.host_agent import NOBODY, HostAgent, mem
from tests.doubles.wire_peer import Remote

pytestmark = pytest.mark.root

DROP = """
import os
def drop(uid):
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    os.chdir("/")
"""
# The interpreter may lie where nobody may look: it begins as root, imports, and drops for good.
CALLS = """
import json, socket, sys
def call(path, method, parameters):
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)
            s.connect(path)
            s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\\0")
            got = b""
            while not got.endswith(b"\\0"):
                data = s.recv(1 << 16)
                if not data:
                    return {"error": "closed"}
                got += data
            return json.loads(got[:-1])
    except OSError as error:
        return {"error": error.strerror}
drop(int(sys.argv[2]))
for path, method, parameters in json.loads(sys.argv[1]):
    print(json.dumps(call(path, method, parameters)), flush=True)
"""


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", DROP + script, *words],
        capture_output=True,
        text=True,
        timeout=60,
    )


def as_nobody(agent: HostAgent, *calls: tuple[str, dict], admin: bool = False) -> list[dict]:
    """The answers to these calls, made by a process of nobody."""
    door = str(agent.admin_socket if admin else agent.socket)
    asked = [[door, f"io.leased.{method}", parameters] for method, parameters in calls]
    done = run(CALLS, json.dumps(asked), str(NOBODY))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def leasectl_as_nobody(agent: HostAgent, *words: str, status: int = 0) -> str:
    script = f"from leased.ctl.main import main; import sys; drop({NOBODY}); sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", DROP + script, *words],
        env={**os.environ, **agent.sockets()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, f"{words}: {done.returncode} {done.stderr}"
    return done.stdout + done.stderr


ASK = {"resources": [mem(4096)], "bind": "deadline"}


def test_it_can_lease_and_gives_it_back(shared_agent: HostAgent) -> None:
    [granted] = as_nobody(shared_agent, ("Lease.Acquire", ASK))
    runtime = granted["parameters"]["lease"]["runtime"]
    assert (runtime["uid"], runtime["gid"]) == (NOBODY, NOBODY)
    assert (runtime["tenant"], runtime["trust"]) == (f"uid-{NOBODY}", "confined")
    lease_id = granted["parameters"]["lease"]["lease_id"]
    given, listed = as_nobody(
        shared_agent, ("Lease.Renew", {"lease_id": lease_id}), ("Lease.List", {})
    )
    assert given["parameters"]["generation"] == 1
    assert [one["lease_id"] for one in listed["parameters"]["leases"]] == [lease_id]
    [released] = as_nobody(shared_agent, ("Lease.Release", {"lease_id": lease_id}))
    assert "error" not in released
    assert shared_agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"


def test_a_command_runs_inside_its_lease(shared_agent: HostAgent) -> None:
    out = leasectl_as_nobody(
        shared_agent, "run", "--mem", "1MiB", "--", "sh", "-c", "id -u; cat /proc/self/cgroup"
    )
    assert str(NOBODY) in out and str(shared_agent.cgroup.name) in out


@pytest.mark.parametrize(
    "method",
    ["Describe", "Renew", "Release", "Done", "Why", "Wait", "Join"],
)
def test_anothers_lease_is_not_there(shared_agent: HostAgent, method: str) -> None:
    """Not told apart from one that never was."""
    lease_id = shared_agent.acquire()["lease_id"]
    before = shared_agent.describe(lease_id)["runtime"]
    theirs, nobodys = as_nobody(
        shared_agent,
        (f"Lease.{method}", {"lease_id": lease_id}),
        (f"Lease.{method}", {"lease_id": "00" * 16}),
    )
    assert theirs["error"] == nobodys["error"] == "io.leased.Lease.NoSuchLease"
    assert set(theirs["parameters"]) == set(nobodys["parameters"])
    after = shared_agent.describe(lease_id)["runtime"]
    assert (after["state"], after["generation"]) == ("active", before["generation"])
    shared_agent.call("Lease.Release", lease_id=lease_id)
    shared_agent.wait_for(lease_id)


def test_lists_and_samples_show_nothing_of_others(shared_agent: HostAgent) -> None:
    lease_id = shared_agent.acquire()["lease_id"]
    listed, samples, devices = as_nobody(
        shared_agent,
        ("Lease.List", {"closed": True}),
        ("Telemetry.Read", {}),
        ("Device.List", {}),
    )
    for answer in (listed, samples, devices):
        assert "error" not in answer
        assert lease_id not in json.dumps(answer)
    own = {one["runtime"]["uid"] for one in listed["parameters"]["leases"]}
    assert own <= {NOBODY}
    shared_agent.call("Lease.Release", lease_id=lease_id)
    shared_agent.wait_for(lease_id)


def test_a_command_id_of_another_is_not_an_entrance(shared_agent: HostAgent) -> None:
    command_id = "5a" * 16
    mine = shared_agent.acquire(command_id=command_id)["lease_id"]
    [theirs] = as_nobody(shared_agent, ("Lease.Acquire", {**ASK, "command_id": command_id}))
    if "error" not in theirs:
        assert theirs["parameters"]["lease"]["lease_id"] != mine
        assert not theirs["parameters"]["attached"]
        lease_id = theirs["parameters"]["lease"]["lease_id"]
        as_nobody(shared_agent, ("Lease.Release", {"lease_id": lease_id}))
        shared_agent.wait_for(lease_id)
    shared_agent.call("Lease.Release", lease_id=mine)
    shared_agent.wait_for(mine)


def test_the_chain_is_not_for_everyone(shared_agent: HostAgent) -> None:
    read, head = as_nobody(shared_agent, ("Audit.Read", {"from_sequence": 0}), ("Audit.Head", {}))
    assert read["error"] == "io.leased.Lease.PermissionDenied"
    assert "error" not in head  # how far it goes tells nothing of anybody
    [verified] = as_nobody(shared_agent, ("Audit.Verify", {}))
    assert verified["error"] == "io.leased.Lease.PermissionDenied"
    said = leasectl_as_nobody(shared_agent, "verify", "--log", str(shared_agent.audit), status=78)
    assert "ermission denied" in said
    for path in [shared_agent.audit, *shared_agent.audit.iterdir()]:
        assert not path.stat().st_mode & 0o077, path


def test_the_operators_door_is_shut(shared_agent: HostAgent) -> None:
    [status] = as_nobody(shared_agent, ("Admin.Status", {}), admin=True)
    assert status["error"] == "Permission denied"
    # And what is behind it cannot be reached through the users' door, not even by root.
    [revoked] = as_nobody(shared_agent, ("Admin.Revoke", {"lease_id": "00" * 16}))
    assert revoked["error"] == "org.varlink.service.InterfaceNotFound"
    with pytest.raises(Remote, match="InterfaceNotFound"):
        shared_agent.call("Admin.Status")
    leasectl_as_nobody(shared_agent, "admin", "status", status=77)


def test_the_reapers_door_and_state_are_shut(shared_agent: HostAgent) -> None:
    script = f"""
import socket, sys
drop({NOBODY})
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
print(s.recv(1))
"""
    done = run(script, str(shared_agent.runtime / "reaper.sock"))
    assert "PermissionError" in done.stderr or done.stdout.strip() == "b''", done
    assert not (shared_agent.runtime / "reaper.state").stat().st_mode & 0o077


def test_holders_of_others_are_not_shown(shared_agent: HostAgent) -> None:
    lease_id = shared_agent.acquire()["lease_id"]
    [memory] = shared_agent.call("Device.List")["resources"]
    [answer] = as_nobody(shared_agent, ("Device.Holders", {"resource_id": memory["resource_id"]}))
    assert lease_id not in json.dumps(answer)
    shared_agent.call("Lease.Release", lease_id=lease_id)
    shared_agent.wait_for(lease_id)


def test_holders_of_its_own_leases_are_shown_with_them(shared_agent: HostAgent) -> None:
    """The lease was "-" to whose it is."""
    granted, told = as_nobody(
        shared_agent, ("Lease.Acquire", {"resources": [mem(4096)]}), ("Device.Holders", {})
    )
    lease_id = granted["parameters"]["lease"]["lease_id"]
    [mine] = [one for one in told["parameters"]["holders"] if one["via"] == "bound"]
    assert (mine["lease_id"], mine["uid"]) == (lease_id, NOBODY)
    shared_agent.wait_for(lease_id)


def test_its_leaf_is_not_its_own_to_change(shared_agent: HostAgent) -> None:
    leaf = shared_agent.cgroup / shared_agent.acquire()["lease_id"]
    for name in ("cgroup.procs", "cgroup.kill", "cgroup.freeze"):
        status = (leaf / name).stat()
        assert status.st_uid == 0 and not status.st_mode & 0o022, name
    lease_id = Path(leaf).name
    shared_agent.call("Lease.Release", lease_id=lease_id)
    shared_agent.wait_for(lease_id)
