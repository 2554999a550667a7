# SPDX-License-Identifier: Apache-2.0
"""A disk that is full to the last byte: every live lease still gets its terminal records, and every
grant is refused (T11)."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import cast

import pytest

from leased.chain.sealer import Sealer
from leased.durable.log import OpenedLog
from leased.terms import event as e
from leased.terms.errors import StateError
from leased.terms.identity import EventId, LeaseId
from tests.doubles.logs import allocation, moment_at, open_in, started, subject
from tests.powercut.machine import LAYOUTS, Layout, attached, made, mounted, must_have

LEASES = 60
SEGMENT = 64 * 1024
KINDS = [layout for layout in LAYOUTS if layout.name in ("ext4", "xfs", "btrfs")]


def fill(directory: Path) -> int:
    """Take all the space there is; how many bytes that was."""
    taken = 0
    with (directory / "filler").open("wb", buffering=0) as file:
        for piece in (1 << 20, 4096, 1):
            try:
                while True:
                    taken += file.write(bytes(piece))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        try:
            os.fsync(file.fileno())
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return taken


def ending(number: int) -> list[e.Event]:
    """The records that end lease `number`, all of them."""
    lease = LeaseId(sha256(b"lease%d" % number).digest()[:16])
    about = (lease, subject(), 1, number * 10**9)

    def event_id(step: int) -> EventId:
        return EventId(sha256(b"end%d.%d" % (number, step)).digest()[:16])

    proof = sha256(b"proof").digest()
    measured = (1_000_000, 2_000_000, None, None, None, 0, 1000, proof)
    return [
        e.Expired(event_id(0), *about),
        e.AccessCut(event_id(1), *about, True, proof),
        e.Scrubbed(event_id(2), *about, 1 << 30, proof),
        e.Reclaimed(event_id(3), *about, (1 << 60,), *measured),
    ]


@pytest.mark.parametrize("layout", KINDS, ids=lambda layout: layout.name)
def test_every_terminal_record_lands_and_every_grant_is_refused(
    tmp_path: Path, layout: Layout
) -> None:
    must_have(layout)
    image = made(layout, tmp_path)
    with attached(image) as device, mounted(device, tmp_path / "full", layout.options) as point:
        with closing(open_in(point / "audit", segment_bytes=SEGMENT)) as log:
            sealer = log.sealer()
            granted = _grant_until_refused(log, sealer, point)
            assert granted > LEASES, "some were granted from the reserve, on the full disk"
            head = _end_all(log, sealer, granted)
        with closing(open_in(point / "audit", segment_bytes=SEGMENT)) as log:
            assert log.head.text() == head and log.recovered is None
            many = 4 * granted
            assert not log.journal.reserve_ok(many), "a full disk promises no more"
            (point / "filler").unlink()
            os.sync()
            log.journal.spares.fill()
            assert log.journal.reserve_ok(many), "with room again, there are grants again"


def _grant_until_refused(log: OpenedLog, sealer: Sealer, point: Path) -> int:
    """Grant as the agent does, each only while the reserve holds; the disk is full half-way."""
    granted, items = 0, [(cast(e.Event, started()), moment_at(0))]
    while True:
        log.journal.reserve_ok(granted)
        log.journal.spares.try_fill()
        if not log.journal.reserve_ok(granted):
            return granted
        items.append((allocation(granted), moment_at(granted)))
        batch = sealer.seal(items)
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(granted))
        items, granted = [], granted + 1
        if granted == LEASES:
            assert fill(point) > 1 << 20


def _end_all(log: OpenedLog, sealer: Sealer, granted: int) -> str:
    """Every lease ends, one batch each: every append must succeed."""
    for number in range(granted):
        at = moment_at(granted + number)
        batch = sealer.seal([(event, at) for event in ending(number)])
        try:
            log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
        except (OSError, StateError) as error:
            pytest.fail(f"lease {number} of {granted} has no terminal record: {error}")
    return batch.new_head.text()
