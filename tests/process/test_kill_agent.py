# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the agent in every state that a lease can be in: every lease comes to its end, on
time, and nothing is granted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from leased.terms.event import Activated, Allocated, Expired, NodeStarted, Released, Revoked
from leased.terms.lease import RevocationReason
from tests.doubles.host_agent import (
    NS_PER_MS,
    NS_PER_S,
    HostAgent,
    boot_ns,
    denied,
    exited,
    mem,
    obstructed,
)
from tests.doubles.story import judge
from tests.doubles.wire_peer import Peer, Remote
from tests.doubles.workloads import Workload

pytestmark = pytest.mark.root

LAG_NS_MAX = 1000 * NS_PER_MS
"""On an idle host it is 5 ms; this host runs other tests too."""


@contextlib.contextmanager
def watching(agent: HostAgent, lease_id: str | None = None) -> Iterator[Peer]:
    """A Watch of an operator, with its first answer taken."""
    with agent.connect(admin=True) as peer:
        peer.ask("Lease.Watch", more=True, **({"lease_id": lease_id} if lease_id else {}))
        peer.reply()
        yield peer


def seen(peer: Peer, state: str, lease_id: str | None = None) -> str:
    """Wait until a lease is seen in the state; which."""
    while True:
        for lease in peer.reply()["leases"]:
            if lease_id in (None, lease["lease_id"]) and lease["runtime"]["state"] == state:
                return lease["lease_id"]


def state_of(agent: HostAgent, lease_id: str) -> str:
    return agent.describe(lease_id)["runtime"]["state"]


def end_of(agent: HostAgent, lease_id: str) -> str:
    return agent.wait_for(lease_id)["runtime"]["state"]


def test_granted(agent: HostAgent) -> None:
    """Sealed, but never prepared nor answered: nobody has it, so it ends."""
    agent.wait_for(agent.acquire(ttl_ms=500)["lease_id"])  # every worker has been started
    with watching(agent) as peer, agent.connect() as asker, agent.stopped(*agent.workers()):
        asker.ask("Lease.Acquire", resources=[mem(4096)], bind="cgroup")
        lease_id = seen(peer, "granted")
        agent.kill()
        with pytest.raises((EOFError, ConnectionError)):
            asker.reply()
    agent.start()
    assert end_of(agent, lease_id) == "reclaimed"
    life = judge(agent).lives[lease_id]
    assert life.first(Activated) is None
    revoked = life.first(Revoked)
    assert isinstance(revoked, Revoked) and revoked.reason is RevocationReason.GRANT_FAILED


def test_active_goes_on_with_the_same_deadline_and_then_ends_by_it(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=3000)
    before = agent.describe(load.lease_id)["runtime"]
    agent.kill()
    agent.start()
    after = agent.describe(load.lease_id)["runtime"]
    assert (after["state"], after["generation"]) == ("active", before["generation"])
    assert after["deadline_boottime_ns"] == before["deadline_boottime_ns"] == load.deadline_ns
    assert load.alive
    assert 0 <= load.gone_ns() - load.deadline_ns < LAG_NS_MAX
    assert end_of(agent, load.lease_id) == "reclaimed"
    story = judge(agent)
    expired = story.lives[load.lease_id].first(Expired)
    assert expired is not None and expired.effective_ns == load.deadline_ns
    assert len(story.of(NodeStarted)) == 2


def test_active_ends_on_time_without_any_agent(agent: HostAgent) -> None:
    load = Workload(agent, "fork", ttl_ms=1000)
    agent.kill()
    lag_ns = load.gone_ns() - load.deadline_ns
    print(f"agent dead: access cut {lag_ns / 1e6:.1f} ms after the deadline")
    assert 0 <= lag_ns < LAG_NS_MAX
    # The child is in no cgroup of ours: the reaper's backstop takes the memory from under it.
    child_ns = load.child_gone_ns() - load.deadline_ns
    print(f"agent dead: an escapee lost the memory {child_ns / 1e6:.1f} ms after the deadline")
    assert child_ns < 2 * LAG_NS_MAX + 2000 * NS_PER_MS
    agent.start()
    assert end_of(agent, load.lease_id) == "reclaimed"
    assert judge(agent).lives[load.lease_id].first(Expired) is not None
    assert "the reaper cannot hold it" not in agent.log(), "it ended in its time"


