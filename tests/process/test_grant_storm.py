# SPDX-License-Identifier: Apache-2.0
"""A storm of grants, renewals and releases with the agent killed at random instants.

Whatever a client was told before the kill is its ledger. `LEASED_STORM_SEED` changes the seed,
`LEASED_STORM_KILLS` the number of kills; both are printed.
"""

from __future__ import annotations

import os
import threading
from random import Random

import pytest

from tests.doubles.host_agent import NS_PER_S, HostAgent, mem
from tests.doubles.story import Story, judge, tell
from tests.doubles.wire_peer import Peer, Remote

pytestmark = pytest.mark.root

SEED = int(os.environ.get("LEASED_STORM_SEED", "20261121"))
KILLS = int(os.environ.get("LEASED_STORM_KILLS", "5"))
CLIENTS = 12
MIB = 1 << 20
TTL_NS = 2 * NS_PER_S


class Ledger:
    """What clients were told, by lease; counts up to the instant of the kill."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.granted: dict[str, dict] = {}
        self.renewed: dict[str, tuple[int, int]] = {}
        self.released: set[str] = set()
        self.refused: dict[str, int] = {}
        self.answers = 0

    def note(self) -> None:
        """One more answer came."""
        with self._changed:
            self.answers += 1
            self._changed.notify_all()

    def wait_for(self, answers: int, timeout_s: float = 30) -> None:
        """Return when so many more have come."""
        with self._changed:
            wanted = self.answers + answers
            assert self._changed.wait_for(lambda: self.answers >= wanted, timeout_s), "no answers"


class Client(threading.Thread):
    """One tenant's process, as far as one thread can be one."""

    def __init__(self, agent: HostAgent, ledger: Ledger, seed: int) -> None:
        super().__init__(daemon=True)
        self.agent, self.ledger, self.random = agent, ledger, Random(seed)
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until the agent is gone."""
        try:
            with self.agent.connect() as peer:
                while True:
                    self.turn(peer)
        except (EOFError, ConnectionError, FileNotFoundError):
            return  # the agent was killed
        except (Remote, TimeoutError, LookupError, ValueError) as error:
            self.failure = error

    def turn(self, peer: Peer) -> None:
        """One lease, held for a while."""
        size = self.random.choice((4096, MIB, 3 * MIB))
        command_id = self.random.randbytes(16).hex()
        try:
            asked = {"resources": [mem(size)], "bind": "deadline", "command_id": command_id}
            granted = peer.call("Lease.Acquire", ttl_ns=TTL_NS, **asked)
        except Remote as refused:
            reason = refused.parameters["reason"]
            self.ledger.refused[reason] = self.ledger.refused.get(reason, 0) + 1
            self.ledger.note()
            return
        lease_id = granted["lease"]["lease_id"]
        self.ledger.granted[lease_id] = granted
        self.ledger.note()
        peer.drop_fds()
        for _ in range(self.random.randrange(3)):
            renewed = peer.call("Lease.Renew", lease_id=lease_id)
            self.ledger.renewed[lease_id] = (
                renewed["generation"],
                renewed["deadline_boottime_ns"],
            )
            self.ledger.note()
        if self.random.random() < 0.8:
            peer.call("Lease.Release", lease_id=lease_id)
            self.ledger.released.add(lease_id)
            self.ledger.note()


def assert_kept(ledger: Ledger, story: Story) -> None:
    """Everything that was acknowledged is in the chain, where the answer said."""
    place = dict(story.events)
    for lease_id, granted in ledger.granted.items():
        life = story.lives[lease_id]
        assert place[granted["sequence"]] is life.allocated
        assert life.allocated.deadline_ns == granted["lease"]["runtime"]["deadline_boottime_ns"]
    for lease_id, (generation, deadline_ns) in ledger.renewed.items():
        life = story.lives[lease_id]
        assert (life.generation, life.deadline_ns) >= (generation, deadline_ns)
    for lease_id in ledger.released:
        assert story.lives[lease_id].ended is not None, lease_id


def test_nothing_is_lost_and_nothing_granted_twice() -> None:
    print(f"seed {SEED}, {KILLS} kills")
    random, ledger = Random(SEED), Ledger()
    # So little memory that the clients are always in each other's way.
    with HostAgent(hardware="normal_share_pm = 1") as agent:
        for kill in range(KILLS):
            agent.start()
            clients = [Client(agent, ledger, random.randrange(1 << 32)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            ledger.wait_for(random.randrange(1, 400))
            agent.kill()
            for client in clients:
                client.join(30)
                assert client.failure is None, f"kill {kill}: {client.failure!r}"
            assert_kept(ledger, tell(agent))
        agent.start()
        for lease in agent.call("Lease.List", admin=True)["leases"]:
            assert agent.wait_for(lease["lease_id"])["runtime"]["state"] == "reclaimed"
        story = judge(agent)
        assert_kept(ledger, story)
        assert all(life.closed for life in story.lives.values())
        for resource in agent.call("Device.List")["resources"]:
            assert resource["use"]["free"] == resource["capacity"]
    unanswered = len(story.lives) - len(ledger.granted)
    print(
        f"{ledger.answers} answers, {len(ledger.granted)} grants, {unanswered} grants unheard of,"
        f" refused: {ledger.refused}"
    )
    assert "no_capacity" in ledger.refused or "tenant_capacity" in ledger.refused
