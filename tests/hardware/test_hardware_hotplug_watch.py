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
LOOP = Path("/sys/devices/virtual/block/loop0/uevent")


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


async def test_notices_of_mappings_are_no_news_and_a_touched_disk_is_told_apart() -> None:
    if os.geteuid() != 0 or not os.access(LOOP, os.W_OK):
        not_proven("which notices of disks are news", "needs root and a loop device")
    seen: list[Notice] = []

    async def three(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async with aclosing(watch(("block",))) as notices:
            async for notice in notices:
                seen.append(notice)
                if len(seen) == 3:
                    return

    mapping = next(Path("/sys/devices/virtual/block").glob("dm-*/uevent"), None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(three)
            await trio.testing.wait_all_tasks_blocked()
            if mapping is not None:
                mapping.write_text("change")
            for asked in ("change", "change 0f5e1e9e-5a4b-4a3f-9b65-5a4b4a3f9b65", "add"):
                LOOP.write_text(asked)
    assert [(one.action, one.touched) for one in seen] == [
        ("change", True),
        ("change", False),
        ("add", False),
    ]
