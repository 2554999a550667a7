# SPDX-License-Identifier: Apache-2.0
"""Pruning at a start: old segments that every configured collector has acknowledged go.

Rule: without a collector nothing is ever pruned; with several the slowest decides of those that it
takes (`[listener] quorum`). It is done
after a start has said anew what starts say, and before anybody is served: a Pruned record first,
anchored together with the new beginning, then the files. A file that cannot be removed stays, and
goes at the next start.

Does not choose segments (`durable.retention`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from leased.chain.quorum import flat
from leased.chain.sealer import Sealer
from leased.durable.log import OpenedLog
from leased.ports import Clock, Entropy
from leased.service.listening import Collector, Listening
from leased.terms.event import Pruned
from leased.terms.identity import EventId


def acked_size(acknowledged: Mapping[int, int], collectors: Sequence[Collector], least: int) -> int:
    """How many records `least` of the collectors (0: all) have acknowledged, each so many as
    `acknowledged` has under the id of its key."""
    if not collectors:
        return 0
    policy = flat({one.name: one.key for one in collectors}, least)
    sizes = {
        one.name: acknowledged.get(int.from_bytes(one.key.key_id, "big"), 0) for one in collectors
    }
    return policy.reached(sizes, 0)


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
    room = os.statvfs(opened.directory)
    removal = opened.removal(
        acked_size=acked,
        older_than_wall_ns=clock.now().wall_ns - retention_ns,
        pressed=room.f_bavail * room.f_frsize < free_bytes_min,
    )
    if removal is None:
        return
    moment = clock.now()
    fields = (removal.min_seq, removal.head, len(removal.names), acked)
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
