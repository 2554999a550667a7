# SPDX-License-Identifier: Apache-2.0
"""Pages of a log on a disk in memory: every cut, every tree, every proof, over many segments."""

from __future__ import annotations

import pytest

from leased.chain.proof import root_of_path
from leased.chain.record import hash_prefix, parse_frame
from leased.chain.tree import EMPTY
from leased.durable.log import OpenedLog
from leased.durable.pages import Page, PageReader
from leased.terms.errors import ChainError, StateError
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import open_on, write_batches

BATCHES = [1, 3, 30, 1, 40, 7, 40, 1, 2, 20]


class Log:
    """A log of several segments, and what a reader is to find in it."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.opened: OpenedLog = open_on(self.disk)
        write_batches(self.opened, BATCHES)
        self.slot = self.opened.journal.anchored
        self.data = b"".join(self.opened.journal.frames(0))
        self.hashes: list[bytes] = []
        self.ends: list[int] = []
        self.batch_ends = {0}
        offset = 0
        while offset < len(self.data):
            record = parse_frame(self.data, offset, hash_prefix(self.opened.log_id))
            offset += record.frame_bytes
            self.hashes.append(record.hash)
            self.ends.append(offset)
            if record.flags & 1:
                self.batch_ends.add(record.sequence + 1)
        assert len(self.hashes) == self.slot.next_seq

    def reader(self) -> PageReader:
        return PageReader(self.disk, self.opened.identity)

    def frames(self, first: int, stop: int) -> bytes:
        return self.data[self.ends[first - 1] if first else 0 : self.ends[stop - 1]]

    def right(self, page: Page) -> None:
        """It is what the log holds there."""
        assert page.frames == self.frames(page.first, page.next_seq)
        assert page.next_seq in self.batch_ends
        assert page.prev == (self.hashes[page.first - 1] if page.first else bytes(32))
        assert page.head == self.hashes[page.next_seq - 1]
        assert page.tree == EMPTY.extended(self.hashes[: page.next_seq])
        assert page.last == (page.next_seq == self.slot.next_seq)


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.mark.parametrize("bytes_max", [1, 1000, 5000, 1 << 20])
def test_a_reader_who_goes_on_gets_everything_once(log: Log, bytes_max: int) -> None:
    assert sum(name.startswith("seg-") for name in log.disk.names()) > 3
    reader, first, pages = log.reader(), 0, 0
    while first < log.slot.next_seq:
        page = reader.page(first, log.slot, bytes_max)
        log.right(page)
        first, pages = page.next_seq, pages + 1
    assert first == log.slot.next_seq
    assert pages > 3


def test_a_page_may_begin_anywhere(log: Log) -> None:
    warm = log.reader()
    for first in range(log.slot.next_seq):
        page = warm.page(first, log.slot, 3000)
        log.right(page)
        assert page == log.reader().page(first, log.slot, 3000)


def test_nothing_beyond_the_anchor_is_read(log: Log) -> None:
    fresh = Log()
    slot = fresh.slot
    sealer = fresh.opened.sealer()
    assert sealer.head.size == fresh.opened.head.size  # the sealer as it was opened: behind
    reader = fresh.reader()
    for size in sorted(fresh.batch_ends - {0}):
        earlier = type(slot)(
            slot.generation, slot.log_id, size, 0, 0, fresh.hashes[size - 1], slot.min_seq
        )
        page = reader.page(size - 1, earlier, 1 << 20)
        assert page.next_seq == size
        assert page.last


def test_the_tree_of_every_size(log: Log) -> None:
    reader = log.reader()
    for size in [*range(log.slot.next_seq + 1), 3, 0]:
        assert reader.tree(size, log.slot) == EMPTY.extended(log.hashes[:size])


def test_every_record_is_proven_in_trees_of_many_sizes(log: Log) -> None:
    reader = log.reader()
    for size in (1, 2, 17, 64, 65, log.slot.next_seq - 1, log.slot.next_seq):
        root = EMPTY.extended(log.hashes[:size]).root()
        for sequence in range(0, size, 3):
            proof = reader.inclusion(sequence, size, log.slot)
            assert proof.record_hash == log.hashes[sequence]
            assert proof.tree.root() == root
            assert root_of_path(sequence, size, proof.record_hash, proof.path) == root


def test_a_hash_that_the_disk_changed_is_never_put_into_a_tree() -> None:
    log = Log()
    name = [name for name in log.disk.names() if name.startswith("seg-")][1]
    start = int(name[4:20], 16)
    flipped = log.disk.inodes[log.disk.table[name]]
    length = int.from_bytes(flipped[4096:4100], "little")
    for at in (4096 + length - 1, 4096 + length + 48):
        flipped[at] ^= 1
        for ask in (
            lambda: log.reader().page(start, log.slot, 1 << 20),
            lambda: log.reader().tree(start + 3, log.slot),
            lambda: log.reader().inclusion(start, start + 2, log.slot),
        ):
            with pytest.raises(ChainError) as told:
                ask()
            assert (told.value.verdict, told.value.file) == ("CORRUPT_RECORD", name)
        flipped[at] ^= 1
    log.right(log.reader().page(start, log.slot, 1 << 20))


def test_a_record_that_was_pruned_is_named() -> None:
    log = Log()
    names = [name for name in log.disk.names() if name.startswith("seg-")]
    log.disk.unlink(names[0])
    first = int(names[1][4:20], 16)
    reader = log.reader()
    assert reader.first_seq() == first
    log.right(reader.page(first, log.slot, 1 << 20))
    assert reader.tree(first + 1, log.slot) == EMPTY.extended(log.hashes[: first + 1])
    with pytest.raises(StateError, match="was pruned"):
        reader.page(first - 1, log.slot, 1 << 20)


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_what_a_pruned_log_has_is_proven_as_before(gone: int) -> None:
    log = Log()
    names = [name for name in log.disk.names() if name.startswith("seg-")]
    for name in names[:gone]:
        log.disk.unlink(name)
    first = int(names[gone][4:20], 16)
    for size in {first + 1, first + 7, log.slot.next_seq - 1, log.slot.next_seq}:
        root = EMPTY.extended(log.hashes[:size]).root()
        for sequence in range(first, size):
            proof = log.reader().inclusion(sequence, size, log.slot)
            assert proof.tree.root() == root
            assert root_of_path(sequence, size, proof.record_hash, proof.path) == root
    with pytest.raises(StateError, match="was pruned"):
        log.reader().inclusion(first - 1, log.slot.next_seq, log.slot)
