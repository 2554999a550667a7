# SPDX-License-Identifier: Apache-2.0
"""Retention: which segments may go, and how they go.

Rule: a segment may go only if every collector that has to had cosigned all of it, if no replay
needs a record of it, if it is old enough or the disk is short, and if two stay. What was not
acknowledged is never removed, not even on a full disk (grants stop instead), nor is that from which
it is known when the open epoch ends (`opened`). In order: a Pruned record says so and the slot that
anchors it carries the new `min_seq`; then the files are unlinked, oldest first, and the names made
durable. What a crash leaves below `min_seq` is no part of the log, and goes at the next start.

Does not know who has to acknowledge (the service does) and does not seal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from leased.chain.record import HEADER
from leased.chain.segment import HEADER_BYTES, parse_header
from leased.chain.verdict import CORRUPT_SEGMENT
from leased.durable.files import Disk
from leased.durable.scan import segment_names
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.event import Event, KeyChange, LeaseEvent
from leased.terms.identity import LeaseId

SEGMENTS_KEPT: Final = 2
SEGMENTS_AT_ONCE: Final = 64
"""A gigabyte: some tens of milliseconds of unlinking."""

_NEVER_NEEDED: Final = frozenset(
    (e.NodeStopped, e.Refused, e.StrayEnded, e.ClockStepped, e.Recovered, e.Voided)
    + (e.PolicyTurned, e.HeadCountersigned, e.Pruned, e.Metered, e.KeyRotated)
)
"""Said once, and nothing that is decided later rests on it; what is metered belongs to its period,
whose beginning is held, and the Pruned itself says anew how the log came to its key."""

_LATEST: Final = frozenset((e.NodeStarted, e.InventoryChanged, e.PolicyChanged, e.HealthChanged))
"""What later ones replace: each start says them anew. The last before the oldest record that is
needed is needed to read that one."""

_LAST: Final = frozenset((e.Reclaimed, e.Unfenced))
"""After which nothing rests on the lease."""


class Removal(msgspec.Struct, frozen=True):
    """What is to go: the log then begins with record `min_seq`, after the hash `head`, and with the
    key that `key_changes` lead to."""

    min_seq: int
    head: bytes
    names: tuple[str, ...]
    key_changes: tuple[KeyChange, ...] = ()


class Needs:
    """Which records a replay cannot do without, as they are sealed. Told of what a replay is shown
    (the events of no lease, and those of leases), in order."""

    def __init__(self) -> None:
        self._leases: dict[LeaseId, int] = {}
        self._lasting: dict[object, int] = {}
        self._fenced: dict[str, int] = {}
        self._replaced: list[tuple[int, type[Event]]] = []

    def note(self, sequence: int, event: Event) -> None:
        """`event` is record `sequence`."""
        kind = type(event)
        if kind in _NEVER_NEEDED:
            return
        if isinstance(event, LeaseEvent):
            if kind in _LAST:
                self._leases.pop(event.lease_id, None)
            else:
                self._leases.setdefault(event.lease_id, sequence)
            return
        lasting = self._lasting
        if kind in _LATEST:
            self._replaced.append((sequence, kind))
        elif isinstance(event, e.CordonChanged):
            _hold(lasting, ("cordon", event.resource_id), sequence, held=event.cordoned)
        elif isinstance(event, (e.OverageBegan, e.OverageEnded)):
            key = ("overage", event.holder, event.rule)
            _hold(lasting, key, sequence, held=kind is e.OverageBegan)
        elif isinstance(event, e.ResourceFenced):
            self._fence(event, sequence)
        elif isinstance(event, e.PeriodBegan):
            lasting[("period", event.period)] = sequence
        else:
            # What a later release says may be needed: all of these are.
            lasting.setdefault(kind, sequence)

    def _fence(self, event: e.ResourceFenced, sequence: int) -> None:
        """Fences of a resource add up, from the first of them on, until they are lifted."""
        name = event.allotment.resource_id
        change = event.allotment.capacity if event.fenced else -event.allotment.capacity
        self._fenced[name] = max(0, self._fenced.pop(name, 0) + change)
        if self._fenced[name]:
            self._lasting.setdefault(("fence", name), sequence)
        else:
            del self._fenced[name]
            self._lasting.pop(("fence", name), None)

    def oldest(self, end: int, *, periods: bool = True) -> int:
        """The oldest record that is needed; `end` if none before that is. At `end` all is said anew
        that only the latest of its kind says, and without `periods` also what budgets rest on."""
        lasting = [at for key, at in self._lasting.items() if periods or not _is_period(key)]
        lasting += self._leases.values()
        oldest = min(lasting, default=end)
        latest = {kind: at for at, kind in self._replaced if at <= oldest}
        # Nothing is ever needed again that is before what is needed now.
        self._replaced = [(at, kind) for at, kind in self._replaced if at >= latest.get(kind, 0)]
        return min(oldest, *latest.values()) if lasting else end


def _is_period(key: object) -> bool:
    return isinstance(key, tuple) and key[0] == "period"


def needed_from(history: Iterable[tuple[int, Event]], end: int) -> int:
    """The oldest record that a replay of `history` up to `end` cannot do without."""
    needs = Needs()
    for sequence, event in history:
        needs.note(sequence, event)
    return needs.oldest(end)


def _hold(lasting: dict[object, int], key: object, sequence: int, *, held: bool) -> None:
    """Remember a state that is on, forget one that is off."""
    if held:
        lasting[key] = sequence
    else:
        lasting.pop(key, None)


def plan_removal(
    disk: Disk,
    min_seq: int,
    *,
    acked_size: int,
    keep_from: int,
    older_than_wall_ns: int,
    pressed: bool,
    key_changes: Sequence[tuple[int, KeyChange]] = (),
    changes_max: int = 0,
) -> Removal | None:
    """What may go now: whole segments, from the oldest on. None: nothing.
    `acked_size` is the smallest that any collector that has to has acknowledged, `keep_from` what a
    replay needs; of `key_changes`, each with its sequence, a Pruned can say `changes_max` anew.
    Raises OSError, ChainError."""
    keep_from = min([keep_from, *(at for at, _ in key_changes[changes_max:])])
    names = live_segments(disk.names(), min_seq)
    going = 0
    for following in names[1 : 1 - SEGMENTS_KEPT][:SEGMENTS_AT_ONCE]:
        head = disk.read_part(following, 0, HEADER_BYTES + HEADER.size)
        begins = parse_header(head[:HEADER_BYTES], following).head.size
        if len(head) < HEADER_BYTES + HEADER.size:
            raise ChainError(CORRUPT_SEGMENT, "the file ends in its first record", file=following)
        # Its last record is no younger than the first of the next.
        wall_ns = HEADER.unpack_from(head, HEADER_BYTES)[8]
        old = pressed or 0 < wall_ns < older_than_wall_ns
        if begins > acked_size or begins > keep_from or not old:
            break
        going += 1
    if not going:
        return None
    header = parse_header(disk.read_part(names[going], 0, HEADER_BYTES), names[going])
    begins = header.head.size
    before = tuple(change for at, change in key_changes if at < begins)
    return Removal(begins, header.head.hash, tuple(names[:going]), before)


def live_segments(names: Sequence[str], min_seq: int) -> list[str]:
    """The segments that are the log, of those that lie there: from the one that holds record
    `min_seq` on."""
    segments = segment_names(names)
    first = 0
    for index, name in enumerate(segments):
        if int(name[4:20], 16) <= min_seq:
            first = index
    return segments[first:]


def remove(disk: Disk, names: Sequence[str]) -> None:
    """Unlink segments, oldest first, and make that durable. Raises OSError."""
    for name in names:
        disk.unlink(name)
    if names:
        disk.sync_names()


def remove_pruned(disk: Disk, min_seq: int) -> None:
    """Remove what a crash left of an earlier removal. Raises OSError."""
    kept = live_segments(disk.names(), min_seq)
    remove(disk, [name for name in segment_names(disk.names()) if name not in kept])
