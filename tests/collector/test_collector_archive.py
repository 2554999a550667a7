# SPDX-License-Identifier: Apache-2.0
"""The archive: what was stored is read back, the cursor is swapped, damage is named, and a kill at
any step leaves the state before or the state after."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from leased.chain.head import GENESIS, Head
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.archive import archive as a
from leased.durable.files import DirectoryDisk
from leased.terms.errors import StateError
from leased.terms.event import Renewed
from tests.doubles.logs import CountedEntropy, moment_at, renewal, started

LOG, NODE = b"l" * 16, b"\x40" * 16
KILLED = 9


def chain(batches: int, size: int = 3) -> list[tuple[bytes, Head]]:
    """Frames and the head after them, batch by batch."""
    sealer = Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    made = []
    for number in range(batches):
        items = [(started(), moment_at(0))] if not number else []
        items += [(renewal(number * size + n), moment_at(number)) for n in range(size)]
        batch = sealer.seal(items)
        made.append((batch.frames, batch.new_head))
    return made


def page(before: Head, frames: bytes, after: Head, note: str = "n") -> a.Page:
    return a.Page(LOG.hex(), before, after, frames, b"state", after.size, note, 7)


def opened(directory: Path, **options) -> a.Archive:
    archive = a.Archive(directory, **options)
    if archive.log(LOG.hex()) is None:
        archive.add_log(a.LogEntry(LOG.hex(), NODE.hex(), "node-1", "o/n", GENESIS))
    return archive


def store(archive: a.Archive, batches: list[tuple[bytes, Head]]) -> Head:
    head = GENESIS
    for frames, after in batches:
        assert archive.persist([page(head, frames, after)]) == [None]
        head = after
    return head


def test_what_was_stored_is_read_back_from_any_sequence(tmp_path: Path) -> None:
    batches = chain(4)
    archive = opened(tmp_path)
    head = store(archive, batches)
    whole = b"".join(frames for frames, _ in batches)
    assert b"".join(archive.frames(LOG.hex())) == whole
    assert [record.sequence for record in archive.records(LOG.hex(), 5)] == list(range(5, 13))
    events = list(archive.events(LOG.hex()))
    assert [sequence for sequence, *_ in events] == list(range(head.size))
    assert events[-1][2].boot_id == started().boot_id
    assert isinstance(events[-1][1], Renewed)
    entry = archive.log(LOG.hex())
    assert entry is not None and entry.head == head and entry.signed_size == head.size
    archive.close()
    reader = a.ArchiveReader(tmp_path)
    assert b"".join(reader.frames(LOG.hex())) == whole
    reader.close()


def test_a_state_directory_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    """Who may put a segment there may put a manifest there that names it."""
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="chmod o-w"):
        opened(tmp_path)
    tmp_path.chmod(0o755)
    opened(tmp_path).close()


def test_a_cursor_that_moved_stores_nothing(tmp_path: Path) -> None:
    (first, one), (second, two), _ = chain(3)
    archive = opened(tmp_path)
    assert archive.persist([page(GENESIS, first, one)]) == [None]
    [moved] = archive.persist([page(GENESIS, first, one)])
    assert isinstance(moved, a.CursorMoved)
    forked = Head(one.size, bytes(32))
    [moved] = archive.persist([page(forked, second, two)])
    assert isinstance(moved, a.CursorMoved)
    assert len(archive.manifest.segments()) == 1 == len(archive.files.found())
    archive.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    with pytest.raises(StateError, match="another collector"):
        a.Archive(tmp_path)
    archive.close()
    a.Archive(tmp_path).close()


@pytest.mark.parametrize("how", ["missing", "short", "altered"])
def test_a_damaged_segment_is_named_and_not_used(tmp_path: Path, how: str) -> None:
    archive = opened(tmp_path)
    store(archive, chain(2))
    broken = archive.manifest.segments()[1]
    path = tmp_path / broken.path
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-8] if how == "short" else data[:90] + b"\xff" + data[91:])
    with pytest.raises(a.SegmentDamaged, match=path.name):
        list(archive.frames(LOG.hex()))
    found = [segment for segment, error in archive.check() if error is not None]
    assert found == [broken]
    archive.close()
    if how == "altered":
        a.Archive(tmp_path).close()  # sizes only: a start must not read a year
    else:
        with pytest.raises(a.SegmentDamaged, match=path.name):
            a.Archive(tmp_path)


def test_an_older_manifest_put_back_stops_the_start_and_loses_nothing(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    batches = chain(4)
    head = store(archive, batches[:1])
    backup = sqlite3.connect(tmp_path / "backup")
    archive.manifest.connection.backup(backup)
    for frames, after in batches[1:]:
        assert archive.persist([page(head, frames, after)]) == [None]
        head = after
    archive.close()
    backup.close()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"collector.sqlite{suffix}").unlink(missing_ok=True)
    os.rename(tmp_path / "backup", tmp_path / "collector.sqlite")
    before = sorted(tmp_path.rglob("*.seg"))
    with pytest.raises(StateError, match="no crash explains it"):
        a.Archive(tmp_path)
    # Not even the one that a crash would explain: the database of before, put in place again, names
    # it, and the node may have pruned what had been cosigned.
    assert sorted(tmp_path.rglob("*.seg")) == before


def test_small_files_are_put_together_and_read_the_same(tmp_path: Path) -> None:
    batches = chain(a.MERGE_COUNT * 3 + 2)
    archive = opened(tmp_path)
    store(archive, batches)
    whole = b"".join(frames for frames, _ in batches)
    assert archive.consolidate(LOG.hex()) == 3 * (a.MERGE_COUNT - 1)
    assert len(archive.manifest.segments()) == 5 == len(archive.files.found())
    assert b"".join(archive.frames(LOG.hex())) == whole
    assert [record.sequence for record in archive.records(LOG.hex(), 50)][0] == 50
    assert archive.consolidate(LOG.hex()) == 0
    archive.close()


class DyingDisk(DirectoryDisk):
    """Ends the process before the n-th change to a directory."""

    left = 1 << 30

    @classmethod
    def step(cls) -> None:
        if cls.left == 0:
            os._exit(KILLED)
        cls.left -= 1

    def create(self, name: str) -> int:
        self.step()
        return super().create(name)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        self.step()
        super().write(handle, data[: len(data) // 2], offset)
        self.step()
        super().write(handle, data, offset)

    def sync(self, handle: int) -> None:
        self.step()
        super().sync(handle)

    def rename(self, old: str, new: str) -> None:
        self.step()
        super().rename(old, new)

    def unlink(self, name: str) -> None:
        self.step()
        super().unlink(name)

    def sync_names(self) -> None:
        self.step()
        super().sync_names()


def in_a_child_that_dies(directory: Path, steps: int, work) -> bool:
    """Do `work` in a fork that ends before step `steps`; whether it died."""
    pid = os.fork()
    if pid == 0:
        DyingDisk.left = 1 << 30
        archive = a.Archive(directory, open_disk=DyingDisk)
        DyingDisk.left = steps
        archive.manifest.connection.set_trace_callback(lambda _: DyingDisk.step())
        work(archive)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED


def test_a_kill_at_any_step_of_storing_leaves_before_or_after(tmp_path: Path) -> None:
    (first, one), (second, two) = chain(2)
    found = set()
    for steps in range(100):
        directory = tmp_path / str(steps)
        archive = opened(directory)
        archive.persist([page(GENESIS, first, one)])
        archive.close()
        died = in_a_child_that_dies(
            directory, steps, lambda archive: archive.persist([page(one, second, two)])
        )
        archive = a.Archive(directory)
        head = archive.log(LOG.hex()).head
        assert head in (one, two)
        assert b"".join(archive.frames(LOG.hex())) == first + (second if head == two else b"")
        assert len(archive.files.found()) == len(archive.manifest.segments())
        assert head == two or archive.persist([page(one, second, two)]) == [None]
        archive.close()
        found.add((died, head))
        if not died:
            break
    # After COMMIT there is no step left to die before, so the last word is the whole run.
    assert found == {(True, one), (False, two)} and steps > 10


def test_a_kill_at_any_step_of_putting_together_loses_nothing(tmp_path: Path) -> None:
    batches = chain(a.MERGE_COUNT, 1)
    whole = b"".join(frames for frames, _ in batches)
    for steps in range(200):
        directory = tmp_path / str(steps)
        archive = opened(directory)
        head = store(archive, batches)
        archive.close()
        died = in_a_child_that_dies(
            directory, steps, lambda archive: archive.consolidate(LOG.hex())
        )
        archive = a.Archive(directory)
        assert b"".join(archive.frames(LOG.hex())) == whole
        assert archive.log(LOG.hex()).head == head
        assert len(archive.files.found()) == len(archive.manifest.segments())
        archive.close()
        if not died:
            break
    assert steps > 30
