# SPDX-License-Identifier: Apache-2.0
"""Every crash state recovers: no acknowledged record lost, no false alarm (chain.md section 8; T2).

The short form takes seconds; what is marked slow looks at over 200,000 states in three minutes of a
core, and of a closed segment that they share to the byte but once (the short form always).
`LEASED_CRASH_SAMPLES` multiplies both; seeds are fixed, and `LEASED_CRASH_SEED` changes them.

The search is itself tested: a dozen mistakes, each of which a log has been known to make, must all
be found by it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

import pytest

from leased.chain.head import Head
from leased.chain.sealer import SealedBatch
from leased.chain.segment import HEADER_BYTES, parse_header
from leased.durable.anchor import FileAnchorStore
from leased.durable.files import Disk
from leased.durable.log import OpenedLog
from leased.durable.retention import Removal, remove
from leased.durable.writer import Part, Writer
from leased.terms.errors import ChainError
from leased.terms.event import Pruned
from leased.terms.identity import EventId
from leased.terms.moment import Moment
from tests.crash.search import (
    BATCHES,
    MIXED,
    SEALS,
    SWITCHES,
    Findings,
    Sealed,
    Workload,
    closed_segments_read_once,
    crash_states,
    judge,
    record_run,
)
from tests.doubles.disk import Fault, MemoryDisk
from tests.doubles.logs import (
    SMALL_SEGMENT,
    CountedEntropy,
    acknowledged,
    moment_at,
    open_on,
    renewal,
)

SAMPLES = int(os.environ.get("LEASED_CRASH_SAMPLES", "60"))
MANY = 11
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))


@pytest.mark.parametrize("granule", [512, 64, 8])
def test_every_crash_state_recovers(granule: int) -> None:
    disk = MemoryDisk()
    sealed = Sealed(record_run(disk))
    findings = Findings()
    for index, acked, state in crash_states(disk, granule=granule, samples=SAMPLES, seed=SEED):
        judge(findings, state, acked, sealed, f"operation {index}")
    print(f"granule {granule}, seed {SEED}: {findings}")
    assert not findings.lost and not findings.alarms, str(findings)
    assert findings.states > 400 and findings.rolled_forward > 20 and findings.torn > 20, str(
        findings
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "least"),
    [(BATCHES, 31_000), (SEALS, 31_000), (SWITCHES, 58_000), (MIXED, 82_000)],
    ids=["batches", "seals", "switches", "mixed"],
)
def test_no_state_among_many_loses_or_alarms(workload: Workload, least: int) -> None:
    findings = Findings()
    for granule in (512, 64, 8):
        disk = MemoryDisk()
        sealed = Sealed(record_run(disk, workload=workload))
        samples = SAMPLES * MANY
        states = crash_states(disk, granule=granule, samples=samples, seed=SEED)
        with closed_segments_read_once():
            for index, acked, state in states:
                judge(findings, state, acked, sealed, f"granule {granule}, operation {index}")
    print(f"seed {SEED}: {findings}")
    assert not findings.lost and not findings.alarms, str(findings)
    assert findings.states > least * SAMPLES // 60, str(findings)


def test_a_crash_during_recovery_recovers() -> None:
    disk = MemoryDisk()
    sealed = Sealed(record_run(disk))
    findings, outer = Findings(), Findings()
    for count, (index, acked, state) in enumerate(
        crash_states(disk, granule=512, samples=4, seed=SEED)
    ):
        if count % max(1, 300 // SAMPLES):
            continue
        recovered = judge(outer, state, acked, sealed, f"operation {index}")
        assert recovered is not None
        if acked is None:
            continue
        for again, _, second in crash_states(recovered, granule=512, samples=2, seed=SEED):
            judge(findings, second, acked, sealed, f"operation {index}, recovery operation {again}")
    print(f"seed {SEED}: {findings}")
    assert not findings.lost and not findings.alarms, str(findings)
    assert findings.states > 300, str(findings)


def test_a_recovered_log_goes_on() -> None:
    disk = MemoryDisk()
    sealed = Sealed(record_run(disk))
    went_on = 0
    for count, (index, acked, state) in enumerate(
        crash_states(disk, granule=64, samples=4, seed=SEED)
    ):
        if count % 7:
            continue
        recovered = judge(Findings(), state, acked, sealed, f"operation {index}")
        assert recovered is not None, f"operation {index}"
        log = open_on(recovered)
        batch = log.sealer().seal([(renewal(n), moment_at(99)) for n in range(40)])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(99))
        assert open_on(MemoryDisk(recovered.contents())).head == batch.new_head
        went_on += 1
    assert went_on > 30


class SlotFirst(Writer):
    """Mutant: anchors before it appends."""

    def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        for part in self.parts(frames, count, head, moment):
            self.begin()
            self.anchor.write(part.slot)
            self.append(part)
            self.settle(part)
            if part.ends_segment:
                self.switch(moment)


class AckEarly(Writer):
    """Mutant: acknowledges before the segment is durable."""

    def append(self, part: Part) -> None:
        disk = self._disk
        assert isinstance(disk, MemoryDisk)
        disk.write(self.segment, part.data, part.offset)
        disk.mark(Head(part.slot.next_seq, part.slot.head))
        disk.sync(self.segment)


class NameBeforeHeader(Writer):
    """Mutant: the new segment has its name before its header is durable."""

    def switch(self, moment: Moment) -> None:
        disk = self._disk
        assert isinstance(disk, MemoryDisk)
        began = len(disk.ops)
        super().switch(moment)
        at = next(n for n in range(began, len(disk.ops)) if disk.ops[n][0] == "rename")
        header = next(
            n
            for n in range(began, at)
            if disk.ops[n][0] == "write" and disk.ops[n + 1][0] == "sync"
        )
        disk.ops.insert(at + 1, disk.ops.pop(header + 1))


class SingleSlot(FileAnchorStore):
    """Mutant: writes every slot where the newest is."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._memory = disk

    def write(self, slot: object) -> None:
        from leased.durable.anchor import encode_slot

        block = encode_slot(slot)  # type: ignore[arg-type]
        for at in (0, 4096):
            self._memory.write(self.handle, block, at)
        self._memory.sync(self.handle)


