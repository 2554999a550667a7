# SPDX-License-Identifier: Apache-2.0
"""The agent stopped for a while, stopped cleanly, or without its reaper: deadlines do not wait."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from leased.terms.event import AccessCut, Expired, NodeStopped, Revoked
from tests.doubles.host_agent import (
    NOBODY,
    NS_PER_MS,
    NS_PER_S,
    PATIENCE_S,
    HostAgent,
    boot_ns,
    exited,
)
from tests.doubles.lingering import held_pipe
from tests.doubles.story import judge
from tests.doubles.workloads import Workload

pytestmark = pytest.mark.root

LAG_NS_MAX = 1000 * NS_PER_MS


def test_sigstop_across_a_deadline(agent: HostAgent) -> None:
    load = Workload(agent, "fork", ttl_ms=1000)
    inside = Workload(agent, "fork", "cgroup", ttl_ms=1000)
    with agent.stopped(agent.pid, *agent.workers()):
        for one in (load, inside):
            lag_ns = one.gone_ns() - one.deadline_ns
            print(f"agent stopped: access cut {lag_ns / 1e6:.1f} ms after the deadline")
            assert 0 <= lag_ns < LAG_NS_MAX
        # In its leaf, a child goes with the rest.
        assert inside.child_gone_ns() - inside.deadline_ns < LAG_NS_MAX
        assert load.child_gone_ns() - load.deadline_ns < 2 * LAG_NS_MAX + 2 * NS_PER_S
    for one in (load, inside):
        assert agent.wait_for(one.lease_id)["runtime"]["state"] == "reclaimed"
    lives = judge(agent).lives
    for one in (load, inside):
        life = lives[one.lease_id]
        expired, cut = life.first(Expired), life.first(AccessCut)
        assert expired is not None and expired.effective_ns == one.deadline_ns
        assert isinstance(cut, AccessCut) and cut.by_reaper
        assert life.cut_lag_ns is not None and life.cut_lag_ns < LAG_NS_MAX


def test_a_renewal_that_waited_too_long_loses(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=700)
    with agent.connect() as peer:
        with agent.stopped(agent.pid):
            peer.ask("Lease.Renew", lease_id=load.lease_id, ttl_ns=60 * NS_PER_S)
            load.gone_ns()
        answer = peer.answer()
    assert answer["error"] == "io.leased.Lease.Refused", answer
    assert answer["parameters"]["reason"] in ("deadline_passed", "not_renewable")
    assert agent.wait_for(load.lease_id)["runtime"]["state"] == "reclaimed"


def test_a_clean_stop_leaves_leases_to_the_reaper(agent: HostAgent) -> None:
    short, long = Workload(agent, ttl_ms=1000), Workload(agent, ttl_ms=60_000)
    assert agent.stop() == 0
    assert short.alive and long.alive
    assert 0 <= short.gone_ns() - short.deadline_ns < LAG_NS_MAX
    agent.start()
    assert agent.wait_for(short.lease_id)["runtime"]["state"] == "reclaimed"
    kept = agent.describe(long.lease_id)["runtime"]
    assert kept["state"] == "active" and kept["deadline_boottime_ns"] == long.deadline_ns
    renewed = agent.call("Lease.Renew", lease_id=long.lease_id, ttl_ns=NS_PER_S)
    assert renewed["generation"] == kept["generation"] + 1
    assert 0 <= long.gone_ns() - renewed["deadline_boottime_ns"] < LAG_NS_MAX
    assert agent.wait_for(long.lease_id)["runtime"]["state"] == "reclaimed"
    [stopped] = judge(agent).of(NodeStopped)
    assert isinstance(stopped, NodeStopped) and stopped.live_leases == 2


def test_who_waits_while_the_agent_is_restarted_waits_on() -> None:
    """An upgrade in the night emptied the queue: `run --wait` was told to try again later."""
    words = ("run", "--mem", "4KiB", "--wait", "60s", "--", "echo", "had it")

    def is_in_queue() -> bool:
        assert waits.poll() is None
        return bool(agent.call("Lease.List", admin=True)["waiting"])

    with HostAgent(hardware="normal_share_pm = 1") as agent:
        agent.start()
        [memory] = agent.call("Device.List")["resources"]
        all_of_it = agent.acquire(memory["use"]["free"])
        waits = agent.begin_leasectl(*words)
        while not is_in_queue():
            pass
        assert agent.stop() == 0
        agent.start()
        while not is_in_queue():
            pass
        agent.call("Lease.Release", admin=True, lease_id=all_of_it["lease_id"])
        assert waits.communicate(timeout=PATIENCE_S) == ("had it\n", None)
        assert waits.returncode == 0


GIVES_BACK = """
import sys
from leased.client import plain
with plain.acquire(sys.argv[1], mem="4KiB", ttl=20) as held:
    print(held.lease_id, flush=True)
    sys.stdin.readline()
