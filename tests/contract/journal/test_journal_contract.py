# SPDX-License-Identifier: Apache-2.0
"""What `ports.Journal` promises, asked of it on a disk in memory and on a real one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.chain.verifier import Verifier, verify
from leased.terms.errors import InvariantError, StateError
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import moment_at, open_in, open_on, renewal


class Subject:
    """A journal, its sealer, and how to make its next step fail (applied or not)."""

    def __init__(self, journal, sealer, fail) -> None:
        self.journal = journal
        self.sealer = sealer
        self.fail = fail

    def batch(self, size: int = 3):
        return self.sealer.seal([(renewal(n), moment_at(n)) for n in range(size)])

    async def commit(self, batch) -> None:
        await self.journal.commit(batch.frames, batch.count, batch.head, moment_at(9))


def _memory() -> Subject:
    disk = MemoryDisk()
    log = open_on(disk)

    def fail(*, apply: bool) -> None:
        disk.fault = lambda verb, name: (
            (apply, OSError(errno.EIO, verb)) if verb == "sync" else None
        )

    return Subject(log.journal, log.sealer(), fail)


def _real(directory: Path) -> Subject:
    log = open_in(directory / "audit", segment_bytes=64 * 1024)

    def fail(*, apply: bool) -> None:
        pytest.skip(
            "a real disk does not fail on request (the C thread's failures are tested in native)"
        )

    return Subject(log.journal, log.sealer(), fail)


@pytest.fixture(params=["memory", "disk"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made = _memory() if request.param == "memory" else _real(tmp_path)
    yield made
    made.journal.close()


async def test_what_was_committed_is_read_back(subject: Subject) -> None:
    batches = [subject.batch(size) for size in (1, 4, 2)]
    for batch in batches:
        await subject.commit(batch)
    everything = b"".join(batch.frames for batch in batches)
    assert b"".join(subject.journal.frames(0)) == everything
    assert b"".join(subject.journal.frames(batches[2].first_seq)) == batches[2].frames
    assert b"".join(subject.journal.frames(subject.sealer.head.size)) == b""
    assert subject.journal.head == subject.sealer.head


async def test_chunks_are_whole_frames_that_verify(subject: Subject) -> None:
    for _ in range(60):
        await subject.commit(subject.batch(7))
    log_id = subject.journal.anchored.log_id
    verified = verify(subject.journal.frames(0), Verifier(log_id))
    assert verified.head == subject.sealer.head and verified.whole


async def test_nothing_is_visible_before_it_is_committed(subject: Subject) -> None:
    await subject.commit(subject.batch())
    sealed = subject.batch()
    assert subject.journal.head.size == sealed.first_seq
    assert b"".join(subject.journal.frames(sealed.first_seq)) == b""


@pytest.mark.parametrize("apply", [False, True])
async def test_after_a_failure_nothing_more_is_written(subject: Subject, apply: bool) -> None:
    await subject.commit(subject.batch())
    before = subject.journal.head
    subject.fail(apply=apply)
    with pytest.raises(OSError):
        await subject.commit(subject.batch())
    assert subject.journal.head == before
    assert not subject.journal.reserve_ok(0)
    with pytest.raises(StateError):
        await subject.commit(subject.batch())


async def test_a_cancelled_commit_is_finished_first(subject: Subject) -> None:
    batch = subject.batch()
    with trio.CancelScope() as scope:
        scope.cancel()
        await subject.commit(batch)
    assert subject.journal.head == batch.new_head


async def test_the_reserve_shrinks_with_the_leases(subject: Subject) -> None:
    assert isinstance(subject.journal.reserve_ok(0), bool)
    assert not subject.journal.reserve_ok(10**9)


async def test_there_is_room_while_a_batch_is_on_its_way(subject: Subject) -> None:
    """Whoever looks meanwhile (`service.log.room`, collectors, metrics) sees no log that drains."""
    spares = subject.journal.spares
    subject.journal.reserve_ok(0)
    spares.try_fill()
    for _ in range(40):
        told = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subject.commit, subject.batch())
            for _ in range(3):
                told.append(subject.journal.reserve_ok(0))
                await trio.lowlevel.checkpoint()
        assert all(told), told
        spares.try_fill()


async def test_frames_that_do_not_follow_are_our_mistake(subject: Subject) -> None:
    subject.batch()
    with pytest.raises(InvariantError):
        await subject.commit(subject.batch())


def test_close_is_idempotent(subject: Subject) -> None:
    subject.journal.close()
    subject.journal.close()
