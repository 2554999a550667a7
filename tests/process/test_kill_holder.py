# SPDX-License-Identifier: Apache-2.0
"""kill -9 of whoever holds a lease, in every state it can be in, and of the CLI in front of it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from leased.terms.event import AccessCut, Activated, Expired, Released, Revoked
from leased.terms.lease import RevocationReason
from tests.doubles.host_agent import NS_PER_MS, HostAgent, end, mem
from tests.doubles.story import Life, tell
from tests.doubles.workloads import Workload

pytestmark = pytest.mark.root

LAG_NS_MAX = 1000 * NS_PER_MS


def closed(agent: HostAgent, lease_id: str) -> Life:
    """Wait for the proof; the life as it was sealed."""
    assert agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"
    return tell(agent).lives[lease_id]


def assert_lost_its_holder(life: Life) -> None:
    revoked = life.ended
    assert isinstance(revoked, Revoked) and revoked.reason is RevocationReason.HOLDER_LOST


def test_holder_killed_while_active(shared_agent: HostAgent) -> None:
    load = Workload(shared_agent, "fork", ttl_ms=60_000)
    load.process.kill()
    assert_lost_its_holder(closed(shared_agent, load.lease_id))
    # Its child had the memory too; it was found and killed before the memory was given back.
    load.child_gone_ns()


def test_holder_killed_while_it_is_being_granted(shared_agent: HostAgent) -> None:
    shared_agent.wait_for(shared_agent.acquire(ttl_ms=500)["lease_id"])
    with shared_agent.connect(admin=True) as peer:
        peer.ask("Lease.Watch", more=True)
        peer.reply()
        with shared_agent.stopped(*shared_agent.workers()):
            asker = shared_agent.track(
                subprocess.Popen([sys.executable, "-I", "-S", "-c", ASK, str(shared_agent.socket)])
            )
            while not (leases := peer.reply()["leases"]):
                continue
            end(asker)
    [lease] = leases
    life = closed(shared_agent, lease["lease_id"])
    assert_lost_its_holder(life)


ASK = f"""
import json, signal, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
asked = {{"resources": [{mem(4096)!r}], "bind": "process"}}
# Before Linux 6.5 the agent knows us by what we say after its first answer.
s.sendall(b'{{"method": "org.varlink.service.GetInfo"}}\\0')
while not s.recv(1 << 16).endswith(b"\\0"):
    pass
call = {{"method": "io.leased.Lease.Acquire", "parameters": asked}}
s.sendall(json.dumps(call).encode() + b"\\0")
signal.pause()
"""


def test_holder_killed_while_draining(shared_agent: HostAgent) -> None:
    load = Workload(shared_agent, ttl_ms=60_000)
    shared_agent.call(
        "Admin.Revoke", admin=True, lease_id=load.lease_id, grace_ns=60_000 * NS_PER_MS
    )
    load.process.kill()
    assert closed(shared_agent, load.lease_id).ended is not None


def test_holder_killed_while_revoking(shared_agent: HostAgent) -> None:
    load = Workload(shared_agent, ttl_ms=60_000)
    with shared_agent.stopped(shared_agent.reaper_pid()):
        shared_agent.call("Admin.Revoke", admin=True, lease_id=load.lease_id)
        load.process.kill()
        load.gone_ns()
    revoked = closed(shared_agent, load.lease_id).ended
    assert isinstance(revoked, Revoked) and revoked.reason is RevocationReason.OPERATOR_REVOKE


def test_holder_stopped_across_its_deadline(shared_agent: HostAgent) -> None:
    load = Workload(shared_agent, ttl_ms=600)
    with shared_agent.stopped(load.process.pid):
        assert 0 <= load.gone_ns() - load.deadline_ns < LAG_NS_MAX
    assert isinstance(closed(shared_agent, load.lease_id).ended, Expired)


def test_everybody_in_the_leaf_killed(shared_agent: HostAgent) -> None:
    load = Workload(shared_agent, "cgroup", ttl_ms=60_000)
    load.process.kill()
    assert isinstance(closed(shared_agent, load.lease_id).ended, Released)


def test_the_connection_alone_is_not_the_holder(shared_agent: HostAgent) -> None:
    """A lease is bound to a process, not to a socket of it."""
    with shared_agent.connect() as peer:
        peer.call("Lease.List")  # on record by what it says after an answer, before Linux 6.5
        asked = {"resources": [mem(4096)], "ttl_ns": 60_000 * NS_PER_MS, "bind": "process"}
        lease = peer.call("Lease.Acquire", **asked)["lease"]
    assert shared_agent.describe(lease["lease_id"])["runtime"]["state"] == "active"
    shared_agent.call("Lease.Release", lease_id=lease["lease_id"])
    life = closed(shared_agent, lease["lease_id"])
    assert life.first(Activated) and life.first(AccessCut)


def test_cli_killed_leaves_its_command_to_the_deadline(shared_agent: HostAgent) -> None:
    command = (
        "trap '' TERM HUP INT; echo $LEASE_ID; echo $$; while :; do read -t 1 _ <> /dev/zero; done"
    )
    cli = shared_agent.track(
        subprocess.Popen(
            [
                *(sys.executable, "-m", "leased.ctl.main", "run", "--mem", "1MiB"),
                *("--ttl", "1500ms", "--", "bash", "-c", command),
            ],
            env={"PATH": "/usr/bin:/bin", **shared_agent.sockets()},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    )
    assert cli.stdout is not None
    lease_id = cli.stdout.readline().strip()
    cli.send_signal(signal.SIGKILL)
    cli.wait()
    deadline_ns = shared_agent.describe(lease_id)["runtime"]["deadline_boottime_ns"]
    # Nobody renews it now; the pipe is at its end when the last process of the lease is gone.
    rest = cli.stdout.read()
    assert rest.strip().isdigit()
    life = closed(shared_agent, lease_id)
    expired, cut = life.first(Expired), life.first(AccessCut)
    assert expired is not None and cut is not None
    assert 0 <= cut.effective_ns - deadline_ns < LAG_NS_MAX
