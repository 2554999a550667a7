# SPDX-License-Identifier: Apache-2.0
"""The pool ledger: pages are conserved, and what is missing is blamed once, by the page."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.hardware.calls import Cleaned, Counted
from leased.hardware.pools import PoolLedger
from leased.terms.identity import LeaseId

TOTAL = 16
PUNCH_AND_KEEP_SIZE = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def key(number: int) -> tuple[LeaseId, int]:
    return LeaseId(number.to_bytes(16, "big")), 0


def hold(ledger: PoolLedger, number: int, pages: int) -> int:
    """Give pages to a lease; the descriptor that its holder has of them. Pages are small here."""
    fd = os.memfd_create(f"lease {number}")
    os.posix_fallocate(fd, 0, pages * mmap.PAGESIZE)
    ledger.hold(key(number), pages, fd)
    return fd


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    for name in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):
            os.close(int(name))


def counted(in_use: int, total: int = TOTAL) -> Counted:
    return Counted(total, total - in_use)


def cleaned(in_use_before: int, short: int = 0, freed: int = 0) -> Cleaned:
    return Cleaned(0, True, (), counted(in_use_before), short, freed)


def test_a_lease_that_gave_everything_back_is_not_blamed() -> None:
    ledger = PoolLedger(counted(3))
    assert ledger.foreign == 3
    hold(ledger, 1, 4)
    assert ledger.missing(counted(7)) == 0
    ledger.give_back(key(1), cleaned(7))
    assert ledger.blame([(key(1), 4)], counted(3)) == {}


def test_the_one_whose_pages_came_short_is_blamed_before_its_neighbour() -> None:
    ledger = PoolLedger(counted(0))
    for number in (1, 2):
        hold(ledger, number, 4)
    ledger.give_back(key(1), cleaned(8))
    ledger.give_back(key(2), cleaned(4, short=2))
    assert ledger.blame([(key(1), 4), (key(2), 4)], counted(2)) == {key(2): 2}
    assert ledger.written_off == 2 and ledger.missing(counted(2)) == 0


def test_pages_that_come_back_are_believed_and_hide_nothing() -> None:
    ledger = PoolLedger(counted(0))
    hold(ledger, 1, 2)
    ledger.give_back(key(1), cleaned(2, short=1))
    assert ledger.blame([(key(1), 2)], counted(1)) == {key(1): 1}
    hold(ledger, 2, 2)
    # The first page came back while the second lease ran.
    ledger.give_back(key(2), cleaned(2, short=1))
    assert ledger.blame([(key(2), 2)], counted(1)) == {key(2): 1}


def test_a_hole_is_its_holders() -> None:
    """What a lease has given up for a moment was taken for pages of others that had come back; when
    it had them again, somebody else was fenced for them."""
    ledger = PoolLedger(counted(3))
    fd = hold(ledger, 1, 4)
    hold(ledger, 2, 2)
    hole = _libc.fallocate(fd, PUNCH_AND_KEEP_SIZE, 0, 4 * mmap.PAGESIZE)
    assert hole == 0
    ledger.end([key(2)])
    ledger.give_back(key(2), cleaned(3 + 2))
    assert ledger.foreign == 3
    assert ledger.blame([(key(2), 2)], counted(3)) == {}
    os.posix_fallocate(fd, 0, 4 * mmap.PAGESIZE)
    hold(ledger, 3, 2)
    ledger.end([key(3)])
    ledger.give_back(key(3), cleaned(3 + 4 + 2))
    assert ledger.blame([(key(3), 2)], counted(3 + 4)) == {}
    # Of more than it has given up nobody knows another reason.
    ledger.look_for_holes()
    assert ledger.missing(counted(1)) == 0 and ledger.foreign == 1
    ledger.end([key(1)])
    ledger.give_back(key(1), cleaned(4 + 1))
    assert ledger.missing(counted(1)) == 0


def test_a_lease_that_nobody_can_look_at_counts_as_one_with_holes() -> None:
    """Out of descriptors: the grant goes on, and what it may give up is believed of nobody else."""
    ledger = PoolLedger(counted(3))
    ledger.hold(key(1), 4, -1)
    assert ledger.missing(counted(5)) == 0 and ledger.foreign == 3
    assert ledger.missing(counted(7)) == 0, "its pages, taken again"
    ledger.release(key(1))
    assert ledger.missing(counted(2)) == 0 and ledger.foreign == 2


def test_growing_or_shrinking_the_pool_blames_nobody() -> None:
    ledger = PoolLedger(counted(0))
    hold(ledger, 1, 2)
    ledger.give_back(key(1), cleaned(2))
    assert ledger.blame([(key(1), 2)], counted(0, TOTAL + 8)) == {}
    assert ledger.blame([(key(1), 2)], counted(0, TOTAL - 8)) == {}


def test_adopted_pages_were_foreign_before() -> None:
    ledger = PoolLedger(counted(5))
    ledger.adopt(key(1), 4)
    ledger.adopt(key(1), 4)
    assert ledger.foreign == 1
    ledger.give_back(key(1), cleaned(5))
    assert ledger.blame([(key(1), 4)], counted(1)) == {}


def test_a_worker_that_was_lost_leaves_its_pages_missing_until_seen() -> None:
    ledger = PoolLedger(counted(0))
    hold(ledger, 1, 4)
    ledger.write_off(key(1))
    assert ledger.written_off == 4 and ledger.missing(counted(4)) == 0
    assert ledger.missing(counted(1)) == 0 and ledger.written_off == 1


leases = st.lists(
    st.tuples(st.integers(min_value=1, max_value=6), st.integers(min_value=0, max_value=6)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(leases)
def test_exactly_what_is_pinned_is_blamed(plan: list[tuple[int, int]]) -> None:
    """Any sequence of leases, each pinning some of its pages: the sum of blame is what is gone."""
    ledger, pinned, total = PoolLedger(Counted(1000, 1000)), 0, 1000
    for number, (pages, pins) in enumerate(plan):
        pins = min(pages, pins)
        os.close(hold(ledger, number, pages))
        ledger.give_back(key(number), Cleaned(0, True, (), counted(pinned + pages, total), pins))
        pinned += pins
        blamed = ledger.blame([(key(number), pages)], counted(pinned, total))
        assert blamed == ({key(number): pins} if pins else {})
    assert ledger.written_off == pinned


def test_who_is_known_to_have_kept_nothing_is_blamed_for_nothing() -> None:
    """Three pages were taken by somebody without a lease; of two others nobody knows whose."""
    ledger = PoolLedger(counted(0))
    for number in (1, 2):
        hold(ledger, number, 4)
    ledger.give_back(key(1), cleaned(8 + 3, short=1, freed=4))
    assert ledger.in_doubt([(key(1), 4)], counted(4 + 3)) == 0
    assert ledger.blame([(key(1), 4)], counted(4 + 3)) == {}
    ledger.give_back(key(1), cleaned(4 + 3))  # scrubbed once more: nothing is learnt
    assert ledger.blame([(key(1), 4)], counted(4 + 3)) == {}
    ledger.give_back(key(2), cleaned(4 + 3, short=2, freed=2))
    pieces = [(key(1), 4), (key(2), 4)]
    assert ledger.in_doubt(pieces, counted(3 + 2)) == 2
    assert ledger.blame(pieces, counted(3 + 2)) == {key(2): 2}


def test_what_one_lease_hides_for_another_is_fenced_at_its_own_end() -> None:
    """Its tenant gave pages up while the other was given back, so that these seemed to come from
    there, where as many are pinned."""
    ledger, pinned = PoolLedger(counted(0)), 2
    for number in (1, 2):
        hold(ledger, number, 4)
    ledger.give_back(key(1), cleaned(8, freed=4))
    assert ledger.blame([(key(1), 4)], counted(4 + pinned)) == {}
    ledger.give_back(key(2), cleaned(4 + pinned, freed=4 - pinned))
    assert ledger.blame([(key(2), 4)], counted(pinned)) == {key(2): pinned}


def test_an_account_that_says_too_much_says_nothing() -> None:
    ledger = PoolLedger(counted(0))
    hold(ledger, 1, 4)
    ledger.give_back(key(1), cleaned(4, freed=5))
    assert ledger.blame([(key(1), 4)], counted(1)) == {key(1): 1}


def test_nothing_is_kept_of_leases_that_are_over() -> None:
    ledger = PoolLedger(counted(0))
    hold(ledger, 1, 4)
    ledger.give_back(key(1), cleaned(4, freed=4))
    ledger.forget([key(1)[0]])
    assert not ledger._kept
