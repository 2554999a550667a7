# SPDX-License-Identifier: Apache-2.0
"""The fleet grows in one thread while the API, the metrics and the webhooks look at it."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from itertools import count
from pathlib import Path

from leased.collector.accounts.reaching import reach_of_fleet
from leased.collector.api.fleet_rows import node_row
from leased.collector.api.views import Views
from leased.collector.archive.archive import ArchiveReader
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.collector.standing import Standing
from leased.terms.policy import Policy
from tests.doubles.fleet_archive import HOUR_NS, sample

LOOKS = 25
LOGS = 60


def test_whoever_looks_while_the_fleet_grows_is_answered(tmp_path: Path) -> None:
    sample(tmp_path, 1_700_000_000 * 10**9, 1_700_000_000 * 10**9 - 50 * HOUR_NS)
    reader, records = ArchiveReader(tmp_path), []
    for entry in reader.logs():
        records += [(entry, *one) for one in reader.events(entry.log_id)]
    reader.close()
    fleet, over = Fleet(), threading.Event()
    views = Views(lambda: fleet, lambda tenant, now: {}, fleet.tenants, Policy)
    wrong: list[BaseException] = []

    def grow() -> None:
        try:
            for number in count():
                if over.is_set():
                    return
                while len(fleet.logs) > LOGS:
                    gone = next(iter(fleet.logs))
                    del fleet.logs[gone], fleet.entries[gone]
                for entry, sequence, event, moment in records:
                    log_id = f"{entry.log_id}{number}"
                    view = fleet.logs.setdefault(log_id, NodeView(log_id))
                    view.node, view.name = f"{entry.node}{number}", entry.name
                    fleet.entries[log_id] = entry
                    view.apply(sequence, event, moment)
        except BaseException as error:
            wrong.append(error)
            raise

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=grow)
    thread.start()
    try:
        while len(fleet.logs) < 20 and not wrong:
            pass
        for _ in range(LOOKS):
            views.nodes_at(0)
            views.allocations_at(0)
            views.usage_of("beta", 0)
            views.shares(0)
            assert fleet.standing().totals is not None
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert not wrong and fleet.standing().held_by["beta"] == fleet.held("beta")


def test_what_is_kept_of_a_node_is_what_it_is_after_every_record(tmp_path: Path) -> None:
    """Also where somebody looked while a record was taken in: what was made of its middle is not
    kept beyond it."""
    now_ns = 1_700_000_000 * 10**9
    sample(tmp_path, now_ns, now_ns - 50 * HOUR_NS)
    reader = ArchiveReader(tmp_path)
    [entry, _] = reader.logs()
    view = NodeView(entry.log_id)
    view.node, view.name = entry.node, entry.name

    class Looked(dict[str, int]):
        """Of records by kind, which a record adds to first: whoever looks now, looks in between."""

        def __setitem__(self, key: str, value: int) -> None:
            super().__setitem__(key, value)
            node_row([entry], view, now_ns)

    view.counts = Looked()
    seen = set()
    for sequence, event, moment in reader.events(entry.log_id):
        view.apply(sequence, event, moment)
        kept = node_row([entry], view, now_ns)
        view.shown = (None, None)
        assert kept == node_row([entry], view, now_ns)
        seen.add((kept.state, kept.leases, kept.ending))
    assert len(seen) > 3
    view.name = "renamed"
    assert node_row([entry], view, now_ns).name == "renamed"
    reader.close()


def test_what_follows_from_all_nodes_is_made_again_with_every_record(tmp_path: Path) -> None:
    """Of one state of the records it is made once; of the next it is what a new look would find."""
    now_ns = 1_700_000_000 * 10**9
    sample(tmp_path, now_ns, now_ns - 50 * HOUR_NS)
    reader, fleet, steps = ArchiveReader(tmp_path), Fleet(), 0
    while fleet.follow(reader, 1):
        standing = fleet.standing()
        assert fleet.standing() is standing
        fresh = Standing(fleet.logs.values(), frozenset())
        for name in ("nodes", "tenants", "leases", "watermarks", "totals", "held_by", "given"):
            assert getattr(standing, name) == getattr(fresh, name), name
        assert list(standing.wanted(0, now_ns)) == list(fresh.wanted(0, now_ns))
        steps += 1
    assert steps > 15
    (gone, *left) = [view.node for view in fleet.nodes()]
    fleet.retired = frozenset((gone,))
    assert [view.node for view in fleet.nodes()] == left
    assert [view.node for view in fleet.known()] == [gone, *left]
    reader.close()


def test_a_log_that_is_not_read_yet_is_behind(tmp_path: Path) -> None:
    """A collector that has just started reads one log after the other, and is asked meanwhile."""
    now_ns = 1_700_000_000 * 10**9
    sample(tmp_path, now_ns, now_ns - 50 * HOUR_NS)
    reader, fleet = ArchiveReader(tmp_path), Fleet()
    assert fleet.follow(reader, 1), "there is more"
    nodes = sorted(entry.node for entry in reader.logs())
    assert len(nodes) > 1 and reach_of_fleet(fleet, now_ns).nodes_behind == nodes
    reader.close()


def test_whoever_writes_without_end_has_a_turn_and_not_all(tmp_path: Path) -> None:
    """The logs were read in their order, each to its end: what was behind one that grows as fast as
    it is read was never shown."""
    sample(tmp_path, 1_700_000_000 * 10**9, 1_700_000_000 * 10**9 - 50 * HOUR_NS)
    fleet = Fleet()
    with closing(ArchiveReader(tmp_path)) as reader:
        assert fleet.follow(reader, 4)
        assert [view.next_seq for view in fleet.logs.values()] == [2, 2]
        while fleet.follow(reader, 4):
            pass
        sizes = {entry.log_id: entry.head.size for entry in reader.logs()}
    assert {view.log_id: view.next_seq for view in fleet.logs.values()} == sizes
