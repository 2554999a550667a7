# SPDX-License-Identifier: Apache-2.0
"""The log as its fleet may have it: anchored records, notes of any tree, and waiting for more.

Rule: the anchor decides what there is. Reading is done in a thread, one page at a time: several at
once would only take the interpreter from the sequencer more often. Whoever waits for more is woken
once for many batches.

Does not know of requests (`routes`) and does not keep what readers have had.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import trio

from leased.chain.note import Checkpoint, NoteKey, write_note
from leased.chain.proof import FORMAT, Proof
from leased.chain.quorum import NONE, WitnessPolicy
from leased.chain.tree import Frontier
from leased.durable.log import OpenedLog
from leased.durable.pages import Inclusion, Page
from leased.ports import AnchorSlot
from leased.terms.event import HeadCountersigned
from leased.terms.moment import NS_PER_S

COSIGNED_MAX: Final = 64
"""Of so many trees the cosignatures are kept for proofs: some kilobytes."""


class PulledLog:
    """Reads what is anchored, signs what is read."""

    def __init__(
        self,
        opened: OpenedLog,
        *,
        latest: Callable[[], Frontier],
        gather_ns: int,
        aside: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        """`latest` is the tree of what was anchored last; `aside` calls what blocks (a thread,
        unless said otherwise)."""
        self._opened = opened
        self._latest = latest
        self._reader = opened.pages()
        self._aside = aside or partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))
        self._gather_ns = gather_ns
        self._grown = trio.Event()
        self._waiting = 0
        self._cosigned: dict[int, dict[NoteKey, bytes]] = {}
        self.log_id = opened.log_id
        self.origin = opened.origin
        self.epoch_ns = opened.identity.epoch_ns

    @property
    def anchored(self) -> AnchorSlot:
        """What counts now."""
        return self._opened.journal.anchored

    @property
    def key(self) -> NoteKey:
        """The key in force."""
        return NoteKey(self.origin, self._opened.signer.public_key)

    @property
    def acknowledged(self) -> Mapping[int, int]:
        """What collectors had acknowledged before this start, by the id of their key."""
        return self._opened.acknowledged

    @property
    def countersigned(self) -> Iterable[HeadCountersigned]:
        """The newest countersignatures on record."""
        return self._opened.countersigned

    def acknowledge(self, size: int) -> None:
        """So many records are acknowledged by as many collectors as the quorum wants."""
        self._opened.acknowledge(size)

    def wake(self) -> None:
        """More is anchored."""
        if self._waiting:
            self._grown.set()

    async def wait_beyond(self, size: int, wait_ns: int) -> None:
        """Return when there are more than `size` records, and what comes right behind them; or when
        the time is over."""
        with trio.move_on_after(wait_ns / NS_PER_S):
            self._waiting += 1
            try:
                while self.anchored.next_seq <= size:
                    if self._grown.is_set():
                        self._grown = trio.Event()
                    await self._grown.wait()
            finally:
                self._waiting -= 1
            await trio.sleep(self._gather_ns / NS_PER_S)

    def note(self, tree: Frontier, cosigned: Iterable[tuple[NoteKey, bytes]] = ()) -> str:
        """The node's signed note of a tree, with the lines of those who have cosigned it."""
        text = Checkpoint(self.origin, tree.size, tree.root()).text()
        return write_note(text, [(self.key, self._opened.signer.sign(text.encode())), *cosigned])

    def keep_cosignature(self, size: int, key: NoteKey, signature: bytes) -> None:
        """A collector has cosigned the tree of `size`, which is this log's: a proof in that tree
        shows so. Of the newest trees only: collectors cosign every few seconds."""
        self._cosigned.setdefault(size, {})[key] = signature
        while len(self._cosigned) > COSIGNED_MAX:
            del self._cosigned[min(self._cosigned)]

    def vouched_size(self, policy: WitnessPolicy, sequence: int) -> int | None:
        """The newest tree that the quorum is known to have cosigned, record `sequence` in it; None:
        there is none."""
        if policy.quorum == NONE:
            return None
        for size in sorted(self._cosigned, reverse=True):
            witnesses = (policy.named(key.key_id) for key in self._cosigned[size])
            sizes = {witness[0]: size for witness in witnesses if witness is not None}
            if size > sequence and policy.reached(sizes, 0) == size:
                return size
        return None

    async def first_seq(self) -> int:
        """The first record that is still there. Raises StateError, OSError."""
        return int(await self._aside(self._reader.first_seq))

    async def page(self, first: int, slot: AnchorSlot, bytes_max: int) -> Page:
        """A page of the log as it was at `slot`. Raises ChainError, StateError, OSError."""
        page: Page = await self._aside(self._reader.page, first, slot, bytes_max)
        return page

    async def tree(self, size: int, slot: AnchorSlot) -> Frontier:
        """The tree of the first `size` records; that of all of them costs nothing. Raises
        ChainError, StateError, OSError."""
        latest = self._latest()
        if latest.size == size:
            return latest
        tree: Frontier = await self._aside(self._reader.tree, size, slot)
        return tree

    async def prove(self, sequence: int, size: int, slot: AnchorSlot) -> Proof:
        """The proof that record `sequence` is in the tree of `size`, and the note of that, by the
        node and by who has cosigned just that tree. Raises ChainError, StateError, OSError."""
        found: Inclusion = await self._aside(self._reader.inclusion, sequence, size, slot)
        return Proof(
            FORMAT,
            self.log_id.hex(),
            self.origin,
            self.key.text(),
            sequence,
            size,
            found.record_hash.hex(),
            tuple(one.hex() for one in found.path),
            self.note(found.tree, self._cosigned.get(size, {}).items()),
        )
