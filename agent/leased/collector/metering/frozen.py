# SPDX-License-Identifier: Apache-2.0
"""Frozen months: hours below the floor, whose records may be gone.

Rule: their rows are those that were rolled up when the floor was laid, in files that are kept with
it; a refresh or a rebuild takes them as they are, and computes what lies above. A stretch in which
nobody held anything and that reaches over the floor keeps its beginning.

Does not lay floors (`retention`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec

from leased.collector.archive.floor import Floor, Kept
from leased.collector.metering.rollup import LAYOUT, Listing, Rollups, Stretch
from leased.collector.metering.sources import Quiet
from leased.durable.files import DirectoryDisk, write_whole
from leased.terms.errors import StateError
from leased.terms.moment import DAY_NS


class Frozen(msgspec.Struct, frozen=True):
    """What is final: months that are over, and the stretches of quiet before the floor."""

    layout: str = LAYOUT
    closed: tuple[Stretch, ...] = ()
    quiet: tuple[Quiet, ...] = ()


def frozen_of(floor: Floor) -> Frozen:
    """What a floor says. Raises StateError."""
    if not floor.frozen:
        return Frozen()
    found = msgspec.convert(floor.frozen, Frozen)
    if found.layout != LAYOUT:
        # Rows of another release: they can be read, or not at all; never silently as something
        # else. A release that changes LAYOUT converts them.
        raise StateError("frozen months are of another release's layout: restore its release")
    return found


def put_back(kept: Kept, floor: Floor, rollups: Rollups, frozen: Frozen) -> None:
    """Have the files of frozen months among the rollups. Raises StateError."""
    for one in frozen.closed:
        for name in one.files.values():
            target: Path = rollups.directory / name
            if not target.exists():
                rollups.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                with closing(DirectoryDisk(rollups.directory)) as disk:
                    write_whole(disk, name, kept.read(floor.files[name]))


def joined(frozen: Frozen, found: Iterable[Quiet], floor_ns: int) -> tuple[Quiet, ...]:
    """Stretches of quiet: those before the floor as they were, and what reaches over it whole."""
    reach = {one.node_id: one for one in frozen.quiet if one.to_ns == floor_ns}
    rows = []
    for one in found:
        if one.to_ns <= floor_ns:
            continue
        if one.from_ns < floor_ns:
            before = reach.pop(one.node_id, None)
            from_ns = floor_ns if before is None else before.from_ns
            one = Quiet(one.node_id, from_ns, one.to_ns)
        rows.append(one)
    ended = [one for one in frozen.quiet if one.to_ns != floor_ns or one.node_id in reach]
    return tuple(sorted((*ended, *rows), key=lambda one: (one.node_id, one.from_ns)))


def settled(listing: Listing, floor: Floor) -> Listing:
    """A listing as it is over a floor: without what is nowhere any more."""
    if not (floor.floor_ns and listing.nodes):
        return listing
    return msgspec.structs.replace(
        listing,
        first_ns=max(listing.first_ns, floor.begin_ns),
        closed=tuple(one for one in listing.closed if one.end_day * DAY_NS > floor.begin_ns),
        quiet=joined(frozen_of(floor), listing.quiet, floor.floor_ns),
    )
