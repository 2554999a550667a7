# SPDX-License-Identifier: Apache-2.0
"""The certificates of a fleet, for a test that needs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.fleet_pki import FleetPki


@pytest.fixture
def pki(tmp_path: Path) -> FleetPki:
    return FleetPki(tmp_path / "pki")
