# SPDX-License-Identifier: Apache-2.0
"""The handover: what the holder of a lease is given to use it with: descriptors, and what it must
know.

Rule: nothing is given of a lease that has ended, because whoever is let in after the cut is never
put out again. Descriptors are opened anew each time; what the holder must know is learnt when the
lease is prepared, kept, and asked for again once after a restart of the agent.

Does not decide who may ask: the table answered that before we are asked.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Sequence

from leased.hardware.pieces import memory_allotments
from leased.ports import Access
from leased.service.custody import Custodian
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.wire import objects

Handed = Sequence[tuple[str, int]]
"""(resource id, descriptor), the descriptors the receiver's to pass or close."""


class Handover:
    """Gives out what a lease comes with."""

    def __init__(
        self,
        *,
        custodian: Custodian,
        handout: Callable[[Lease, Sequence[int]], Handed],
        access: Callable[[Lease], Awaitable[tuple[Access, ...]]],
        find: Callable[[LeaseId], Lease | None],
    ) -> None:
        self._custodian = custodian
        self._handout = handout
        self._access = access
        self._find = find

    def descriptors(self, lease: Lease) -> Handed:
        """What the holder is to have open. Raises DeviceError."""
        if self._has_ended(lease):
            return ()
        held = self._custodian.of(lease.lease_id).fds
        if len(held) != len(memory_allotments(lease)):
            raise DeviceError("handout", errno.EBADF, "the lease's descriptors are lost")
        return self._handout(lease, held)

    def known(self, lease: Lease) -> tuple[Access, ...] | None:
        """What the holder must know, if nobody needs to be asked for it; nothing before the lease
        is prepared."""
        held = self._custodian.find(lease.lease_id)
        return () if held is None or self._has_ended(lease) else held.access

    async def access(self, lease: Lease) -> tuple[Access, ...]:
        """What the holder must know. Raises DeviceError."""
        found = self.known(lease)
        if found is None:
            found = await self._access(lease)
            self._custodian.set_access(lease.lease_id, found)
            if self._has_ended(lease):
                return ()
        return found

    def _has_ended(self, lease: Lease) -> bool:
        """By now: the value handed in may be of before the last wait."""
        now = self._find(lease.lease_id) or lease
        return now.ended is not None


def portray_fds(handed: Handed) -> list[objects.LeaseFd]:
    """Say what each descriptor is."""
    return [
        objects.LeaseFd(
            resource_id=resource_id,
            index=index,
            purpose="memory" if resource_id.startswith("mem:") else "block",
        )
        for index, (resource_id, _) in enumerate(handed)
    ]


def portray_access(access: Iterable[Access]) -> list[objects.Access]:
    """As the wire has it."""
    return [objects.Access(one.resource_id, one.name, one.value) for one in access]
