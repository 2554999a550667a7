# SPDX-License-Identifier: Apache-2.0
"""The reaper built to be asked bad things."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"


@pytest.fixture(scope="session")
def checked_reaper() -> Path:
    """The reaper, built with every sanitizer."""
    sys.path.insert(0, str(NATIVE))
    try:
        import build_native
    finally:
        sys.path.remove(str(NATIVE))
    return build_native.build_reaper(build_native.BUILD, sanitize=True)
