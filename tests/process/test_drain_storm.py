# SPDX-License-Identifier: Apache-2.0
"""A storm of renewals with drains and revocations in the middle of it, some of leases that are
being prepared, some told twice, some put off by their holders: whoever is told to leave has until
then.

`LEASED_DRAIN_SEED` changes the seed, `LEASED_DRAINS` the number of drains; both are printed. Ten
drains beside six busy processes are a load of 8 to 10.
"""

from __future__ import annotations

import contextlib
import os
import threading
from random import Random

import pytest

from leased.terms.event import AccessCut, DrainNotified, Released, Revoked
from leased.terms.lease import RevocationReason
from tests.doubles.host_agent import NS_PER_MS, NS_PER_S, HostAgent, mem
from tests.doubles.story import Life, judge
from tests.doubles.wire_peer import Peer, Remote

pytestmark = pytest.mark.root

SEED = int(os.environ.get("LEASED_DRAIN_SEED", "20261130"))
DRAINS = int(os.environ.get("LEASED_DRAINS", "3"))
CLIENTS = 32
MIB = 1 << 20
SIZES = (4096, 4096, MIB, 17 * MIB)
"""The last goes its own way to its holder, and is told to leave on it."""
TTLS_NS = (5 * NS_PER_S, 20 * NS_PER_S)


class Client(threading.Thread):
    """Holds one lease after the other, and renews each for as long as it may."""

    def __init__(self, agent: HostAgent, seed: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.agent, self.random, self.over = agent, Random(seed), over
        self.renewals = 0
        self.late: set[str] = set()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until it is over."""
        try:
            with self.agent.connect() as peer:
                while not self.over.is_set():
                    self.turn(peer)
        except (Remote, OSError, EOFError, KeyError) as error:
            self.failure = error

    def turn(self, peer: Peer) -> None:
        """One lease, to the end of its grace, or longer."""
        asked = {"resources": [mem(self.random.choice(SIZES))], "bind": "deadline"}
        try:
            ttl_ns, wait_ns = self.random.choice(TTLS_NS), 3 * NS_PER_S
            granted = peer.call("Lease.Acquire", **asked, ttl_ns=ttl_ns, wait_ns=wait_ns)
        except Remote:
            return
        lease_id = granted["lease"]["lease_id"]
        peer.drop_fds()
        with contextlib.suppress(Remote):
            while not self.over.is_set():
                ttl_ns = self.random.choice(TTLS_NS)
                peer.call("Lease.Renew", lease_id=lease_id, ttl_ns=ttl_ns)
                self.renewals += 1
        act = self.random.choice(("release", "extend", "wait", "wait"))
        if act == "release" or self.over.is_set():
            with contextlib.suppress(Remote):
                peer.call("Lease.Release", lease_id=lease_id)
        elif act == "extend":
            self.extend(peer, lease_id)
        peer.call("Lease.Wait", lease_id=lease_id, until="ended")

    def extend(self, peer: Peer, lease_id: str) -> None:
        """Ask for time; an answer that it came too late says that the earlier end stands."""
        needed_ns = self.random.choice((1, 2)) * NS_PER_S
        try:
            peer.call("Lease.Extend", lease_id=lease_id, needed_ns=needed_ns)
        except Remote as refused:
            if refused.parameters["reason"] == "deadline_passed":
                self.late.add(lease_id)


def drain(agent: HostAgent, random: Random, over: threading.Event) -> int:
    """Everybody is told to leave, some of them twice; how many were told before they had it."""
    over.wait(random.random())
    with agent.connect(admin=True) as peer:
        peer.call("Admin.Drain", grace_ns=random.choice((500, 1000, 2000)) * NS_PER_MS)
        leases = peer.call("Lease.List")["leases"]
        for lease in random.sample(leases, min(8, len(leases))):
            grace_ns = random.choice((200, 500, 1000)) * NS_PER_MS
            with contextlib.suppress(Remote):
                peer.call("Admin.Revoke", lease_id=lease["lease_id"], grace_ns=grace_ns)
        over.wait(random.random() / 2)
        peer.call("Admin.Resume")
    return len(leases)


def assert_had_its_grace(life: Life, *, asked_late: bool) -> None:
    """Its access ended when it was told that it would, or later."""
    ends = [one.drain_deadline_ns for one in life.events if isinstance(one, DrainNotified)]
    ended, cut = life.ended, life.first(AccessCut)
    lost = isinstance(ended, Revoked) and ended.reason is RevocationReason.REAPER_LOST
    assert not lost or asked_late
    if ends and cut is not None and not isinstance(ended, Released):
        assert cut.effective_ns >= (ends[-2] if lost else ends[-1])


def test_whoever_is_told_to_leave_in_a_storm_has_until_then() -> None:
    print(f"seed {SEED}, {DRAINS} drains")
    random, over = Random(SEED), threading.Event()
    with HostAgent() as agent:
        agent.start()
        clients = [Client(agent, random.randrange(1 << 32), over) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        told = sum(drain(agent, random, over) for _ in range(DRAINS))
        over.set()
        for client in clients:
            client.join(60)
            assert client.failure is None and not client.is_alive(), client.failure
        late = set().union(*(client.late for client in clients))
        for lease_id, life in judge(agent).lives.items():
            assert_had_its_grace(life, asked_late=lease_id in late)
    renewals = sum(client.renewals for client in clients)
    assert told and renewals
    print(f"{told} told, {renewals} renewals, {len(late)} asked for time too late")
