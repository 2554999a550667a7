# SPDX-License-Identifier: Apache-2.0
"""The verbs: under sanitizers from C, and through the Python door."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from leased._native import ffi, lib
from leased.hardware import verbs
from leased.terms.errors import DeviceError
from tests.doubles.reaper_host import cgroup_root, usable

NATIVE = Path(__file__).resolve().parents[2] / "native"
SIZE_BYTES = 64 * 4096
WRITTEN_BYTES_MAX = 64 << 10  # of native/verbs/memory.c: so much is written, more is mapped
SCRIBBLER = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
dirt = b"\\x5a" * int(sys.argv[2])
print(flush=True)
while True:
    memory[:] = dirt
"""


@pytest.fixture(scope="module")
def build() -> Iterator[ModuleType]:
    """native/build_native.py, which is not in any package."""
    sys.path.insert(0, str(NATIVE))
    try:
        import build_native

        yield build_native
    finally:
        sys.path.remove(str(NATIVE))


def test_every_check_passes_under_sanitizers(build: ModuleType, tmp_path: Path) -> None:
    program = build.build_checks(tmp_path)
    arguments = [str(program), str(tmp_path)]
    if usable():
        leaf = cgroup_root() / f"leased-test-{secrets.token_hex(4)}"
        leaf.mkdir()
        arguments.append(str(leaf))
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout and done.stderr == ""


@pytest.mark.parametrize("node", [-1, 0])
@pytest.mark.parametrize("size_bytes", [4096, WRITTEN_BYTES_MAX, WRITTEN_BYTES_MAX + 4096])
def test_memory_is_there_zeroed_and_sealed(size_bytes: int, node: int) -> None:
    fd = verbs.create_memory("sealed", size_bytes=size_bytes, node=node)
    try:
        assert os.fstat(fd).st_size == size_bytes
        assert verbs.memory_blocks(fd) == size_bytes // 512
        assert os.pread(fd, size_bytes, 0) == bytes(size_bytes)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 2 * size_bytes)
        assert verbs.truncate_memory(fd) == 0
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def test_memory_of_a_node_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        verbs.create_memory("nowhere", size_bytes=4096, node=1023)
    assert caught.value.errno == errno.EINVAL


def test_a_scrub_that_somebody_undoes_is_told() -> None:
    fd = verbs.create_memory("undone", size_bytes=SIZE_BYTES)
    scribbler = subprocess.Popen(
        [sys.executable, "-S", "-c", SCRIBBLER, str(fd), str(SIZE_BYTES)],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
    )
    try:
        assert scribbler.stdout is not None
        scribbler.stdout.readline()
        done = verbs.Scrubbed(0, 0)
        for _ in range(10_000):
            done = verbs.scrub_memory(fd, size_bytes=SIZE_BYTES)
            if done.residue_bytes:
                break
        assert 0 < done.residue_bytes <= SIZE_BYTES
    finally:
        scribbler.kill()
        scribbler.wait()
        scribbler.stdout.close()
    assert verbs.scrub_memory(fd, size_bytes=SIZE_BYTES) == (SIZE_BYTES, 0)
    os.close(fd)


def test_a_memory_that_its_holder_shrank_is_scrubbed_as_far_as_it_goes() -> None:
    fd = verbs.create_memory("shrunk", size_bytes=SIZE_BYTES)
    os.ftruncate(fd, 4096)
    assert verbs.scrub_memory(fd, size_bytes=SIZE_BYTES) == (4096, 0)
    os.close(fd)


def test_errors_name_the_verb_and_the_errno() -> None:
    with pytest.raises(DeviceError) as caught:
        verbs.create_memory("odd", size_bytes=1)
    assert (caught.value.verb, caught.value.errno) == ("mem_create", errno.EINVAL)
    with pytest.raises(DeviceError) as caught:
        verbs.open_pidfd(2**22 + 1)
    assert caught.value.verb == "pidfd_open"


def test_what_a_descriptor_leads_to_is_told_by_number() -> None:
    with open("/dev/full", "rb") as file:
        assert verbs.char_device(f"/proc/self/fd/{file.fileno()}") == (1, 7)
    assert verbs.char_device("/") is None
    with pytest.raises(DeviceError) as raised:
        verbs.char_device("/nowhere")
    assert raised.value.errno == errno.ENOENT


def test_a_process_is_killed_by_its_pidfd() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
    pidfd = verbs.open_pidfd(child.pid)
    verbs.kill_process(pidfd, timeout_ms=5000)
    assert child.wait() == -signal.SIGKILL
    verbs.kill_process(pidfd, timeout_ms=5000)
    os.close(pidfd)


class _Committer:
    """The committer as C offers it, with everything it borrows kept alive."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC)
        self.handle = lib.leased_committer_new(self.event)
        self._stage = ffi.new("int *")
        self._borrowed: list[object] = []

    def submit(self, segment: int, frames: bytes, offset: int, anchor: int = -1) -> int:
        """Hand over; the slot is always "slot" at 512."""
        data, slot = ffi.from_buffer(frames), ffi.from_buffer(b"slot")
        self._borrowed += [data, slot]
        submit = lib.leased_committer_submit
        size = len(frames)
        return int(submit(self.handle, segment, data, size, offset, anchor, slot, 4, 512))

    def result(self) -> tuple[int, int]:
        """(0 or -errno, stage)."""
        code = lib.leased_committer_result(self.handle, self._stage)
        return int(code), int(self._stage[0])

    def wait(self) -> tuple[int, int]:
        """The result, when it is there."""
        os.eventfd_read(self.event)
        return self.result()

    def close(self) -> None:
        """End the thread."""
        lib.leased_committer_free(self.handle)
        os.close(self.event)


def test_the_committer_makes_a_batch_durable_and_names_what_failed(tmp_path: Path) -> None:
    segment = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT)
    anchor = os.open(tmp_path / "anchor", os.O_RDWR | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    committer = _Committer()
    assert committer.submit(segment, b"frames" * 1000, 0, anchor) == 0
    assert committer.wait() == (0, lib.LEASED_STAGE_DONE)
    assert os.pread(segment, 10_000, 0) == b"frames" * 1000
    assert os.pread(anchor, 100, 512) == b"slot"
    assert committer.submit(full, b"lost", 0, anchor) == 0
    assert committer.wait() == (-errno.ENOSPC, lib.LEASED_STAGE_APPEND)
    assert committer.submit(segment, b"after", 6000, anchor) == -errno.EIO
    committer.close()
    for fd in (segment, anchor, full):
        os.close(fd)


def test_one_batch_at_a_time(tmp_path: Path) -> None:
    """While a large batch is on its way another is refused, and there is no result yet."""
    segment = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT)
    committer = _Committer()
    large = bytes(64 << 20)
    assert committer.submit(segment, large, 0) == 0
    assert committer.result()[0] == -errno.EINPROGRESS
    assert committer.submit(segment, b"x", 0) == -errno.EBUSY
    assert committer.wait() == (0, lib.LEASED_STAGE_DONE)
    committer.close()
    os.close(segment)