class OneSlot(Writer):
    """Mutant: the writer of a SingleSlot anchor."""

    def __init__(self, disk: Disk, **arguments: object) -> None:
        super().__init__(disk, **arguments)  # type: ignore[arg-type]
        self.anchor = SingleSlot(disk)


def _opened_with(writer: type[Writer], disk: MemoryDisk, **options: object) -> OpenedLog:
    """A log whose journal has another writer."""
    log = open_on(disk, **options)
    old = log.journal._writer
    log.journal._writer = log._writer = writer(
        disk,
        slot=old.slot,
        segment=old._segment_name,
        geometry=old._geometry,
        spares=old.spares,
    )
    return log


def _mutated(writer: type[Writer], disk: MemoryDisk) -> list[bytes]:
    """A run whose journal has a mutant for a writer."""
    return record_run(disk, opening=partial(_opened_with, writer))


class RetryAfterError(Writer):
    """Mutant: a barrier that failed is tried again, and believed."""

    def append(self, part: Part) -> None:
        self._disk.write(self.segment, part.data, part.offset)
        try:
            self._disk.sync(self.segment)
        except OSError:
            self._disk.sync(self.segment)


class SlotBeforeSync(Writer):
    """Mutant: both files are written, and then both are made durable, the anchor first."""

    def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        for part in self.parts(frames, count, head, moment):
            self.begin()
            self._disk.write(self.segment, part.data, part.offset)
            self.anchor.write(part.slot)
            self._disk.sync(self.segment)
            self.settle(part)
            if part.ends_segment:
                self.switch(moment)


def _fails_once(at: int) -> Fault:
    """The `at`-th barrier of the segment fails, and what it was for is lost."""
    seen = iter(range(1_000_000))

    def fault(verb: str, name: str) -> tuple[bool, OSError] | None:
        if verb != "sync" or not name.startswith("seg-") or next(seen) != at:
            return None
        return False, OSError(errno.EIO, "input/output error")

    return fault


def _forget_first(log: OpenedLog, batch: SealedBatch, at: Moment) -> None:
    """Mutant: the key of an epoch is overwritten before its seal is anchored."""
    if batch.ends_epoch:
        log.forget_epoch()
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)


@pytest.mark.parametrize(
    "mutant",
    ["seg-", "anchor", "names", SlotFirst, SlotBeforeSync, AckEarly, OneSlot, NameBeforeHeader]
    + [RetryAfterError, "key first"],
    ids=lambda mutant: mutant if isinstance(mutant, str) else mutant.__name__,
)
def test_the_search_finds_seeded_mistakes(mutant: str | type[Writer]) -> None:
    if mutant == "key first":
        disk = MemoryDisk()
        frames = record_run(disk, workload=SEALS, commit=_forget_first)
    elif isinstance(mutant, str):
        # A sync that does nothing: the log must then lose records or raise alarms, or the search is
        # blind.
        disk = MemoryDisk(lying=frozenset({mutant}))
        frames = record_run(disk)
    else:
        disk = MemoryDisk(fault=_fails_once(5) if mutant is RetryAfterError else None)
        frames = _mutated(mutant, disk)
    sealed, findings = Sealed(frames), Findings()
    with closed_segments_read_once():
        for index, acked, state in crash_states(disk, granule=512, samples=4, seed=SEED):
            judge(findings, state, acked, sealed, f"operation {index}")
            if findings.lost or findings.alarms:
                return
    pytest.fail(f"the mutant survived {findings}")


