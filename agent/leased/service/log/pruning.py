# SPDX-License-Identifier: Apache-2.0
"""Pruning: old segments that every configured collector has acknowledged go, at a start and while
the agent runs.

Rule: without a collector nothing is ever pruned; with several the slowest of the quorum decides
(`[listener] quorum`), and only what is on record here as acknowledged counts. First a Pruned record
is anchored, together with the new beginning of the log; then the files go. What a start seals of
the node (its inventory, policy and so on) must not go with them: at a start it has just been sealed
anew, while the agent runs it is sealed anew in the batch of the Pruned record. A file that cannot
be removed stays, and goes at the next start. A running agent removes a few segments at once and
then lets others have the disk.

Does not choose segments (`durable.retention`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from leased.chain.quorum import flat
from leased.chain.sealer import Sealer
from leased.durable.log import OpenedLog
from leased.durable.retention import Removal
from leased.ports import Clock, Entropy
from leased.service.evidence import NO_COMMAND
from leased.service.fleet.config import Countersigner, Listening
from leased.terms.command import Command, NotePruned
from leased.terms.event import Pruned
from leased.terms.identity import EventId
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Reply

LOOK_NS: Final = 60 * NS_PER_S
"""How often a running agent looks: a segment holds minutes of the busiest host."""

APART_NS: Final = 1 * NS_PER_S
"""Between two removals while there is more to remove."""


def acked_size(
    acknowledged: Mapping[int, int], collectors: Sequence[Countersigner], least: int
) -> int:
    """How many records `least` of the collectors (0: all) have acknowledged, each so many as
    `acknowledged` has under the id of its key."""
    if not collectors:
        return 0
    policy = flat({one.name: one.key for one in collectors}, least)
    sizes = {
        one.name: acknowledged.get(int.from_bytes(one.key.key_id, "big"), 0) for one in collectors
    }
    return policy.reached(sizes, 0)


def free_bytes(directory: Path) -> int:
    """What is free on the disk of the log."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


async def prune(
    opened: OpenedLog,
    sealer: Sealer,
    listening: Listening,
    retention_ns: int,
    free_bytes_min: int,
    clock: Clock,
    entropy: Entropy,
    say: Callable[[str], None],
) -> None:
    """Prune what may go now. Raises OSError or StateError only where sealing fails."""
    if not listening.collectors or not retention_ns:
        return
    acked = acked_size(opened.acknowledged, listening.collectors, listening.quorum)
    removal = opened.removal(
        acked_size=acked,
        older_than_wall_ns=clock.now().wall_ns - retention_ns,
        pressed=free_bytes(opened.directory) < free_bytes_min,
    )
    if removal is None:
        return
    moment = clock.now()
    fields = (removal.min_seq, removal.head, len(removal.names), acked, removal.key_changes)
    opened.stage(removal)
    sealed = sealer.seal([(Pruned(EventId(entropy()), *fields), moment)], sign=True)
    await opened.journal.commit(sealed.frames, sealed.count, sealed.head, moment)
    if sealed.ends_epoch:
        opened.forget_epoch()
    say(f"pruned: the log begins with record {removal.min_seq} now")
    try:
        opened.remove(removal)
    except OSError as error:
        say(f"old segments could not be removed, the next start tries again: {error}")


class Identity(msgspec.Struct, frozen=True):
    """What a start says of the node, to be said anew."""

    node_id: bytes
    version: str


class Pruning:
    """Prunes while the agent runs."""

    def __init__(
        self,
        opened: OpenedLog,
        identity: Identity,
        *,
        listening: Callable[[], Listening],
        retention_ns: int,
        free_bytes_min: int,
        clock: Clock,
        ask: Callable[[Command], Awaitable[Reply]],
        say: Callable[[str], None],
        aside: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """`ask` has a command sealed; `aside` calls what blocks where nobody waits for it."""
        self._opened, self._identity = opened, identity
        self._listening, self._retention_ns = listening, retention_ns
        self._free_bytes_min, self._free = free_bytes_min, free
        self._clock, self._ask, self._say, self._aside = clock, ask, say, aside
        self._warned = False

    async def run(self) -> None:
        """Until cancelled. What a disk does not let go is told, and goes at the next start."""
        while True:
            try:
                more = await self._turn()
            except OSError as error:
                self._say(f"old segments could not be removed, the next start does it: {error}")
                more = False
            wait_ns = APART_NS if more else LOOK_NS
            await self._clock.sleep_until(self._clock.now().boot_ns + wait_ns)

    async def _turn(self) -> bool:
        """Remove a few segments, if any may go; whether it did. Raises OSError."""
        listening, opened = self._listening(), self._opened
        acked = acked_size(opened.acknowledged, listening.collectors, listening.quorum)
        if not acked or not self._retention_ns:
            return False
        self._warn()
        older_than_wall_ns = self._clock.now().wall_ns - self._retention_ns
        look = partial(self._look, acked, opened.needed_from(periods=False), older_than_wall_ns)
        removal: Removal | None = await self._aside(look)
        if removal is None:
            return False
        opened.stage(removal)
        await self._ask(
            NotePruned(
                NO_COMMAND,
                min_seq=removal.min_seq,
                head=removal.head,
                segments=len(removal.names),
                acked_size=acked,
                key_changes=removal.key_changes,
                node_id=self._identity.node_id,
                version=self._identity.version,
                filesystem=opened.filesystem,
                durability=opened.durability,
            )
        )
        await self._aside(opened.remove, removal)
        self._say(f"pruned: the log begins with record {removal.min_seq} now")
        return True

    def _warn(self) -> None:
        """Once a run, if the log is past what a Pruned can say of its keys."""
        begins = self._opened.kept_from
        if begins is None or self._warned:
            return
        self._warned = True
        self._say(
            f"the key was replaced so often that nothing from record {begins} on is ever pruned:"
            " before the disk is full, begin another log (stop leased, move"
            f" {self._opened.directory} away, start it, `leased-collector enrol --replace`)"
        )

    def _look(self, acked: int, keep_from: int, older_than_wall_ns: int) -> Removal | None:
        return self._opened.removal(
            acked_size=acked,
            keep_from=keep_from,
            older_than_wall_ns=older_than_wall_ns,
            pressed=self._free(self._opened.directory) < self._free_bytes_min,
        )
