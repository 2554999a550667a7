# SPDX-License-Identifier: Apache-2.0
"""The key of the open epoch, on disk: what a start finds, and what it must not go on from."""

from __future__ import annotations

import pytest

from leased.chain.epochs import EPOCH_NS, EpochKey
from leased.chain.verdict import BAD_SEAL, BAD_SIGNATURE, NEW_LOG
from leased.durable.log import OpenedLog
from leased.durable.reader import Enrolled, read_log
from leased.durable.sealkey import SEAL_KEY_FILE, SLOT_BYTES, load_seal_key
from leased.terms.errors import ChainError
from leased.terms.moment import NS_PER_MS
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import moment_at, open_on, renewal, started, write_batches

EPOCH = EPOCH_NS // (100 * NS_PER_MS)
"""`moment_at` counts tenths of a second."""


def write(log: OpenedLog, times: list[int], *, forget: bool = True) -> EpochKey:
    """A record at each of these times; the key of the epoch that was open before. Once per log."""
    sealer = log.sealer()
    assert log.ratchet is not None
    first = log.ratchet.key
    for number, time in enumerate(times):
        moment = moment_at(time)
        event = started() if number == 0 and log.head.size == 0 else renewal(number)
        batch = sealer.seal([(event, moment)])
        log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
        if batch.ends_epoch and forget:
            log.forget_epoch()
    return first


def test_after_a_seal_the_key_is_gone_from_both_slots() -> None:
    disk = MemoryDisk()
    log = open_on(disk)
    first = write(log, [0, EPOCH, 2 * EPOCH])
    raw = disk.contents()[SEAL_KEY_FILE]
    assert first.key not in raw and first.evolved(1).key not in raw
    assert raw[:SLOT_BYTES] == raw[SLOT_BYTES:] and first.evolved(2).key in raw
    facts = read_log(disk.directory, disk=disk, enrolled=Enrolled(seal_key=first)).facts
    assert (facts.verified.seals, facts.verified.seals_proven) == (2, 2)


def test_a_crash_between_the_seal_and_its_key_is_made_good_before_anything_is_served() -> None:
    disk = MemoryDisk()
    first = write(open_on(disk), [0, EPOCH], forget=False)
    assert first.key in disk.contents()[SEAL_KEY_FILE]
    left = MemoryDisk(disk.contents())
    again = open_on(left)
    assert first.key not in left.contents()[SEAL_KEY_FILE]
    assert again.ratchet is not None and again.ratchet.key == first.evolved(1)
    write(again, [EPOCH + 1, 2 * EPOCH])
    again = read_log(left.directory, disk=left, enrolled=Enrolled(seal_key=first))
    assert again.facts.verified.seals_proven == 2


def test_one_slot_is_enough() -> None:
    disk = MemoryDisk()
    first = write(open_on(disk), [0])
    for at in (0, SLOT_BYTES):
        files = disk.contents()
        torn = bytearray(files[SEAL_KEY_FILE])
        torn[at : at + 80] = bytes(80)
        assert (
            load_seal_key(MemoryDisk({**files, SEAL_KEY_FILE: bytes(torn)}), _log_id(disk)) == first
        )


@pytest.mark.parametrize("content", [b"", bytes(2 * SLOT_BYTES), b"x" * 100])
def test_without_its_key_a_log_does_not_go_on(content: bytes) -> None:
    disk = MemoryDisk()
    write(open_on(disk), [0])
    with pytest.raises(ChainError, match=r"seal\.key") as refused:
        open_on(MemoryDisk({**disk.contents(), SEAL_KEY_FILE: content}))
    assert refused.value.verdict == "SEAL_KEY"


def test_an_earlier_state_of_the_log_with_its_present_key_is_found() -> None:
    disk = MemoryDisk()
    write(open_on(disk), [0])
    earlier = disk.contents()
    later = MemoryDisk(earlier)
    write(open_on(later), [EPOCH, 2 * EPOCH, 3 * EPOCH])
    present = later.contents()[SEAL_KEY_FILE]
    with pytest.raises(ChainError, match="an earlier state of the log was put back") as refused:
        open_on(MemoryDisk({**earlier, SEAL_KEY_FILE: present}))
    assert refused.value.verdict == "SEAL_KEY"


def test_a_refusal_for_its_key_changes_nothing_of_a_torn_log() -> None:
    """What is torn beyond the anchor may be what is asked for next: it is not cut off first."""
    disk = MemoryDisk()
    log = open_on(disk)
    write(log, [0])
    end, earlier = log.journal.anchored.end_offset, disk.contents()
    later = MemoryDisk(earlier)
    write(open_on(later), [EPOCH, 2 * EPOCH])
    segment = earlier["seg-0000000000000000.log"]
    torn = segment[:end] + b"torn" + segment[end + 4 :]
    for key in (later.contents()[SEAL_KEY_FILE], b""):
        found = {**earlier, "seg-0000000000000000.log": torn, SEAL_KEY_FILE: key, "log.new": b"x"}
        left = MemoryDisk(found)
        with pytest.raises(ChainError) as refused:
            open_on(left)
        assert refused.value.verdict == "SEAL_KEY" and left.contents() == found


def test_a_log_may_be_made_without_seals_and_stays_so() -> None:
    disk = MemoryDisk()
    log = open_on(disk, epoch_ns=0)
    assert log.ratchet is None and SEAL_KEY_FILE not in disk.contents()
    assert open_on(MemoryDisk(disk.contents())).ratchet is None


def _log_id(disk: MemoryDisk) -> bytes:
    return open_on(MemoryDisk(disk.contents())).log_id


def test_a_log_of_seals_does_not_become_one_without_by_saying_so() -> None:
    disk = MemoryDisk()
    first = write(open_on(disk), [0, EPOCH])
    bare = MemoryDisk()
    write_batches(open_on(bare, epoch_ns=0), [3])
    assert read_log(bare.directory, disk=bare).facts.verified.seals == 0
    for known, verdict in (
        (Enrolled(seal_key=first), BAD_SEAL),
        (Enrolled(log_id=bytes(16)), NEW_LOG),
        (Enrolled(public_key=bytes(32)), BAD_SIGNATURE),
    ):
        with pytest.raises(ChainError) as refused:
            read_log(bare.directory, disk=MemoryDisk(bare.contents()), enrolled=known)
        assert refused.value.verdict == verdict and refused.value.file.endswith("log.id")
