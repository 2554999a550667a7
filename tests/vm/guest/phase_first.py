# SPDX-License-Identifier: Apache-2.0
"""The first boot: a day's work on a host with everything, and leases that live when it reboots."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import host
import pytest
from host import ADMIN, LIVES_S, MIB, Connection, Failed, call, eventually, memory, prop

KEPT = Path("/var/lib/leased-suite.json")
"""What the second boot wants to know of the first."""

UNITS = (
    "leased.service",
    "leased.socket",
    "leased-admin.socket",
    "leased-reaper.service",
    "leased-cgroup.service",
)

HOLDER = """
import array, json, mmap, os, signal, socket, sys, time
sys.path.insert(0, {path!r})
from host import Connection, memory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
connection = Connection()
granted = connection.acquire(memory({capacity}, node={node}), ttl_s={ttl_s})
view = mmap.mmap(connection.fds[0], {capacity})
child = os.fork()
for at in range(0, {capacity}, 4096):
    view[at] = 0xA5
if child:
    print(json.dumps([granted["lease"]["lease_id"], os.getpid(), child]), flush=True)
while True:
    view[0] = 0x5A
    time.sleep(0.01)
"""


@pytest.fixture
def connection() -> Iterator[Connection]:
    opened = Connection()
    yield opened
    opened.close()


def holder_script(*, capacity: int, node: int, ttl_s: float) -> str:
    return HOLDER.format(path=os.path.dirname(__file__), capacity=capacity, node=node, ttl_s=ttl_s)


def holder(
    *, capacity: int, node: int, user: str, ttl_s: float = LIVES_S
) -> tuple[subprocess.Popen[str], str, list[int]]:
    """A process of `user` that leases memory, forks, writes it for ever and ignores SIGTERM."""
    script = holder_script(capacity=capacity, node=node, ttl_s=ttl_s)
    words = ["runuser", "-u", user, "--", sys.executable, "-c", script]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lease_id, *pids = json.loads(process.stdout.readline())
    return process, lease_id, pids


def assert_given_back(connection: Connection, lease_id: str) -> None:
    """Close what came with a lease, release it, and see it proven clean. Whoever kept a descriptor
    would be killed."""
    connection.close_fds()
    connection.call("Lease.Release", lease_id=lease_id)
    assert host.closed(lease_id)["state"] == "reclaimed"


def end(pids: list[int]) -> None:
    """Kill a holder and its child: the lease is bound to the holder and ends with it."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def as_user(user: str, script: str) -> subprocess.CompletedProcess[str]:
    """A script of another user's."""
    words = ["runuser", "-u", user, "--", sys.executable, "-c", script]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def gone(pid: int) -> bool:
    """No such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---- the host ------------------------------------------------------------------------------------


def test_every_unit_is_up_and_none_failed() -> None:
    host.serving()
    for unit in UNITS:
        assert prop(unit, "ActiveState") == "active", unit
    failed = host.run("systemctl", "--failed", "--plain", "--no-legend")
    assert "leased" not in failed
    host.offered("mem:node0:4096", "mem:node1:4096", "cpu:1")


def test_the_hardening_is_in_force() -> None:
    for unit in ("leased.service", "leased-reaper.service"):
        text = Path(f"/proc/{host.main_pid(unit)}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1", unit
        assert status["Seccomp"] == "2", unit
        # CAP_SYS_ADMIN they have: device-mapper asks for it. What it would also allow (mounts,
        # modules, clocks) is for the units' SystemCallFilter, which is not tried here.
        for number, name in ((16, "SYS_MODULE"), (17, "SYS_RAWIO"), (22, "SYS_BOOT")):
            assert not int(status["CapBnd"], 16) & 1 << number, f"{unit} has CAP_{name}"
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16), unit
    pid = host.main_pid("leased-reaper.service")
    scheduled = host.run("ps", "-o", "cls=,rtprio=", "-p", str(pid))
    assert scheduled.split() == ["FF", "10"]


def test_sockets_have_their_modes() -> None:
    for path, mode in ((host.USER, 0o666), (host.ADMIN, 0o600)):
        assert os.stat(path).st_mode & 0o777 == mode
    knock = f"import socket; socket.socket(1).connect({ADMIN!r})"
    assert "PermissionError" in as_user("bob", knock).stderr


def test_every_controller_reaches_the_leases() -> None:
    assert (host.CGROUP / "cgroup.controllers").exists(), (
        "the delegated root is there without a process in it"
    )
    given = (host.CGROUP / "cgroup.subtree_control").read_text().split()
    assert {"cpu", "cpuset", "memory", "pids", "hugetlb"} <= set(given)


def test_the_tiers_are_what_hmat_says() -> None:
    resources = {r["resource_id"]: r for r in call("Device.List")["resources"]}
    near, far = resources["mem:node0:4096"], resources["mem:node1:4096"]
    assert (near["tier"], near["read_latency_ns"]) == ("dram", 90)
    assert (far["read_latency_ns"], far["read_bandwidth_mibps"]) == (350, 20480)
    assert far["tier"] != "dram"
    assert near["evidence"] == far["evidence"] == "measured"
    for node in (0, 1):
        assert resources[f"mem:node{node}:2097152"]["capacity"] == 24 * 2 * MIB
    assert "cpu:1" in resources


def test_doctor_has_nothing_to_complain_of() -> None:
    host.leasectl("doctor")


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1])
def test_memory_is_where_it_was_asked_for_and_comes_back(connection: Connection, node: int) -> None:
    before = host.free(f"mem:node{node}:4096")
    lease = connection.acquire(memory(8 * MIB, node=node))["lease"]
    with mmap.mmap(connection.fds[0], 8 * MIB) as view:
        view[:] = b"\xa5" * (8 * MIB)
        maps = Path("/proc/self/numa_maps").read_text()
        (mine,) = [line for line in maps.splitlines() if "memfd" in line]
        assert f"N{node}=2048" in mine.split(), mine
    assert host.free(f"mem:node{node}:4096")["leased"] == before["leased"] + 8 * MIB
    assert_given_back(connection, lease["lease_id"])
    assert host.free(f"mem:node{node}:4096") == before


def test_huge_pages_of_the_right_node_come_back(connection: Connection) -> None:
    before = [host.huge_pages_free(node) for node in (0, 1)]
    lease = connection.acquire(memory(8 * MIB, node=1, page_size=2 * MIB))["lease"]
    assert [host.huge_pages_free(node) for node in (0, 1)] == [before[0], before[1] - 4]
    with mmap.mmap(connection.fds[0], 8 * MIB) as view:
        view[:] = b"\xa5" * (8 * MIB)
    assert_given_back(connection, lease["lease_id"])
    assert [host.huge_pages_free(node) for node in (0, 1)] == before


def test_huge_pages_that_somebody_takes_without_a_lease_have_none_fenced(
    connection: Connection,
) -> None:
    before = host.huge_pages_free(0)
    granted = connection.acquire(memory(4 * MIB, node=0, page_size=2 * MIB), ttl_s=LIVES_S)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB; the node is our own
    with mmap.mmap(-1, 4 * MIB, flags=flags) as taken:
        taken[0] = taken[2 * MIB] = 1
        assert host.huge_pages_free(0) == before - 4
        assert_given_back(connection, granted["lease"]["lease_id"])
    assert host.huge_pages_free(0) == before


def test_more_huge_pages_than_there_are_is_refused_with_its_numbers(connection: Connection) -> None:
    with pytest.raises(Failed) as refused:
        connection.acquire(memory(25 * 2 * MIB, node=0, page_size=2 * MIB))
    assert refused.value.name == "io.leased.Lease.Refused"
    assert refused.value.parameters["reason"] == "no_capacity"
    assert refused.value.parameters["requested"] == 50 * MIB


def test_a_holder_that_ignores_everything_is_cut_at_the_deadline() -> None:
    process, lease_id, pids = holder(capacity=16 * MIB, node=1, user="alice")
    deadline_ns = host.end_in(lease_id, 3)
    eventually("the holder is gone", lambda: gone(pids[0]))
    assert host.boot_ns() >= deadline_ns
    ended = host.closed(lease_id)
    assert (ended["state"], ended["ended"]) == ("reclaimed", "expired")
    assert host.came_at(deadline_ns, ended["cut_boottime_ns"])
    eventually("its child is gone too: it still held the memory", lambda: gone(pids[1]))
    process.wait()


def test_whoever_has_memory_is_named_and_nobody_of_ours_is() -> None:
    """Not the agent, the reaper, or systemd, which keeps descriptors for the reaper."""
    process, lease_id, pids = holder(capacity=MIB, node=1, user="alice")
    found = json.loads(host.leasectl("--admin", "holders", "mem:node1:4096", "--json"))["holders"]
    assert {one["pid"] for one in found if one["via"] == "memory"} == set(pids), found
    end(pids)
    assert host.closed(lease_id)["state"] == "reclaimed"
    process.wait()


def test_a_tenant_sees_nothing_of_another() -> None:
    process, lease_id, pids = holder(capacity=4096, node=0, user="alice")
    script = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import host; "
    for method in ("Describe", "Release", "Renew"):
        act = f"host.call('Lease.{method}', lease_id={lease_id!r})"
        said = as_user("bob", script + act).stderr
        assert "io.leased.Lease.NoSuchLease" in said, method
    end(pids)
    assert host.closed(lease_id)["state"] == "reclaimed"
    process.wait()


def test_births_are_heard_from_inside_the_unit(connection: Connection) -> None:
    """Whoever listens to the kernel's process connector hears how it answered others, too: so the
    agent's worker asked to be told of births while it adopted, and was let."""
    granted = connection.acquire({"kind": "cpu", "capacity": 100}, bind="cgroup", ttl_s=LIVES_S)
    lease_id = granted["lease"]["lease_id"]
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11) as births,
        subprocess.Popen(["sleep", "infinity"]) as adopted,
    ):
        births.bind((0, 1))
        births.settimeout(30)
        births.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE: it hears of all
        call("Admin.Adopt", ADMIN, lease_id=lease_id, pid=adopted.pid)
        assert lease_id in Path(f"/proc/{adopted.pid}/cgroup").read_text()
        what = None
        while what != 0:  # PROC_EVENT_NONE: an answer
            told = births.recv(4096)
            (what,) = struct.unpack_from("=I", told, 16 + 20)
        assert struct.unpack_from("=I", told, 16 + 20 + 16) == (0,)
        adopted.kill()
    assert_given_back(connection, lease_id)


