# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml promises of the code, by the tools that judge it: ruff's rules everywhere,
mypy's strict types in the agent.

Both are pinned there: a new release finds other things, and is taken on purpose.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