print("its block is over", flush=True)
sys.stdin.read()
"""


def test_what_is_given_back_while_there_is_no_agent_costs_nobody_his_life(agent: HostAgent) -> None:
    """Bound to the process, by default: it was killed at the deadline of what it had long left."""
    holder = subprocess.Popen(
        [sys.executable, "-c", GIVES_BACK, str(agent.socket)],
        env={**os.environ, **agent.sockets()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    agent.track(holder)
    assert holder.stdin is not None and holder.stdout is not None
    lease_id = holder.stdout.readline().strip()
    assert agent.stop() == 0
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "its block is over\n"
    agent.start()
    assert agent.wait_for(lease_id)["runtime"]["ended"] == "released"
    assert holder.poll() is None


def test_a_reaper_that_is_killed_comes_back_with_every_lease(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=2500)
    inside = Workload(agent, "cgroup", ttl_ms=2500)
    first = agent.kill_reaper()
    second = agent.await_reaper(other_than=first)
    # A renewal is answered by the reaper that is there now: so it holds the lease again.
    for one in (load, inside):
        agent.call("Lease.Renew", lease_id=one.lease_id, ttl_ns=1500 * NS_PER_MS)
        one.deadline_ns = agent.describe(one.lease_id)["runtime"]["deadline_boottime_ns"]
    agent.kill()
    assert second == agent.reaper_pid()
    for one in (load, inside):
        assert 0 <= one.gone_ns() - one.deadline_ns < LAG_NS_MAX
    agent.start()
    for one in (load, inside):
        assert agent.wait_for(one.lease_id)["runtime"]["state"] == "reclaimed"


def test_a_reaper_killed_in_the_middle_of_a_teardown(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=60_000)
    reaper = agent.reaper_pid()
    with agent.stopped(reaper):
        agent.call("Admin.Revoke", admin=True, lease_id=load.lease_id)
        assert agent.describe(load.lease_id)["runtime"]["state"] == "revoking"
        assert agent.kill_reaper() == reaper
    agent.await_reaper(other_than=reaper)
    load.gone_ns()
    assert agent.wait_for(load.lease_id)["runtime"]["state"] == "reclaimed"


def test_agent_and_reaper_both_killed(agent: HostAgent) -> None:
    """Nobody is left to cut; whoever comes back first does. The memory's descriptors went down with
    the two (no systemd keeps them here), so nothing can be proven clean: fenced, never reused."""
    over = Workload(agent, "fork", ttl_ms=500)
    inside = Workload(agent, "cgroup", ttl_ms=60_000)
    agent.kill()
    agent.kill_reaper()
    assert not exited(over.pidfd, (over.deadline_ns - boot_ns()) / NS_PER_S + 0.2)
    agent.start()
    for one in (over, inside):
        one.gone_ns()
        assert agent.wait_for(one.lease_id)["runtime"]["state"] == "fenced"
    assert not exited(over.child_pidfd, 0)  # it has the memory still, and nobody else will get it
    [memory] = agent.call("Device.List")["resources"]
    assert memory["use"]["fenced"] == 2 << 20
    lives = judge(agent).lives
    expired = lives[over.lease_id].first(Expired)
    assert expired is not None and expired.effective_ns == over.deadline_ns
    # Cut before its time, never kept unenforced.
    assert isinstance(lives[inside.lease_id].ended, Revoked)


def test_the_reaper_alone_is_stopped_and_the_cut_waits_for_nobody_else(agent: HostAgent) -> None:
    """A stopped reaper is given up by the agent's link; what it misses is cut when it goes on."""
    load = Workload(agent, ttl_ms=500)
    reaper = os.pidfd_open(agent.reaper_pid())
    agent.defer(os.close, reaper)
    signal.pidfd_send_signal(reaper, signal.SIGSTOP)
    assert not exited(load.pidfd, 0.7)
    signal.pidfd_send_signal(reaper, signal.SIGCONT)
    load.gone_ns()
    assert agent.wait_for(load.lease_id)["runtime"]["state"] == "reclaimed"


def test_who_is_told_twice_to_leave_while_the_reaper_is_away_has_the_shorter_grace(
    agent: HostAgent,
) -> None:
    """What was told later is told at once, and overtakes what waits for the reaper's answer."""
    other, lease = agent.acquire(), agent.acquire()
    with agent.stopped(agent.reaper_pid()):
        for one, grace_ms in ((other, 30_000), (lease, 20_000), (lease, 1_000)):
            grace_ns = grace_ms * NS_PER_MS
            told = agent.call(
                "Admin.Revoke", admin=True, lease_id=one["lease_id"], grace_ns=grace_ns
            )["lease"]["runtime"]
            assert told["state"] == "draining"
    ended = agent.wait_for(lease["lease_id"])["runtime"]
    assert (ended["state"], ended["reason"]) == ("reclaimed", "operator_revoke")
    assert ended["cut_boottime_ns"] >= told["drain_deadline_boottime_ns"]


def open_in(pid: int) -> set[str]:
    """What a process has open, as the kernel calls it."""
    links: set[str] = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(entry.path))
    return links


def test_what_a_stranger_sends_keeps_no_agent_from_its_end(agent: HostAgent) -> None:
    """One message, of any user, with a pipe whose close nobody is let do."""
    with held_pipe(NOBODY) as (reading, writing), agent.connect() as peer:
        os.close(writing)
        pipe = os.readlink(f"/proc/self/fd/{reading}")
        with contextlib.suppress(PermissionError):  # the kernel refuses, since Linux 6.16
            socket.send_fds(peer.sock, [b"{"], [reading])
        closing = threading.Thread(target=os.close, args=[reading])
        closing.start()
        with agent.connect() as other:
            assert other.call("Lease.List")["leases"] == []
        while pipe in open_in(agent.pid):  # an older one has let it in
            os.sched_yield()
        agent.kill()
        agent.start()
    closing.join()
