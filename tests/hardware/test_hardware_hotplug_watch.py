# SPDX-License-Identifier: Apache-2.0
"""The kernel's notices arrive, filtered. A "change" is asked of a device that nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing

from leased.hardware.hotplug import Notice, watch
from tests.doubles.host import not_proven

DEVICE = Path("/sys/devices/virtual/mem/null/uevent")
LOOP = Path("/sys/devices/virtual/block/loop0/uevent")
LISTENS = """
import trio
from leased.hardware.hotplug import watch
async def listen():
    async for _ in watch(): pass
try:
    trio.run(listen)
except OSError as error:
    print(error.strerror)
"""


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


@pytest.mark.parametrize("hidden", ["/etc/ld.so.cache", "libudev.so.1"])
def test_without_its_library_no_notices_are_heard_and_that_is_said(hidden: str) -> None:
    """Who listens says so, and looks every minute instead: nobody ends by it."""
    place = next(Path("/usr/lib").rglob(hidden), None) if hidden[0] != "/" else Path(hidden)
    if os.geteuid() != 0 or place is None:
        not_proven("that hotplug notices need a library", "needs root and libudev")
    words = f'mount --bind /dev/null {place.resolve()} && PATH=/nowhere exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", words, "sh", sys.executable, "-c", LISTENS]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.stdout.startswith("libudev.so.1 cannot be loaded: "), told.stderr