def test_draining(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=60_000)
    grace_ns = 2000 * NS_PER_MS
    agent.call("Admin.Revoke", admin=True, lease_id=load.lease_id, grace_ns=grace_ns)
    told = agent.describe(load.lease_id)["runtime"]
    assert told["state"] == "draining"
    agent.kill()
    agent.start()
    after = agent.describe(load.lease_id)["runtime"]
    assert after["state"] == "draining" and after["reason"] == "operator_revoke"
    drain_ns = after["drain_deadline_boottime_ns"]
    assert drain_ns == told["drain_deadline_boottime_ns"]
    with denied("draining"):
        agent.call("Lease.Renew", lease_id=load.lease_id)
    assert 0 <= load.gone_ns() - drain_ns < LAG_NS_MAX
    assert end_of(agent, load.lease_id) == "reclaimed"


def test_draining_with_nobody_to_restart_the_agent(agent: HostAgent) -> None:
    """The reaper was told of the end of the notice, and needs nobody to keep to it."""
    load = Workload(agent, ttl_ms=2000)
    agent.call("Admin.Revoke", admin=True, lease_id=load.lease_id, grace_ns=500 * NS_PER_MS)
    drain_ns = agent.describe(load.lease_id)["runtime"]["drain_deadline_boottime_ns"]
    agent.kill()
    gone_ns = load.gone_ns()
    print(f"agent dead: gone {(gone_ns - drain_ns) / 1e6:.1f} ms after the end of the notice")
    assert drain_ns <= gone_ns < drain_ns + LAG_NS_MAX
    agent.start()
    assert end_of(agent, load.lease_id) == "reclaimed"


def test_revoking(agent: HostAgent) -> None:
    """The reaper has not cut yet when the agent dies."""
    load = Workload(agent, ttl_ms=60_000)
    with watching(agent, load.lease_id) as peer, agent.stopped(agent.reaper_pid()):
        agent.call("Admin.Revoke", admin=True, lease_id=load.lease_id)
        seen(peer, "revoking", load.lease_id)
        agent.kill()
        assert load.alive
    agent.start()
    load.gone_ns()
    assert end_of(agent, load.lease_id) == "reclaimed"


def test_scrubbing(agent: HostAgent) -> None:
    lease_id = agent.acquire(1 << 20)["lease_id"]
    with watching(agent, lease_id) as peer, agent.stopped(*agent.workers()):
        agent.call("Lease.Release", lease_id=lease_id)
        seen(peer, "scrubbing", lease_id)
        agent.kill()
    agent.start()
    assert end_of(agent, lease_id) == "reclaimed"


def test_verifying(agent: HostAgent) -> None:
    lease_id = agent.acquire(1 << 20)["lease_id"]
    with watching(agent, lease_id) as peer, obstructed(agent.cgroup / lease_id):
        agent.call("Lease.Release", lease_id=lease_id)
        seen(peer, "verifying", lease_id)
        agent.kill()
    agent.start()
    assert end_of(agent, lease_id) == "reclaimed"


def test_fenced_stays_fenced_until_an_operator_says_otherwise(agent: HostAgent) -> None:
    lease_id = agent.acquire(1 << 20)["lease_id"]
    with obstructed(agent.cgroup / lease_id):
        agent.call("Lease.Release", lease_id=lease_id)
        assert end_of(agent, lease_id) == "fenced"
        agent.kill()
        agent.start()
        assert state_of(agent, lease_id) == "fenced"
        [memory] = agent.call("Device.List")["resources"]
        assert memory["use"]["fenced"] == 1 << 20
    agent.call("Admin.Unfence", admin=True, lease_id=lease_id)
    assert state_of(agent, lease_id) == "reclaimed"
    [memory] = agent.call("Device.List")["resources"]
    assert memory["use"]["fenced"] == 0


def test_a_reply_that_was_lost_is_given_again(agent: HostAgent) -> None:
    """The client did not hear of its grant; the same command after the restart finds the lease."""
    asked = {"resources": [mem(4096)], "command_id": "ab" * 16, "bind": "cgroup"}
    first = agent.call("Lease.Acquire", **asked)["lease"]["lease_id"]
    agent.kill()
    agent.start()
    again = agent.call("Lease.Acquire", **asked)
    assert again["attached"] and again["lease"]["lease_id"] == first
    assert len(judge(agent).of(Allocated)) == 1


