# SPDX-License-Identifier: Apache-2.0
"""Random ways to get a lease, or not to: afterwards the host has what it had before.

A fence is a failure here, and its reason is told: nothing in these cycles leaves memory unclean.
`LEASED_LEAK_CYCLES` changes the number, `LEASED_LEAK_SEED` the seed; both are printed. A kind of
hardware plugs in by `storm`, with what to ask for and what else to count.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from leased.durable.reader import read_log
from leased.terms.event import Allocated, Fenced
from leased.terms.teardown import TeardownStep
from tests.doubles.footprint import Footprint
from tests.doubles.host_agent import NS_PER_MS, NS_PER_S, HostAgent, exited, mem
from tests.doubles.wire_peer import Peer, Remote

pytestmark = pytest.mark.root

CYCLES = int(os.environ.get("LEASED_LEAK_CYCLES", "1000"))
SEED = int(os.environ.get("LEASED_LEAK_SEED", "20261126"))
WARM_UP = 30
OCCASIONS = 3
"""Teardowns after the last cycle: a worker that a look over the host has ended is let go of at the
next one. What leaks stays."""
Ask = Callable[[Random], Sequence[dict[str, Any]]]


def memory(chance: Random) -> list[dict[str, Any]]:
    """Some pages, in one piece or two."""
    return [mem(4096 * chance.randint(1, 64)) for _ in range(chance.randint(1, 2))]


def too_much(chance: Random) -> list[dict[str, Any]]:
    """What no host has, behind what it has: all or nothing."""
    return [*memory(chance), mem(1 << 60)]


class Storm:
    """Random cycles against one agent."""

    def __init__(self, agent: HostAgent, chance: Random, ask: Ask) -> None:
        self.agent = agent
        self.chance = chance
        self.ask = ask
        self.outcomes: dict[str, int] = {}
        self.states: dict[str, int] = {}
        self._cycles = (
            self._released,
            self._expired,
            self._twice,
            self._refused,
            self._hung_up,
            self._joined,
            self._without_a_worker,
        )

    def blow(self, cycles: int) -> None:
        """So many cycles, and then the end of all of them."""
        for _ in range(cycles):
            cycle = self.chance.choice(self._cycles)
            try:
                cycle()
                outcome = cycle.__name__
            except Remote as refused:
                outcome = f"{cycle.__name__}: {str(refused)[:60]}"
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self._all_ended()

    def rest(self) -> None:
        """One lease more, and the end of it."""
        self._released()
        self._all_ended()

    def _all_ended(self) -> None:
        for lease in self.agent.call("Lease.List", admin=True)["leases"]:
            ended = self.agent.wait_for(lease["lease_id"])["runtime"]
            self.states[ended["state"]] = self.states.get(ended["state"], 0) + 1

    def _acquire(self, peer: Peer, **more: object) -> dict[str, Any]:
        asked = {"resources": self.ask(self.chance), "ttl_ns": 60 * NS_PER_S, "bind": "cgroup"}
        return peer.call("Lease.Acquire", **{**asked, **more})["lease"]

    def _released(self) -> None:
        with self.agent.connect() as peer:
            lease = self._acquire(peer)
            peer.drop_fds()
            peer.call("Lease.Release", lease_id=lease["lease_id"])

    def _expired(self) -> None:
        with self.agent.connect() as peer:
            self._acquire(peer, ttl_ns=500 * NS_PER_MS)

    def _twice(self) -> None:
        """A retry under the same id, over another connection; both have the descriptors."""
        command_id = self.chance.randbytes(16).hex()
        resources = self.ask(self.chance)
        with self.agent.connect() as one, self.agent.connect() as other:
            lease = self._acquire(one, command_id=command_id, resources=resources)
            assert self._acquire(other, command_id=command_id, resources=resources)
            one.call("Lease.Release", lease_id=lease["lease_id"])

    def _refused(self) -> None:
        with self.agent.connect() as peer, contextlib.suppress(Remote):
            self._acquire(peer, resources=too_much(self.chance))

    def _hung_up(self) -> None:
        """Gone before the answer is there."""
        with self.agent.connect() as peer:
            asked = {"resources": self.ask(self.chance), "ttl_ns": NS_PER_S, "bind": "deadline"}
            peer.ask("Lease.Acquire", **asked)

    def _joined(self) -> None:
        """Somebody enters, and is put out by the end."""
        lease = self.agent.acquire(resources=self.ask(self.chance))
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), self.agent.connect() as peer:
                peer.call("Lease.Join", lease_id=lease["lease_id"])
                signal.pause()
            os._exit(0)
        self.agent.call("Lease.Release", admin=True, lease_id=lease["lease_id"])
        self.agent.wait_for(lease["lease_id"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it came too late, and is in no lease
        os.waitpid(pid, 0)

    def _without_a_worker(self) -> None:
        """An idle worker dies, perhaps the one that would prepare it, or clean it."""
        self._all_ended()
        workers = self.agent.workers()
        if workers:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(self.chance.choice(workers))
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                exited(pidfd)
                os.close(pidfd)
        self._released()


def granted(agent: HostAgent) -> set[str]:
    """The leases that there ever were, as their memory is named."""
    log = read_log(agent.audit)
    found = {event.lease_id.hex()[:16] for _, event, _ in log.events() if type(event) is Allocated}
    log.close()
    return found


def fences(agent: HostAgent) -> dict[str, int]:
    """What was fenced, by the step that failed and its error."""
    found: dict[str, int] = {}
    log = read_log(agent.audit)
    for _, event, _ in log.events():
        if isinstance(event, Fenced):
            why = f"{TeardownStep(event.step).name}: {os.strerror(event.errno)}"
            found[why] = found.get(why, 0) + 1
    log.close()
    return found


def storm(
    agent: HostAgent, ask: Ask, cycles: int, more: dict[str, Callable[[], int]] | None = None
) -> None:
    """Warm up, count, blow, count again."""
    print(f"LEASED_LEAK_SEED={SEED} LEASED_LEAK_CYCLES={cycles}")
    pids, named = (lambda: (agent.pid, agent.reaper_pid())), (lambda: granted(agent))
    footprint = Footprint(pids, agent.cgroup, named, more)
    weather = Storm(agent, Random(SEED), ask)
    weather.blow(WARM_UP)
    before = footprint.count()
    weather.blow(cycles)
    left = footprint.settled(before)
    for _ in range(OCCASIONS):
        if left:
            weather.rest()
            left = footprint.settled(before, 1)
    assert not fences(agent), f"{fences(agent)}: {weather.states} after {weather.outcomes}"
    assert not left, f"{left} after {weather.outcomes}, {weather.states}"
    done = sum(n for outcome, n in weather.outcomes.items() if ":" not in outcome)
    assert done > cycles // 2, weather.outcomes


def test_memory_leaves_nothing_behind(agent: HostAgent) -> None:
    storm(agent, memory, CYCLES)
