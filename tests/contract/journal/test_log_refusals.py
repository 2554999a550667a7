# SPDX-License-Identifier: Apache-2.0
"""What `open_log` does with a directory that is not as it should be: a typed refusal that says
what to do, or the log."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from pathlib import Path

import pytest

from leased.chain.head import Head
from leased.durable.anchor import encode_slot, read_slots
from leased.durable.files import DirectoryDisk
from leased.durable.filesystem import Filesystem, mounted_type
from leased.durable.log import open_log
from leased.durable.reader import read_log
from leased.terms import event as e
from leased.terms.errors import ChainError, StateError
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import (
    BOOT,
    ORIGIN,
    CountedEntropy,
    events_of_every_kind,
    moment_at,
    open_in,
    open_on,
    renewal,
    write_batches,
)

SEGMENT = "seg-0000000000000000.log"


def _written(sizes: list[int] | None = None) -> tuple[dict[str, bytes], Head]:
    disk = MemoryDisk()
    log = open_on(disk)
    write_batches(log, sizes or [2, 3])
    slot = log.journal.anchored
    return disk.contents(), Head(slot.next_seq, slot.head)


def _verdict(files: dict[str, bytes]) -> ChainError:
    with pytest.raises(ChainError) as caught:
        open_on(MemoryDisk(files))
    assert "/memory/" in str(caught.value) or caught.value.file == "/memory"
    return caught.value


def test_a_log_is_made_and_opened_again(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    log = open_in(directory)
    assert log.head == Head(0, bytes(32)) and log.recovered is None
    assert re.fullmatch(ORIGIN + "/[0-9a-f]{8}", log.origin)
    assert (directory / "node.key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    write_batches(log, [5, 5])
    head = log.journal.head
    log.close()
    again = open_in(directory)
    assert again.head == head and again.log_id == log.log_id and again.recovered is None
    assert len(list(again.history())) == 11
    again.close()


class Unreadable(DirectoryDisk):
    """A disk of which a sector goes bad once `broken` is set."""

    broken = False

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Nothing of a segment."""
        if self.broken and name.startswith("seg-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_part(name, offset, length)


@pytest.mark.parametrize("length", [0, 4096, 4097, 5000])
def test_a_log_cut_short_while_it_is_read_is_an_error(tmp_path: Path, length: int) -> None:
    """Under a mapping it would be the end of the process."""
    directory = tmp_path / "audit"
    log = open_in(directory)
    write_batches(log, [20])
    log.close()
    log, reader = open_in(directory), read_log(directory)
    os.truncate(directory / SEGMENT, length)
    for read in (log.history, reader.records, reader.events, partial(log.last_moment, BOOT)):
        with pytest.raises(ChainError, match=f"CORRUPT_SEGMENT: the file ends.*{SEGMENT}"):
            list(read())
    with pytest.raises(ChainError, match="CORRUPT"):
        log.pages().page(0, log.journal.anchored, 1 << 20)
    log.close()
    with pytest.raises(ChainError, match=SEGMENT):
        read_log(directory)
    with pytest.raises(ChainError, match=SEGMENT):
        open_in(directory)


def test_a_sector_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    disk = Unreadable(tmp_path)
    log = open_in(tmp_path, disk=disk)
    write_batches(log, [20])
    log.close()
    disk = Unreadable(tmp_path)
    log = open_in(tmp_path, disk=disk)
    disk.broken = True
    for read in (log.history, partial(log.journal.frames, 0), partial(log.last_moment, BOOT)):
        with pytest.raises(StateError, match=f"{SEGMENT}: .*Input/output.*read the kernel log"):
            list(read())
    log.close()


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    log = open_in(tmp_path / "audit")
    with pytest.raises(StateError, match="BUSY.*stop it first"):
        open_in(tmp_path / "audit")
    assert read_log(tmp_path / "audit").facts.live
    log.close()
    open_in(tmp_path / "audit").close()


def test_another_machines_log_is_refused() -> None:
    files, _ = _written()
    disk = MemoryDisk(files)
    with pytest.raises(StateError, match="begun on another machine.*move the directory away"):
        open_log(
            disk.directory,
            moment=moment_at(0),
            entropy=CountedEntropy(),
            machine_id=b"other machine id",
            origin=ORIGIN,
            disk=disk,
        )
    assert disk.ops == [] and disk.closed, "a refusal changes nothing"


def test_another_logs_segments_are_refused() -> None:
    files, _ = _written()
    other = MemoryDisk()
    write_batches(open_on(other, entropy=CountedEntropy(b"other")), [2, 3])
    foreign = other.contents()
    assert _verdict({**files, SEGMENT: foreign[SEGMENT]}).verdict == "CORRUPT_SEGMENT"
    assert _verdict({**files, "anchor": foreign["anchor"]}).verdict == "CORRUPT_ANCHOR"
    with pytest.raises(StateError, match="not the key of this log"):
        open_on(MemoryDisk({**files, "node.key": foreign["node.key"]}))


def test_missing_files_are_named() -> None:
    files, _ = _written()
    without = {name: {key: files[key] for key in files if key != name} for name in files}
    assert _verdict(without["log.id"]).verdict == "CORRUPT_ID"
    assert _verdict(without["anchor"]).verdict == "CORRUPT_ANCHOR"
    assert _verdict(without[SEGMENT]).verdict == "CORRUPT_SEGMENT"
    with pytest.raises(StateError, match="signing key of this log is missing"):
        open_on(MemoryDisk(without["node.key"]))


def test_an_edited_anchor_is_refused() -> None:
    files, head = _written()
    disk = MemoryDisk(files)
    first, second = read_slots(disk, direct=False)
    assert first is not None and second is not None
    newest, older = (
        max(first, second, key=lambda s: s.generation),
        min(first, second, key=lambda s: s.generation),
    )
    forged = type(newest)(
        **{**{f: getattr(newest, f) for f in newest.__struct_fields__}, "head": b"\x01" * 32}
    )
    blocks = {slot.generation & 1: encode_slot(slot) for slot in (older, forged)}
    error = _verdict({**files, "anchor": blocks[0] + blocks[1]})
    assert error.verdict == "CORRUPT_HEAD" and error.sequence == head.size
    apart = type(newest)(
        **{**{f: getattr(newest, f) for f in newest.__struct_fields__}, "generation": 99}
    )
    blocks = {
        0: encode_slot(older) if older.generation % 2 == 0 else encode_slot(newest),
        1: encode_slot(apart),
    }
    assert _verdict({**files, "anchor": blocks[0] + blocks[1]}).verdict == "CORRUPT_ANCHOR"


def test_an_older_anchor_put_back_is_found() -> None:
    disk = MemoryDisk()
    log = open_on(disk)
    sealer, anchors = log.sealer(), []
    for count in range(6):
        batch = sealer.seal([(renewal(count), moment_at(count))])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(count))
        anchors.append(disk.contents()["anchor"])
    for age, anchor in enumerate(reversed(anchors)):
        files = {**disk.contents(), "anchor": anchor}
        if age < 2:
            # One batch beyond the anchor is what a crash leaves too: kept, nothing is lost.
            assert open_on(MemoryDisk(files)).head == batch.new_head
        else:
            assert _verdict(files).verdict == "ANCHOR_ROLLED_BACK"
    # Hiding the next batch does not help: a later one still lies there.
    segment = bytearray(disk.contents()[SEGMENT])
    at = segment.find(batch.frames[:48]) - 100
    segment[at] ^= 1
    assert (
        _verdict({**disk.contents(), "anchor": anchors[0], SEGMENT: bytes(segment)}).verdict
        == "ANCHOR_ROLLED_BACK"
    )


