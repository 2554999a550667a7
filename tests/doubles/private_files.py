# SPDX-License-Identifier: Apache-2.0
"""A user's own files (FUSE): nobody else may look at them, and root is told no more than others.

Rule: they are mounted where nobody else sees them, in a mount namespace of the process that serves
them, has one of them mapped, and ends with the block.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.doubles import stuck_files
from tests.doubles.host import not_proven

_REPOSITORY = Path(__file__).resolve().parents[2]
_USER = 65534
_FOLDER = "/memfd:own" + 14 * ("/" + 250 * "d")
"""So that a mapping looks like memory's, too, and that many take more to tell than is read."""

_PRIVATE = 1 << 18 | 1 << 14
_NO_DEVICES = 6
_FAILED = (1 << 64) - 1


@contextlib.contextmanager
def mapping_of_private_file(at: Path, mappings: int = 1) -> Iterator[int]:
    """The pid of a process that has mapped one so often. `at` is an empty directory."""
    paths = os.pathsep.join((str(_REPOSITORY), str(_REPOSITORY / "agent")))
    words = [sys.executable, "-m", __name__, str(at), str(mappings)]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        said = process.stdout.readline().strip()
        try:
            if said != "mapped":
                not_proven("files that refuse root", said or "FUSE cannot be mounted")
            yield process.pid
        finally:
            process.kill()


def _main(at: str, mappings: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

    def demand(failed: int) -> None:
        if failed:
            sys.exit(os.strerror(ctypes.get_errno()))

    server = os.open("/dev/fuse", os.O_RDWR)
    demand(libc.unshare(0x00020000))
    demand(libc.mount(None, b"/", None, _PRIVATE, None))
    demand(libc.mount(b"tmpfs", at.encode(), b"tmpfs", 0, None))
    os.mkdir(f"{at}/old")
    demand(libc.pivot_root(at.encode(), f"{at}/old".encode()))
    os.makedirs(_FOLDER)
    options = f"fd={server},rootmode=40000,user_id={_USER},group_id={_USER}".encode()
    demand(libc.mount(b"own", _FOLDER.encode(), b"fuse", _NO_DEVICES, options))
    serving = threading.Thread(
        target=stuck_files.serve, args=[server], kwargs={"closes": True}, daemon=True
    )
    serving.start()
    os.setgid(_USER)
    os.setuid(_USER)
    # The first close tells the kernel that this server is asked about none: not at our end, either.
    os.close(os.open(f"{_FOLDER}/library", os.O_RDONLY))
    fd = os.open(f"{_FOLDER}/library", os.O_RDONLY)
    for turn in range(mappings):
        # Neighbours that may do the same would be one mapping.
        protection = mmap.PROT_READ if turn % 2 else 0
        if libc.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE, fd, 0) == _FAILED:
            sys.exit("it cannot be mapped")
    os.close(fd)
    print("mapped", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
