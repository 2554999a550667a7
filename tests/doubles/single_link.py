# SPDX-License-Identifier: Apache-2.0
"""The real reaper link, one lease a call, as tests like to say it.

Does not add anything: each call is the batch of one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from leased.ports import Arming, Revocable
from leased.service.reaper.link import ReaperLink
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.teardown import CutReport
from tests.doubles.reaper_host import ReaperHost


class SingleLink(ReaperLink):
    """A ReaperLink for one lease at a time."""

    async def arm(
        self,
        lease: Lease,
        cgroup: str,
        fds: Sequence[int],
        pidfd: int | None,
        objects: Sequence[Revocable] = (),
    ) -> None:
        """As `arm_many`; raises the DeviceError."""
        [error] = await self.arm_many([Arming(lease, cgroup, tuple(fds), pidfd, tuple(objects))])
        if error is not None:
            raise error

    async def renew(self, lease_id: LeaseId, generation: int, deadline_ns: int) -> bool:
        """As `renew_many`."""
        [in_time] = await self.renew_many([(lease_id, generation, deadline_ns)])
        return in_time

    async def revoke(self, lease_id: LeaseId, *, spare_holder: bool = False) -> CutReport:
        """As `revoke_many`; raises the DeviceError."""
        [report] = await self.revoke_many([lease_id], spare=(lease_id,) if spare_holder else ())
        if isinstance(report, DeviceError):
            raise report
        return report

    async def disarm(self, lease_id: LeaseId) -> None:
        """As `disarm_many`."""
        await self.disarm_many([lease_id])


@asynccontextmanager
async def linked(path: Path, **how: Any) -> AsyncIterator[SingleLink]:
    """A link to the reaper that listens at `path`, with the board that came over it. `how` is
    ReaperLink's."""
    async with trio.open_nursery() as nursery:
        link = SingleLink(path, **how)
        await nursery.start(link.run)
        await link.ping()  # behind BOARD, so the board has come too
        yield link
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked_reaper(
    *options: str, slots: int = 256
) -> AsyncIterator[tuple[ReaperHost, SingleLink]]:
    """A real reaper and a link to it."""
    with ReaperHost(*options, slots=slots) as host:
        async with linked(host.socket_path) as link:
            yield host, link
