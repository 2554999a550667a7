# SPDX-License-Identifier: Apache-2.0
"""Figures of the chain: sealing, verifying, opening a long log. `python -m tests.bench.chain_speed
DIRECTORY [RECORDS]`.

DIRECTORY must not exist; it is left behind for a second look. Prints the raw fdatasync of the same
minute, because disks change their mind.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import trio

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier, check_bodies
from leased.durable.log import open_log
from leased.durable.reader import read_log
from leased.terms import event as e
from leased.terms.moment import Moment
from tests.doubles.logs import (
    MACHINE,
    ORIGIN,
    CountedEntropy,
    events_of_every_kind,
    moment_at,
    renewal,
    subject,
)

SEGMENT_BYTES = 16 * 1024 * 1024


def seal_speed() -> None:
    """Microseconds per Renewed, and records per second verified."""
    entropy = CountedEntropy()
    for size in (1, 16, 64):
        best = 1e9
        for _ in range(3):
            sealer = Sealer(
                b"l" * 16,
                GENESIS,
                EMPTY,
                2,
                entropy=entropy,
                signer=Signer(b"k" * 32),
                segment_bytes=1 << 30,
            )
            items = [(renewal(n), moment_at(0)) for n in range(size)]
            began = time.process_time()
            for _ in range(20_000 // size):
                sealer.seal(items)
            best = min(best, (time.process_time() - began) / (20_000 // size * size))
        print(f"encode + seal, batches of {size}: {best * 1e6:.2f} us/record")
    sealer = Sealer(b"l" * 16, GENESIS, EMPTY, 2, entropy=entropy, segment_bytes=1 << 30)
    data = b"".join(
        sealer.seal([(renewal(n), moment_at(0)) for n in range(64)]).frames for _ in range(1_000)
    )
    best, bodies = 1e9, 1e9
    for _ in range(3):
        began = time.process_time()
        walk = Verifier(b"l" * 16).feed(data)
        done = time.process_time()
        check_bodies(walk)
        best, bodies = min(best, done - began), min(bodies, time.process_time() - began)
    count = len(walk.offsets)
    print(
        f"verify: {count / best:,.0f} records/s of {len(data) // count} bytes; "
        f"with strict bodies {count / bodies:,.0f}"
    )


async def commit_speed(directory: Path) -> None:
    """One client and batches of 64 through the real journal, next to the raw disk."""
    opened = open_log(
        directory,
        moment=_now(),
        entropy=_entropy,
        machine_id=MACHINE,
        origin=ORIGIN,
        best_effort=True,
    )
    sealer, journal = opened.sealer(), opened.journal
    for size, rounds in ((1, 1000), (64, 1000)):
        times = []
        for _ in range(rounds):
            batch = sealer.seal([(renewal(n), _now()) for n in range(size)])
            began = time.perf_counter()
            await journal.commit(batch.frames, batch.count, batch.head, _now())
            times.append(time.perf_counter() - began)
        times.sort()
        print(
            f"commit of {size}: p50 {times[rounds // 2] * 1e3:.3f} ms, "
            f"p99 {times[rounds * 99 // 100] * 1e3:.3f} ms"
        )
    opened.close()
    fd, times = os.open(directory / "raw", os.O_RDWR | os.O_CREAT, 0o600), []
    os.pwrite(fd, bytes(1 << 20), 0)
    os.fsync(fd)
    for n in range(500):
        began = time.perf_counter()
        os.pwrite(fd, bytes(336), n * 336)
        os.fdatasync(fd)
        times.append(time.perf_counter() - began)
    os.close(fd)
    os.unlink(directory / "raw")
    print(f"raw append + fdatasync: p50 {sorted(times)[250] * 1e3:.3f} ms")


async def fill(directory: Path, records: int) -> None:
    """A log of leases that live ten records each; the last 1000 stay open."""
    opened = open_log(
        directory,
        moment=_now(),
        entropy=_entropy,
        machine_id=MACHINE,
        origin=ORIGIN,
        best_effort=True,
    )
    sealer, made, began = opened.sealer(), 0, time.perf_counter()
    items: list[tuple[e.Event, Moment]] = [(events_of_every_kind()[0], _now())]
    reclaimed = next(event for event in events_of_every_kind() if isinstance(event, e.Reclaimed))
    while made < records:
        lease, now = (os.urandom(16), subject(), 1, 5 * 10**9), _now()
        common = [os.urandom(16), *lease]
        events = [e.Allocated(*common, os.urandom(16), 60 * 10**9, 65 * 10**9, 0, 0)]
        events += [e.Renewed(*common, 60 * 10**9, 65 * 10**9)] * 4
        if made < records - 5_000:
            events += [
                e.Expired(*common),
                e.TeardownBegun(*common),
                e.AccessCut(*common, True, b"x" * 32),
            ]
            events += [e.Scrubbed(*common, 1 << 30, b"x" * 32)]
            events += [
                e.Reclaimed(
                    *common, *(getattr(reclaimed, name) for name in reclaimed.__struct_fields__[5:])
                )
            ]
        items += [(event, now) for event in events]
        made += len(events)
        if len(items) >= 600 or made >= records:
            batch = sealer.seal(items)
            await opened.journal.commit(batch.frames, batch.count, batch.head, now)
            items = []
    print(f"filled {sealer.head.size} records in {time.perf_counter() - began:.1f} s")
    opened.close()


def open_speed(directory: Path) -> None:
    """Opening and replaying, and the offline verification."""
    began = time.perf_counter()
    opened = open_log(
        directory,
        moment=_now(),
        entropy=_entropy,
        machine_id=MACHINE,
        origin=ORIGIN,
        best_effort=True,
    )
    done = time.perf_counter()
    replayed = sum(1 for _ in opened.history())
    print(
        f"open_log of {opened.head.size} records: {done - began:.2f} s; "
        f"history of {replayed} events: "
        f"{time.perf_counter() - done:.2f} s"
    )
    opened.close()
    began = time.perf_counter()
    log = read_log(directory)
    print(f"read_log (one core, strict bodies, signatures): {time.perf_counter() - began:.2f} s")
    log.close()


def _entropy() -> bytes:
    return os.urandom(16)


def _now() -> Moment:
    return Moment(b"b" * 16, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


def main(arguments: list[str]) -> None:
    """Run all of it."""
    directory = Path(arguments[0])
    seal_speed()
    trio.run(commit_speed, directory)
    trio.run(fill, directory, int(arguments[1]) if len(arguments) > 1 else 1_000_000)
    open_speed(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
