# SPDX-License-Identifier: Apache-2.0
"""Tenants of a GPU that do not want to let go: `python -m tests.hostile.cuda_holders TRICK [WORD]`.

Each plays its trick, prints "ready WORDS", and then answers each line of standard input with one
line: what it can still do. On a real GPU and on the mock alike.

Rule: a trick uses what a tenant has, libcuda and system calls, and nothing of ours. What it leaves
in memory is `SECRET`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tests.hostile.cuda_driver import MIB, Context, CudaError, Driver

SECRET = 0x5EC4E75E
SHARED_BYTES = 64 * MIB
_IO_URING_SETUP, _IO_URING_REGISTER, _REGISTER_FILES = 425, 427, 2

Answer = Callable[[], str]
Trick = Callable[[str], tuple[str, Answer]]


def _word(context: Context, address: int) -> str:
    try:
        return context.read(address, 4)[::-1].hex()
    except CudaError as error:
        return str(error)


def _context() -> Context:
    return Driver().context()


def most(_: str) -> tuple[str, Answer]:
    """Nearly all memory, written to."""
    context = _context()
    pieces = context.allocate_most()
    for address, size_bytes in pieces:
        context.fill(address, size_bytes, SECRET)
    held = sum(size_bytes for _, size_bytes in pieces)
    return str(held), lambda: _word(context, pieces[0][0])


def spin(_: str) -> tuple[str, Answer]:
    """A kernel that never ends."""
    context = _context()
    flag = context.spin()
    return str(flag), lambda: "spinning"


def busy(_: str) -> tuple[str, Answer]:
    """Nearly all memory, and a kernel that never ends."""
    words, _answer = most("")
    # Beside the first: one process may have several contexts.
    context = _context()
    context.spin()
    return words, lambda: "spinning"


def small(_: str) -> tuple[str, Answer]:
    """A context with a little memory: the well-behaved one; it shows whether it still computes."""
    context = _context()
    address = context.allocate(SHARED_BYTES)
    context.fill(address, SHARED_BYTES, SECRET)
    count = iter(range(1, 1 << 30))

    def work() -> str:
        value = next(count)
        try:
            context.fill(address, SHARED_BYTES, value)
        except CudaError as error:
            return str(error)
        return "works" if _word(context, address) == f"{value:08x}" else "wrong"

    return str(SHARED_BYTES), work


def ipc_export(_: str) -> tuple[str, Answer]:
    """Memory that another process is told how to open."""
    context = _context()
    address = context.allocate(SHARED_BYTES)
    context.fill(address, SHARED_BYTES, SECRET)
    return context.export_ipc(address).hex(), lambda: _word(context, address)


def ipc_import(handle: str) -> tuple[str, Answer]:
    """That other process."""
    context = _context()
    address = context.import_ipc(bytes.fromhex(handle))
    return _word(context, address), lambda: _word(context, address)


def descriptor_export(number: str) -> tuple[str, Answer]:
    """Memory as a descriptor, sent over the socket `number`."""
    context = _context()
    handle, size_bytes = context.create_shareable(SHARED_BYTES)
    address = context.map(handle, size_bytes)
    context.fill(address, size_bytes, SECRET)
    _send(int(number), context.export_descriptor(handle))
    return str(size_bytes), lambda: _word(context, address)


def descriptor_import(number: str) -> tuple[str, Answer]:
    """The process that has the descriptor `number`."""
    context = _context()
    address = context.map(context.import_descriptor(int(number)), SHARED_BYTES)
    return _word(context, address), lambda: _word(context, address)


def forked(_: str) -> tuple[str, Answer]:
    """A child that has the driver's descriptors and nothing else."""
    context = _context()
    address = context.allocate(SHARED_BYTES)
    context.fill(address, SHARED_BYTES, SECRET)
    child = os.fork()
    if child == 0:
        os.setsid()
        while True:
            signal.pause()
    return str(child), lambda: _word(context, address)