# ---- processors ----------------------------------------------------------------------------------


def test_a_whole_core_is_a_cpuset() -> None:
    inside = (
        "cat /proc/self/cgroup; nproc; read -r own </proc/self/cgroup;"
        "cat /sys/fs/cgroup${own#0::}/cpuset.cpus.effective"
    )
    said = host.leasectl("run", "--cpu", "1", "--", "sh", "-c", inside, user="alice")
    cgroup, count, cpus = said.splitlines()
    assert cgroup.startswith("0::/leased.slice/leased-cgroup.service/")
    assert (count, cpus) == ("1", "1"), "the first core is the host's"


def test_half_a_core_is_half_a_core() -> None:
    spin = (
        "import time; end, begun = time.monotonic() + 4, time.process_time()\n"
        "while time.monotonic() < end: pass\n"
        "own = open('/proc/self/cgroup').read().strip().removeprefix('0::')\n"
        "said = dict(line.split() for line in open(f'/sys/fs/cgroup{own}/cpu.stat'))\n"
        "print(time.process_time() - begun, said['nr_throttled'])"
    )
    said = host.leasectl("run", "--cpu", "500m", "--", sys.executable, "-c", spin, user="alice")
    used_s, throttled = said.split()[-2:]
    assert float(used_s) < 2.8 and int(throttled) > 0


