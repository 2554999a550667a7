# SPDX-License-Identifier: Apache-2.0
"""The kernel's notices arrive, filtered. A "change" is asked of a device that nothing changes."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

import trio
import trio.testing

from leased.hardware.hotplug import Notice, watch
from tests.doubles.host import not_proven

DEVICE = Path("/sys/devices/virtual/mem/null/uevent")


async def test_a_notice_of_the_kernel_arrives() -> None:
    if os.geteuid() != 0 or not os.access(DEVICE, os.W_OK):
        not_proven("that hotplug notices arrive", "needs root and a writable sysfs")
    seen: list[Notice] = []

    async def first(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async with aclosing(watch(("mem",))) as notices:
            async for notice in notices:
                seen.append(notice)
                return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(first)
            await trio.testing.wait_all_tasks_blocked()
            DEVICE.write_text("change")
    assert seen == [Notice("change", "mem", "/devices/virtual/mem/null")]
