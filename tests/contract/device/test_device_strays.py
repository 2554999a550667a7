# SPDX-License-Identifier: Apache-2.0
"""Cgroups that no lease knows, on the kernel's own: how deep they go was their holder's choice, and
keeps none of the others from being ended.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware.adoption.strays import Sweep, sweep
from tests.doubles.reaper_host import cgroup_root, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs root and a cgroup2")
MS = 1_000_000
DEEP, SHALLOW, KNOWN = "a" * 32, "b" * 32, "c" * 32
LEVELS = 1100
"""Deeper than Python goes by recursion."""


@pytest.fixture
def root() -> Iterator[Path]:
    mount = cgroup_root()
    assert mount is not None
    made = mount / f"leased-strays-{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    left = [str(made)]
    for path in left:
        left += [entry.path for entry in os.scandir(path) if entry.is_dir()]
    for path in reversed(left):
        os.rmdir(path)


def rooms(leaf: Path, depth: int) -> None:
    """A leaf with so many rooms in one another."""
    path = str(leaf)
    os.mkdir(path)
    for _ in range(depth):
        path += "/r"
        os.mkdir(path)


def test_a_leaf_is_removed_with_its_rooms_and_one_that_is_too_deep_is_named(root: Path) -> None:
    """It took the worker along, and with it the end of every other stray."""
    rooms(root / DEEP, LEVELS)
    rooms(root / SHALLOW, 3)
    rooms(root / KNOWN, 1)
    swept = {one.name: one.errno for one in sweep(Sweep(str(root), (KNOWN,), 50 * MS), ()).strays}
    assert swept == {DEEP: errno.EBUSY, SHALLOW: 0}
    assert (root / DEEP).is_dir() and (root / KNOWN).is_dir() and not (root / SHALLOW).exists()
