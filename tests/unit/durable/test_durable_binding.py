# SPDX-License-Identifier: Apache-2.0
"""A log bound to a counter: every earlier state that is put back is found, no crash is taken for
one, and what cannot be asked is not served (T12 of the plan, on a counter in memory)."""

from __future__ import annotations

import errno

import pytest

from leased.chain.verdict import COUNTER_LOST, ROLLED_BACK
from leased.durable.binding import Binding
from leased.durable.log import OpenedLog
from leased.terms.errors import ChainError, StateError
from tests.doubles.counter import MemoryCounter
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import commit_and_forget, moment_at, open_on, renewal, started


def opened(disk: MemoryDisk, counter: MemoryCounter, accept: str = "") -> OpenedLog:
    return open_on(disk, binding=Binding(counter, accept=accept))


def copy(disk: MemoryDisk) -> MemoryDisk:
    return MemoryDisk(disk.contents())


def lived(disk: MemoryDisk, counter: MemoryCounter) -> OpenedLog:
    """Open, and seal something."""
    log = opened(disk, counter)
    batch = log.sealer().seal([(started(), moment_at(1)), (renewal(1), moment_at(1))])
    commit_and_forget(log, batch, moment_at(1))
    return log


def test_each_start_makes_all_copies_of_before_old() -> None:
    disk, counter, copies = MemoryDisk(), MemoryCounter(), []
    for start in range(1, 5):
        log = lived(disk, counter)
        assert log.journal.anchored.tpm_counter == counter.value == start
        log.close()
        copies.append(copy(disk))
    for old in copies[:-1]:
        before = old.contents()
        with pytest.raises(ChainError, match="an earlier state of the directory") as refused:
            opened(old, counter)
        assert refused.value.verdict == ROLLED_BACK
        assert old.contents() == before, "a refusal changes nothing"
    opened(copies[-1], counter).close()


def test_a_start_a_moment_after_another_compares_and_does_not_advance() -> None:
    """A crash loop must not wear the TPM out."""
    disk, counter = MemoryDisk(), MemoryCounter()
    lived(disk, counter).close()
    counter.tired = True
    for _ in range(3):
        opened(disk, counter).close()
    assert counter.value == 1
    counter.value = 2
    with pytest.raises(ChainError) as refused:
        opened(disk, counter)
    assert refused.value.verdict == ROLLED_BACK


def test_a_log_that_was_taken_away_is_found() -> None:
    counter = MemoryCounter()
    lived(MemoryDisk(), counter).close()
    fresh = MemoryDisk()
    with pytest.raises(ChainError) as refused:
        opened(fresh, counter)
    assert refused.value.verdict == ROLLED_BACK
    assert not fresh.contents()


def test_a_clean_stop_makes_the_state_it_leaves_the_only_one() -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    log = lived(disk, counter)
    running = copy(disk)
    log.bind(moment_at(2))
    log.close()
    with pytest.raises(ChainError):
        opened(running, counter)
    opened(disk, counter).close()
    assert counter.value == 3


@pytest.mark.parametrize(
    ("found", "verdict"), [(None, COUNTER_LOST), (2, COUNTER_LOST), (7, ROLLED_BACK)]
)
def test_what_disagrees_is_refused_until_somebody_has_looked(
    found: int | None, verdict: str
) -> None:
    disk, counter = MemoryDisk(), MemoryCounter(4)
    with pytest.raises(ChainError):
        opened(disk, counter)
    lived(disk, counter := MemoryCounter()).close()
    for _ in range(4):
        opened(disk, counter).close()
    assert counter.value == 5
    counter.value = found
    with pytest.raises(ChainError) as refused:
        opened(disk, counter)
    assert refused.value.verdict == verdict
    told = f"5/{'none' if found is None else found}"
    assert f'accept = "{told}"' in refused.value.why
    for wrong in ("5/6", "4/7", "0/none"):
        with pytest.raises(ChainError):
            opened(disk, counter, wrong)
    taken = copy(disk)
    opened(disk, counter, told).close()
    assert counter.value == (found or 0) + 1
    opened(disk, counter, told).close()  # accepted once, it is a number like any other now
    if found == 7:
        with pytest.raises(ChainError):
            opened(taken, counter, told)


def test_a_counter_that_does_not_answer_is_no_log() -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    lived(disk, counter).close()
    counter.gone, before = True, disk.contents()
    with pytest.raises(StateError, match="does not answer"):
        opened(disk, counter)
    assert disk.contents() == before
    counter.gone = False
    opened(disk, counter).close()


def test_a_tired_counter_is_compared_and_not_advanced() -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    lived(disk, counter).close()
    old, counter.tired = copy(disk), True
    for _ in range(3):
        opened(disk, counter).close()
    assert counter.advances == 1
    counter.tired = False
    opened(disk, counter).close()
    counter.tired = True
    with pytest.raises(ChainError):
        opened(old, counter)


def test_without_a_counter_the_log_keeps_what_it_said() -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    lived(disk, counter).close()
    log = open_on(disk)
    batch = log.sealer().seal([(renewal(2), moment_at(3))])
    log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(3))
    log.close()
    opened(disk, counter).close()
    assert counter.value == 2


# ---- crashes -------------------------------------------------------------------------------------


class Power:
    """The n-th change of the disk fails, applied or not, and so does every one after it."""

    def __init__(self, at: int, *, applied: bool) -> None:
        self.left, self.applied = at, applied

    def __call__(self, verb: str, name: str) -> tuple[bool, OSError] | None:
        self.left -= 1
        if self.left > 0:
            return None
        return self.left == 0 and self.applied, OSError(errno.EIO, f"{verb} {name}")


@pytest.mark.parametrize("applied", [False, True])
def test_no_crash_at_any_step_is_taken_for_a_rollback(applied: bool) -> None:
    first, counter = MemoryDisk(), MemoryCounter()
    lived(first, counter).close()
    crashes = 0
    for at in range(1, 1000):
        disk, before = copy(first), counter.value
        disk.fault = Power(at, applied=applied)
        try:
            log = lived(disk, counter)
            log.bind(moment_at(3))
            log.close()
            whole = True
        except (OSError, StateError):
            whole = False
            crashes += 1
        survivor = copy(disk)
        log = opened(survivor, counter)
        assert log.journal.anchored.tpm_counter == counter.value
        assert before is not None and counter.value in range(before + 1, before + 5)
        log.close()
        first = copy(survivor)
        if whole:
            break
    assert crashes >= 10


@pytest.mark.parametrize("how", ["before", "after"])
def test_an_advance_that_fails_is_made_up_for(how: str) -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    lived(disk, counter).close()
    for _ in range(3):
        counter.fail = how
        with pytest.raises(StateError):
            opened(disk, counter)
        log = lived(disk, counter)
        assert log.journal.anchored.tpm_counter == counter.value
        log.close()


def test_somebody_elses_count_is_told() -> None:
    disk, counter = MemoryDisk(), MemoryCounter()
    log = lived(disk, counter)
    counter.value = 9
    with pytest.raises(StateError, match="somebody else counts"):
        log.bind(moment_at(3))
    log.close()
    with pytest.raises(ChainError) as refused:
        opened(disk, counter)
    assert refused.value.verdict == ROLLED_BACK
