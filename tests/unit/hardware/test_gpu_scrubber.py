# SPDX-License-Identifier: Apache-2.0
"""The scrubber over a library that gives what it is told to: what was not overwritten is not
clean, whatever was expected."""

from __future__ import annotations

import errno

import pytest

from leased.hardware.gpu.calls import Scrub
from leased.hardware.gpu.facts import target_of
from leased.hardware.gpu.scrubber import overwrite
from leased.terms.teardown import TeardownStep
from tests.doubles.gpu import gpu


class FullCuda:
    """All of its memory is somebody's."""

    def take(self, size_bytes: int) -> int | None:
        """Nothing."""
        return None

    def take_all(self) -> list[tuple[int, int]]:
        """Nothing."""
        return []


@pytest.mark.parametrize(("writes", "failed"), [(True, errno.ENOMEM), (False, 0)])
def test_what_could_not_be_overwritten_is_not_clean_though_nothing_was_expected(
    writes: bool, failed: int
) -> None:
    """An allowance for the driver as large as the device expects nothing; and it was proven."""
    asked = Scrub(target_of(gpu(0)), 0, writes, False)
    done = overwrite(FullCuda(), asked)  # type: ignore[arg-type]
    assert [(step.step, step.errno) for step in done.steps] == [(TeardownStep.COUNTERS, failed)]
