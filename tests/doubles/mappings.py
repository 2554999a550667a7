# SPDX-License-Identifier: Apache-2.0
"""Real device-mapper devices over a loop device, as a lease has them, for tests on a machine that
has both.

Rule: whatever is made here is gone when the `with` ends, also after a failure.

Does not pretend anything: what a test sees is what the kernel did.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from leased.hardware.block import verbs
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId

SIZE_BYTES = 16 << 20
SECTORS = SIZE_BYTES // verbs.SECTOR_BYTES
BLOCK_BYTES = 4096
MARKER = b"the plaintext of a tenant. " * 152


def usable() -> bool:
    """Whether this host has device-mapper and loop devices, and lets us."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        return False
    try:
        os.close(verbs.open_control())
    except DeviceError:
        return False
    return True


def uuid_of(lease_id: LeaseId, number: int = 0) -> str:
    """As native/reaper_protocol.h has it."""
    return f"LEASED-{lease_id.hex()}-{number}"


class Bench:
    """Mappings over loop devices, by the lease whose they are."""

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()
        self._slow: list[str] = []

    def __enter__(self) -> Bench:
        self.control = verbs.open_control()
        self._exits.callback(os.close, self.control)
        base = "/dev/shm"
        self._folder = self._exits.enter_context(tempfile.TemporaryDirectory(dir=base))
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever waits for them is removed after that.
        for uuid in self._slow:
            self._let_go(uuid)
        self._exits.close()

    def loop(self) -> str:
        """A loop device of SIZE_BYTES of zeroes."""
        backing = Path(self._folder, f"disk{len(os.listdir(self._folder))}")
        with open(backing, "wb") as file:
            file.truncate(SIZE_BYTES)
        path = subprocess.run(
            ["losetup", "--find", "--show", str(backing)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        self._exits.callback(subprocess.run, ["losetup", "--detach", path], check=True)
        return path

    def crypt(self, lease_id: LeaseId, number: int = 0, *, over: str = "") -> str:
        """An encrypted mapping of the lease; its node."""
        rdev = os.stat(over or self.loop()).st_rdev
        device = (os.major(rdev), os.minor(rdev))
        uuid = self._create(lease_id, number)
        verbs.load_crypt(
            self.control,
            uuid,
            sectors=SECTORS,
            device=device,
            cipher="aes-xts-plain64",
            key_bytes=64,
            options="",
        )
        verbs.resume_mapping(self.control, uuid)
        verbs.load_table(self.control, uuid, sectors=SECTORS, target="error", parameters="")
        return self.node(uuid)

    def delay(self, lease_id: LeaseId, number: int, delay_ms: int, over: str) -> str:
        """A mapping that lets every request wait: a drive that is stuck, for a while or until
        `hasten`."""
        uuid = self._create(lease_id, number)
        parameters = f"{over} 0 {delay_ms}"
        verbs.load_table(self.control, uuid, sectors=SECTORS, target="delay", parameters=parameters)
        verbs.resume_mapping(self.control, uuid)
        self._slow.append(uuid)
        return self.node(uuid)

    def hasten(self, lease_id: LeaseId, number: int) -> None:
        """Have a mapping of `delay` let go of all that waits."""
        uuid = uuid_of(lease_id, number)
        self._slow.remove(uuid)
        self._let_go(uuid)

    def _let_go(self, uuid: str) -> None:
        """A delay that is suspended does not delay."""
        verbs.suspend_mapping(self.control, uuid)
        verbs.resume_mapping(self.control, uuid)

    def node(self, uuid: str) -> str:
        """The device node of a mapping."""
        found = verbs.describe_mapping(self.control, uuid)
        assert found is not None
        return f"/dev/dm-{found.number[1]}"

    def target(self, lease_id: LeaseId, number: int = 0) -> str | None:
        """What the mapping does now; None if there is none."""
        found = verbs.describe_mapping(self.control, uuid_of(lease_id, number))
        return None if found is None else found.target

    def _create(self, lease_id: LeaseId, number: int) -> str:
        uuid = uuid_of(lease_id, number)
        verbs.create_mapping(self.control, name=f"lease-{lease_id.hex()}-{number}", uuid=uuid)
        self._exits.callback(self._remove, uuid)
        return uuid

    def _remove(self, uuid: str) -> None:
        # The reaper may be cutting it at this very moment; what is left is removed in any case.
        with contextlib.suppress(DeviceError):
            verbs.cut_mapping(self.control, uuid)
        verbs.remove_mapping(self.control, uuid, timeout_ms=5000)


def read_at(fd: int, offset: int = 0) -> bytes:
    """One block past every cache. Raises OSError."""
    page = mmap.mmap(-1, BLOCK_BYTES)
    os.preadv(fd, [page], offset)
    return bytes(page)


def write_at(fd: int, offset: int = 0, data: bytes = MARKER) -> None:
    """One block past every cache. Raises OSError."""
    page = mmap.mmap(-1, BLOCK_BYTES)
    page[:] = data[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
    os.pwritev(fd, [page], offset)


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDWR | os.O_DIRECT) -> Iterator[int]:
    """The device, open for the `with`."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