def test_a_command_id_stands_for_one_request_over_a_kill(agent: HostAgent) -> None:
    """What it was first used for is known from the log alone."""
    asked = {"resources": [mem(4096)], "command_id": "ab" * 16, "bind": "cgroup", "workload": "a"}
    others = {"resources": [mem(8192)], "workload": "b", "priority": "guaranteed"}
    agent.call("Lease.Acquire", **asked)
    for killed in (False, True):
        if killed:
            agent.kill()
            agent.start()
        for name, value in others.items():
            with pytest.raises(Remote) as told:
                agent.call("Lease.Acquire", **{**asked, name: value})
            assert told.value.parameters["reason"] == "command_id_used"
            assert told.value.parameters["what"] == name
        assert agent.call("Lease.Acquire", **asked)["attached"]
    assert len(judge(agent).of(Allocated)) == 1


def test_a_renewal_before_the_kill_counts_after_it(agent: HostAgent) -> None:
    load = Workload(agent, ttl_ms=1500)
    renewed = agent.call("Lease.Renew", lease_id=load.lease_id, ttl_ns=3500 * NS_PER_MS)
    agent.kill()
    agent.start()
    after = agent.describe(load.lease_id)["runtime"]
    assert after["deadline_boottime_ns"] == renewed["deadline_boottime_ns"]
    assert after["generation"] == renewed["generation"]
    assert 0 <= load.gone_ns() - renewed["deadline_boottime_ns"] < LAG_NS_MAX
    assert end_of(agent, load.lease_id) == "reclaimed"


def test_a_leaf_that_nobody_has_joined_yet_is_not_left(agent: HostAgent) -> None:
    lease_id = agent.acquire(ttl_ms=2000)["lease_id"]
    agent.kill()
    agent.start()
    agent.call("Lease.Renew", lease_id=lease_id)
    assert state_of(agent, lease_id) == "active"
    assert end_of(agent, lease_id) == "reclaimed"
    assert isinstance(judge(agent).lives[lease_id].ended, Expired)


def test_who_left_its_leaf_after_the_restart_gave_the_lease_back(agent: HostAgent) -> None:
    load = Workload(agent, "cgroup", ttl_ms=60_000)
    agent.kill()
    agent.start()
    load.process.kill()
    assert end_of(agent, load.lease_id) == "reclaimed"
    assert isinstance(judge(agent).lives[load.lease_id].ended, Released)


def test_adopted_leases_survive_the_reaper_too(agent: HostAgent) -> None:
    """A restarted agent holds enough of each lease to arm the next reaper."""
    load = Workload(agent, ttl_ms=60_000)
    agent.kill()
    agent.start()
    first = agent.kill_reaper()
    agent.await_reaper(other_than=first)
    renewed = agent.call("Lease.Renew", lease_id=load.lease_id, ttl_ns=700 * NS_PER_MS)
    agent.kill()
    assert 0 <= load.gone_ns() - renewed["deadline_boottime_ns"] < LAG_NS_MAX
    agent.start()
    assert end_of(agent, load.lease_id) == "reclaimed"


def test_renewals_that_the_reaper_never_heard_of_count_all_the_same(agent: HostAgent) -> None:
    """Sealed, then the agent died before the reaper was told: all of them are told at the start."""
    loads = [Workload(agent, ttl_ms=6000) for _ in range(3)]
    with contextlib.ExitStack() as peers, agent.stopped(agent.reaper_pid()):
        for load in loads:
            peer = peers.enter_context(agent.connect())
            peer.ask("Lease.Renew", lease_id=load.lease_id, ttl_ns=8000 * NS_PER_MS)
            # Answered after the commit of the renewal, in its batch or a later one.
            agent.describe(load.lease_id)
        agent.kill()
    lives = judge(agent).lives
    assert all(lives[load.lease_id].deadline_ns > load.deadline_ns for load in loads)
    agent.start()
    assert boot_ns() < loads[0].deadline_ns, "this host is too busy for this test"
    lost = [load for load in loads if exited(load.pidfd, left_s(load) + 0.3)]
    assert not lost, f"{len(lost)} of {len(loads)} were cut at the old deadline"
    for load in loads:
        assert 0 <= load.gone_ns() - lives[load.lease_id].deadline_ns < LAG_NS_MAX


def left_s(load: Workload) -> float:
    return max(0.0, (load.deadline_ns - boot_ns()) / NS_PER_S)
