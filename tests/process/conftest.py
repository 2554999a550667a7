# SPDX-License-Identifier: Apache-2.0
"""The real agent for tests of processes; whatever a test did to it, its chain is judged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doubles.host_agent import HostAgent
from tests.doubles.story import judge


@pytest.fixture
def agent() -> Iterator[HostAgent]:
    """An agent of the test's own, started. After the test its log is verified and judged."""
    with HostAgent() as running:
        running.start()
        yield running
        judge(running)


@pytest.fixture(scope="module")
def shared_agent() -> Iterator[HostAgent]:
    """One agent for tests that leave it as they found it."""
    with HostAgent() as running:
        running.start()
        yield running
        judge(running)
