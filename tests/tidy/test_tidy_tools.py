# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml promises of the code, by the tools that judge it: ruff's rules everywhere,
mypy's strict types in the agent; and gcc's analyzer, which follows every path of the C.

The first two are pinned there: a new release finds other things, and is taken on purpose.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
SOURCES = sorted(one for part in ("verbs", "reaper", "rdma") for one in (NATIVE / part).glob("*.c"))


def _judged(*command: str) -> str:
    """What a tool has to say; "" if nothing."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    checked = ("agent", "tests", "native", "packaging")
    assert _judged("ruff", "check", "--no-cache", "--quiet", *checked) == ""


def test_every_type_of_the_agent_holds(tmp_path: Path) -> None:
    assert _judged("mypy", "--cache-dir", str(tmp_path), "-p", "leased") == ""


@pytest.mark.parametrize("source", SOURCES, ids=lambda one: f"{one.parent.name}/{one.name}")
def test_no_path_through_the_c_is_undefined(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-O2", "-fanalyzer", "-Werror", "-c", source, "-o", tmp_path / "o"],
        cwd=NATIVE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
