# SPDX-License-Identifier: Apache-2.0
"""What the real host lets a test have: a cgroup root of its own, hugepages for a while.

Rule: whatever is changed is put back, and what cannot be had is said: a test that skips prints what
was not proven.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from leased.hardware import leaves
from leased.hardware.cgroup import find_mounts, read_names
from leased.hardware.config import HardwareConfig
from leased.hardware.devices import Devices
from leased.terms.lease import Lease

HUGEPAGE_BYTES = 2 << 20
_MAP_HUGETLB = 0x40000
_POOL = Path("/sys/devices/system/node/node0/hugepages/hugepages-2048kB")


class Hands(Protocol):
    """Devices, real or fake."""

    def handout(self, lease: Lease, fds: Sequence[int]) -> Sequence[tuple[str, int]]:
        """What the holder gets."""
        ...


def not_proven(what: str, why: str) -> None:
    """Skip, and say what the run does not show."""
    print(f"NOT PROVEN: {what} ({why})")
    pytest.skip(f"not proven: {what} ({why})")


@contextlib.contextmanager
def real_devices(**settings: object) -> Iterator[Devices]:
    """Devices with a cgroup root of their own, which is removed afterwards."""
    unified, _ = find_mounts(read_names("/proc/self/mountinfo"))
    if os.geteuid() != 0 or unified is None or not os.access(unified, os.W_OK):
        not_proven("anything of the real device", "needs root and a writable cgroup2")
    root = str(settings.get("cgroup_root", f"leased-test-{os.getpid()}"))
    # A worker's interpreter takes seconds to start on an emulated machine, and several start at
    # once: a minute where its host has a third of a processor for it.
    call_s = 120 if os.environ.get("LEASED_VM") else 30
    patient = {"settle_budget_ns": 300_000_000, "call_budget_ns": call_s * 10**9}
    told = {**patient, **settings, "cgroup_root": root}
    devices = Devices(HardwareConfig(**told))  # type: ignore[arg-type]
    try:
        yield devices
    finally:
        devices.close()
        path = f"{unified}/{root}"
        if os.path.isdir(path):
            for leaf in [entry.path for entry in os.scandir(path) if entry.is_dir()]:
                with contextlib.suppress(OSError):
                    leaves.remove(leaf)
            os.rmdir(path)


@contextlib.contextmanager
def hugepages(count: int) -> Iterator[None]:
    """`count` more 2 MiB pages on node 0, for this test alone."""
    if os.geteuid() != 0 or not _POOL.is_dir():
        not_proven("anything of hugepages", "needs root and a 2 MiB pool")
    with (_POOL / "nr_hugepages").open("r+") as file:
        # Two test runs on one host take turns.
        fcntl.flock(file, fcntl.LOCK_EX)
        before = int((_POOL / "nr_hugepages").read_text())
        (_POOL / "nr_hugepages").write_text(str(before + count))
        try:
            if int((_POOL / "nr_hugepages").read_text()) < before + count:
                not_proven("anything of hugepages", f"the host cannot spare {count}")
            yield
        finally:
            _wait_until_free()
            (_POOL / "nr_hugepages").write_text(str(before))


def _wait_until_free() -> None:
    """A dying ring gives its page back late; a pool that shrinks under it keeps the page."""
    for _ in range(300):
        total, free = ((_POOL / f"{name}_hugepages").read_text() for name in ("nr", "free"))
        if total == free:
            return
        select.select([], [], [], 0.01)


def free_hugepages() -> int:
    """Free 2 MiB pages on node 0."""
    return int((_POOL / "free_hugepages").read_text())


@contextlib.contextmanager
def foreign_hugepages(pages: int) -> Iterator[None]:
    """2 MiB pages of the host that are somebody else's."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    with mmap.mmap(-1, pages * HUGEPAGE_BYTES, flags=flags) as view:
        for at in range(pages):
            view[at * HUGEPAGE_BYTES] = 1
        yield


@contextlib.contextmanager
def charged_hugepages() -> Iterator[Path]:
    """A cgroup whose processes' hugepages are counted, as those of the agent's unit are. Whoever is
    in it at the end leaves it."""
    unified, _ = find_mounts(read_names("/proc/self/mountinfo"))
    if os.geteuid() != 0 or unified is None or "hugetlb" not in v2_controllers():
        not_proven("whose hugepages are missing", "needs root and hugetlb in cgroup2")
    Path(unified, "cgroup.subtree_control").write_text("+hugetlb")
    cgroup = Path(unified, f"leased-test-{os.getpid()}-charged")
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        for _ in range(300):  # whoever was killed leaves it late
            for pid in (cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    Path(unified, "cgroup.procs").write_text(pid)
            with contextlib.suppress(OSError):
                cgroup.rmdir()
                break
            select.select([], [], [], 0.01)


def handed(devices: Hands, lease: Lease, fds: Sequence[int]) -> list[int]:
    """The descriptors that the holder of a lease gets."""
    return [fd for _, fd in devices.handout(lease, fds)]


def v2_controllers() -> tuple[str, ...]:
    """The controllers that cgroup v2 has on this host."""
    unified, _ = find_mounts(read_names("/proc/self/mountinfo"))
    given = Path(unified or "/", "cgroup.controllers")
    return tuple(given.read_text("ascii").split()) if given.exists() else ()


@contextlib.contextmanager
def dax_range() -> Iterator[Path]:
    """The device node of a device-dax range that a test may do anything with: the persistent memory
    of the machine of tests/vm."""
    devices = Path("/sys/bus/dax/devices")
    virtual = Path("/sys/class/dmi/id/sys_vendor")
    if not virtual.exists() or virtual.read_text().strip() != "QEMU" or not devices.is_dir():
        not_proven("anything of device-dax", "needs the machine of tests/vm")
    subprocess.run(["modprobe", "device_dax"], check=True)
    if not any(devices.iterdir()):
        words = ["ndctl", "create-namespace", "-m", "devdax", "-e", "namespace1.0", "-f"]
        subprocess.run(words, check=True, capture_output=True)
    [name] = [entry.name for entry in devices.iterdir()]
    yield Path("/dev", name)
