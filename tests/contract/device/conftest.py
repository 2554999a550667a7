# SPDX-License-Identifier: Apache-2.0
"""The marker of tests that need cgroup v2's cpu and cpuset, and what a skip leaves unproven.

Does not hide a fake: each test names what it runs on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.hardware.cgroup import find_mounts
from leased.hardware.cpu import NEEDED
from tests.doubles.host import not_proven


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_v2_cpu: needs cgroup v2's cpu and cpuset")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_v2_cpu") is None:
        return
    unified, _ = find_mounts(Path("/proc/self/mountinfo").read_text("utf-8"))
    given = Path(unified or "/", "cgroup.controllers")
    words = given.read_text("ascii").split() if given.exists() else []
    lacking = [name for name in NEEDED if name not in words]
    if lacking:
        what = "that cpu leases are limited to their cores, and cut"
        not_proven(what, f"cgroup v2 has no {' and no '.join(lacking)} here")
