# SPDX-License-Identifier: Apache-2.0
"""Who has a GPU open for a moment, over the mock driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.doubles.gpu_host import Holder, gpu_devices, gpu_lease, grant, mock_machine, start
from tests.doubles.workers import workers_of

pytestmark = pytest.mark.quiet


async def test_whoever_only_looks_at_a_gpu_is_in_nobodys_way() -> None:
    """Any user's nvidia-smi has every GPU open for a moment."""
    with (
        mock_machine(["H100"]) as machine,
        gpu_devices(machine, gpu_settle_apart_ns=1_000_000_000) as devices,
    ):
        await start(devices)
        with Holder("open", path=str(machine.node(0))) as looking:
            looking.ready()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(grant, devices, gpu_lease(machine, 0))
                with trio.fail_after(10):
                    while not any(map(_pauses, workers_of(os.getpid()))):
                        await trio.sleep(0.01)
                looking.process.kill()


def _pauses(pid: int) -> bool:
    """Whether it sleeps, as a worker does between two looks."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text() == "hrtimer_nanosleep"
    except OSError:
        return False
