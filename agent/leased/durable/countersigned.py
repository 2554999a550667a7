# SPDX-License-Identifier: Apache-2.0
"""What a log shows of its collectors: the newest countersignature of each, its root compared with
the log's own tree, and what the log says of records that it does not have any more.

Rule: a log that does not begin with record 0 has to show that what is gone was acknowledged: a
Pruned record that says so, and a countersignature of no smaller a tree. Whose countersignatures
count is the reader's to say (`chain.quorum`): whoever has the node can write some of any key.

Does not check signatures and reads nothing beyond the anchor.
"""

from __future__ import annotations

import msgspec

from leased.chain.canonical import decode
from leased.chain.findings import Walk
from leased.chain.segment import LogIdentity
from leased.chain.tree import EMPTY
from leased.chain.verdict import BAD_ROOT, GAP
from leased.durable.files import Disk
from leased.durable.pages import PageReader
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError
from leased.terms.event import KIND, HeadCountersigned, Pruned

_WANTED = frozenset((KIND[HeadCountersigned], KIND[Pruned]))


class Shown(msgspec.Struct, frozen=True):
    """What a log shows. It begins with record `begins`; `newest` is the largest tree that each key
    has countersigned."""

    begins: int = 0
    newest: tuple[HeadCountersigned, ...] = ()
    pruned: Pruned | None = None


class Countersignatures:
    """Follows a log from its first record to its last."""

    def __init__(self) -> None:
        self._newest: dict[int, HeadCountersigned] = {}
        self._pruned: Pruned | None = None

    def follow(self, walk: Walk) -> None:
        """What one walk went over."""
        if _WANTED.isdisjoint(walk.kinds):
            return
        for index, kind in enumerate(walk.kinds):
            if kind not in _WANTED:
                continue
            record = walk.record(index)
            self.note(decode(kind, record.schema, record.body, sequence=record.sequence))

    def note(self, event: object) -> None:
        """One event, in order; of most kinds it says nothing."""
        if isinstance(event, Pruned):
            self._pruned = event
        elif isinstance(event, HeadCountersigned):
            held = self._newest.get(event.key_id)
            if held is None or event.size >= held.size:
                self._newest[event.key_id] = event

    def compare(
        self, disk: Disk, identity: LogIdentity, slot: AnchorSlot, begins: int, head: bytes
    ) -> Shown:
        """Compare what was followed with the log, which begins with record `begins` after the hash
        `head`. Raises ChainError (BAD_ROOT, GAP)."""
        pages = PageReader(disk, identity)
        newest = tuple(sorted(self._newest.values(), key=lambda event: event.key_id))
        for event in newest:
            if event.size > slot.next_seq or event.size >= begins:
                self._compare_root(pages, slot, event, begins)
        shown = Shown(begins, newest, self._pruned)
        if begins:
            _check_beginning(shown, head)
        return shown

    @staticmethod
    def _compare_root(
        pages: PageReader, slot: AnchorSlot, event: HeadCountersigned, begins: int
    ) -> None:
        """Raises ChainError (BAD_ROOT): whoever cosigned that has seen another log than this."""
        tree = EMPTY
        if event.size <= slot.next_seq:
            of_header = begins and event.size == begins
            tree = pages.tree_before(begins) if of_header else pages.tree(event.size, slot)
        if event.size > slot.next_seq or tree.root() != event.root:
            why = f"key {event.key_id:08x} has cosigned another tree of {event.size} records"
            raise ChainError(BAD_ROOT, why, sequence=event.size)


def _check_beginning(shown: Shown, head: bytes) -> None:
    """What is missing at the beginning was pruned by the rules. Raises ChainError (GAP)."""
    begins, pruned = shown.begins, shown.pruned
    gone = f"records 0 to {begins - 1} are not here"
    if pruned is None or (pruned.min_seq, pruned.head) != (begins, head):
        raise ChainError(GAP, f"{gone}, and no record says that they were pruned", sequence=begins)
    if max((event.size for event in shown.newest), default=0) < begins:
        why = f"{gone}, and no collector has acknowledged them: nothing may go that none has"
        raise ChainError(GAP, why, sequence=begins)