def test_a_fork_bomb_stays_in_its_lease_and_ends_with_it() -> None:
    # So many that their end is a matter of seconds, by an emulated processor: how long the reaper
    # waits for it (`cut`) is not what this is about.
    few = "import os, resource\nresource.setrlimit(resource.RLIMIT_NPROC, (250, 250))\n"
    bomb = f"{few}while True:\n  try: os.fork()\n  except OSError: pass"
    words = ["runuser", "-u", "alice", "--", "leasectl", "run", "--cpu", "500m"]
    words += ["--ttl", "5s", "--no-renew", "--", sys.executable, "-c", bomb]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode in (79, 137), done.stderr
    left = ["pgrep", "-u", "alice", "python"]
    eventually(
        "nothing of it is left", lambda: not subprocess.run(left, capture_output=True).stdout
    )


# ---- the journal ---------------------------------------------------------------------------------


def test_a_lease_in_the_journal(connection: Connection) -> None:
    lease_id = connection.acquire(memory(4096, node=0), workload="vm-suite")["lease"]["lease_id"]
    assert_given_back(connection, lease_id)
    entries = host.journal(f"LEASE_ID={lease_id}", "LEASE_EVENT=Reclaimed")
    entries = host.journal(f"LEASE_ID={lease_id}")
    events = [entry["LEASE_EVENT"] for entry in entries if "LEASE_EVENT" in entry]
    assert events[0] == "Allocated"
    assert events[-1] == "Reclaimed"
    assert {"Activated", "Released", "AccessCut", "Scrubbed"} <= set(events)
    first = entries[0]
    assert first["LEASE_TENANT"] == "uid-0"
    assert first["LEASE_WORKLOAD"] == "vm-suite"
    assert first["_SYSTEMD_UNIT"] == "leased.service"
    assert first["SYSLOG_IDENTIFIER"] == "leased"
    assert re.fullmatch("[0-9a-f]{64}", first["LEASE_HASH"])
    sequences = [int(entry["LEASE_SEQ"]) for entry in entries if "LEASE_SEQ" in entry]
    assert sequences == sorted(sequences)
    said = host.leasectl("verify", "--head", first["LEASE_HASH"])
    assert f"record {first['LEASE_SEQ']} has the head" in said


