# SPDX-License-Identifier: Apache-2.0
"""Logs to test with: counted entropy, moments, events of every kind, and a small log on any disk.

Everything here is deterministic: the same call gives the same bytes.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from leased.chain.sealer import SealedBatch
from leased.durable.log import OpenedLog, open_log
from leased.terms import event as e
from leased.terms.identity import BootId, CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, Priority, RevocationReason, Subject, Trust
from leased.terms.moment import Moment
from leased.terms.resource import (
    Absence,
    Allotment,
    Inventory,
    Resource,
    ResourceKind,
    TierKind,
)
from tests.doubles.disk import MemoryDisk
from tests.doubles.journal import DiskCommitter

MACHINE = b"machine-id-16byt"
ORIGIN = "lease-log.test/node-1"
BOOT = BootId(bytes(range(16)))
SMALL_SEGMENT = 16 * 1024


class CountedEntropy:
    """`ports.Entropy`: the hash of a counter, so runs repeat."""

    def __init__(self, seed: bytes = b"entropy") -> None:
        self._seed = seed
        self._count = 0

    def __call__(self) -> bytes:
        self._count += 1
        return sha256(self._seed + self._count.to_bytes(8, "big")).digest()[:16]


def moment_at(count: int) -> Moment:
    """The `count`-th moment of a boot: 100 ms apart."""
    return Moment(
        BOOT, 1_000_000_000 + count * 100_000_000, 1_790_000_000_000_000_000 + count * 100_000_000
    )


def subject(workload: str | None = "train") -> Subject:
    """Somebody's gigabyte."""
    return Subject(
        TenantId("research"),
        1000,
        1000,
        "00" * 16,
        workload,
        AccountingTag("cc-17", "atlas", "batch", "q3", 0),
        Priority.STANDARD,
        Trust.CONFINED,
        (Allotment("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 1 << 30),),
        b"\x11" * 32,
    )


REFUSED_OF_A_KIND = e.Refused(
    EventId(BOOT), TenantId("a"), 7, CommandId(BOOT), 5, 128, 127, 9, ResourceKind.GPU
)
"""Of the second schema of its kind."""

PRUNED_PAST_KEYS = e.Pruned(
    *(EventId(BOOT), 90, b"\x5a" * 32, 3, 2**62),
    (
        e.KeyChange(b"\x1a" * 32, b"\x2b" * 64, b"\x3c" * 64),
        e.KeyChange(b"\x4d" * 32, b"\x5e" * 64, b"\x6f" * 64),
    ),
)
"""Of the second schema of its kind, too. Nobody's key has signed it."""


def events_of_every_kind() -> list[e.Event]:
    """One event of each kind in `event.KIND`, in the order of their numbers, with values at the
    edges."""
    i, b, h = EventId(b"\xe1" * 16), BootId(b"\xb0" * 16), b"\x5a" * 32
    lease = (i, LeaseId(b"\x1e" * 16), subject(), 3, 5_000_000_000)
    wide = (1 << 40) * 3_600 * 10**9
    inventory = Inventory(
        (Resource("cpu:0", ResourceKind.CPU, None, 1000, 1, 0, attributes=(("socket", "0"),)),),
        (Absence(ResourceKind.GPU, "no NVIDIA driver is loaded"),),
        ("nvme0n1 holds the root file system",),
    )
    allotment = lease[2].allotments[0]
    return [
        e.NodeStarted(i, b, b"\x40" * 16, 1, "0.1.0", "ext4", "strict"),
        e.NodeStopped(i, 2),
        e.InventoryChanged(i, inventory),
        e.PolicyChanged(i, h, 4, h, -1),
        e.HealthChanged(i, "cpu:0", "sick", 5),
        e.ClockStepped(i, -7_200_000_000_000),
        e.KeyRotated(i, h, h + h, h + h),
        e.HeadCountersigned(i, 100, h, 0xFFFFFFFF, 1_790_000_000, h + h),
        e.CordonChanged(i, "", True, 0),
        e.ResourceFenced(i, allotment, False, 0),
        e.Refused(i, TenantId("research"), 1000, CommandId(b"\xc0" * 16), 5, 128, 127, 65_536),
        e.StrayEnded(i, "1e" * 16, 3, 16),
        e.PolicyTurned(i, h, ("research/daytime",)),
        e.OverageBegan(i, "@research", "mem.hbm@2", 1, 1 << 40, (1 << 40) + 1, 2**62),
        e.OverageEnded(i, "research", "gpu", 0),
        e.Allocated(*lease, CommandId(b"\xc0" * 16), 60 * 10**9, 65 * 10**9, 4_194_304, 10 * 10**9),
        e.Activated(*lease, h),
        e.Renewed(*lease, 60 * 10**9, 125 * 10**9),
        e.Released(*lease),
        e.Expired(*lease),
        e.Revoked(*lease, RevocationReason.OPERATOR_DRAIN),
        e.DrainNotified(*lease, RevocationReason.MAINTENANCE, 2**63),
        e.TeardownBegun(*lease),
        e.AccessCut(*lease, True, h),
        e.Scrubbed(*lease, 1 << 30, h),
        e.Reclaimed(
            *lease, (wide, 0, 2**128 - 1), 1_000_000, 2_000_000, None, 1000, 0, 17, 1000, h
        ),
        e.Fenced(*lease, (allotment,), 8, 5, (wide,), 1_000_000, h),
        e.Unfenced(*lease, -1, h),
        e.Preempted(*lease, LeaseId(b"\x2e" * 16), TenantId("prod")),
        e.Adopted(*lease, 0, 4_194_304, 17),
        e.Admitted(*lease, 10, 2**62, 0, ((ResourceKind.GPU, 1000), (ResourceKind.MEM, 1 << 40))),
        e.PeriodBegan(i, "month", 1_790_000_000 * 10**9, 5_000_000_000),
        e.Metered(i, TenantId("research"), (("day", 0, -1, 2, wide.to_bytes(16, "big")),)),
        e.Recovered(i, 3, 512, h),
        e.Voided(i, 17),
        e.EpochSealed(i, 7, 2, b, 60 * 10**9, 240 * 10**9, 2**62, 2**62 + 1, 17, 99, h, h),
        e.SegmentEnd(i, 0),
        e.CheckpointSigned(i, 100, h, h + h),
        e.Pruned(i, 90, h, 3, 2**62),
        e.HeadCosigned(i, b, "fleet/node-1/00000000", 100, h, 1_790_000_000, h + h),
        e.VerdictReached(i, b, "fleet/node-1/00000000", "FORK", 100, h, h),
        e.VerdictResolved(i, b, "FORK", "a note\n\n\u2014 operator AAAA\n"),
    ]


def renewal(number: int) -> e.Renewed:
    """The `number`-th renewal of one of eight leases."""
    return e.Renewed(
        EventId(sha256(b"event%d" % number).digest()[:16]),
        LeaseId(bytes([number % 8 + 1]) * 16),
        subject(),
        number + 1,
        number * 10**9,
        60 * 10**9,
        (number + 60) * 10**9,
    )


def allocation(number: int) -> e.Allocated:
    """The grant of lease `number`."""
    return e.Allocated(
        EventId(sha256(b"grant%d" % number).digest()[:16]),
        LeaseId(sha256(b"lease%d" % number).digest()[:16]),
        subject(),
        1,
        number * 10**9,
        CommandId(sha256(b"command%d" % number).digest()[:16]),
        60 * 10**9,
        (number + 60) * 10**9,
        0,
        10 * 10**9,
    )


def lease_life(number: int) -> list[e.Event]:
    """Lease `number` from beginning to end."""
    granted, hash_ = allocation(number), bytes(32)
    same = (EventId(bytes(16)), granted.lease_id, granted.subject, 1, number)
    reclaimed = e.Reclaimed(*same, (0,), 0, 0, None, None, None, 0, 1000, hash_)
    ended = [e.Released(*same), e.TeardownBegun(*same), e.AccessCut(*same, True, hash_)]
    return [granted, *ended, e.Scrubbed(*same, 0, hash_), reclaimed]


def started() -> e.NodeStarted:
    """The first event of a run."""
    return e.NodeStarted(EventId(b"\x01" * 16), BOOT, b"\x40" * 16, 1, "0.1.0", "ext4", "strict")


def open_on(
    disk: MemoryDisk,
    *,
    entropy: CountedEntropy | None = None,
    segment_bytes: int = SMALL_SEGMENT,
    **options: object,
) -> OpenedLog:
    """`open_log` on a MemoryDisk, with small segments and everything in line."""
    return open_log(
        disk.directory,
        moment=moment_at(0),
        entropy=entropy or CountedEntropy(),
        machine_id=MACHINE,
        origin=ORIGIN,
        segment_bytes=segment_bytes,
        background=False,
        disk=disk,
        committer=lambda: DiskCommitter(disk),
        **options,
    )


def commit_and_forget(log: OpenedLog, batch: SealedBatch, at: Moment) -> None:
    """As the agent does: the batch, and once it is anchored, the key of an epoch that ended."""
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
    if batch.ends_epoch:
        log.forget_epoch()


def acknowledged(log: OpenedLog, size: int) -> e.HeadCountersigned:
    """A collector has the first `size` records of this log: nothing may be pruned before."""
    root = log.pages().tree(size, log.journal.anchored).root()
    return e.HeadCountersigned(EventId(b"\xac" * 16), size, root, 0xC0, 1, bytes(64))


def open_in(directory: Path, *, segment_bytes: int = SMALL_SEGMENT, **options: object) -> OpenedLog:
    """`open_log` on a real directory, best effort allowed, without the C thread's help being
    needed to open."""
    return open_log(
        directory,
        moment=moment_at(0),
        entropy=CountedEntropy(str(directory).encode()),
        machine_id=MACHINE,
        origin=ORIGIN,
        segment_bytes=segment_bytes,
        background=False,
        best_effort=True,
        **options,
    )


def write_batches(log: OpenedLog, sizes: list[int]) -> list[bytes]:
    """Commit batches of so many renewals each (the first begins with NodeStarted); return the
    sealed frames."""
    sealer, number, frames = log.sealer(), 0, []
    for count, size in enumerate(sizes):
        items: list[tuple[e.Event, Moment]] = [(started(), moment_at(0))] if number == 0 else []
        for _ in range(size):
            items.append((renewal(number), moment_at(count)))
            number += 1
        batch = sealer.seal(items)
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(count))
        frames.append(batch.frames)
    return frames
