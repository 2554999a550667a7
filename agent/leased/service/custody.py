# SPDX-License-Identifier: Apache-2.0
"""Custody: what the agent itself holds of each lease while it lives: descriptors, the leaf cgroup,
the holder's pidfd.

Rule: one entry per lease that was prepared and not yet forgotten; `drop` closes everything exactly
once. The reaper holds duplicates of its own, so a crash, which loses this table, loses nothing:
recovery fills it again from the reaper's roster.

Does not decide and does not talk to anyone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from leased.hardware.descriptors import close_all
from leased.ports import Access
from leased.terms.identity import LeaseId


class Custody(msgspec.Struct, gc=False):
    """What is held for one lease. `cgroup` is the leaf's path or "" while it has not been made;
    `access` None where an earlier run of the agent prepared it and nobody has asked since."""

    fds: tuple[int, ...] = ()
    cgroup: str = ""
    pidfd: int | None = None
    access: tuple[Access, ...] | None = None


class Custodian:
    """All custody, by lease."""

    def __init__(self) -> None:
        self._held: dict[LeaseId, Custody] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._held

    def __iter__(self) -> Iterator[LeaseId]:
        return iter(self._held)

    def keep(
        self,
        lease_id: LeaseId,
        fds: tuple[int, ...],
        cgroup: str,
        pidfd: int | None,
        access: tuple[Access, ...] | None = None,
    ) -> None:
        """Take ownership. Keeping a lease again replaces and closes what was held before."""
        self.drop(lease_id)
        self._held[lease_id] = Custody(fds, cgroup, pidfd, access)

    def of(self, lease_id: LeaseId) -> Custody:
        """What is held (an empty Custody if nothing is)."""
        return self._held.get(lease_id, _NOTHING)

    def find(self, lease_id: LeaseId) -> Custody | None:
        """What is held, if anything is."""
        return self._held.get(lease_id)

    def set_cgroup(self, lease_id: LeaseId, cgroup: str) -> None:
        """The leaf was made after the grant (the first `Join` of a bare lease)."""
        self._held.setdefault(lease_id, Custody()).cgroup = cgroup

    def set_access(self, lease_id: LeaseId, access: tuple[Access, ...]) -> None:
        """What was asked again after a restart, unless the lease has been dropped meanwhile."""
        if lease_id in self._held:
            self._held[lease_id].access = access

    def drop(self, lease_id: LeaseId) -> None:
        """Close and forget. Idempotent."""
        held = self._held.pop(lease_id, None)
        if held is None:
            return
        close_all(held.fds)
        if held.pidfd is not None:
            os.close(held.pidfd)

    def drop_all(self) -> None:
        """At the end of the process."""
        for lease_id in tuple(self._held):
            self.drop(lease_id)


_NOTHING = Custody()
