# SPDX-License-Identifier: Apache-2.0
"""A small fleet whose records a collector has pulled: histories sealed by the real sealer, stored
by the real archive.

Does not pull, and is no demonstration: as little as tests need, with numbers to be computed by
hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.archive.archive import Archive, LogEntry, Page
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import Rollup
from leased.collector.telemetry.store import Store
from leased.terms.quantity import parse_instant, print_instant
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.economics_history import History, memory, subject
from tests.doubles.logs import CountedEntropy

NS_PER_S = 1_000_000_000
HOUR_NS = 3_600 * NS_PER_S
GIB = 1 << 30
JANUARY_NS = 1_704_067_200 * NS_PER_S
NODE_A, NODE_B = "a1" * 16, "b2" * 16


def cores(count: int) -> Allotment:
    return Allotment("cpu:0", ResourceKind.CPU, None, count * 1000)


def gpus(count: int) -> Allotment:
    return Allotment("gpu:GPU-1", ResourceKind.GPU, None, count * 1000)


def dram(gib: int) -> Allotment:
    return memory(gib * GIB)


def store(
    archive: Archive, name: str, node: str, history: History, contact_ns: int, log: str = ""
) -> None:
    """Seal a history as one log of a node, and keep it."""
    log_id = bytes.fromhex(log) or bytes.fromhex(node)[::-1]
    archive.add_log(LogEntry(log_id.hex(), node, name, f"test/{log_id.hex()[:8]}", GENESIS))
    sealer, head = Sealer(log_id, GENESIS, EMPTY, 2, entropy=CountedEntropy()), GENESIS
    for _, event, moment in history.records:
        batch = sealer.seal([(event, moment)])
        state, size = b"", batch.new_head.size
        page = Page(log_id.hex(), head, batch.new_head, batch.frames, state, size, "", contact_ns)
        assert archive.persist([page]) == [None]
        head = batch.new_head


def store_two(state: Path, first: History, second: History, now_ns: int) -> None:
    """Keep the histories of two nodes, one log each."""
    archive = Archive(state)
    try:
        store(archive, "host-a", NODE_A, first, now_ns)
        store(archive, "host-b", NODE_B, second, now_ns)
    finally:
        archive.close()


def use(state: Path, begin_s: int, told: Iterable[tuple[str, str, str, int, int, int]]) -> None:
    """What the first node would have told of tenant-acme's leases for 100 minutes: (lease,
    resource, kind, mean and most of it that was used in millionths, how much it is)."""
    samples = Store(state)
    for lease_id, resource, kind, mean, most, held in told:
        where = ("host-a", resource, lease_id, "tenant-acme")
        kinds = (("leased.resource.kind", kind),)
        for window in range(20):
            at_s = begin_s + window * 300
            used = Rollup(at_s, 30, 30 * mean, most, 30, 300 * NS_PER_S)
            there = Rollup(at_s, 30, 30 * held, held, 30, 300 * NS_PER_S)
            samples.append([(Key(*where, "leased.lease.utilization", kinds), used)])
            samples.append([(Key(*where, "leased.lease.capacity", kinds), there)])
    samples.close()


def begin_of(now_ns: int) -> int:
    """The first of last month."""
    this_month = parse_instant(print_instant(now_ns)[:8] + "01T00:00:00Z")
    return parse_instant(print_instant(this_month - HOUR_NS)[:8] + "01T00:00:00Z")


def sample(state: Path, now_ns: int, begin_ns: int | None = None) -> int:
    """Two nodes. On the first, tenant-acme had ten cores for the first two hours (from `begin_ns`:
    by default the first of last month) and has 45 cores and 128 GiB now, beta 20 cores; the second
    was never used, and holds one lease that is fenced. Returns when it began."""
    if begin_ns is None:
        begin_ns = begin_of(now_ns)
    first = History(wall_offset_ns=begin_ns)
    first.start()
    first.inventory(cores(400), dram(1024), gpus(8))
    first.allocate(1, subject(cores(10), tenant="tenant-acme"), 2 * HOUR_NS)
    first.boot_ns = 2 * HOUR_NS
    first.end(1)
    first.reclaim(1)
    # Six hours ago, so that the last day has some of it.
    first.boot_ns = (now_ns - begin_ns) // HOUR_NS * HOUR_NS - 6 * HOUR_NS
    later = first.boot_ns + 48 * HOUR_NS
    first.allocate(2, subject(cores(45), tenant="tenant-acme"), later)
    first.allocate(3, subject(dram(128), tenant="tenant-acme"), later)
    first.allocate(4, subject(cores(20), tenant="beta"), later)
    first.boot_ns = now_ns - begin_ns
    first.touch()
    second = History(wall_offset_ns=begin_ns)
    second.start()
    second.inventory(cores(8), gpus(8))
    second.allocate(9, subject(gpus(1), tenant="beta"), HOUR_NS)
    second.boot_ns = HOUR_NS
    second.end(9)
    second.tear_down(9)
    second.fence(9, gpus(1))
    second.boot_ns = now_ns - begin_ns
    second.touch()
    store_two(state, first, second, now_ns)
    return begin_ns
