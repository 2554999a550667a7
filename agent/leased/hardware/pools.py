# SPDX-License-Identifier: Apache-2.0
"""Pools: how many hugepages should be in use, against how many the kernel says are.

Rule: in use = held by leases + written off (fenced) + foreign (in use when we began). A lease's
pages have come back when nothing beyond that sum is missing; what stays missing is written off,
first to the leases whose truncation returned too little, then to whoever is being proven, because
a page that is missing cannot be promised to anybody. The sum is conserved, so no trick inside one
lease (punching a hole, pinning a page elsewhere) makes room that is not there. A hole is its
holder's: what is in use less than the sum may be a page that a lease has given up for a moment, so
no more of it is believed to be others' that came back than leases with holes could have given up.
Nor is a lease blamed for more than it can have kept: anybody may take pages from a pool, but those
are charged to whoever took them, and a lease's to our workers.

All calls of one pool go through one worker in order, and this ledger is kept from its answers in
that order: it is exact at each count. Does not decide what fencing is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import msgspec
import trio

from leased.hardware.calls import Answer, Cleaned, Count, Counted, Pool, Scrub
from leased.hardware.crew import Crew
from leased.hardware.pieces import pool_worker
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId

Piece = tuple[LeaseId, int]
"""One allotment of one lease."""


class PoolLedger:
    """One pool's pages."""

    def __init__(self, counted: Counted) -> None:
        self._held: dict[Piece, int] = {}
        self._files: dict[Piece, tuple[int, int]] = {}
        """A descriptor of ours of what a lease has, and its blocks while it had every page."""

        self._punched: set[Piece] = set()
        self._short: dict[Piece, int] = {}
        self._kept: dict[Piece, int] = {}
        """How many of a lease's pages are not seen to have come back, at most."""

        self._doubts = 0
        self.written_off = 0
        self.foreign = counted.total_pages - counted.free_pages

    def hold(self, piece: Piece, pages: int, fd: int) -> None:
        """Pages were given to a lease, all of what `fd` is of."""
        self._held[piece] = pages
        try:
            self._files[piece] = os.dup(fd), os.fstat(fd).st_blocks
        except OSError:  # out of descriptors: nobody can look
            self._punched.add(piece)

    def adopt(self, piece: Piece, pages: int) -> None:
        """A lease of an earlier run of the agent holds pages that `foreign` counted."""
        if piece not in self._held:
            self._held[piece] = pages
            self._punched.add(piece)  # for all we know
            self.foreign = max(self.foreign - pages, 0)

    def end(self, pieces: Sequence[Piece]) -> None:
        """These are being truncated from here on."""
        self.look_for_holes()
        for piece in pieces:
            self._close(piece)

    def give_back(self, piece: Piece, cleaned: Cleaned) -> None:
        """The lease's memfd was truncated."""
        if cleaned.before is not None:
            # What came back during the lease must not hide what this lease keeps.
            self.missing(cleaned.before)
        pages = self._let_go(piece)
        if cleaned.short_pages:
            self._short[piece] = min(cleaned.short_pages, pages)
        if pages:
            # More than it had: others' pages are among them, and how many is not known.
            freed = cleaned.freed_pages if cleaned.freed_pages <= pages else 0
            self._kept[piece] = pages - freed

    def release(self, piece: Piece, *, alone: bool = True) -> None:
        """What was just given was closed again, unused, or never made; `alone`: nobody else had it,
        so that none of what is missing is its."""
        self._let_go(piece)
        if alone:
            self._kept[piece] = 0

    def write_off(self, piece: Piece) -> None:
        """Nothing is known of the lease's pages: all of them are missing until seen again."""
        self.written_off += self._let_go(piece)

    def forget(self, lease_ids: Collection[LeaseId]) -> None:
        """As `write_off`, of everything that these leases hold."""
        for piece in [piece for piece in self._held if piece[0] in lease_ids]:
            self.write_off(piece)
        for piece in [piece for piece in self._kept if piece[0] in lease_ids]:
            del self._kept[piece]

    def close(self) -> None:
        """At the end."""
        self.end(tuple(self._files))

    def _let_go(self, piece: Piece) -> int:
        self._close(piece)
        self._punched.discard(piece)
        return self._held.pop(piece, 0)

    def _close(self, piece: Piece) -> None:
        fd, _ = self._files.pop(piece, (-1, 0))
        if fd >= 0:
            os.close(fd)

    def look_for_holes(self) -> None:
        """See which leases have given up pages of theirs. Whoever did once may do so at any
        moment: it is not asked again."""
        for piece, (fd, blocks) in self._files.items():
            if piece not in self._punched and os.fstat(fd).st_blocks < blocks:
                self._punched.add(piece)

    def doubt(self) -> None:
        """A worker was killed between truncations, and nobody knows yet how far it had come: pages
        that came back may be of leases that are still held to have them."""
        self._doubts += 1

    def settle(self) -> None:
        """It is known now."""
        self._doubts -= 1

    def missing(self, counted: Counted) -> int:
        """Pages in use that nobody answers for. What was written off or foreign and has come back
        since is believed at once, so that it cannot hide the next page that is missing."""
        in_use = counted.total_pages - counted.free_pages
        drift = in_use - sum(self._held.values()) - self.written_off - self.foreign
        back = max(-drift - sum(self._held[piece] for piece in self._punched), 0)
        if back and not self._doubts:
            foreign_back = min(back, self.foreign)
            self.foreign -= foreign_back
            self.written_off -= min(back - foreign_back, self.written_off)
        return max(drift, 0)

    def in_doubt(self, pieces: Sequence[tuple[Piece, int]], counted: Counted) -> int:
        """How many of the pages of these could be among the missing."""
        missing = self.missing(counted)
        return min(missing, sum(self._kept.get(piece, pages) for piece, pages in pieces))

    def blame(self, pieces: Sequence[tuple[Piece, int]], counted: Counted) -> dict[Piece, int]:
        """Write off what is missing: (piece, its pages) are those being proven; how many pages of
        which are not."""
        missing = self.missing(counted)
        blamed: dict[Piece, int] = {}
        pieces = [(piece, self._kept.get(piece, pages)) for piece, pages in pieces]
        shares = [(piece, min(self._short.pop(piece, 0), pages)) for piece, pages in pieces]
        for candidates in (shares, pieces):
            for piece, pages in candidates:
                share = min(missing, pages - blamed.get(piece, 0))
                if share > 0:
                    blamed[piece] = blamed.get(piece, 0) + share
                    self.written_off += share
                    missing -= share
        return blamed


