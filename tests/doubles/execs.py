# SPDX-License-Identifier: Apache-2.0
"""Processes that hang in an exec: they close a file whose server does not answer (`stuck_files`).

Rule: they end with the server, at the latest with the block.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.doubles.stuck_files import stuck_files

_EXECUTES = """
import ctypes, mmap, os, sys
from tests.doubles.intruder import ring_file
file, at = os.open(sys.argv[1] + "/file", 0), sys.argv[2]
try:
    exec(sys.argv[3])
except OSError as error:  # to end would hang as well
    print(error, flush=True)
print("has", flush=True)
os.execv("/bin/true", ["true"])
"""


@contextlib.contextmanager
def in_exec(at: Path, *has: str, fds: tuple[int, ...] = ()) -> Iterator[list[int]]:
    """The pids of processes that hang in an exec, each of which `has` opened something before:
    files are closed in their order, so it has that still. `at` is an empty directory."""
    mount, place = at / "stuck", at / "place"
    mount.mkdir()
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as waited, contextlib.ExitStack() as stack:
        stack.enter_context(stuck_files(mount))
        hanging: list[int] = []
        for what in has:
            process = subprocess.Popen(
                [sys.executable, "-c", _EXECUTES, str(mount), str(place), what],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,  # a file would be in doubt
                pass_fds=fds,
                env=environment,
            )
            waited.callback(process.communicate)  # when nobody serves it any more
            stack.callback(process.kill)
            hanging.append(process.pid)
            assert process.stdout is not None and process.stdout.readline() == b"has\n"
            while Path(f"/proc/{process.pid}/cmdline").read_bytes():
                assert process.poll() is None
        yield hanging
