# SPDX-License-Identifier: Apache-2.0
"""The guest's side of the wire: each test's end goes to the host over the virtio port, as one JSON
line.
"""

from __future__ import annotations

import errno
import json
import os
import time
from typing import Any

import pytest

PORT = "/dev/virtio-ports/org.leased.results"
PATIENCE_S = 30.0


def tell(**line: Any) -> None:
    """One line to the host; to standard output where there is no port."""
    text = (json.dumps(line) + "\n").encode()
    if not os.path.exists(PORT):
        print(text.decode(), end="")
        return
    fd = open_port()
    try:
        while text:
            text = text[os.write(fd, text) :]
    finally:
        os.close(fd)


def open_port() -> int:
    """The port lets one writer in at a time, and the storm writes to it, too: wait for a turn."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return os.open(PORT, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= ends:
                raise
            os.sched_yield()


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test ends with its call, or with a set-up or a tear-down that did not pass."""
    if report.when != "call" and report.outcome == "passed":
        return
    why = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        why = report.longrepr[2]
    elif report.outcome == "failed":
        why = report.longreprtext[-3000:]
    name = report.nodeid.rpartition("::")[2]
    tell(event="test", name=name, outcome=report.outcome, seconds=report.duration, why=why)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A phase that cannot be collected is a failure of its own."""
    if report.outcome == "failed":
        why = str(report.longrepr)[-3000:]
        tell(event="test", name=f"collect {report.nodeid}", outcome="failed", seconds=0.0, why=why)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The phase's tests are over."""
    tell(event="ended", status=int(exitstatus))
