# SPDX-License-Identifier: Apache-2.0
"""The store of telemetry against a plain sum: what is read of a time is what was added of it,
whatever came late, in whichever run, and from whichever format.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import NAME, Store
from leased.collector.telemetry.tables import FROM
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

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


OF_ITSELF = Key("a", "", "", "", "hw.temperature", (("hw.type", "gpu"),))


def made_older(path: Path, version: int) -> None:
    """What an earlier release would have made of it."""
    with closing(sqlite3.connect(path / NAME, isolation_level=None)) as base:
        base.execute("DROP TABLE hosts")
        if version == 1:
            base.execute("DROP INDEX series_by_age")
            base.execute("ALTER TABLE series DROP COLUMN newest_s")
        base.execute(f"PRAGMA user_version={version}")


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_a_format_before_says_the_same(tmp_path: Path, version: int) -> None:
    key = Key("a", "", "x", "t", NAMES[0], ())
    old, new = (Rollup(BEGIN_S + at * WINDOW_S, 1, 2, 3, 0, 5) for at in (0, WINDOWS))
    with closing(Store(tmp_path)) as store:
        store.append([(key, old), (key, new), (OF_ITSELF, old)])
    made_older(tmp_path, version)
    with pytest.raises(StateError, match="brings it there when a collector starts"):
        Store(tmp_path, reading=True)
    with closing(Store(tmp_path)) as store:
        assert read(store, NAMES[:2], new.begin_s, new.begin_s + 1) == {key: new}
        assert store.heard() == {"a": old.begin_s}
        later = Rollup(new.begin_s + 3600, 1, 2, 3, 0, 5)
        store.append([(key, later), (OF_ITSELF, new)])
        assert read(store, NAMES[:2], later.begin_s, later.begin_s + 1) == {key: later}
        assert read(store, NAMES[:2], old.begin_s, old.begin_s + 1) == {key: old}
        assert store.heard() == {"a": new.begin_s}


@pytest.mark.parametrize("version", [1, 2])
def test_whoever_is_killed_while_it_brings_a_store_along_leaves_it_as_it_was_or_whole(
    tmp_path: Path, version: int
) -> None:
    """The script is broken off behind each of its statements."""
    whole = [one for one in FROM[version].split(";") if one.strip()]
    for statements in range(len(whole) + 1):
        directory = tmp_path / str(statements)
        directory.mkdir()
        key, row = Key("a", "", "x", "t", NAMES[0], ()), Rollup(BEGIN_S, 1, 2, 3, 0, 5)
        with closing(Store(directory)) as store:
            store.append([(key, row), (OF_ITSELF, row)])
        made_older(directory, version)
        with closing(sqlite3.connect(directory / NAME, isolation_level=None)) as base:
            for one in whole[:statements]:
                base.execute(one)
        with closing(Store(directory)) as store:
            assert read(store, NAMES[:2], BEGIN_S, BEGIN_S + 1) == {key: row}
            assert store.heard() == {"a": BEGIN_S}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(keys, rollups), max_size=8), max_size=4), st.integers(0, 45))
def test_a_node_is_heard_as_long_as_it_has_rows(runs: list[list[Row]], past: int) -> None:
    """By the rows themselves: what a node told of itself, whatever of it is there."""
    told = [row for run in runs for row in run]
    with tempfile.TemporaryDirectory() as directory:
        for run in runs:
            with closing(Store(Path(directory))) as store:
                store.append(run)
        oldest_s = BEGIN_S + past * WINDOW_S
        with closing(Store(Path(directory), keep_ns=0)) as store:
            store.prune(oldest_s * NS_PER_S)
            heard = store.heard()
        own = [(key, one) for key, one in told if key.name == NAMES[2] and not key.lease]
        for node in "ab":
            newest_s = max((one.begin_s for key, one in own if key.node == node), default=0)
            if newest_s >= oldest_s:
                assert heard[node] == newest_s
            elif all(one.begin_s < oldest_s for key, one in told if key.node == node):
                assert node not in heard
