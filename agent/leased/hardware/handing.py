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
from leased.hardware.descriptors import close_all
from leased.hardware.pieces import is_handed_out, memory_allotments
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease

Handed = list[tuple[str, int]]
"""(resource id, descriptor) of what a holder gets."""


class Openings:
    """What was opened for holders who have not had it yet, by lease."""

    def __init__(self) -> None:
        self._opened: dict[LeaseId, Handed] = {}

    def keep(self, lease_id: LeaseId, opened: Handed) -> None:
        """Take over what is for the holder."""
        if opened:
            self._opened[lease_id] = opened

    def take(self, lease_id: LeaseId) -> Handed:
        """What is for the holder, once: the caller's from here on."""
        return self._opened.pop(lease_id, [])

    def shut(self, lease_id: LeaseId) -> None:
        """The holder will not have it: whoever asks whether anybody still has the memory must not
        find us."""
        close_all(fd for _, fd in self.take(lease_id))

    def shut_all(self) -> None:
        """At the end."""
        for lease_id in tuple(self._opened):
            self.shut(lease_id)


def open_memory(lease: Lease, fds: Sequence[int]) -> Handed:
    """What the holder of a lease whose memfds are `fds` gets of them, opened anew. Raises
    DeviceError: then nothing is open."""
    opened: Handed = []
    try:
        for allotment, fd in zip(memory_allotments(lease), fds, strict=True):
            if is_handed_out(allotment):
                opened.append((allotment.resource_id, exclusion.reopen(fd)))
    except OSError as error:
        close_all(fd for _, fd in opened)
        raise DeviceError("handout", error.errno or errno.EIO, str(error)) from error
    return opened
