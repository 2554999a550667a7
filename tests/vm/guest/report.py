# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: each test's end goes to the host as one JSON line.

Rule: a skip in here proves nothing and is told as a failure where the test was marked as needing
this machine: it is the machine that has everything.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


def tell(**line: Any) -> None:
    """One line to the host."""
    data = (json.dumps(line) + "\n").encode()
    fd = int(os.environ.get("LEASED_TELL_FD", "1"))
    while data:
        data = data[os.write(fd, data) :]


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test ends with its call, or with a set-up or a tear-down that did not pass."""
    if report.when != "call" and report.outcome == "passed":
        return
    outcome, why = report.outcome, ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        why = report.longrepr[2]
        if "vm" in report.keywords:
            outcome, why = "failed", f"skipped on the machine made for it: {why}"
    elif report.outcome == "failed":
        why = report.longreprtext[-3000:]
    path, _, name = report.nodeid.partition("::")
    if "/" in path:
        name = f"{path}::{name}"
    tell(event="test", name=name, outcome=outcome, seconds=report.duration, why=why)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be collected is a failure of its own."""
    if report.outcome == "failed":
        why = str(report.longrepr)[-3000:]
        tell(event="test", name=f"collect {report.nodeid}", outcome="failed", seconds=0.0, why=why)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A session that did not run its tests is a failure of its own (5: it had none; that is right
    where a part of them was asked for)."""
    if exitstatus not in (0, 1, 5 if os.environ.get("LEASED_MATCH") else 0):
        name, why = f"tests in {os.getcwd()}", f"pytest ended with status {int(exitstatus)}"
        tell(event="test", name=name, outcome="failed", seconds=0.0, why=why)
