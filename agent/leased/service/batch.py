# SPDX-License-Identifier: Apache-2.0
"""A batch: what one turn of the sequencer proposed and sealed, and what of it waits and is told.

Does not commit (`sequencer`) and does not carry anything out (`grantor`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from leased.chain.sealer import SealedBatch
from leased.terms.effect import Effect, MoveDeadline, Prepare
from leased.terms.event import Event
from leased.terms.moment import Moment
from leased.terms.reply import Reply

Deliver = Callable[[Reply], None]
"""Takes a reply on its way out. Must not block and must not raise."""


class Told(msgspec.Struct, frozen=True, gc=False):
    """What a committed batch tells the rest of the agent: the events with their places in the
    chain, one to one."""

    moment: Moment
    events: tuple[Event, ...]
    sequences: Sequence[int]
    hashes: tuple[bytes, ...]


class Held(msgspec.Struct, frozen=True):
    """An effect together with the answers that may leave only when it has been carried out.

    None: the answer waits for a Prepare that an earlier batch left (the retry of a grant that is
    still being prepared).
    """

    effect: Prepare | MoveDeadline | None
    reply: Reply
    delivers: tuple[Deliver, ...]


class Batch(msgspec.Struct, eq=False):
    """What one turn of the sequencer proposed and sealed, until it is committed."""

    moment: Moment
    items: list[tuple[Event, Moment]] = []
    answers: list[tuple[Reply, Deliver]] = []
    held: list[Held] = []
    effects: list[Effect] = []
    sealed: SealedBatch | None = None
