# SPDX-License-Identifier: Apache-2.0
"""Where foreign Varlink clients find an agent.

Rule: `varlink_address` is the only thing these tests know of it. LEASED_VARLINK_ADDRESS in the
environment points them at a running agent; without it they get the small agent of `tests.doubles`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.varlink_server import small_agent_in_a_thread


@pytest.fixture
def varlink_address(tmp_path: Path) -> Iterator[str]:
    """`unix:` and the path of a socket that an agent serves."""
    given = os.environ.get("LEASED_VARLINK_ADDRESS")
    if given:
        yield given
        return
    path = tmp_path / "io.leased"
    with small_agent_in_a_thread(str(path)):
        yield f"unix:{path}"
