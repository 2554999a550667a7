# SPDX-License-Identifier: Apache-2.0
"""The store of telemetry against a plain sum: what is read of a time is what was added of it,
whatever came late, in whichever run, and from whichever format.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.telemetry import store as store_module
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import NAME, Store

NAMES = ("leased.lease.capacity", "leased.lease.utilization", "hw.temperature")
BEGIN_S = 1_767_225_600
WINDOWS = 40

Row = tuple[Key, Rollup]
keys = st.builds(
    Key, st.sampled_from("ab"), st.just(""), st.sampled_from(["", "x", "y"]), st.just("t"),
    st.sampled_from(NAMES), st.just(()),
)  # fmt: skip
rollups = st.builds(
    Rollup,
    st.integers(0, WINDOWS).map(lambda at: BEGIN_S + at * WINDOW_S),
    st.integers(1, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip
spans = st.tuples(st.integers(0, WINDOWS), st.integers(1, WINDOWS))


def summed(rows: list[Row], names: tuple[str, ...], begin_s: int, end_s: int) -> dict[Key, Rollup]:
    found: dict[Key, Rollup] = {}
    for key, one in rows:
        if key.name in names and begin_s <= one.begin_s < end_s:
            found[key] = one + found[key] if key in found else one
    return found


def read(store: Store, names: tuple[str, ...], begin_s: int, end_s: int) -> dict[Key, Rollup]:
    return dict(store.read(names, begin_s, end_s))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(keys, rollups), max_size=8), max_size=5), spans)
def test_what_is_read_of_a_time_is_what_was_added(runs: list[list[Row]], span: tuple) -> None:
    begin_s = BEGIN_S + span[0] * WINDOW_S
    end_s = begin_s + span[1] * WINDOW_S
    told = [row for run in runs for row in run]
    with tempfile.TemporaryDirectory() as directory:
        for run in runs:
            with closing(Store(Path(directory))) as store:
                store.append(run[:4])
                store.append(run[4:])
        with closing(Store(Path(directory))) as store:
            for names in (NAMES[:2], NAMES[2:]):
                expected = summed(told, names, begin_s, end_s)
                assert read(store, names, begin_s, end_s) == expected


def test_a_store_of_the_format_before_says_the_same(tmp_path: Path) -> None:
    key = Key("a", "", "x", "t", NAMES[0], ())
    old, new = (Rollup(BEGIN_S + at * WINDOW_S, 1, 2, 3, 0, 5) for at in (0, WINDOWS))
    with closing(Store(tmp_path)) as store:
        store.append([(key, old), (key, new)])
    with closing(sqlite3.connect(tmp_path / NAME)) as base:
        base.execute("DROP INDEX series_by_age")
        base.execute("ALTER TABLE series DROP COLUMN newest_s")
        base.execute("PRAGMA user_version=1")
    with closing(Store(tmp_path)) as store:
        assert read(store, NAMES, new.begin_s, new.begin_s + 1) == {key: new}
        later = Rollup(new.begin_s + 3600, 1, 2, 3, 0, 5)
        store.append([(key, later)])
        assert read(store, NAMES, later.begin_s, later.begin_s + 1) == {key: later}
        assert read(store, NAMES, old.begin_s, old.begin_s + 1) == {key: old}


def test_whoever_is_killed_while_it_brings_a_store_along_leaves_it_as_it_was_or_whole(
    tmp_path: Path,
) -> None:
    """The script is broken off behind each of its statements."""
    whole = [one for one in store_module._FROM_1.split(";") if one.strip()]
    for statements in range(len(whole) + 1):
        directory = tmp_path / str(statements)
        directory.mkdir()
        key, row = Key("a", "", "x", "t", NAMES[0], ()), Rollup(BEGIN_S, 1, 2, 3, 0, 5)
        with closing(Store(directory)) as store:
            store.append([(key, row)])
        with closing(sqlite3.connect(directory / NAME, isolation_level=None)) as base:
            base.execute("DROP INDEX series_by_age")
            base.execute("ALTER TABLE series DROP COLUMN newest_s")
            base.execute("PRAGMA user_version=1")
            for one in whole[:statements]:
                base.execute(one)
        with closing(Store(directory)) as store:
            assert read(store, NAMES, BEGIN_S, BEGIN_S + 1) == {key: row}
