# SPDX-License-Identifier: Apache-2.0
"""A client that keeps a ledger of what the agent told it, to be compared with the chain afterwards.

Rule: what was answered is in the ledger, and nothing else.

Does not start the agent, and does not judge the chain by itself (`story`).
"""

from __future__ import annotations

from tests.doubles.host_agent import NS_PER_S, HostAgent, mem
from tests.doubles.story import Story


class Ledger:
    """What the client was told."""

    def __init__(self) -> None:
        self.granted: dict[str, tuple[int, int]] = {}
        self.renewed: dict[str, tuple[int, int]] = {}
        self.released: set[str] = set()
        self.broken_off = 0

    def fill(self, agent: HostAgent) -> bool:
        """A grant, two renewals and a release; False if the agent ended on the way."""
        try:
            with agent.connect() as peer:
                asked = {"resources": [mem(4096)], "ttl_ns": 60 * NS_PER_S, "bind": "deadline"}
                granted = peer.call("Lease.Acquire", **asked)
                peer.drop_fds()
                lease_id = granted["lease"]["lease_id"]
                deadline_ns = granted["lease"]["runtime"]["deadline_boottime_ns"]
                self.granted[lease_id] = (granted["sequence"], deadline_ns)
                for _ in range(2):
                    told = peer.call("Lease.Renew", lease_id=lease_id)
                    self.renewed[lease_id] = (told["generation"], told["deadline_boottime_ns"])
                peer.call("Lease.Release", lease_id=lease_id)
                self.released.add(lease_id)
                peer.call("Lease.Wait", lease_id=lease_id, until="closed")
                return True
        except (EOFError, ConnectionError, FileNotFoundError):
            self.broken_off += 1
            return False

    def assert_kept(self, story: Story) -> None:
        """All of it is in the chain."""
        place = dict(story.events)
        for lease_id, (sequence, deadline_ns) in self.granted.items():
            life = story.lives[lease_id]
            assert place[sequence] is life.allocated
            assert life.allocated.deadline_ns == deadline_ns
        for lease_id, promised in self.renewed.items():
            assert (story.lives[lease_id].generation, story.lives[lease_id].deadline_ns) >= promised
        for lease_id in self.released:
            assert story.lives[lease_id].ended is not None
