# SPDX-License-Identifier: Apache-2.0
"""A stop that takes longer than it may: the agent ends, and says what the log lacks."""

from __future__ import annotations

import pytest
import trio

from leased.service import daemon
from leased.service.config import Config
from leased.service.lifeline import Lifeline

pytestmark = pytest.mark.autojump


class Busy:
    """As much of an agent as a stop sees, on a disk that does not answer."""

    leases_live = 3

    def __init__(self) -> None:
        self.said: list[str] = []

    async def stop(self) -> None:
        """Never."""
        await trio.sleep_forever()

    def say(self, message: str) -> None:
        """For the operator."""
        self.said.append(message)


async def test_a_stop_that_could_not_be_sealed_is_told() -> None:
    busy = Busy()
    await daemon._stop(busy, Lifeline(None, None), Config())  # type: ignore[arg-type]
    [line] = busy.said
    assert "timing.stop = 10s" in line
