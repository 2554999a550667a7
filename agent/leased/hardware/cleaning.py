# SPDX-License-Identifier: Apache-2.0
"""Cleaning: what leases held is overwritten, read back and given back, after the cut.

Rule: what remote peers reach and devices come before memory; a lease whose memory was never given
out by `Devices.handout` is scrubbed all the same, after a search of the whole host.

Does not touch a page (`scrubbing`, in a worker) and does not say whether everything came back
(`proving`).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence, Set

import msgspec

from leased.hardware.adopting import Adoptions
from leased.hardware.backend import Wiped
from leased.hardware.calls import Cleaned, Scrub
from leased.hardware.clock import BootClock
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import each, failure, spread
from leased.hardware.fittings import Fittings
from leased.hardware.handing import Openings
from leased.hardware.pieces import Piece, memory_pieces, worker_for
from leased.hardware.pools import PoolLedgers
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.teardown import ScrubReport

_NOTHING_HELD = (RevocationReason.GRANT_FAILED, RevocationReason.NODE_REBOOT)
"""Leases that may lack descriptors: what was never made, or ended with its boot, holds nothing."""


class _Case(msgspec.Struct, eq=False):
    """One lease being scrubbed."""

    lease: Lease
    fds: Sequence[int]
    done: dict[int, Cleaned] = {}
    fitted: Wiped = Wiped(0, clean=True)
    error: DeviceError | None = None


class Cleaner:
    """Scrubs leases."""

    def __init__(
        self,
        ledgers: PoolLedgers,
        fittings: Fittings,
        adoptions: Adoptions,
        openings: Openings,
        apart: Set[LeaseId],
        config: HardwareConfig,
    ) -> None:
        """`apart` are the leases whose memory was handed out opened anew."""
        self._ledgers = ledgers
        self._fittings = fittings
        self._adoptions = adoptions
        self._openings = openings
        self._apart = apart
        self._config = config
        self._boot_id = BootClock().boot_id

    async def scrub(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        """One answer per lease and its descriptors, in order."""
        cases = [_Case(lease, fds) for lease, fds in leases]
        for lease, _ in leases:
            self._openings.shut(lease.lease_id)
        for case in cases:
            if case.lease.reason is RevocationReason.GRANT_FAILED:
                await self._let_out(case)
        await self._scrub_fittings([case for case in cases if self._fittings.parts(case.lease)])
        work: dict[str, list[tuple[_Case, Piece]]] = {}
        for case in cases:
            pieces = memory_pieces(case.lease)
            if len(case.fds) == len(pieces):
                for piece in pieces:
                    name = worker_for(piece, "reclaim", self._config)
                    work.setdefault(name, []).append((case, piece))
            elif case.fds or not self._holds_nothing(case.lease):
                detail = f"{len(case.fds)} descriptors for {len(pieces)} memory allotments"
                case.error = DeviceError("scrub", errno.EBADF, detail)
        await spread(work, self._scrub)
        return [case.error or _report(case) for case in cases]

    async def _let_out(self, case: _Case) -> None:
        """Whoever was adopted by a grant that failed after it was prepared goes back."""
        try:
            await self._adoptions.put_back(case.lease.lease_id)
        except DeviceError as error:
            case.error = error

    async def _scrub_fittings(self, cases: Sequence[_Case]) -> None:
        """Before memory: what remote peers reach must be cut off before it is overwritten."""

        async def one(case: _Case) -> None:
            try:
                case.fitted = await self._fittings.scrub(case.lease)
            except DeviceError as error:
                case.error = error

        await each(cases, one)

    async def _scrub(self, name: str, part: Sequence[tuple[_Case, Piece]]) -> None:
        pool = part[0][1].pool
        calls = [
            Scrub(piece.name, piece.allotment.capacity, piece.pool, self._is_apart(case.lease))
            for case, piece in part
        ]
        fds = [case.fds[piece.index] for case, piece in part]
        touched_bytes = 2 * sum(call.size_bytes for call in calls)
        keys = [(case.lease.lease_id, piece.index) for case, piece in part]
        try:
            answers = await self._ledgers.scrub(name, pool, keys, calls, fds, touched_bytes)
        except DeviceError as error:
            for case, _ in part:
                case.error = error
            return
        for (case, piece), answer in zip(part, answers, strict=True):
            if isinstance(answer, Cleaned):
                case.done[piece.index] = answer
            else:
                case.error = failure(answer)

    def _holds_nothing(self, lease: Lease) -> bool:
        """Memory ends with its boot, however far the lease's teardown had come; and there is none
        where the agent ended while it was still being made, also if the lease's time was over by
        then."""
        gone = lease.boot_id != self._boot_id or not lease.activated
        return gone or lease.reason in _NOTHING_HELD

    def _is_apart(self, lease: Lease) -> bool:
        """Nobody but the keepers ever had the lease's own open files: they were handed out opened
        anew, or (the grant failed before its answer) not at all."""
        return lease.lease_id in self._apart or lease.reason is RevocationReason.GRANT_FAILED


def _report(case: _Case) -> ScrubReport:
    parts = [case.done[index] for index in sorted(case.done)]
    return ScrubReport(
        case.lease.lease_id,
        time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        sum(part.scrubbed_bytes for part in parts) + case.fitted.scrubbed_bytes,
        all(part.clean for part in parts) and case.fitted.clean,
        (*case.fitted.steps, *(step for part in parts for step in part.steps)),
    )
