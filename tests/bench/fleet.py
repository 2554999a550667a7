# SPDX-License-Identifier: Apache-2.0
"""A fleet's raw segments for the metering bench: a month of leases on a thousand nodes, sealed by
the real sealer and kept in a real archive.

Rule: everything follows from the number of leases; made once, it is kept beside the bench's
directory and found again by that number. Of each lease there are the records that change what is
paid, and no others: the grant, for a third a renewal, the teardown, the proof. So three million
leases are ten million records; what a whole life has beside these (`history`) is passed over.

Does not measure.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from heapq import merge
from pathlib import Path
from typing import NamedTuple

from leased.chain.head import GENESIS, Head
from leased.chain.note import log_origin
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.collector.archive.archive import Archive, LogEntry, Page
from leased.terms import event as events
from leased.terms.identity import BootId, CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, Priority, Subject, Trust
from leased.terms.moment import HOUR_NS, NS_PER_S, Moment
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind, TierKind
from tests.bench.table import Say

LOGS, TENANTS, DAYS = 1_000, 200, 30
MONTH = "2026-09"
BEGIN_NS = 1_788_220_800 * NS_PER_S
LENGTH_NS = DAYS * 24 * HOUR_NS
UPTIME_NS = 30 * NS_PER_S
TTL_NS = 4 * HOUR_NS
BATCH = 512
GIB = 1 << 30
HASH = bytes(32)
KINDS = (
    *(ResourceKind.GPU, ResourceKind.MEM, ResourceKind.CPU, ResourceKind.MEM, ResourceKind.BLOCK),
)
RESOURCES = {
    ResourceKind.GPU: Resource("gpu:GPU-0", ResourceKind.GPU, None, 64_000, 1000),
    ResourceKind.MEM: Resource("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 4096 * GIB, 4096),
    ResourceKind.CPU: Resource("cpu:0", ResourceKind.CPU, None, 256_000, 1000),
    ResourceKind.BLOCK: Resource("block:nguid", ResourceKind.BLOCK, None, 65_536 * GIB, 1 << 20),
}


class Sealed(NamedTuple):
    """One node's log."""

    node_id: bytes
    log_id: bytes
    origin: str
    frames: bytes
    head: Head


def fleet_archive(directory: Path, leases: int, say: Say) -> Path:
    """The archive of so many leases, made if it is not there."""
    found = directory / f"leased-bench-fleet-{leases}"
    if (found / "whole").exists():
        return found
    say(f"metering: sealing the records of {leases:,} leases, once")
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    archive = Archive(found)
    try:
        with ProcessPoolExecutor(2) as makers:
            for node in makers.map(partial(seal_log, leases // LOGS), range(LOGS)):
                _keep(archive, node)
    finally:
        archive.close()
    (found / "whole").touch()
    return found


def _keep(archive: Archive, node: Sealed) -> None:
    log_id = node.log_id.hex()
    name = f"node-{log_id[:8]}"
    archive.add_log(LogEntry(log_id, node.node_id.hex(), name, node.origin, GENESIS))
    signed, end_ns = node.head.size - 1, BEGIN_NS + LENGTH_NS
    page = Page(log_id, GENESIS, node.head, node.frames, b"", signed, "", end_ns)
    assert archive.persist([page]) == [None]


def seal_log(leases: int, number: int) -> Sealed:
    """The month of one node."""
    stream = random.Random(f"metering/{leases}/{number}")
    node_id, log_id, boot_id = (stream.randbytes(16) for _ in range(3))
    origin = log_origin("bench.invalid", log_id)
    signer = Signer(sha256(log_id).digest())
    entropy = partial(stream.randbytes, 16)
    sealer = Sealer(log_id, GENESIS, EMPTY, 1, entropy=entropy, signer=signer, origin=origin)
    frames, waiting = [], []
    for event, at_ns in _history(stream, leases, node_id, boot_id):
        waiting.append((event, Moment(BootId(boot_id), UPTIME_NS + at_ns, BEGIN_NS + at_ns)))
        if len(waiting) == BATCH:
            frames.append(sealer.seal(waiting).frames)
            waiting = []
    last = sealer.seal(waiting, sign=True)
    frames.append(last.frames)
    return Sealed(node_id, log_id, origin, b"".join(frames), last.new_head)


def _history(
    stream: random.Random, leases: int, node_id: bytes, boot_id: bytes
) -> Iterator[tuple[events.Event, int]]:
    """Every event with when it is sealed, in order."""

    def event_id() -> EventId:
        return EventId(stream.randbytes(16))

    started = (BootId(boot_id), node_id, 1, "0.1.0", "ext4", "strict")
    yield events.NodeStarted(event_id(), *started), 0
    yield events.InventoryChanged(event_id(), Inventory(tuple(RESOURCES.values()))), 0
    lives = sorted(_life(stream, number) for number in range(leases))
    order = [[], [], [], []]
    for start_ns, length_ns, lease_id, subject, renewed in lives:
        end_ns = start_ns + length_ns
        order[0].append((start_ns, lease_id, 0, subject))
        if renewed:
            order[1].append((start_ns + 30 * NS_PER_S, lease_id, 1, subject))
        order[2].append((end_ns, lease_id, 2, subject))
        order[3].append((end_ns + 900_000_000, lease_id, 3, subject))
    for each in order[2:]:
        each.sort(key=lambda one: one[:3])
    for at_ns, lease_id, what, subject in merge(*order, key=lambda one: one[:3]):
        if at_ns < LENGTH_NS:
            head = (event_id(), LeaseId(lease_id), subject, what, UPTIME_NS + at_ns)
            yield _event(what, head, CommandId(lease_id)), at_ns
    yield events.ClockStepped(event_id(), 0), LENGTH_NS


def _event(what: int, head: tuple, command_id: CommandId) -> events.Event:
    deadline_ns = head[4] + TTL_NS
    if what == 0:
        return events.Allocated(*head, command_id, TTL_NS, deadline_ns, 0, 10 * NS_PER_S)
    if what == 1:
        return events.Renewed(*head, TTL_NS, deadline_ns)
    if what == 2:
        return events.TeardownBegun(*head)
    return events.Reclaimed(*head, (0,), 0, 0, None, None, None, 0, 0, HASH)


def _life(stream: random.Random, number: int) -> tuple[int, int, bytes, Subject, bool]:
    """When a lease begins, how long it lasts, which it is, whose, and whether it is renewed."""
    start_ns = stream.randrange(LENGTH_NS // 1000) * 1000
    length_ns = (60 + stream.randrange(14_340)) * NS_PER_S
    tenant = int(stream.random() ** 3 * TENANTS)
    kind = KINDS[stream.randrange(len(KINDS))]
    device = kind in (ResourceKind.GPU, ResourceKind.CPU)
    capacity = 1000 * (1 + number % 8) if device else (1 + number % 64) * GIB
    resource = RESOURCES[kind]
    tag = AccountingTag(f"cc-{tenant % 7}", "p") if tenant % 4 else None
    lease_id = stream.randbytes(16)
    subject = Subject(
        TenantId(f"tenant-{tenant:03d}"),
        1000,
        1000,
        lease_id.hex(),
        None,
        tag,
        Priority((tenant + int(kind)) % 3),
        Trust.CONFINED,
        (Allotment(resource.resource_id, kind, resource.tier, capacity),),
        HASH,
    )
    return start_ns, length_ns, lease_id, subject, number % 3 == 0


if __name__ == "__main__":
    import sys

    fleet_archive(Path(sys.argv[1]), int(sys.argv[2]), print)