def test_a_cut_tail_is_found() -> None:
    files, _ = _written()
    data = bytearray(files[SEGMENT])
    end = len(files[SEGMENT].rstrip(b"\0"))
    data[end - 300 :] = bytes(len(data) - end + 300)
    error = _verdict({**files, SEGMENT: bytes(data)})
    assert error.verdict == "CORRUPT_RECORD" and error.sequence == 6 and error.offset > 4096
    assert "nothing was changed" in str(error)


def test_swapped_doubled_and_dropped_records_are_found() -> None:
    files, _ = _written([3, 3])
    disk = MemoryDisk(files)
    log = open_on(disk)
    frames, offset, data = [], 0, b"".join(log.journal.frames(0))
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "little")
        frames.append(data[offset : offset + length])
        offset += length
    for order in ([0, 2, 1, 3], [0, 1, 1, 2], [0, 1, 3, 4], [1, 0, 2, 3]):
        changed = b"".join(frames[n] for n in order)
        segment = (files[SEGMENT][:4096] + changed).ljust(len(files[SEGMENT]), b"\0")
        error = _verdict({**files, SEGMENT: segment})
        assert error.verdict == "CORRUPT_RECORD"
        assert error.sequence == next(at for at, n in enumerate(order) if at != n)


def test_a_file_system_that_is_not_on_the_list_has_to_be_asked_for() -> None:
    memory = Filesystem("tmpfs", "tmpfs is not on the list of tested file systems")
    with pytest.raises(StateError, match="tmpfs.*best-effort"):
        open_on(MemoryDisk(filesystem=memory))
    log = open_on(MemoryDisk(filesystem=memory), best_effort=True)
    assert log.durability == "best-effort" and log.filesystem == "tmpfs" and log.identity.flags & 2
    assert open_on(MemoryDisk()).durability == "strict"


