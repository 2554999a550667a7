# SPDX-License-Identifier: Apache-2.0
"""Peaks: the sweep line, with ends before starts."""

from __future__ import annotations

from leased.economics.intervals import fold
from leased.economics.peaks import Peak, Step, peak, peaks, steps
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.economics_history import History, memory, subject


def test_a_hand_over_in_one_nanosecond_does_not_double_the_peak() -> None:
    assert peak([(0, 10, 5), (10, 20, 5)]) == Peak(5, 0)
    assert list(steps([(0, 10, 5), (10, 20, 5)])) == [Step(0, 20, 5)]


def test_an_overlap_of_one_nanosecond_does() -> None:
    assert peak([(0, 11, 5), (10, 20, 5)]) == Peak(10, 10)


def test_nothing_has_no_peak() -> None:
    assert peak([]) == Peak(0, 0)
    assert peak([(5, 5, 9)]) == Peak(0, 0)


def test_peaks_per_tenant_kind_and_tier_clipped_to_a_window() -> None:
    history = History(wall_offset_ns=1_000)
    history.allocate(1, subject(memory(10)), deadline_ns=100)
    history.boot_ns = 10
    history.allocate(2, subject(memory(5), tenant="other"), deadline_ns=100)
    history.allocate(3, subject(memory(7)), deadline_ns=100)
    history.boot_ns = 20
    history.end(3)
    history.touch()
    ledger, found = fold(history.records)
    acme = ("acme", ResourceKind.MEM, TierKind.DRAM)
    other = ("other", ResourceKind.MEM, TierKind.DRAM)
    assert peaks(found, ledger.timeline) == {acme: Peak(17, 1_010), other: Peak(5, 1_010)}
    assert peaks(found, ledger.timeline, (1_000, 1_010)) == {acme: Peak(10, 1_000)}