def test_the_catalog_explains_it(connection: Connection) -> None:
    said = host.run("journalctl", "-x", "-n", "1", "--no-pager", "LEASE_EVENT=Reclaimed")
    assert "The capacity of a lease is free again" in said
    assert "man:leased(8)" in said


# ---- the promise, with one of the two dead -------------------------------------------------------


def test_a_stopped_agent_is_started_by_its_socket_and_leases_go_on() -> None:
    process, lease_id, pids = holder(capacity=MIB, node=0, user="alice")
    before = host.describe(lease_id)
    host.run("systemctl", "stop", "leased.service")
    assert prop("leased.service", "ActiveState") == "inactive"
    assert prop("leased.socket", "ActiveState") == "active"
    assert not any(gone(pid) for pid in pids)
    after = host.describe(lease_id)
    assert prop("leased.service", "ActiveState") == "active", "the call itself started it"
    assert after["state"] == "active"
    for same in ("deadline_boottime_ns", "generation", "granted_boottime_ns"):
        assert after[same] == before[same], f"{same} survives a restart exactly"
    call("Admin.Revoke", ADMIN, lease_id=lease_id)
    assert host.closed(lease_id)["state"] == "reclaimed"
    eventually("an operator's word ends the holder", lambda: gone(pids[0]))
    process.wait()


def test_a_killed_agent_comes_back_to_its_leases() -> None:
    process, lease_id, pids = holder(capacity=MIB, node=1, user="alice")
    before = host.describe(lease_id)
    pid = host.main_pid("leased.service")
    os.kill(pid, signal.SIGKILL)
    eventually("systemd starts it again", lambda: host.main_pid("leased.service") not in (0, pid))
    host.serving()
    after = host.describe(lease_id)
    assert after["state"] == "active"
    assert after["deadline_boottime_ns"] == before["deadline_boottime_ns"]
    end(pids)
    assert host.closed(lease_id)["state"] == "reclaimed"
    process.wait()


def test_a_hung_agent_is_replaced_by_its_watchdog_and_the_lease_ends_in_time() -> None:
    process, lease_id, pids = holder(capacity=MIB, node=0, user="alice")
    pid = host.main_pid("leased.service")
    restarts = int(prop("leased.service", "NRestarts"))
    deadline_ns = host.end_in(lease_id, 2)
    os.kill(pid, signal.SIGSTOP)
    eventually("the reaper cuts", lambda: gone(pids[0]))
    eventually("the watchdog replaces it", lambda: host.main_pid("leased.service") not in (0, pid))
    assert int(prop("leased.service", "NRestarts")) > restarts
    host.serving()
    ended = host.closed(lease_id)
    assert (ended["state"], ended["ended"]) == ("reclaimed", "expired")
    assert host.came_at(deadline_ns, ended["cut_boottime_ns"])
    assert ended["cut_boottime_ns"] < host.started_ns("leased.service"), "without the agent"
    process.wait()


