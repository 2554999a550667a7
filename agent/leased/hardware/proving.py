# SPDX-License-Identifier: Apache-2.0
"""Proving: whether everything a lease held came back, asked of another source than the scrub.

The scrub wrote and read bytes in a worker; the proof asks the kernel's bookkeeping: the inode's
size and blocks (fstat, in this process), the pool's counters against the ledger, the leaf's charges
and whether the leaf lets itself be removed.

Rule: what is late is asked again until `settle_budget_ns`; what is missing then is named, hugepages
and the pages of a budget by their count, anything else by the whole allotment. A question that
cannot be answered proves nothing.

Does not fence: `lessor` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import msgspec
import trio

from leased.hardware.calls import Charged, CloseLeaf, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew, each, failure, spread
from leased.hardware.fittings import Fittings
from leased.hardware.instant import now_ns
from leased.hardware.pieces import Piece, is_budget, memory_pieces, place_of
from leased.hardware.pools import PoolLedgers
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S
from leased.terms.teardown import ProofReport, StepReport, TeardownStep

_AGAIN_NS = 20_000_000


class _Case:
    """One lease on its way to the verdict."""

    def __init__(self, lease: Lease, fds: Sequence[int]) -> None:
        self.lease = lease
        self.allotments = lease.subject.allotments
        self.pieces = memory_pieces(lease)
        self.budget = sum(a.capacity for a in self.allotments if is_budget(a))
        self.began_ns = now_ns()
        self.steps: list[StepReport] = []
        self.unproven = [0] * len(self.allotments)
        blocks = 0
        for piece, fd in zip(self.pieces, fds, strict=False):
            status = os.fstat(fd)
            if status.st_size or status.st_blocks:
                blocks += max(status.st_blocks, 1)
                self.miss(piece.place_in_lease, piece.allotment.capacity)
        self.step(TeardownStep.TRUNCATE, errno.EBUSY if blocks else 0, blocks)

    def step(self, step: TeardownStep, failed: int, measured: int) -> None:
        self.steps.append(StepReport(step, failed, self.began_ns, now_ns(), measured))

    def miss(self, at: int, capacity: int) -> None:
        """So much of the allotment in that place is not proven."""
        self.unproven[at] = min(max(self.unproven[at], capacity), self.allotments[at].capacity)

    def miss_everything(self) -> None:
        """Somebody is left in the leaf, or nobody can say: nothing of the lease is proven."""
        self.unproven = [allotment.capacity for allotment in self.allotments]

    def miss_budget(self, charged_bytes: int) -> None:
        """Pages that are still charged to the leaf, in whole granules."""
        for at, allotment in enumerate(self.allotments):
            if is_budget(allotment):
                page_bytes = place_of(allotment.resource_id).page_bytes
                part = min(-(-charged_bytes // page_bytes) * page_bytes, allotment.capacity)
                self.miss(at, part)
                charged_bytes -= part

    def report(self) -> ProofReport:
        unproven = tuple(
            msgspec.structs.replace(allotment, capacity=capacity)
            for allotment, capacity in zip(self.allotments, self.unproven, strict=True)
            if capacity
        )
        return ProofReport(self.lease.lease_id, now_ns(), unproven, tuple(self.steps))


class Prover:
    """Asks."""

    def __init__(
        self, crew: Crew, ledgers: PoolLedgers, fittings: Fittings, config: HardwareConfig
    ) -> None:
        self._crew = crew
        self._ledgers = ledgers
        self._fittings = fittings
        self._config = config

    async def prove(
        self, leases: Sequence[tuple[Lease, Sequence[int]]], root: str
    ) -> list[ProofReport | DeviceError]:
        """One report per lease, in order."""
        failed: dict[int, DeviceError] = {}
        cases = [_Case(lease, fds) for lease, fds in leases]
        end_ns = now_ns() + self._config.settle_budget_ns
        await self._close_leaves(cases, root, end_ns, failed)
        pools: dict[Pool, list[tuple[int, Piece]]] = {}
        for at, case in enumerate(cases):
            for piece in case.pieces:
                if piece.pool is not None:
                    pools.setdefault(piece.pool, []).append((at, piece))
        for pool, parts in pools.items():
            await self._count(pool, parts, cases, end_ns, failed)
        fitted = [case for case in cases if self._fittings.parts(case.lease)]
        await each(fitted, self._ask_backends)
        return [failed[at] if at in failed else case.report() for at, case in enumerate(cases)]

    async def _ask_backends(self, case: _Case) -> None:
        verdict = await self._fittings.prove(case.lease)
        for at, allotment in enumerate(case.allotments):
            case.miss(at, verdict.unproven.get(allotment, 0))
        case.steps.extend(verdict.steps)

    # -- leaves ------------------------------------------------------------------------------------

    async def _close_leaves(
        self, cases: Sequence[_Case], root: str, end_ns: int, failed: dict[int, DeviceError]
    ) -> None:
        """Remove every leaf that there is; those that will not go are asked again."""
        left = {
            at: f"{root}/{case.lease.subject.cgroup}"
            for at, case in enumerate(cases)
            if root and case.lease.subject.cgroup
        }
        left = {at: path for at, path in left.items() if os.path.isdir(path)}
        while left:
            last = now_ns() >= end_ns
            for at, charged in (await self._ask_leaves(cases, left, failed)).items():
                gone = charged.removed == 0 and charged.hugetlb_bytes == 0
                if not gone and not last:
                    continue
                del left[at]
                _note_leaf(cases[at], charged)
            left = {at: path for at, path in left.items() if at not in failed}
            if left:
                await trio.sleep(_AGAIN_NS / NS_PER_S)

    async def _ask_leaves(
        self, cases: Sequence[_Case], left: dict[int, str], failed: dict[int, DeviceError]
    ) -> dict[int, Charged]:
        answered: dict[int, Charged] = {}
        work: dict[str, list[int]] = {}
        for at in left:
            # The kernel may have much to take back of a budget; nobody else waits for that.
            work.setdefault("budget" if cases[at].budget else "reclaim", []).append(at)

        async def ask(name: str, part: Sequence[int]) -> None:
            calls = [CloseLeaf(left[at], cases[at].budget > 0) for at in part]
            taken_back = sum(cases[at].budget for at in part)
            try:
                answers = await self._crew.ask_again(name, calls, touched_bytes=taken_back)
            except DeviceError as error:
                failed.update(dict.fromkeys(part, error))
                return
            for at, answer in zip(part, answers, strict=True):
                if isinstance(answer, Charged):
                    answered[at] = answer
                else:
                    failed[at] = failure(answer)

        await spread(work, ask)
        return answered

    # -- pools -------------------------------------------------------------------------------------

    async def _count(
        self,
        pool: Pool,
        parts: Sequence[tuple[int, Piece]],
        cases: Sequence[_Case],
        end_ns: int,
        failed: dict[int, DeviceError],
    ) -> None:
        """Wait until the pool is whole; past the settle budget name the pages that are missing."""
        keys = [((cases[at].lease.lease_id, piece.index), piece.pages) for at, piece in parts]
        try:
            ledger = await self._ledgers.of(pool)
            while True:
                counted = await self._ledgers.count(pool)
                # No await between the count and its use: the ledger is as of that count.
                if ledger.in_doubt(keys, counted) == 0 or now_ns() >= end_ns:
                    break
                await trio.sleep(_AGAIN_NS / NS_PER_S)
        except DeviceError as error:
            failed.update(dict.fromkeys((at for at, _ in parts), error))
            return
        blamed = ledger.blame(keys, counted)
        for (at, piece), (key, _) in zip(parts, keys, strict=True):
            pages = blamed.get(key, 0)
            cases[at].step(TeardownStep.COUNTERS, errno.EBUSY if pages else 0, pages)
            if pages:
                cases[at].miss(piece.place_in_lease, pages * pool.page_bytes)


def _note_leaf(case: _Case, charged: Charged) -> None:
    """What the end of a leaf says of its lease."""
    if charged.removed == errno.ENOTEMPTY and not charged.hugetlb_bytes:
        case.step(TeardownStep.REMOVE_CGROUP, charged.removed, charged.memory_bytes)
        case.miss_budget(charged.memory_bytes)
        return
    gone = charged.removed == 0 and charged.hugetlb_bytes == 0
    failed = charged.removed or (0 if gone else errno.EBUSY)
    case.step(TeardownStep.REMOVE_CGROUP, failed, charged.hugetlb_bytes)
    if not gone:
        case.miss_everything()
