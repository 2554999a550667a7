# SPDX-License-Identifier: Apache-2.0
"""A collector that is killed while it removes by the rule of retention, on a directory that it
shares: whoever takes its part over goes on, and what is told never depends on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from leased.chain.certificate import Role
from leased.collector.archive.floor import Kept
from leased.collector.archive.manifests import POINTER
from tests.collector.test_collector_retention import (
    PROGRAM,
    fleet,  # noqa: F401
    raw_bytes,
    remove,
    state,  # noqa: F401
    told,
)
from tests.collector.test_collector_retention_shared import (
    expire,
    rebuilt,
    server,  # noqa: F401
    shared,  # noqa: F401
)
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host import not_proven
from tests.doubles.postgres_server import PostgresServer

PATIENCE_S = 90


class Pulling:
    """`leased-collector pull` of a name, as a process, at NOW."""

    def __init__(self, directory: Path, state: Path) -> None:  # noqa: F811
        self.directory, self.state, self.pki = directory, state, FleetPki(directory / "pki")

    @contextmanager
    def running(self, name: str, *under: str) -> Iterator[subprocess.Popen[bytes]]:
        """The process, behind the words of `under`, until the block ends."""
        certificate = self.pki.issue(Role.COLLECTOR, name)
        config = self.directory / f"{name}.toml"
        config.write_text(
            f'[pull]\nname = "{name}"\nca = "{self.pki.ca}"\ncertificate = "{certificate}"\n'
            f'key = "{certificate.with_suffix(".key")}"\n[retention]\nraw_months = 1\n'
        )
        words = ["--state", str(self.state), "pull", "--config", str(config)]
        with (self.directory / "said").open("ab") as said:
            process = subprocess.Popen(
                [*under, sys.executable, "-c", PROGRAM, *words],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            # With whoever traces it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def until(self, process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
        """Until that holds, or the process has ended."""
        with trio.move_on_after(PATIENCE_S):
            while process.poll() is None and not holds():
                await trio.sleep(0.1)
            return
        raise AssertionError(f"it does not come to that: {self.said()}")

    def said(self) -> str:
        """What they told."""
        return (self.directory / "said").read_text("utf-8", "replace")[-3000:]


@pytest.mark.parametrize("step", ["before it counts", "when it counts", "while files go"])
async def test_who_is_killed_in_the_middle_is_taken_over(
    shared: Path,  # noqa: F811
    server: PostgresServer,  # noqa: F811
    tmp_path: Path,
    step: str,
) -> None:
    if shutil.which("strace") is None:
        not_proven("kills in the middle of a removal", "there is no strace")
    whole = tmp_path / "whole"
    shutil.copytree(shared, whole)
    (whole / POINTER).unlink()  # the manifest of before is still there
    *_, node = (cut.node for cut in remove(whole).cuts)
    before = told(shared)
    (shared / "kept").mkdir(mode=0o700)
    (shared / "kept" / "left.frames").write_bytes(b"by a removal that was cut short")
    where, call = {
        "before it counts": ("kept", "renameat"),
        "when it counts": ("kept", "unlinkat"),
        "while files go": (f"segments/node={node}", "unlinkat"),  # those of the other are gone
    }[step]
    collectors = Pulling(tmp_path, shared)
    kill = f"inject={call}:signal=KILL:when=1"
    narrow = ("-P", str(shared / where), "-e", f"trace={call}", "-e", kill)
    with collectors.running("west", "strace", "-f", "-qqq", "-o", "/dev/null", *narrow) as west:
        await collectors.until(west, lambda: west.poll() is not None)
    assert west.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), collectors.said()
    assert bool(Kept(shared).floor().logs) == (step != "before it counts")
    assert told(shared) == before, "what is told does not depend on when it died"
    expire(server, "west")
    with collectors.running("east") as east:
        await collectors.until(east, lambda: raw_bytes(shared) == raw_bytes(whole))
        assert east.poll() is None, collectors.said()
    assert told(shared) == before and rebuilt(shared) == []
