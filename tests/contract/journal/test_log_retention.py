# SPDX-License-Identifier: Apache-2.0
"""Pruning: only what was acknowledged, is not needed and is old goes; what is left is a whole log;
and whatever of a removal a crash lets happen, the log opens the same."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from leased.chain.verifier import Verifier
from leased.durable.anchor import encode_slot, slot_offset
from leased.durable.log import OpenedLog
from leased.durable.reader import read_log
from leased.durable.retention import SEGMENTS_KEPT, Removal, needed_from
from leased.durable.scan import segment_names
from leased.service.log.reader import ChainReader
from leased.terms import event as e
from leased.terms.errors import ChainError, StateError
from leased.terms.moment import NS_PER_S, Moment
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import (
    CountedEntropy,
    acknowledged,
    allocation,
    commit_and_forget,
    lease_life,
    moment_at,
    open_on,
    renewal,
    started,
)

LATE = moment_at(10**6).wall_ns
ID = e.EventId(bytes(16))


def life(number: int, *, open_ended: bool = False) -> list[e.Event]:
    """A lease from beginning to end."""
    return [allocation(number)] if open_ended else lease_life(number)


def filled(
    lives: int = 120, extra: tuple[int, list[e.Event]] = (-1, []), epoch_ns: int = NS_PER_S // 5
) -> MemoryDisk:
    """A log of several small segments, two lives in an epoch; `extra` events come before that
    life."""
    disk = MemoryDisk()
    log = open_on(disk, epoch_ns=epoch_ns)
    sealer = log.sealer()
    for number in range(lives):
        events = [started()] if number == 0 else []
        events += extra[1] if number == extra[0] else []
        events += life(number)
        at = moment_at(number)
        batch = sealer.seal([(event, at) for event in events])
        commit_and_forget(log, batch, at)
    log.close()
    disk.closed = False
    return disk


def ask(disk: MemoryDisk, **options) -> tuple[object, Removal | None]:
    log = open_on(disk, entropy=CountedEntropy(b"again"))
    everything = {"acked_size": log.head.size, "older_than_wall_ns": LATE, "pressed": False}
    return log, log.removal(**{**everything, **options})


def prune(disk: MemoryDisk, *, unlink: bool = True) -> Removal:
    log, removal = ask(disk)
    assert removal is not None
    log.stage(removal)
    at = moment_at(1000)
    fields = (removal.min_seq, removal.head, len(removal.names), log.head.size)
    events = [started(), acknowledged(log, log.head.size), e.Pruned(ID, *fields)]
    batch = log.sealer().seal([(event, at) for event in events])
    commit_and_forget(log, batch, at)
    if unlink:
        log.remove(removal)
    log.close()
    disk.closed = False
    return removal


def test_what_is_left_is_a_whole_log_and_replays_the_same() -> None:
    disk = filled()
    before = segment_names(disk.names())
    log, _ = ask(disk)
    history = list(log.history())
    log.close()
    disk.closed = False
    removal = prune(disk)
    left = segment_names(disk.names())
    assert left == before[len(removal.names) :] and len(left) == SEGMENTS_KEPT
    again, none = ask(disk)
    assert none is None
    kept = [one for one in history if one[0] >= removal.min_seq]
    assert list(again.history())[: len(kept)] == kept
    with pytest.raises(StateError, match="was pruned"):
        list(again.journal.frames(0))
    assert b"".join(again.journal.frames(removal.min_seq))
    again.close()
    disk.closed = False
    read = read_log(disk.directory, disk=disk, leases=True)
    assert read.facts.slot.min_seq == removal.min_seq
    assert [sequence for sequence, *_ in read.events()][0] == removal.min_seq
    assert any(isinstance(event, e.Pruned) for _, event, _ in read.events())


def test_only_what_was_acknowledged_goes() -> None:
    disk = filled()
    starts = [int(name[4:20], 16) for name in segment_names(disk.names())]
    for acked, begins in ((0, None), (starts[1] - 1, None), (starts[1], 1), (starts[2] + 1, 2)):
        log, removal = ask(disk, acked_size=acked, pressed=True)
        log.close()
        disk.closed = False
        found = None if removal is None else removal.min_seq
        assert found == (None if begins is None else starts[begins])


def test_only_what_is_old_goes_unless_the_disk_is_short() -> None:
    disk = filled()
    log, removal = ask(disk, older_than_wall_ns=moment_at(0).wall_ns)
    assert removal is None
    assert log.removal(acked_size=log.head.size, older_than_wall_ns=0, pressed=True) is not None
    log.close()


@pytest.mark.parametrize("needed", ["lease", "cordon", "fence", "stray"])
def test_what_a_replay_needs_stays(needed: str) -> None:
    allotment = allocation(1).subject.allotments[0]
    [event] = {
        "lease": life(999, open_ended=True),
        "cordon": [e.CordonChanged(ID, "cpu:0", True, 0)],
        "fence": [e.ResourceFenced(ID, allotment, True, 0)],
        "stray": [e.StrayEnded(ID, "1e", 3, 0)],
    }[needed]
    disk = filled(extra=(60, [started(), event]))
    log, removal = ask(disk)
    history = list(log.history())
    log.close()
    at = next(sequence for sequence, one, _ in history if one == event)
    assert removal is not None and removal.min_seq > 0
    # With the start before it, by which it is read.
    assert (removal.min_seq < at) == (needed != "stray")


def test_whatever_a_crash_leaves_of_the_files_the_log_is_the_same() -> None:
    disk = filled(lives=26)
    removal = prune(disk, unlink=False)
    assert 2 <= len(removal.names) <= 5, "all subsets are tried"
    whole = disk.contents()
    heads = set()
    for count in range(len(removal.names) + 1):
        for gone in itertools.combinations(removal.names, count):
            files = {name: data for name, data in whole.items() if name not in gone}
            left = MemoryDisk(files)
            read = read_log(left.directory, disk=left)
            assert read.facts.slot.min_seq == removal.min_seq
            left.closed = False
            log = open_on(left, entropy=CountedEntropy(b"after"))
            heads.add(log.head)
            log.close()
            names = segment_names(left.names())
            assert not set(names) & set(removal.names), "what was left over goes at the start"
    assert len(heads) == 1


@pytest.mark.parametrize("epoch_s", [60, 7, 1])
def test_what_the_open_epoch_began_with_stays_until_it_is_sealed(epoch_s: int) -> None:
    """Without it the next start knew neither which epoch is open nor when it ends: it refused the
    log, or sealed the epoch from then on, and every collector called that BAD_SEAL."""
    lives, epoch_ns = 120, epoch_s * NS_PER_S
    disk = filled(lives, epoch_ns=epoch_ns)
    verifier = Verifier(open_on(disk).log_id, epoch_ns=epoch_ns)
    disk.closed = False
    log, removal = ask(disk, pressed=True)
    verifier.feed(b"".join(log.journal.frames(0)))
    seals = verifier.verified().seals
    assert seals == (lives - 1) // (epoch_s * 10)
    begins = removal
    if removal is not None:
        log.stage(removal)
        fields = (removal.min_seq, removal.head, len(removal.names), log.head.size)
        pruned = [acknowledged(log, log.head.size), e.Pruned(ID, *fields)]
        go_on(log, verifier, [(pruned, moment_at(lives))])
        log.remove(removal)
    log.close()
    disk.closed = False
    log = open_on(disk, entropy=CountedEntropy(b"later"))
    later = [([renewal(count)], moment_at(count)) for count in range(lives + 2, lives + 700, 9)]
    go_on(log, verifier, [([started()], moment_at(lives + 1)), *later])
    assert verifier.verified().seals > seals
    log.close()
    assert (begins is None) == (seals == 0), "nothing but the open epoch holds anything back"


def go_on(log: OpenedLog, verifier: Verifier, batches: list[tuple[list[e.Event], Moment]]) -> None:
    """Commit batches, and have a collector take them."""
    sealer = log.sealer()
    for events, at in batches:
        batch = sealer.seal([(event, at) for event in events])
        commit_and_forget(log, batch, at)
        verifier.feed(batch.frames)


def test_a_crash_before_the_record_is_anchored_removes_nothing() -> None:
    disk = filled()
    log, removal = ask(disk)
    log.stage(removal)
    log.close()
    disk.closed = False
    log, again = ask(disk)
    assert again == removal
    log.close()


def test_what_later_releases_say_is_kept() -> None:
    class Later(e.Event, frozen=True, array_like=True):
        """Of a kind that this release does not know."""

    allocated = allocation(5)
    history = [(0, started()), (3, Later(ID)), (9, started()), (12, allocated)]
    assert needed_from(history, 50) == 0
    assert needed_from(history[2:], 50) == 9
    assert needed_from([(0, started()), (9, started())], 50) == 50
    rotated = e.KeyRotated(ID, bytes(32), bytes(64), bytes(64))
    assert needed_from([(0, started()), (3, rotated), (9, started())], 50) == 50, "said anew"


@pytest.mark.parametrize("missing", ["the record", "the acknowledgement", "both", "the root"])
def test_a_log_whose_beginning_is_gone_without_proof_is_not_gone_on_with(missing: str) -> None:
    """Whoever has the disk can let segments go and move the anchor. Every verifier and collector
    refuses such a log; so does a start, and it changes nothing."""
    disk = filled()
    log, removal = ask(disk)
    assert isinstance(log, OpenedLog) and removal is not None
    size, at = log.head.size, moment_at(1000)
    ack = acknowledged(log, size if missing != "the acknowledgement" else removal.min_seq - 1)
    if missing == "the root":
        ack = msgspec.structs.replace(ack, root=bytes(32))
    events = {"ack": ack, "pruned": e.Pruned(ID, removal.min_seq, removal.head, 2, size)}
    if missing in ("the record", "both"):
        del events["pruned"]
    if missing == "both":
        del events["ack"]
    batch = log.sealer().seal([(event, at) for event in (started(), *events.values())])
    commit_and_forget(log, batch, at)
    slot = log.journal.anchored
    log.close()
    disk.closed = False
    slot = msgspec.structs.replace(slot, min_seq=removal.min_seq, generation=slot.generation + 1)
    handle = disk.open("anchor")
    disk.write(handle, encode_slot(slot), slot_offset(slot))
    disk.close_handle(handle)
    for name in removal.names:
        disk.unlink(name)
    before = disk.contents()
    with pytest.raises(ChainError) as refused:
        open_on(disk, entropy=CountedEntropy(b"yet again"))
    assert refused.value.verdict == ("BAD_ROOT" if missing == "the root" else "GAP")
    assert "nothing was changed" in refused.value.why and disk.contents() == before


async def test_whether_a_request_was_granted_is_not_known_of_what_was_pruned() -> None:
    disk = filled()
    early, late = allocation(3).command_id, allocation(119).command_id
    removal = prune(disk)
    log = open_on(disk, entropy=CountedEntropy(b"again"))
    chain = ChainReader(journal=log.journal, directory=log.directory, next_seq=log.head.size)
    assert removal.min_seq > 0
    assert await chain.grants(early, since=1) is None
    assert await chain.grants(late, since=removal.min_seq) is True
    assert await chain.grants(early, since=removal.min_seq) is False