def nodes_sent(number: str) -> tuple[str, Answer]:
    """The GPU's own node, open, sent over the socket `number` by a process with a context on it."""
    context = _context()
    address = context.allocate(SHARED_BYTES)
    for descriptor in gpu_descriptors():
        _send(int(number), descriptor)
    return str(address), lambda: _word(context, address)


def node_only(path: str) -> tuple[str, Answer]:
    """A node that was opened, without CUDA: in nobody's list of processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    return str(descriptor), lambda: str(os.fstat(descriptor).st_rdev)


def reopens(_: str) -> tuple[str, Answer]:
    """A context, and a thread that opens the GPU's node as fast as it can."""
    words, answer = small("")
    node = os.readlink(f"/proc/self/fd/{next(iter(gpu_descriptors()))}")

    def forever() -> None:
        while True:
            with contextlib.suppress(OSError):
                os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))

    threading.Thread(target=forever, daemon=True).start()
    return words, answer


def mps(_: str) -> tuple[str, Answer]:
    """A context within an MPS server of its own: the words are the servers' pids."""
    os.environ["CUDA_MPS_LOG_DIRECTORY"] = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
    _mps_control("-d")
    _words, work = small("")
    return _mps_control(words="get_server_list"), work


def _mps_control(*options: str, words: str = "") -> str:
    """What MPS's control program answers. Raises OSError where there is none, or it fails."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/nvidia/bin"
    program = shutil.which("nvidia-cuda-mps-control", path=path)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "no nvidia-cuda-mps-control here")
    with tempfile.TemporaryFile("w+") as told:
        # The daemon keeps what it is given: a pipe would not end.
        done = subprocess.run(
            [program, *options], input=words, stdout=told, stderr=told, text=True, timeout=20
        )
        told.seek(0)
        answer = told.read().strip()
    if done.returncode:
        raise OSError(errno.EIO, f"nvidia-cuda-mps-control: {answer}")
    return answer


def ring_file(path: str) -> tuple[str, Answer]:
    """A node that only an io_uring has."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(_IO_URING_SETUP, 1, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    files = array.array("i", [descriptor])
    address = ctypes.c_void_p(files.buffer_info()[0])
    if libc.syscall(_IO_URING_REGISTER, ring, _REGISTER_FILES, address, 1) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_register")
    os.close(descriptor)
    return str(ring), lambda: "registered"


def monitor(_: str) -> tuple[str, Answer]:
    """Not a tenant, a bystander: it reads NVML all the time, until somebody kills it."""
    import pynvml

    child = os.fork()
    if child == 0:
        # Its own: the library does not outlive a fork.
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while True:
            pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            pynvml.nvmlDeviceGetMemoryInfo(handle)
    return str(child), lambda: "watching"


def gpu_descriptors() -> list[int]:
    """This process' descriptors of GPU nodes: `/dev/nvidia0`, wherever that directory is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if re.fullmatch(r"nvidia\d+", Path(target).name):
            found.append(int(name))
    return found


def _send(number: int, descriptor: int) -> None:
    with socket.socket(fileno=os.dup(number)) as sender:
        socket.send_fds(sender, [b"."], [descriptor])


TRICKS: dict[str, Trick] = {
    trick.__name__: trick
    for trick in (
        most,
        spin,
        busy,
        small,
        ipc_export,
        ipc_import,
        descriptor_export,
        descriptor_import,
        forked,
        nodes_sent,
        node_only,
        mps,
        ring_file,
        reopens,
        monitor,
    )
}


def main() -> int:
    """Play one trick; answer until the input ends."""
    name, argument = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    try:
        words, answer = TRICKS[name](argument)
    except (CudaError, OSError) as error:
        print(f"failed {error}", flush=True)
        return 1
    print(f"ready {words}", flush=True)
    for _line in sys.stdin:
        print(answer(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
