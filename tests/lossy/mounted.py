# SPDX-License-Identifier: Apache-2.0
"""The forgetful file system, mounted, and orders to it.

Rule: it is unmounted and its process ended when a `with` ends, also after a failure.

Does not judge what is on it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.host import not_proven
from tests.powercut.machine import DEADLINE_S, again_and_again

WHAT = "what a page cache that forgets, fails and lies does to the log"


class Mounted:
    """A directory whose disk does what it is told."""

    def __init__(self, point: Path, link: socket.socket) -> None:
        self.point = point
        self._link = link

    def order(self, *words: object) -> dict[str, int]:
        """Give an order; what was counted so far."""
        self._link.send(json.dumps(words).encode())
        return json.loads(self._link.recv(1 << 16))


def must_have() -> None:
    """Skip, and say what is not shown, where a part is missing. In CI, which has them all, that is
    a failure."""
    missing = ""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        missing = "root and FUSE are needed"
    elif importlib.util.find_spec("pyfuse3") is None:
        missing = "pyfuse3 is not installed"
    if missing and os.environ.get("CI"):
        pytest.fail(f"{WHAT}: {missing}")
    if missing:
        not_proven(WHAT, missing)


@contextlib.contextmanager
def forgetful(folder: Path) -> Iterator[Mounted]:
    """One, empty."""
    must_have()
    point, control = folder / "forgetful", folder / "control"
    point.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tests.lossy.filesystem", str(point), str(control)]
    with (
        subprocess.Popen(command, env=environment) as process,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
    ):
        try:
            _connect(link, control, process)
            yield Mounted(point, link)
        finally:
            if process.poll() is None:
                again_and_again("umount", str(point))
                process.wait(DEADLINE_S)


def _connect(link: socket.socket, control: Path, process: subprocess.Popen[bytes]) -> None:
    link.settimeout(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            link.connect(str(control))
            return
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("no file system") from None
            os.sched_yield()
