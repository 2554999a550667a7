# SPDX-License-Identifier: Apache-2.0
"""Who uses memory, asked of the real kernel by a real worker: leased memfds wherever they are, and
hugepages that nobody leased."""

from __future__ import annotations

import os
import subprocess
import sys

from leased.hardware.calls import Pool
from leased.hardware.usage.pages import _pools_in
from tests.doubles.host import HUGEPAGE_BYTES, handed, hugepages, real_devices
from tests.doubles.intruder import NOBODY
from tests.doubles.leases import lease, memory
from tests.doubles.tenant import tenant

_MAP_HUGE = """
import mmap, sys
held = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
held[0] = 1
print("in", flush=True)
sys.stdin.read()
"""


async def test_a_leases_memory_is_found_wherever_it_went() -> None:
    with real_devices() as devices:
        one = lease(memory(4096))
        [made] = await devices.prepare_many([one])
        [fd] = handed(devices, one, made.fds)
        status = os.fstat(made.fds[0])
        name = f"leased-{one.lease_id.hex()}-0"
        sought = [(status.st_dev, status.st_ino, name)]
        assert await devices.census.users(sought, ()) == (), "we ourselves are nobody's holders"
        with tenant("hold", [fd]) as holder:
            [user] = await devices.census.users(sought, ())
            assert (user.pid, user.memfd, user.uid) == (holder.pid, name, NOBODY)
        for kept in made.fds:
            os.close(kept)


async def test_hugepages_that_nobody_leased_have_a_holder() -> None:
    with hugepages(2), real_devices() as devices:
        pool = Pool(0, HUGEPAGE_BYTES)
        before = await devices.census.users((), [pool])
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _MAP_HUGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"in\n"
            found = await devices.census.users((), [pool, Pool(0, 1 << 30)])
            assert [u.pid for u in found if u not in before] == [process.pid]
            assert {u.pool for u in found} == {pool}
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def test_mappings_are_told_apart_by_node_and_page_size() -> None:
    text = (
        "7f00 bind:1 file=/memfd:x huge dirty=3 N1=2 N3=1 kernelpagesize_kB=2048\n"
        "7f40 default file=/lib/libc.so mapped=12 N0=12 kernelpagesize_kB=4\n"
        "7f80 default anon=1 huge N0=1 kernelpagesize_kB=1048576\n"
    )
    assert _pools_in(text) == {Pool(1, 2 << 20), Pool(3, 2 << 20), Pool(0, 1 << 30)}
