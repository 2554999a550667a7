# SPDX-License-Identifier: Apache-2.0
"""Labels: boot time decides, wall time is a name for it, and no name is used twice."""

from __future__ import annotations

from leased.economics.intervals import fold
from leased.economics.timeline import Piece, Timeline
from leased.terms.moment import Moment
from tests.doubles.economics_history import History, boot


def test_labels_run_on_the_boot_clock_from_the_anchor() -> None:
    timeline = Timeline()
    timeline.anchor(Moment(boot(1), 100, 5_000), 100)
    assert timeline.label(boot(1), 130) == 5_030
    assert timeline.pieces(boot(1), 110, 120) == [Piece(5_010, 5_020)]


def test_a_forward_step_leaves_a_gap_and_keeps_the_length() -> None:
    timeline = Timeline()
    timeline.anchor(Moment(boot(1), 0, 1_000), 0)
    timeline.anchor(Moment(boot(1), 50, 9_000), 50)
    assert timeline.pieces(boot(1), 40, 60) == [Piece(1_040, 1_050), Piece(9_000, 9_010)]


def test_a_backward_step_never_names_an_instant_twice() -> None:
    timeline = Timeline()
    timeline.anchor(Moment(boot(1), 0, 1_000), 0)
    timeline.anchor(Moment(boot(2), 7, 400), 300)
    assert timeline.label(boot(2), 7) == 1_300


def test_the_fold_anchors_at_node_started_and_where_a_step_was_sealed() -> None:
    history = History(wall_offset_ns=0)
    history.start()
    history.boot_ns = 10
    history.step_clock(1_000)
    history.boot_ns = 20
    history.wall_offset_ns += 5
    history.touch()
    ledger, _ = fold(history.records)
    assert ledger.timeline.label(boot(1), 5) == 5
    assert ledger.timeline.label(boot(1), 20) == 1_020
