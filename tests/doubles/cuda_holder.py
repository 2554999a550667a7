# SPDX-License-Identifier: Apache-2.0
"""A program that uses a GPU as a tenant would, and does not want to leave: it ignores SIGTERM,
fills memory, and holds on to what it was given.

`python -m tests.doubles.cuda_holder TRICK BYTES [PATH]` joins nothing by itself: whoever starts it
puts it into a leaf first. It says "ready" when it holds what it is to hold, then answers every line
with what it can still do, until stdin closes.

Tricks: `hold` a context with BYTES of memory full of a pattern. `reopen` the same, while a thread
opens the GPU's node as fast as it can. `fork` the same, with a child that has the same descriptors.
`pass` the same, and send the descriptors of the GPU's node to whoever listens at PATH (an abstract
socket). `open` only the node at PATH, no context. `ring` register the node at PATH with an io_uring
and close it. `receive`: no GPU of its own: listen at PATH, keep the descriptors that come.

Does not speak to the agent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from tests.doubles import intruder

PATTERN = 0x5EC2E75E
CHUNK_BYTES = 1 << 30


class Context:
    """A context on the one GPU that is visible, and memory in it."""

    def __init__(self, size_bytes: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        while size_bytes > 0:
            chunk = min(size_bytes, CHUNK_BYTES)
            address = ctypes.c_uint64()
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(chunk))
            self._call(
                "cuMemsetD32_v2", address, ctypes.c_uint(PATTERN), ctypes.c_size_t(chunk // 4)
            )
            size_bytes -= chunk

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise OSError(code, f"{name}: {code}")


def nodes() -> list[str]:
    """The GPUs' own nodes that this process has open, by path."""
    return sorted({os.readlink(f"/proc/self/fd/{number}") for number in descriptors()})


def descriptors() -> list[int]:
    """Its open descriptors of GPUs' own nodes."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # the listing's own
        if name.startswith("nvidia") and name[6:].isdigit():
            found.append(int(number))
    return found


def try_open(path: str) -> str:
    """What the kernel says to opening a node anew."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error.errno)
    return "opened"


def reopen(path: str) -> None:
    """Open and close for ever; the reaper's cut ends it."""

    def forever() -> None:
        while True:
            try_open(path)

    threading.Thread(target=forever, daemon=True).start()


def fork() -> None:
    """A child with the same descriptors, of which nobody is told."""
    if os.fork() == 0:
        while True:
            signal.pause()


def send(path: str) -> None:
    """Give the GPU's descriptors to somebody else."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(f"\0{path}")
        socket.send_fds(link, [b"x"], descriptors())
        link.recv(1)


def receive(path: str) -> list[int]:
    """Take what is given, and keep it."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{path}")
        door.listen()
        print("listening", flush=True)
        link, _ = door.accept()
        with link:
            _, kept, _, _ = socket.recv_fds(link, 1, 16)
            link.send(b"x")
    return kept


def main() -> int:
    """Play the trick, say so, and answer."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trick, size_bytes, path = sys.argv[1], int(sys.argv[2]), (*sys.argv[3:], "")[0]
    kept: list[object] = []
    if trick == "receive":
        kept.extend(receive(path))
    elif trick in ("open", "ring"):
        node = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        kept.append(node if trick == "open" else intruder.ring_file(node))
    else:
        kept.append(Context(size_bytes))
    more: dict[str, Callable[[], None]] = {
        "reopen": lambda: reopen(nodes()[0]),
        "fork": fork,
        "pass": lambda: send(path),
    }
    more.get(trick, lambda: None)()
    print("ready", flush=True)
    for line in sys.stdin:
        print(try_open(line.strip()) if line.strip() else len(kept), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