class PoolLedgers:
    """The ledger of every pool that was used, begun with its counters as they were before."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._ledgers: dict[Pool, PoolLedger] = {}
        self._founding = trio.Lock()

    async def of(self, pool: Pool) -> PoolLedger:
        """The pool's ledger. Raises DeviceError."""
        if pool not in self._ledgers:
            async with self._founding:
                if pool not in self._ledgers:
                    self._ledgers[pool] = PoolLedger(await self.count(pool))
        return self._ledgers[pool]

    def release(self, pool: Pool, piece: Piece, *, alone: bool) -> None:
        """What was to be given of a pool was not, or was closed again, unused."""
        if pool in self._ledgers:
            self._ledgers[pool].release(piece, alone=alone)

    async def scrub(
        self,
        name: str,
        pool: Pool | None,
        pieces: Sequence[Piece],
        calls: Sequence[Scrub],
        fds: Sequence[int],
        touched_bytes: int,
    ) -> tuple[Answer, ...]:
        """Have pieces scrubbed by the worker `name`, and keep their pool's ledger from its answers.
        Raises DeviceError."""
        if pool is None:
            return await self._crew.ask_again(name, calls, fds, touched_bytes)
        doubted: list[PoolLedger] = []
        try:
            ledger = await self.of(pool)

            def killed() -> None:
                doubted.append(ledger)
                ledger.doubt()

            ledger.end(pieces)
            answers = await self._crew.ask_again(name, calls, fds, touched_bytes, killed)
            ledger.look_for_holes()
        except DeviceError:
            for piece in pieces if pool in self._ledgers else ():
                self._ledgers[pool].write_off(piece)
            raise
        finally:
            for one in doubted:
                one.settle()
        for piece, answer in zip(pieces, answers, strict=True):
            if not isinstance(answer, Cleaned):
                ledger.write_off(piece)
            elif doubted:
                # It may have been truncated before; then nothing came back by this truncation.
                ledger.give_back(piece, msgspec.structs.replace(answer, before=None, short_pages=0))
            else:
                ledger.give_back(piece, answer)
        return answers

    def forget(self, lease_ids: Collection[LeaseId]) -> None:
        """These leases are over. What one was never asked to give back (its fence was lifted
        before) is missing until seen again: held by nobody, it would hide as many of others."""
        for ledger in self._ledgers.values():
            ledger.forget(lease_ids)

    async def count(self, pool: Pool) -> Counted:
        """The pool's counters now, in the order of the calls to its worker."""
        self._look_for_holes(pool)
        counted = await self._crew.one(pool_worker(pool), Count(pool))
        assert isinstance(counted, Counted)
        self._look_for_holes(pool)
        return counted

    def close(self) -> None:
        """Keep nothing open."""
        for ledger in self._ledgers.values():
            ledger.close()

    def _look_for_holes(self, pool: Pool) -> None:
        if pool in self._ledgers:
            self._ledgers[pool].look_for_holes()