class WatchedDisk(MemoryDisk):
    """A disk that looks at the log after every operation, as a collector that pulls all the time:
    what it is shown is marked as known to it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: OpenedLog | None = None
        self._seen = 0

    def _do(self, verb: str, name: str, apply: Callable[[], None]) -> None:
        super()._do(verb, name, apply)
        if self.log is not None and self.log.journal.head.size > self._seen:
            head = self.log.journal.head
            self._seen = head.size
            self.mark(head)


class PublishEarly(Writer):
    """Mutant: readers are shown a batch from when it has been written, not when it is anchored."""

    def append(self, part: Part) -> None:
        self.slot = part.slot
        self._disk.write(self.segment, part.data, part.offset)
        self._disk.sync(self.segment)


@pytest.mark.parametrize("writer", [Writer, PublishEarly])
def test_nothing_is_shown_that_a_crash_could_take_back(writer: type[Writer]) -> None:
    disk = WatchedDisk()

    def opening(disk: MemoryDisk, **options: object) -> OpenedLog:
        log = _opened_with(writer, disk, **options)
        assert isinstance(disk, WatchedDisk)
        disk.log = log
        return log

    sealed, findings = Sealed(record_run(disk, opening=opening)), Findings()
    for index, acked, state in crash_states(disk, granule=512, samples=4, seed=SEED):
        judge(findings, state, acked, sealed, f"operation {index}")
    assert bool(findings.lost) == (writer is PublishEarly), str(findings)


class TornKept(MemoryDisk):
    """Mutant: what recovery would zero stays as it is."""

    def write(self, handle: int, data: bytes, offset: int) -> None:
        if self._name(handle).startswith("seg-") and not data.strip(b"\0"):
            return
        super().write(handle, data, offset)


@pytest.mark.parametrize("kind", [MemoryDisk, TornKept])
def test_a_torn_tail_that_is_not_zeroed_is_found(kind: type[MemoryDisk]) -> None:
    """The log goes on over it, ends its segment, and has what was never a record behind its last
    one."""
    disk = MemoryDisk()
    sealed = Sealed(record_run(disk, workload=SWITCHES))
    findings, went_on = Findings(), 0
    for index, acked, state in crash_states(disk, granule=64, samples=4, seed=SEED):
        outcome = Findings()
        recovered = judge(outcome, state, acked, sealed, f"operation {index}", kind=kind)
        if recovered is None or not outcome.torn:
            continue
        log = open_on(recovered)
        if log.journal.anchored.end_offset < SMALL_SEGMENT * 11 // 16:
            continue  # all of it would be written over before the segment ends
        sealer, number, segment = log.sealer(), 0, log.journal.anchored.segment_no
        while log.journal.anchored.segment_no == segment:
            batch = sealer.seal([(renewal(number), moment_at(200 + number))])
            log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(200))
            number += 1
        try:
            open_on(MemoryDisk(recovered.contents()))
        except ChainError as error:
            findings.alarms.append(f"operation {index}: {error}")
        went_on += 1
        if findings.alarms or went_on > 60:
            break
    assert went_on and bool(findings.alarms) == (kind is TornKept), f"{went_on} went on; {findings}"


@pytest.mark.parametrize("unlinked_first", [False, True])
def test_a_removal_that_is_not_anchored_first_is_found(unlinked_first: bool) -> None:
    """Mutant: segments are unlinked before the slot says that the log begins behind them."""
    written = MemoryDisk()
    record_run(written, workload=SWITCHES)
    disk = MemoryDisk(written.contents())
    log = open_on(disk, entropy=CountedEntropy(b"another run"))
    names = [name for name in disk.names() if name.startswith("seg-")]
    begins = parse_header(disk.read(names[2])[:HEADER_BYTES], names[2]).head
    removal = Removal(begins.size, begins.hash, tuple(names[:2]))
    pruned = Pruned(EventId(bytes(16)), begins.size, begins.hash, 2, begins.size)
    events = [renewal(900), acknowledged(log, begins.size), pruned]
    log.stage(removal)
    if unlinked_first:
        remove(disk, removal.names)
    batch = log.sealer().seal([(event, moment_at(900)) for event in events])
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(900))
    disk.mark(batch.new_head)
    if not unlinked_first:
        log.remove(removal)
    wrong = []
    for index, acked, state in crash_states(disk, granule=512, samples=4, seed=SEED):
        try:
            again = open_on(MemoryDisk(state), entropy=CountedEntropy(b"a third run"))
        except ChainError as error:
            wrong.append(f"operation {index}: {error}")
        else:
            if acked is not None and again.head.size < acked.size:
                wrong.append(f"operation {index}: {acked.size} acknowledged")
    assert bool(wrong) == unlinked_first, wrong[:2]
