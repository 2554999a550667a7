# SPDX-License-Identifier: Apache-2.0
"""Chains of any length, made by the real sealer and the real journal.

Rule: every record is one the agent could have sealed: whole lives of leases that ended, in batches
as they come under load. What was there before stays, so that live leases can be buried under a long
history.
"""

from __future__ import annotations

import os
from pathlib import Path

from leased.durable.log import open_log
from leased.hardware.clock import BootClock
from leased.hardware.identity import node_id, read_machine_id
from leased.terms import event as events
from leased.terms.identity import CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import Priority, Subject, Trust
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.resource import Allotment, ResourceKind, TierKind

BATCH_RECORDS = 128
RENEWALS = 9
HASH = bytes(32)


def extend_history(directory: Path, records: int) -> int:
    """Append at least `records` records to the log in `directory`; how many there were added."""
    clock = BootClock()
    machine_id = read_machine_id()
    opened = open_log(
        directory,
        moment=clock.now(),
        entropy=lambda: os.urandom(16),
        machine_id=machine_id,
        origin=f"lease-log.local/{node_id(machine_id).hex()}",
    )
    try:
        sealer = opened.sealer()
        added = 0
        while added < records:
            moment = clock.now()
            items: list[tuple[events.Event, Moment]] = []
            while len(items) < BATCH_RECORDS:
                items.extend((event, moment) for event in _one_life(moment))
            sealed = sealer.seal(items)
            opened.journal.commit_blocking(sealed.frames, sealed.count, sealed.head, moment)
            added += sealed.count
    finally:
        opened.close()
    return added


def _one_life(moment: Moment) -> list[events.Event]:
    """Everything that is sealed of one lease of one page, renewed a few times."""
    random = os.urandom(16 * (RENEWALS + 9))
    ids = [random[at : at + 16] for at in range(0, len(random), 16)]
    lease_id, command_id = LeaseId(ids.pop()), CommandId(ids.pop())
    allotment = Allotment("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 4096)
    subject = Subject(
        TenantId("bench"),
        1000,
        1000,
        lease_id.hex(),
        None,
        None,
        Priority.STANDARD,
        Trust.CONFINED,
        (allotment,),
        HASH,
    )
    now_ns, ttl_ns = moment.boot_ns, 60 * NS_PER_S

    def head(generation: int) -> tuple[EventId, LeaseId, Subject, int, int]:
        return EventId(ids.pop()), lease_id, subject, generation, now_ns

    deadline_ns = now_ns + ttl_ns
    last = RENEWALS
    return [
        events.Allocated(*head(0), command_id, ttl_ns, deadline_ns, 0, 0),
        events.Activated(*head(0), HASH),
        *(events.Renewed(*head(n + 1), ttl_ns, deadline_ns) for n in range(RENEWALS)),
        events.Released(*head(last)),
        events.TeardownBegun(*head(last)),
        events.AccessCut(*head(last), False, HASH),
        events.Scrubbed(*head(last), 4096, HASH),
        events.Reclaimed(*head(last), (0,), 0, 0, None, None, None, 0, 0, HASH),
    ]
