# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, and when: every fault of a run is drawn here, from the run's own random source.

Rule: `heal` ends all of it at once (the liveness phase), and what was drawn is counted, so that a
swarm can show which faults it really met.

Does not carry a fault out: the fakes ask and then misbehave.
"""

from __future__ import annotations

import enum
from random import Random

from leased.terms.moment import NS_PER_MS


class CommitStep(enum.Enum):
    """Where in a commit the process dies, and what recovery must make of the batch then."""

    BEFORE_APPEND = "before append"  # nothing was written: the batch is gone
    TORN_APPEND = "torn append"  # some bytes were written: the batch must be dropped whole
    APPEND_REFUSED = "append refused"  # ENOSPC after some bytes: the same
    APPENDED = "appended"  # written, not synced: kept by a living kernel, a power cut may tear it
    SYNC_FAILED = "sync failed"  # EIO: what is on the disk is for recovery to say
    SYNCED = "synced"  # durable, not anchored: rolled forward
    ANCHOR_REFUSED = "anchor refused"  # EIO: the same, as the records are durable
    TORN_ANCHOR = "torn anchor"  # half a slot: the other slot counts
    ANCHOR_SYNC_FAILED = "anchor sync failed"  # EIO: one slot or the other
    ANCHORED = "anchored"  # durable and anchored, the answer was lost


class AgentDied(Exception):
    """The agent's process is gone. Nothing of it runs on."""


class Faults:
    """Draws faults. `rate_pm` is the chance of each, in per mille, before healing."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.healed = False
        self.met: dict[str, int] = {}

    def heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.healed = True

    def strikes(self, name: str, rate_pm: int) -> bool:
        """Whether this fault happens now."""
        if self.healed or self._random.randrange(1000) >= rate_pm:
            return False
        self.met[name] = self.met.get(name, 0) + 1
        return True

    def commit_step(self) -> CommitStep | None:
        """Where this commit dies, if it does."""
        if not self.strikes("die in commit", 6):
            return None
        return self.dying_step()

    def dying_step(self) -> CommitStep:
        """Where a commit that is under way while the process dies comes to its end."""
        step = self._random.choice(list(CommitStep))
        self.met["commit: " + step.value] = self.met.get("commit: " + step.value, 0) + 1
        return step

    def latency_s(self, low_ns: int, high_ns: int, *, slow: str = "") -> float:
        """How long something takes; `slow` names a fault that makes it take a hundred times as
        long.
        """
        ns = self._random.randrange(low_ns, high_ns + 1)
        if slow and self.strikes(slow, 15):
            ns = min(ns * 100, 4_000 * NS_PER_MS)
        return ns / 1e9

    def pick(self, below: int) -> int:
        """A number for the fault itself (how many bytes were torn, which part stayed dirty)."""
        return self._random.randrange(below)
