# SPDX-License-Identifier: Apache-2.0
"""What nodes seal is told of in turns, whatever one of them seals."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.archive.archive import Archive, LogEntry, Page
from leased.collector.governance.register import Register
from leased.collector.webhooks.outbox import Outbox
from leased.collector.webhooks.watcher import RECORDS_MAX
from tests.doubles.logs import CountedEntropy, allocation, moment_at, renewal, started
from tests.unit.collector.test_webhooks import NOW_NS, hook, watcher_of


def keep(archive: Archive, node: str, renewals: int) -> None:
    """A log of a grant and so many renewals."""
    log_id = bytes.fromhex(node)
    archive.add_log(LogEntry(node, node, node[:2], f"test/{node[:8]}", GENESIS))
    sealer = Sealer(log_id, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    events = [started(), allocation(int(node[:2], 16)), *map(renewal, range(renewals))]
    made = sealer.seal([(one, moment_at(0)) for one in events])
    head = made.new_head
    page = Page(node, GENESIS, head, made.frames, b"", head.size, "", NOW_NS)
    assert archive.persist([page]) == [None]


@pytest.mark.parametrize("hostile", ["a1", "b2"])
def test_a_log_without_end_keeps_nobody_elses_facts(tmp_path: Path, hostile: str) -> None:
    with closing(Archive(tmp_path)) as archive:
        for node in ("a1", "b2"):
            keep(archive, node * 16, 3 * RECORDS_MAX if node == hostile else 0)
    watcher = watcher_of(tmp_path)
    with closing(Register(tmp_path)) as register, closing(watcher):
        outbox = Outbox(register.connection, "urn:leased:fleet:t")
        hook(outbox)
        assert watcher.follow_logs(outbox)
        assert watcher.follow_logs(outbox), "there is more of the one"
        told = outbox.cursors("log/")
        assert {name[4:6]: int(at) >= 2 for name, at in told.items()} == {"a1": True, "b2": True}
