# SPDX-License-Identifier: Apache-2.0
"""Preparing: a batch of leases made ready, each whole or not at all.

Rule: leaves first, then memory, each worker's part in one message; what was made for a lease that
failed is closed before anybody is told of the failure.

Does not hand anything to a tenant.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Sequence

import msgspec

from leased.hardware import leaves
from leased.hardware.adopting import Adoptions
from leased.hardware.calls import CgroupFacts, Created, Leafed, MakeLeaf, Pool
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import CALLS_MAX, Crew, each, failure, spread
from leased.hardware.descriptors import close_all
from leased.hardware.fittings import Fitted, Fittings
from leased.hardware.handing import Handed, Openings
from leased.hardware.pieces import (
    Piece,
    is_handed_out,
    leaf_call,
    memory_pieces,
    needs_leaf,
    worker_for,
)
from leased.hardware.pools import PoolLedgers
from leased.hardware.resizing import Resizing, may_be_short
from leased.ports import Prepared
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease

_CREATED = struct.Struct("<QQQQ")
_NOT_FITTED = Fitted()


class _Case(msgspec.Struct, eq=False):
    """One lease on its way: what was made of it, or what befell it."""

    lease: Lease
    pieces: list[Piece] = []
    made: dict[int, tuple[Created, int]] = {}
    unanswered: set[int] = set()
    opened: Handed = []
    leaf: str = ""
    fitted: Fitted = _NOT_FITTED
    error: DeviceError | None = None


class Preparer:
    """Makes leases ready."""

    def __init__(
        self,
        crew: Crew,
        ledgers: PoolLedgers,
        resizing: Resizing,
        fittings: Fittings,
        adoptions: Adoptions,
        openings: Openings,
        config: HardwareConfig,
    ) -> None:
        self._adoptions = adoptions
        self._crew = crew
        self._ledgers = ledgers
        self._resizing = resizing
        self._fittings = fittings
        self._openings = openings
        self._config = config

    async def prepare(
        self, leases: Sequence[Lease], facts: CgroupFacts
    ) -> list[Prepared | DeviceError]:
        """One answer per lease, in order."""
        cases = [_Case(lease) for lease in leases]
        await self._make_leaves(cases, facts)
        work: dict[str, list[tuple[_Case, Piece]]] = {}
        for case in cases:
            try:
                case.pieces = memory_pieces(case.lease)
            except DeviceError as error:
                case.error = case.error or error
            for piece in case.pieces if case.error is None else ():
                name = worker_for(piece, "grant", self._config)
                work.setdefault(name, []).append((case, piece))
        await spread(work, self._create)
        await self._fit([case for case in cases if case.leaf and case.error is None])
        for case in cases:
            if case.error is not None and case.leaf:
                await self._put_back(case)
        return [self._finish(case) for case in cases]

    async def _make_leaves(self, cases: Sequence[_Case], facts: CgroupFacts) -> None:
        wanted: list[tuple[_Case, MakeLeaf]] = []
        for case in cases:
            if needs_leaf(case.lease):
                try:
                    path = leaf_path(case.lease, facts)
                    call = leaf_call(case.lease, path, self._config.lease_pids_max)
                    wanted.append((case, call))
                except DeviceError as error:
                    case.error = error
        for begin in range(0, len(wanted), CALLS_MAX):
            part = wanted[begin : begin + CALLS_MAX]
            try:
                answers, _ = await self._crew.ask("grant", [call for _, call in part])
            except DeviceError as error:
                for case, _ in part:
                    case.error = error
                continue
            for (case, call), answer in zip(part, answers, strict=True):
                if isinstance(answer, Leafed):
                    case.leaf = call.path
                else:
                    case.error = failure(answer)

    async def _create(self, name: str, part: Sequence[tuple[_Case, Piece]]) -> None:
        pool = part[0][1].pool
        touched_bytes = sum(piece.allotment.capacity for _, piece in part)
        try:
            ledger = await self._ledgers.of(pool) if pool is not None else None
            calls = [piece.create() for _, piece in part]
            answers, fds = await self._crew.ask(name, calls, touched_bytes=touched_bytes)
        except DeviceError as error:
            for case, piece in part:
                case.error = error
                case.unanswered.add(piece.index)
            return
        own = iter(fds)
        for (case, piece), call, answer in zip(part, calls, answers, strict=True):
            if isinstance(answer, Created):
                case.made[piece.index] = (answer, next(own))
                if call.handed:
                    case.opened.append((piece.allotment.resource_id, next(own)))
                if ledger is not None:
                    ledger.hold(
                        (case.lease.lease_id, piece.index), piece.pages, case.made[piece.index][1]
                    )
            else:
                case.error = failure(answer)
        if pool is not None:
            await self._explain(pool, [one for one in part if may_be_short(one[0].error)])

    async def _explain(self, pool: Pool, short: Sequence[tuple[_Case, Piece]]) -> None:
        """Tell in its numbers what a pool could not give."""
        if not short:
            return
        try:
            counted = await self._ledgers.count(pool)
        except DeviceError:
            return
        for case, piece in short:
            case.error = self._resizing.explain(piece.allotment, pool, counted) or case.error

    async def _fit(self, cases: Sequence[_Case]) -> None:
        """What a leaf has beyond limits: its devices, and the filter that lets only those be
        opened."""

        async def one(case: _Case) -> None:
            fds = [case.made[index][1] for index in sorted(case.made)]
            try:
                await self._adoptions.move_wanted(case.lease, case.leaf)
                case.fitted = await self._fittings.prepare(case.lease, case.leaf, fds)
            except DeviceError as error:
                case.error = error

        await each(cases, one)

    async def _put_back(self, case: _Case) -> None:
        """Before the leaf goes: whoever was adopted goes back where it was."""
        try:
            await self._adoptions.put_back(case.lease.lease_id)
        except DeviceError as error:
            case.error = error

    def _finish(self, case: _Case) -> Prepared | DeviceError:
        if case.error is None:
            self._openings.keep(case.lease.lease_id, case.opened)
            return _prepared(case)
        # All or nothing: what was made for a lease that failed goes away with its descriptors.
        close_all(fd for _, fd in (*case.made.values(), *case.opened))
        for piece in case.pieces:
            if piece.pool is not None and piece.index not in case.unanswered:
                # Nobody else had it, unless it was to be an owner's (`rdma`).
                alone = piece.index not in case.made or is_handed_out(piece.allotment)
                key = case.lease.lease_id, piece.index
                self._ledgers.release(piece.pool, key, alone=alone)
        if case.leaf:
            try:
                leaves.remove(case.leaf)
            except OSError as left:
                detail = f"{case.error.detail}; {left}"
                return DeviceError(case.error.verb, case.error.errno, detail)
        return case.error


def leaf_path(lease: Lease, facts: CgroupFacts) -> str:
    """Where the lease's leaf is. Raises DeviceError where there can be none."""
    if not facts.path:
        raise DeviceError("cgroup_make", errno.ENOENT, "; ".join(facts.troubles))
    name = lease.subject.cgroup
    if not name or "/" in name or name.startswith("."):
        raise DeviceError("cgroup_make", errno.EINVAL, f"no name for a leaf: {name!r}")
    return f"{facts.path}/{name}"


def _prepared(case: _Case) -> Prepared:
    measured: list[bytes] = [case.lease.lease_id]
    fds: list[int] = []
    for index in range(len(case.made)):
        created, fd = case.made[index]
        fds.append(fd)
        measured.append(
            _CREATED.pack(created.device, created.inode, created.blocks, created.ready_ns)
        )
    fitted = case.fitted
    measured.append(fitted.evidence)
    evidence = hashlib.sha256(b"".join(measured)).digest()
    return Prepared(tuple(fds), case.leaf, evidence, fitted.access, fitted.objects)
