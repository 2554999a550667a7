# SPDX-License-Identifier: Apache-2.0
"""A collector as a process, whose disk is full for a while: nothing is acknowledged that it has not
stored, it says so once, at CRIT where systemd reads it, and goes on when there is room."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from leased.collector.main import main
from leased.ctl.console import Console
from leased.terms import event as e
from tests.collector.test_collector_hard_times import ENVIRONMENT
from tests.collector.test_collector_ingest import node
from tests.collector.test_collector_pull import Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import started
from tests.doubles.node_server import NodeServer, serving
from tests.doubles.small_disk import fill, mounted_small

QUICK = 'wait = "1s"\npace = "0s"\ncosign = "1s"\ninterval = "100ms"\nbackoff_max = "1s"\n'
PATIENCE_S = 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_small(tmp_path / "small") as where:
        yield where


@pytest.mark.root
async def test_a_disk_that_is_full_is_told_once_and_waited_for(
    tmp_path: Path, small_disk: Path
) -> None:
    pki, config = FleetPki(tmp_path / "pki"), tmp_path / "west.toml"
    west, server = Collector(small_disk, pki), NodeServer(node(200))
    words = [one for one in west.words(config) if one != "--once"]
    config.write_text(config.read_text() + QUICK)
    with (tmp_path / "said").open("wb") as said:
        at = os.fstat(said.fileno())
        journal = {**ENVIRONMENT, "JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"}
        with trio.fail_after(PATIENCE_S):
            async with serving(pki, server):
                west.enrol(server)
                process = await trio.lowlevel.open_process(words, stderr=said, env=journal)
                try:
                    await _filled_and_emptied(west, server, small_disk, process)
                    while b"again" not in (tmp_path / "said").read_bytes():
                        await trio.sleep(0.02)
                finally:
                    process.terminate()
                    await process.wait()
    lines = (tmp_path / "said").read_text().splitlines()
    assert process.returncode == 0 and len(lines) == 2, lines
    assert lines[0].startswith("<2>leased-collector: disk: ") and "until there is room" in lines[0]
    assert lines[1] == "leased-collector: disk: has room again"


@pytest.mark.root
@pytest.mark.parametrize("left", [0, 65_536])
async def test_one_that_finds_the_disk_full_at_its_start_waits_as_well(
    tmp_path: Path, small_disk: Path, left: int
) -> None:
    """systemd would start it again every two seconds, and it would say so each time."""
    pki, config = FleetPki(tmp_path / "pki"), tmp_path / "west.toml"
    west, server = Collector(small_disk, pki), NodeServer(node(200))
    words = [one for one in west.words(config) if one != "--once"]
    config.write_text(config.read_text() + QUICK)
    said = tmp_path / "said"
    with trio.fail_after(PATIENCE_S):
        async with serving(pki, server):
            west.enrol(server)
            filler = fill(small_disk, left)
            with said.open("wb") as stderr:
                process = await trio.lowlevel.open_process(words, stderr=stderr, env=ENVIRONMENT)
            try:
                while not said.read_bytes() and process.returncode is None:
                    await trio.sleep(0.02)
                filler.unlink()
                while b"again" not in said.read_bytes() and process.returncode is None:
                    await trio.sleep(0.02)
            finally:
                process.terminate()
                await process.wait()
    lines = said.read_text().splitlines()
    assert process.returncode == 0 and len(lines) == 2, lines
    assert lines[0].endswith("free some space; nothing is pulled until there is room"), lines
    assert lines[1] == "leased-collector: disk: has room again"
    assert server.acked


async def _filled_and_emptied(
    west: Collector, server: NodeServer, disk: Path, process: trio.Process
) -> None:
    while not server.acked:
        await trio.sleep(0.02)
    filler = fill(disk)
    acked, tries = server.acked[-1], len(server.requests)
    for _ in range(100):
        server.node.seal([e.NodeStopped(started().event_id, 1)])
    while len(server.requests) < tries + 4:
        await trio.sleep(0.02)
    assert (process.returncode, server.acked[-1]) == (None, acked)
    told = io.StringIO()
    assert main(["--state", str(west.state), "status"], Console(told, told)) == 0
    assert "KiB are free on its disk" in told.getvalue()
    filler.unlink()
    while server.acked[-1] == acked:
        await trio.sleep(0.02)
    sealed = b"".join(server.node.frames[: server.acked[-1]])
    assert west.frames(server.node).startswith(sealed)