def descriptors_stored() -> int:
    return int(prop("leased-reaper.service", "NFileDescriptorStore"))


def test_a_killed_reaper_has_its_descriptors_back_and_ends_the_lease_in_time() -> None:
    process, lease_id, pids = holder(capacity=4 * MIB, node=1, user="alice")
    stored = descriptors_stored()
    assert stored >= 1
    pid = host.main_pid("leased-reaper.service")
    os.kill(pid, signal.SIGKILL)
    eventually(
        "systemd starts it again", lambda: host.main_pid("leased-reaper.service") not in (0, pid)
    )
    eventually("the agent has found it", lambda: call("Admin.Status", ADMIN)["reaper_connected"])
    assert host.describe(lease_id)["state"] == "active"
    assert not gone(pids[0])
    deadline_ns = host.end_in(lease_id, 2)
    eventually("cut at the deadline", lambda: gone(pids[0]))
    ended = host.closed(lease_id)
    assert (ended["state"], ended["ended"]) == ("reclaimed", "expired")
    assert host.came_at(deadline_ns, ended["cut_boottime_ns"])
    eventually("its memory has left the store", lambda: descriptors_stored() < stored)
    process.wait()


def test_with_both_dead_the_reaper_comes_back_and_cuts() -> None:
    process, lease_id, pids = holder(capacity=MIB, node=0, user="alice")
    deadline_ns = host.end_in(lease_id, 10)
    host.run("systemctl", "stop", "leased.service", "leased.socket", "leased-admin.socket")
    os.kill(host.main_pid("leased-reaper.service"), signal.SIGKILL)
    eventually("the holder is gone with no agent at all", lambda: gone(pids[0]))
    host.run("systemctl", "start", "leased.socket", "leased-admin.socket", "leased.service")
    host.serving()
    ended = host.closed(lease_id)
    assert ended["state"] == "reclaimed"
    assert host.came_at(deadline_ns, ended["cut_boottime_ns"])
    assert ended["cut_boottime_ns"] < host.started_ns("leased.service")
    process.wait()


def test_the_units_that_hold_leases_refuse_to_be_stopped() -> None:
    for unit in ("leased-reaper.service", "leased-cgroup.service"):
        done = subprocess.run(["systemctl", "stop", unit], capture_output=True, text=True)
        assert done.returncode != 0
        assert prop(unit, "ActiveState") == "active"


def test_a_second_agent_on_the_same_state_is_refused() -> None:
    done = subprocess.run(["/opt/leased/bin/leased"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 78, done.stdout + done.stderr
    assert "/var/lib/leased/audit" in done.stderr


# ---- the chain -----------------------------------------------------------------------------------


def test_the_day_verifies() -> None:
    assert host.leasectl("verify").startswith("ok: ")
    fenced = call("Admin.Status", ADMIN)["leases"]["fenced"]
    assert fenced == 0, "nothing of this day could not be proven clean"


def test_leases_that_are_alive_when_the_host_reboots() -> None:
    """The last test of this boot: two leases outlive it on paper, and must not outlive it.

    Their holders are stopped after the agent, so that nobody gives them back on the way down.
    """
    kept = []
    for node in (0, 1):
        script = holder_script(capacity=2 * MIB, node=node, ttl_s=LIVES_S)
        told = Path(f"/run/holder{node}")
        told.touch()
        unit = [
            "--quiet",
            f"--unit=holder{node}",
            "-p",
            "Before=leased.service",
            "-p",
            "User=alice",
        ]
        # It ignores SIGTERM; the host should not wait for it long.
        unit += ["-p", f"StandardOutput=file:{told}", "-p", "TimeoutStopSec=2"]
        host.run("systemd-run", *unit, sys.executable, "-c", script)
        kept.append(json.loads(eventually("the lease is granted", told.read_text))[0])
    status = call("Admin.Status", ADMIN)
    facts = {"leases": kept, "boot_id": host.boot_id(), "head": status["head"]}
    KEPT.write_text(json.dumps(facts))
    os.sync()
    assert status["leases"]["active"] >= 2
