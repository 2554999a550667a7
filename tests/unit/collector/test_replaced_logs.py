# SPDX-License-Identifier: Apache-2.0
"""A log in whose place another of its node is followed: what was wrong with it stays on record, and
nobody is to see to it any more."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import pytest

from leased.chain.head import GENESIS
from leased.collector.api.metrics import _chains
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import LogEntry, Manifest
from leased.collector.fleet import Fleet
from leased.collector.main import main
from leased.ctl.console import Console

OLD, NEW = "0d" * 16, "4e" * 16
NODE = "40" * 16


@pytest.mark.parametrize("replaced", [False, True])
def test_a_verdict_of_a_log_that_was_replaced_rings_for_nobody(
    tmp_path: Path, replaced: bool
) -> None:
    with closing(Manifest(tmp_path)) as manifest:
        for log_id, verdict in ((OLD, "GAP"), (NEW, "OK")):
            manifest.add_log(LogEntry(log_id, NODE, "alpha", "o/n", GENESIS, verdict=verdict))
        manifest.follow("alpha", "https://alpha:7443", NEW if replaced else OLD)
    fleet = Fleet()
    with closing(ArchiveReader(tmp_path)) as archive:
        fleet.follow(archive, 1)
    rings = [line for line in _chains(fleet, 1) if line.startswith("grey_chain_verify_failures")]
    assert len(rings) == (not replaced)

    def status(*words: str) -> int:
        out = io.StringIO()
        return main(["--state", str(tmp_path), *words], Console(out, out))

    wanted = 0 if replaced else 65
    assert (status("status"), status("verdict")) == (wanted, wanted)
    assert status("verdict", "alpha") == 65, "who asks is told"
