# SPDX-License-Identifier: Apache-2.0
"""Where a package of an extra is missing, the command that is told is one that works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TELLS = """
import sys
sys.modules[sys.argv[1]] = None
from leased.collector.main import main
sys.exit(main(["--state", sys.argv[2], *sys.argv[3:]]))
"""


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("psycopg", "shared", ("share", "dbname=leased", "--name", "west")),
        ("hypercorn", "collector", ("serve",)),
    ],
)
def test_the_command_is_of_the_programs_own_environment(
    package: str, extra: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TELLS, package, str(tmp_path), *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert f"{sys.executable} -m pip install 'leased[{extra}]'" in done.stderr
