# SPDX-License-Identifier: Apache-2.0
"""The fleet grows in one thread while the API, the metrics and the webhooks look at it."""

from __future__ import annotations

import sys
import threading
from itertools import count
from pathlib import Path

from leased.collector.api.views import Views
from leased.collector.archive.archive import ArchiveReader
from leased.collector.fleet import Fleet, NodeView
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
            fleet.totals()
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert not wrong and fleet.held_by()["beta"] == fleet.held("beta")
