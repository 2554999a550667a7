# SPDX-License-Identifier: Apache-2.0
"""The reaper's board as the agent uses it: deadlines moved by compare-and-swap, without a trip.

Rule: a deadline moves only from the very value that this agent knows, and only to a later one; a
dial that says anything else is the reaper's to explain, by packets. Nothing is moved while the
place of a lease on the board has not been told on the connection that stands (decisions/0019).

Does not decide whether a renewal is allowed: it has been sealed before it comes here.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Mapping, Sequence

import msgspec

from leased.hardware import verbs
from leased.hardware.descriptors import close_all
from leased.ports import Revocable
from leased.service.reaper import protocol
from leased.terms.identity import LeaseId


class Hold(msgspec.Struct, gc=False):
    """What the agent holds of an armed lease: enough to arm it again. `slot` is its place on the
    board, as long as the connection stands that told it; `asked` the latest generation that went
    out in a packet, answered or not."""

    generation: int
    deadline_ns: int
    cgroup: str
    fds: tuple[int, ...]
    pidfd: int | None
    objects: tuple[Revocable, ...] = ()
    slot: int | None = None
    asked: int = 0

    @property
    def passed(self) -> tuple[int, ...]:
        """The descriptors that an ARM brings along."""
        return self.fds if self.pidfd is None else (self.pidfd, *self.fds)

    @property
    def all_open(self) -> bool:
        """Whether every descriptor is still there to be passed; one that is closed would spoil its
        whole packet."""
        try:
            for fd in self.passed:
                os.fstat(fd)
        except OSError:
            return False
        return True

    def overtook(self, generation: int, deadline_ns: int) -> bool:
        """Whether a later move of ours was made or is on its way. One that says otherwise than what
        has its generation is wrong."""
        wrong = generation == self.generation and deadline_ns != self.deadline_ns
        return not wrong and generation < max(self.generation, self.asked)

    def arm_entry(self, lease_id: LeaseId) -> bytes:
        """What an ARM says of it. Raises InvalidParameter."""
        return protocol.encode_arm(
            lease_id=lease_id,
            generation=self.generation,
            deadline_ns=self.deadline_ns,
            cgroup=self.cgroup,
            has_pidfd=self.pidfd is not None,
            memfds=len(self.fds),
            objects=self.objects,
        )


def note_asked(
    moves: Sequence[tuple[LeaseId, int, int]], held_by: Mapping[LeaseId, Hold]
) -> None:
    """These moves go out in a packet."""
    for lease_id, generation, _ in moves:
        held = held_by.get(lease_id)
        if held is not None:
            held.asked = max(held.asked, generation)


class Board:
    """The board of the reaper that is connected."""

    def __init__(self, fd: int) -> None:
        """Raises OSError or ValueError. The descriptor stays the caller's."""
        self._mapped = verbs.map_board(mmap.mmap(fd, 0))

    @classmethod
    def of(cls, fds: Sequence[int]) -> Board | None:
        """The board behind what the reaper sent, which is closed. None: renewals go by packets."""
        try:
            return cls(fds[0])
        except (OSError, ValueError, IndexError):
            return None
        finally:
            close_all(fds)

    def renew(
        self, moves: Sequence[tuple[LeaseId, int, int]], held_by: Mapping[LeaseId, Hold]
    ) -> list[bool] | None:
        """(lease, generation, deadline_ns): whether each came in time. None: not all of them can be
        moved here."""
        outcomes: list[bool] = []
        for lease_id, generation, deadline_ns in moves:
            held = held_by.get(lease_id)
            if held is None or held.slot is None or deadline_ns < held.deadline_ns:
                return None
            if held.asked > held.generation:
                return None  # the deadline that we know may be over, and the lease not
            status = verbs.renew_on_board(
                self._mapped,
                held.slot,
                known_ns=held.deadline_ns,
                deadline_ns=deadline_ns,
                generation=generation,
            )
            if status == 0:
                held.generation, held.deadline_ns = generation, deadline_ns
            elif status != -errno.ETIME:
                return None
            outcomes.append(status == 0)
        return outcomes
