# SPDX-License-Identifier: Apache-2.0
"""From a name to the device that is meant: what is another's by now is not sent a command."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from leased.hardware.block import calls, erasing
from leased.hardware.block.namespaces import Controller, is_controller, list_controllers
from leased.hardware.block.opening import controller
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.nvme_trees import subsystem

OURS, OTHERS = "nqn.2014-08.org.nvmexpress:ours", "nqn.2014-08.org.nvmexpress:others"


def test_a_controller_is_the_one_that_was_found_or_is_not_asked(tmp_path: Path) -> None:
    """The name of one that was pulled is the next one's, whose first namespace has the same number:
    it would have been formatted."""
    subsystem(tmp_path / "before", 0, nqn=OURS, controllers=2)
    subsystem(tmp_path / "after", 0, nqn=OTHERS)
    first, second = list_controllers(OURS, tmp_path / "before")
    assert is_controller(first, OURS, (240, 0), tmp_path / "before")
    assert is_controller(second, OURS, (240, 1), tmp_path / "before")
    assert not is_controller(first, OURS, (240, 1), tmp_path / "before"), "opened as another"
    assert not is_controller(first, OURS, (240, 0), tmp_path / "after"), "another drive's"
    assert not is_controller(second, OURS, (240, 1), tmp_path / "after"), "gone"


@pytest.mark.parametrize("name", ["null", "fd"])
def test_what_is_no_such_controller_is_closed_again(name: str) -> None:
    before = os.listdir("/proc/self/fd")
    one = Controller(name, 0, "pcie", -1, "live")
    with pytest.raises(DeviceError) as caught, controller(one, OURS):
        pass
    assert (caught.value.verb, len(os.listdir("/proc/self/fd"))) == ("nvme_open", len(before))


def test_a_drive_that_fails_a_read_fails_the_scrub_and_keeps_what_went_before() -> None:
    """The report said neither that the key was gone nor which step had failed."""

    def fails(_: calls.Clean) -> tuple[str, int]:
        raise OSError(errno.EIO, "a block cannot be written")

    asked = calls.Clean("uuid", "name", "aa01", 1 << 20, False, (), False, b"", 64, 0, 0)
    cleaned = erasing.forget(asked, [StepReport(TeardownStep.KEY, 0, 1, 2, 1)], fails)
    told = [(step.step, step.errno) for step in cleaned.steps]
    assert told == [(TeardownStep.KEY, 0), (TeardownStep.SCRUB, errno.EIO)] and not cleaned.clean
