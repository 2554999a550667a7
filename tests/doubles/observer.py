# SPDX-License-Identifier: Apache-2.0
"""An observer that looks at files below a directory at once, on the test's clock, and at GPUs and
drives that a test describes.

Rule: files are read by the very functions that workers call. A source in `hangs` has no answer, as
one that did not come back in time.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leased.hardware.readings import carrying
from leased.ports import Clock
from leased.terms.errors import DeviceError
from leased.terms.sample import Reading, Readings


class FileObserver:
    """`ports.Observer`."""

    def __init__(self, clock: Clock, root: Path = Path("/nonexistent")) -> None:
        self._clock = clock
        self.root = root
        self.cores: tuple[int, ...] = ()
        self.gpu_readings: list[Reading] = []
        self.other_readings: list[Reading] = []
        self.failed: list[tuple[str, str]] = []
        self.hangs: set[str] = set()
        self.asked: list[tuple[str, int]] = []

    async def host(self) -> Readings:
        self._note("host", 1)
        return self._now(carrying.host(carrying.Host(self.cores, str(self.root)), ()))

    async def leaves(self, leaves: Sequence[tuple[str, str]]) -> Readings:
        assert leaves, "nobody is asked about nothing"
        self._note("lease", len(leaves))
        return self._now(carrying.leaves(carrying.Leaves(tuple(leaves)), ()))

    async def gpus(self) -> Readings:
        self._note("gpu", 1)
        return self._now(Readings(0, tuple(self.gpu_readings), tuple(self.failed)))

    async def others(self, *, closely: bool) -> Readings:
        self._note("closely" if closely else "device", 1)
        return self._now(Readings(0, tuple(self.other_readings)))

    def _note(self, source: str, count: int) -> None:
        self.asked.append((source, count))
        if source in self.hangs:
            raise DeviceError(f"telemetry_{source}", errno.ETIMEDOUT, "did not answer")

    def _now(self, told: Readings) -> Readings:
        return msgspec.structs.replace(told, read_ns=self._clock.now().boot_ns)
