# SPDX-License-Identifier: Apache-2.0
"""Every crash state recovers: no acknowledged record lost, no false alarm (chain.md section 8, T2
of section 11).

The short form takes seconds. `LEASED_CRASH_SAMPLES=4000 pytest tests/crash` is the long one (over
200,000 states); seeds are fixed, and `LEASED_CRASH_SEED` changes them.
"""

from __future__ import annotations

import os

import pytest

from leased.chain.head import Head
from leased.durable.anchor import FileAnchorStore
from leased.durable.files import Disk
from leased.durable.writer import Part, Writer
from leased.terms.moment import Moment
from tests.crash.search import Findings, crash_states, hashes_of, judge, record_run
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import moment_at, open_on, renewal

SAMPLES = int(os.environ.get("LEASED_CRASH_SAMPLES", "60"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))


@pytest.mark.parametrize("granule", [512, 64, 8])
def test_every_crash_state_recovers(granule: int) -> None:
    disk = MemoryDisk()
    hashes = hashes_of(record_run(disk))
    findings = Findings()
    for index, acked, state in crash_states(disk, granule=granule, samples=SAMPLES, seed=SEED):
        judge(findings, state, acked, hashes, f"operation {index}")
    print(f"granule {granule}, seed {SEED}: {findings}")
    assert not findings.lost and not findings.alarms, str(findings)
    assert findings.states > 400 and findings.rolled_forward > 20 and findings.torn > 20, str(
        findings
    )


def test_a_crash_during_recovery_recovers() -> None:
    disk = MemoryDisk()
    hashes = hashes_of(record_run(disk))
    findings, outer = Findings(), Findings()
    for count, (index, acked, state) in enumerate(
        crash_states(disk, granule=512, samples=4, seed=SEED)
    ):
        if count % max(1, 300 // SAMPLES):
            continue
        recovered = judge(outer, state, acked, hashes, f"operation {index}")
        assert recovered is not None
        if acked is None:
            continue
        for again, _, second in crash_states(recovered, granule=512, samples=2, seed=SEED):
            judge(findings, second, acked, hashes, f"operation {index}, recovery operation {again}")
    print(f"seed {SEED}: {findings}")
    assert not findings.lost and not findings.alarms, str(findings)
    assert findings.states > 300, str(findings)


def test_a_recovered_log_goes_on() -> None:
    disk = MemoryDisk()
    hashes = hashes_of(record_run(disk))
    went_on = 0
    for count, (index, acked, state) in enumerate(
        crash_states(disk, granule=64, samples=4, seed=SEED)
    ):
        if count % 7:
            continue
        recovered = judge(Findings(), state, acked, hashes, f"operation {index}")
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


def _mutated(writer: type[Writer], disk: MemoryDisk) -> list[bytes]:
    """A run whose journal has a mutant for a writer."""

    def opening(disk: MemoryDisk):
        log = open_on(disk)
        old = log.journal._writer
        log.journal._writer = log._writer = writer(
            disk,
            slot=old.slot,
            segment=old._segment_name,
            geometry=old._geometry,
            spares=old.spares,
        )
        return log

    return record_run(disk, opening=opening)


@pytest.mark.parametrize(
    "mutant", ["seg-", "anchor", "names", SlotFirst, AckEarly, OneSlot, NameBeforeHeader], ids=str
)
def test_the_search_finds_seeded_mistakes(mutant: str | type[Writer]) -> None:
    if isinstance(mutant, str):
        # A sync that does nothing: the log must then lose records or raise alarms, or the search is
        # blind.
        disk = MemoryDisk(lying=frozenset({mutant}))
        frames = record_run(disk)
    else:
        disk = MemoryDisk()
        frames = _mutated(mutant, disk)
    hashes, findings = hashes_of(frames), Findings()
    for index, acked, state in crash_states(disk, granule=512, samples=4, seed=SEED):
        judge(findings, state, acked, hashes, f"operation {index}")
        if findings.lost or findings.alarms:
            return
    pytest.fail(f"the mutant survived {findings}")