def test_mount_points_are_matched_by_the_longest_and_last() -> None:
    mounts = "\n".join(
        f"{n} 1 8:1 / {point} rw - {kind} /dev/x rw"
        for n, (point, kind) in enumerate(
            [("/", "ext4"), ("/var", "xfs"), ("/var/lib", "zfs"), ("/var/lib", "btrfs")]
        )
    )
    assert mounted_type(mounts, Path("/home")) == "ext4"
    assert mounted_type(mounts, Path("/variable")) == "ext4"
    assert mounted_type(mounts, Path("/var/x")) == "xfs"
    assert mounted_type(mounts, Path("/var/lib/leased")) == "btrfs"
    assert (
        mounted_type("1 1 8:1 / /with\\040space rw - xfs /dev/x rw", Path("/with space/y")) == "xfs"
    )


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "own the directory"), (errno.EIO, "disk failed")],
)
def test_a_directory_that_cannot_be_written_says_what_to_do(code: int, advice: str) -> None:
    disk = MemoryDisk(fault=lambda verb, name: (False, OSError(code, os.strerror(code), name)))
    with pytest.raises(StateError, match=advice):
        open_on(disk)


def test_a_missing_parent_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="make the parent directory"):
        open_in(tmp_path / "no" / "audit")
    with pytest.raises(StateError, match="there is no log here"):
        read_log(tmp_path)
    with pytest.raises(StateError, match="that you may read"):
        read_log(tmp_path / "no")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    open_in(tmp_path / "audit").close()
    (tmp_path / "audit" / "node.key").chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        open_in(tmp_path / "audit")


def test_a_new_log_does_not_begin_on_a_full_disk() -> None:
    with pytest.raises(StateError, match="free some space"):
        open_on(MemoryDisk(capacity=8 * 1024))


def test_a_full_disk_stops_grants_and_not_the_terminal_records() -> None:
    disk = MemoryDisk()
    log = open_on(disk)
    sealer, journal = log.sealer(), log.journal
    log.journal.spares.wanted = 3
    log.journal.spares.fill()
    disk.capacity = sum(len(data) for data in disk.contents().values())
    committed = 0
    while journal._writer.free_bytes() > 2048:
        batch = sealer.seal([(renewal(committed), moment_at(0))])
        journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(0))
        committed += 1
    assert committed > 90, "what was preallocated takes records on a full disk"
    assert not journal.reserve_ok(0)
    with pytest.raises(OSError, match="no space"):
        while True:
            batch = sealer.seal([(renewal(committed), moment_at(0))])
            journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(0))
    # The last segment is full: to go on there must be room for one more, and nothing acknowledged
    # is missing then.
    with pytest.raises(StateError, match="free some space"):
        open_on(MemoryDisk(disk.contents(), capacity=disk.capacity))
    assert open_on(MemoryDisk(disk.contents())).head.size >= committed


def test_a_full_disk_does_not_keep_a_log_from_opening() -> None:
    files, head = _written()
    full = MemoryDisk(files, capacity=sum(map(len, files.values())))
    log = open_on(full)
    assert log.head == head and log.journal.spares.error is None
    without = {name: data for name, data in files.items() if not name.startswith("next-")}
    log = open_on(MemoryDisk(without, capacity=sum(map(len, without.values()))))
    assert log.head == head and log.journal.spares.error is not None
    assert not log.journal.reserve_ok(1_000)


def test_history_leaves_closed_leases_out(tmp_path: Path) -> None:
    log = open_in(tmp_path / "audit")
    sealer = log.sealer()
    by_kind = {type(event): event for event in events_of_every_kind()}
    closing = by_kind[e.Reclaimed]
    order = [
        e.NodeStarted,
        e.Allocated,
        e.Activated,
        e.Renewed,
        e.Expired,
        e.TeardownBegun,
        e.Reclaimed,
    ]
    items = [(by_kind[kind], moment_at(n)) for n, kind in enumerate(order)]
    for n in range(120):
        items.insert(-1, (renewal(n), moment_at(6)))
    for at in range(0, len(items), 9):
        batch = sealer.seal(items[at : at + 9])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(6))
    log.close()
    again = open_in(tmp_path / "audit")
    history = list(again.history())
    assert len([name for name in os.listdir(tmp_path / "audit") if name.startswith("seg-")]) > 2
    assert all(getattr(event, "lease_id", None) != closing.lease_id for _, event, _ in history)
    assert sum(isinstance(event, e.Renewed) for _, event, _ in history) == 120
    assert [sequence for sequence, _, _ in history] == sorted(
        {sequence for sequence, _, _ in history}
    )
    assert {moment.boot_id for _, _, moment in history} == {by_kind[e.NodeStarted].boot_id}
    again.close()
    everything = list(read_log(tmp_path / "audit").events())
    assert [sequence for sequence, _, _ in everything] == list(range(len(everything)))
    assert {item[0] for item in items} <= {event for _, event, _ in everything}


def test_the_second_process_finds_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    log = open_in(directory)
    write_batches(log, [9] * 25)
    head = log.journal.head
    log.close()
    names = sorted(path.name for path in directory.glob("seg-*"))
    assert len(names) >= 6
    again = open_in(directory)
    assert again.head == head and len(list(again.history())) == 226
    again.close()
    victim = directory / names[-2]
    data = bytearray(victim.read_bytes())
    data[5000] ^= 4
    victim.write_bytes(bytes(data))
    with pytest.raises(ChainError) as caught:
        open_in(directory)
    assert caught.value.verdict == "CORRUPT_RECORD" and caught.value.file == str(victim)
