# SPDX-License-Identifier: Apache-2.0
"""The chain alone: verifying, opening, appending, and what signing costs.

Rule: processor seconds decide where the figure is one of a processor, because other work on the
machine takes turns with ours and not with the processor's count of it; what waits for the disk is
told by the clock. What is compared takes turns, round by round, and the ratio is of medians.

`verify` is told three times: the walk (frames, CRC, hashes, links, batches, clock, tree); with
every body decoded strictly and every signature and key rotation checked; and with each lease
followed, which is all that `leasectl verify` does.

"The same bytes" is what the format makes a verifier hash of a record, as the message it hashes:
27 bytes of domain and log id, 72 of the header, the body. One message a record, as `openssl speed`
does it, hashed once, in the cache, and nothing else: what a verifier hashes besides (the nodes of
the tree, 65 bytes for each record) counts for it and not for openssl. The ratio with the nodes on
both sides, and that to one endless message, are printed beside it.

Does not start an agent: `open_log`, `read_log`, the sealer and the journal are the agent's own.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import struct
import subprocess
import time
from pathlib import Path

import trio

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.durable.journal import FileJournal
from leased.durable.log import open_log
from leased.durable.opened import OpenedLog
from leased.durable.reader import read_log
from leased.hardware.clock import BootClock
from leased.hardware.identity import node_id, read_machine_id
from leased.terms.event import Event
from leased.terms.moment import Moment
from tests.bench.history import extend_history
from tests.bench.loadgen import Figures
from tests.bench.table import Line, Say
from tests.doubles.logs import renewal

WAYS: dict[str, dict[str, bool]] = {
    "walk": {"bodies": False, "signatures": False},
    "strict": {"bodies": True, "signatures": True},
    "all": {"bodies": True, "signatures": True, "leases": True},
}
WAITERS = 64
SIGNING_WAITERS = 16
HASHED_BESIDE_BODY = 27 + 72
NODE_BYTES = 1 + 2 * 32
ENDLESS_BYTES = 16_384
_LENGTH = struct.Struct("<I24xI")
LARGE = 500_000
"""Records. In less, what a log costs once (its last segment is read whole) is most of a figure."""


def measure_chain(
    directory: Path, *, records: int, rounds: int, seconds: float, say: Say
) -> Figures:
    """All of it, on one log of `records` records and on a fresh one."""
    log = directory / "chain"
    opened = _open(log)
    opened.close()
    say(f"making a history of {records:,} records")
    extend_history(log, records)
    figures: Figures = {"records": records}
    figures["verify"] = _measure_verify(log, rounds, say)
    figures["recovery"] = _measure_recovery(log, rounds, say)
    figures["append"] = trio.run(_measure_append, directory / "append", rounds, seconds, say)
    return figures


def _measure_verify(log: Path, rounds: int, say: Say) -> Figures:
    """Records per processor second each way, and messages of their mean size by openssl, nodes of
    the tree, and bytes of an endless message."""
    frames = read_log(log, bodies=False, signatures=False)
    count = frames.head.size
    message_bytes = sum(map(_hashed_bytes, frames.frames())) / count
    frames.close()
    sizes = {"openssl": round(message_bytes), "nodes": NODE_BYTES, "endless": ENDLESS_BYTES}
    rates: dict[str, list[float]] = {name: [] for name in (*WAYS, *sizes)}
    for _ in range(rounds):
        for name, size in sizes.items():
            rates[name].append(openssl_blocks_per_s(size))
        for name, options in WAYS.items():
            began = time.process_time()
            read_log(log, **options).close()
            rates[name].append(count / (time.process_time() - began))
    found: Figures = {f"{name}_per_s": statistics.median(each) for name, each in rates.items()}
    say(f"{count:,} records: verified at {found['walk_per_s']:,.0f}/s, {found['all_per_s']:,.0f}/s")
    return {**found, "records": count, "message_bytes": message_bytes}


def _hashed_bytes(frames: bytes) -> int:
    """Of the messages that the hashes of these records are over (chain/FORMAT.md section 5)."""
    offset = total = 0
    while offset < len(frames):
        length, body_bytes = _LENGTH.unpack_from(frames, offset)
        offset += length
        total += HASHED_BESIDE_BODY + body_bytes
    return total


def openssl_blocks_per_s(size: int) -> float:
    """How many blocks of `size` bytes openssl hashes per second on one core."""
    done = subprocess.run(
        ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", str(size), "-evp", "sha256"],
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"^\+F:\d+:sha256:([\d.]+)", done.stdout, re.MULTILINE | re.IGNORECASE)
    if rate is None:
        raise SystemExit(f"bench: cannot read openssl speed:\n{done.stdout}")
    return float(rate[1]) / size


def _measure_recovery(log: Path, rounds: int, say: Say) -> Figures:
    """Opening a log and replaying what a table is rebuilt from, per GiB of it."""
    size = sum(path.stat().st_size for path in log.glob("seg-*"))
    times, cpus = [], []
    for _ in range(rounds):
        before, began = _processor_s(), time.perf_counter()
        opened = _open(log)
        replayed = sum(1 for _ in opened.history())
        times.append(time.perf_counter() - began)
        opened.close()
        cpus.append(_processor_s() - before)
    gib = size / (1 << 30)
    found: Figures = {"bytes": size, "replayed": replayed}
    found |= {"s_per_gib": statistics.median(times) / gib, "cpu_s": statistics.median(cpus) / gib}
    say(f"opened {size / 1e6:,.0f} MB in {statistics.median(times):.2f} s")
    return found


async def _measure_append(directory: Path, rounds: int, seconds: float, say: Say) -> Figures:
    """Records appended, durable and anchored before whoever waits goes on; and which share of the
    processor's time for them goes to the node's signatures."""
    found: dict[int, list[Figures]] = {WAITERS: [], SIGNING_WAITERS: []}
    opened = _open(directory)
    try:
        sealer = opened.sealer()
        for _ in range(rounds):
            for waiters, rows in found.items():
                rows.append(await Appender(opened.journal, sealer).run(waiters, seconds))
    finally:
        opened.close()
    strict, signed = (
        {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for rows in found.values()
    )
    signature_us = _signature_us()
    spent_us = signed["signatures_per_s"] * signature_us
    say(f"{strict['records_per_s']:,.0f} records/s appended with {WAITERS} waiting")
    return {
        "strict": strict,
        "signed": signed,
        "signature_us": signature_us,
        "signing_share": spent_us / (signed["records_per_s"] * signed["cpu_us"]),
    }


def _signature_us() -> float:
    """What a checkpoint with its signature adds to a batch, the middle of many."""
    options = {"entropy": lambda: os.urandom(16), "signer": Signer(os.urandom(32))}
    sealer = Sealer(bytes(16), GENESIS, EMPTY, 2, segment_bytes=1 << 30, **options)
    now = BootClock().now()
    items = [(renewal(number), now) for number in range(SIGNING_WAITERS)]
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(500):
        for sign, each in times.items():
            began = time.perf_counter()
            sealer.seal(items, sign=sign)
            each.append(time.perf_counter() - began)
    return (statistics.median(times[True]) - statistics.median(times[False])) * 1e6


def chain_lines(figures: Figures) -> list[Line]:
    """Verifying, opening and appending, without an agent."""
    found, opening, append = (figures[name] for name in ("verify", "recovery", "append"))
    raw, size = found["openssl_per_s"], found["message_bytes"]
    both = 1 / (1 / raw + 1 / found["nodes_per_s"])
    endless = found["endless_per_s"] * ENDLESS_BYTES / size
    walk, strict, whole = (found[f"{way}_per_s"] for way in ("walk", "strict", "all"))
    strict_append, signed, slow = append["strict"], append["signed"], opening["s_per_gib"]
    large = found["records"] >= LARGE
    return [
        Line(
            f"verify, all that leasectl does, {found['records']:,} records, one processor",
            f"{whole:,.0f}/s",
            ">= 500,000/s",
            whole >= 500_000,
            f"without following leases {strict:,.0f}/s, frames and tree alone {walk:,.0f}/s",
        ),
        Line(
            "verify, all that leasectl does, to openssl SHA-256 of the same bytes",
            f"{whole / raw:.2f} x",
            ">= 0.5 x" if large else "",
            whole >= 0.5 * raw if large else None,
            f"{raw:,.0f} messages/s of {size:.0f} B; with the tree's nodes {whole / both:.2f} x,"
            f" to an endless message {whole / endless:.2f} x; frames and tree {walk / raw:.2f} x",
        ),
        Line(
            "recovery: a log opened and replayed, per GiB",
            f"{slow:.1f} s",
            "<= 10 s" if large else "",
            slow <= 10 if large else None,
            f"{opening['cpu_s']:.1f} s of processor; {opening['bytes'] / 1e6:,.0f} MB were opened",
        ),
        Line(
            "strict append in-process, 64 waiting",
            f"{strict_append['records_per_s']:,.0f}/s",
            ">= 40,000/s",
            strict_append["records_per_s"] >= 40_000,
            f"{strict_append['cpu_us']:.1f} us of processor a record, with who waits for it",
        ),
        Line(
            "signing: share of the processor's time for appending, 16 waiting",
            f"{100 * append['signing_share']:.2f} %",
            "<= 5 %",
            append["signing_share"] <= 0.05,
            f"{append['signature_us']:.0f} us a checkpoint, {signed['signatures_per_s']:.1f} a"
            f" second; {signed['records_per_s']:,.0f} records/s of {signed['cpu_us']:.1f} us",
        ),
    ]


class Appender:
    """Group commit as the agent's sequencer does it: whatever waits becomes one batch."""

    def __init__(self, journal: FileJournal, sealer: Sealer) -> None:
        self._journal = journal
        self._sealer = sealer
        self._now = BootClock().now
        self._waiting: list[tuple[Event, Moment]] = []
        self._asked = trio.lowlevel.ParkingLot()
        self._answered = trio.lowlevel.ParkingLot()
        self._count = self._signed = 0

    async def run(self, waiters: int, seconds: float) -> Figures:
        """Records and checkpoints per second, and the processor's microseconds for each record, of
        so many tasks that each wait for one record after the other."""
        async with trio.open_nursery() as nursery:
            for number in range(waiters):
                nursery.start_soon(self._ask, number)
            nursery.start_soon(self._commit)
            with trio.move_on_after(seconds / 4):
                await trio.sleep_forever()
            self._count = self._signed = 0
            cpu_s, began = time.process_time(), time.perf_counter()
            with trio.move_on_after(seconds):
                await trio.sleep_forever()
            took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
            nursery.cancel_scope.cancel()
        return {
            "records_per_s": self._count / took_s,
            "signatures_per_s": self._signed / took_s,
            "cpu_us": cpu_s / self._count * 1e6,
        }

    async def _ask(self, number: int) -> None:
        event = renewal(number)
        while True:
            self._waiting.append((event, self._now()))
            self._asked.unpark_all()
            await self._answered.park()

    async def _commit(self) -> None:
        while True:
            if not self._waiting:
                await self._asked.park()
            items, self._waiting = self._waiting, []
            batch = self._sealer.seal(items)
            now = items[-1][1]
            args = (batch.frames, batch.count, batch.head, now)
            if not self._journal.commit_at_once(*args):
                await self._journal.commit(*args)
            self._count += len(items)
            self._signed += batch.count - len(items)
            self._answered.unpark_all()
            await trio.lowlevel.checkpoint()


def _open(directory: Path) -> OpenedLog:
    """As the agent opens its log."""
    machine_id = read_machine_id()
    return open_log(
        directory,
        moment=BootClock().now(),
        entropy=lambda: os.urandom(16),
        machine_id=machine_id,
        origin=f"lease-log.local/{node_id(machine_id).hex()}",
    )


def _processor_s() -> float:
    """Of this process and of those that have ended below it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
