# SPDX-License-Identifier: Apache-2.0
"""Handing: a lease's memory opened for its holder.

Rule: a holder never gets the open file that is kept (why: `exclusion`). What a worker opened while
the lease was prepared is given first; every time after that it is opened anew.

Does not decide who may have it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from leased.hardware import exclusion
from leased.hardware.crew import close_all
from leased.hardware.pieces import is_handed_out, memory_allotments
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease


class Openings:
    """What was opened for holders who have not had it yet, by lease."""

    def __init__(self) -> None:
        self._opened: dict[LeaseId, list[int]] = {}

    def keep(self, lease_id: LeaseId, opened: list[int]) -> None:
        """Take over what is for the holder."""
        if opened:
            self._opened[lease_id] = opened

    def take(self, lease_id: LeaseId) -> list[int]:
        """What is for the holder, once: the caller's from here on."""
        return self._opened.pop(lease_id, [])

    def shut(self, lease_id: LeaseId) -> None:
        """The holder will not have it: whoever asks whether anybody still has the memory must not
        find us."""
        close_all(self.take(lease_id))

    def shut_all(self) -> None:
        """At the end."""
        for lease_id in tuple(self._opened):
            self.shut(lease_id)


def open_memory(lease: Lease, fds: Sequence[int], ready: Sequence[int]) -> list[tuple[str, int]]:
    """(resource id, descriptor) for the holder of a lease whose memfds are `fds`. `ready` (taken
    over) is what was opened already, all of it or nothing. Raises DeviceError: then nothing is
    open."""
    allotments = memory_allotments(lease)
    if ready:
        handed_out = [one.resource_id for one in allotments if is_handed_out(one)]
        return list(zip(handed_out, ready, strict=True))
    handed = [
        (allotment.resource_id, fd)
        for allotment, fd in zip(allotments, fds, strict=True)
        if is_handed_out(allotment)
    ]
    opened: list[tuple[str, int]] = []
    try:
        for resource_id, fd in handed:
            opened.append((resource_id, exclusion.reopen(fd)))
    except OSError as error:
        close_all([fd for _, fd in opened])
        raise DeviceError("handout", error.errno or errno.EIO, str(error)) from error
    return opened
