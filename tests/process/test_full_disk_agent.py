# SPDX-License-Identifier: Apache-2.0
"""The real agent on a small disk that somebody fills to the last byte: it grants from its reserve
and then refuses, says why to whoever asks and to the journal, every lease still ends on record, and
it grants again once there is room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.doubles.host import not_proven
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote
from tests.powercut.machine import LAYOUTS, attached, made, mounted
from tests.powercut.test_full_disk import fill
from tests.process.test_pruned_logs import make_log
from tests.service.journald.test_journald_copy import entries

pytestmark = pytest.mark.root

EXT4 = next(layout for layout in LAYOUTS if layout.name == "ext4")
LEASE_MS = 20_000
EX_UNAVAILABLE = 69


def status(agent: HostAgent, check: int) -> dict:
    told = agent.leasectl("admin", "status", "--json", check=check).stdout
    return json.loads(told)["status"]


def kinds(agent: HostAgent) -> Counter[str]:
    lines = agent.leasectl("audit", "log", "--log", str(agent.audit), "--json").stdout.splitlines()
    return Counter(json.loads(line)["kind"] for line in lines)


def refused(agent: HostAgent) -> dict | None:
    """What the agent says to somebody who asks; None: it granted."""
    try:
        agent.acquire(ttl_ms=LEASE_MS)
    except Remote as denied:
        return denied.parameters
    return None


def until(agent: HostAgent, holds: object, why: str) -> None:
    assert callable(holds)
    last = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < last, f"{why}: {agent.log()[-2000:]}"


class JournalSocket:
    """Stands where journald listens, for a program in a mount namespace of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        script = (
            "mount -t tmpfs run /run && mkdir -p /run/systemd/journal && "
            f'mount --bind {directory} /run/systemd/journal && exec "$@"'
        )
        self.wrap = ("unshare", "--mount", "sh", "-c", script, "sh")
        self._path, self._said = str(directory / "socket"), defaultdict[bytes, str](str)

    def __enter__(self) -> JournalSocket:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._path)
        return self

    def __exit__(self, *why: object) -> None:
        self._socket.close()

    def said(self, priority: bytes) -> str:
        """What `journalctl` would show at this priority (2 is crit)."""
        for entry in entries(self._socket):
            self._said[entry["PRIORITY"]] += entry["MESSAGE"].decode() + "\n"
        return self._said[priority]


def test_a_disk_that_fills_up_costs_no_lease_its_end(tmp_path: Path) -> None:
    if os.geteuid() or not os.path.exists("/dev/loop0") or not shutil.which("mkfs.ext4"):
        not_proven("an agent on a full disk", "root, a loop device and mkfs.ext4 are needed")
    image = made(EXT4, tmp_path)
    with (
        attached(image) as device,
        mounted(device, tmp_path / "small", EXT4.options) as point,
        HostAgent(state=point / "state") as agent,
        contextlib.ExitStack() as exits,
    ):
        make_log(agent, 64 * 1024)
        journal = exits.enter_context(JournalSocket(tmp_path / "journal"))
        agent.start(journal.wrap)
        granted = [agent.acquire(ttl_ms=LEASE_MS)["lease_id"] for _ in range(10)]
        assert status(agent, 0)["log_state"] == "healthy"
        fill(point)
        while (denied := refused(agent)) is None:
            pass
        assert (denied["reason"], denied["what"]) == ("audit_unavailable", "journal")
        told = status(agent, EX_UNAVAILABLE)
        assert told["log_state"] == "drain" and str(agent.audit) in told["log_why"]
        assert "free 1 MiB" in told["log_why"]
        shown = agent.leasectl("admin", "status", check=EX_UNAVAILABLE).stdout
        assert "NONE: the log has room for the ends of" in shown
        asked = agent.leasectl("alloc", "--mem", "4KiB", check=EX_UNAVAILABLE)
        assert "`leasectl admin status` says why" in asked.stderr
        until(agent, lambda: "leases end as they should" in journal.said(b"2"), "nobody is told")

        count = kinds(agent)["Allocated"]
        assert count > len(granted), "the reserve was granted from"
        until(agent, lambda: kinds(agent)["Reclaimed"] == count, "a lease has no end on record")
        (point / "filler").unlink()
        until(agent, lambda: refused(agent) is None, "there is room again")
        assert status(agent, 0)["log_state"] == "healthy"
        until(agent, lambda: "the log has room again" in journal.said(b"5"), "nobody is told")
        judge(agent)
        assert agent.stop() == 0
