# SPDX-License-Identifier: Apache-2.0
"""A remote peer as a test has it: `rdma_peer.py` in a process of its own, driven line by line.

Rule: only the standard library, so that both the suites inside a process and those that drive the
installed programs from outside may use it.

Does not know leases.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("rdma_peer.py")
PYTHON = os.environ.get("LEASED_PEER_PYTHON", "/usr/bin/python3")
TIMEOUT, RETRIES = 15, 6
"""How long a peer waits for an answer (4.096 us x 2^15), and how often it asks again: a connection
that breaks of its own accord, on a busy host, would be taken for the end of a lease. Not 7 times:
soft-RoCE takes that for ever."""

GIVES_UP_MS = 0.004096 * 2**TIMEOUT * (1 + RETRIES)
"""So long after a request that nobody answers."""

REMOTE_INVALID, REMOTE_ACCESS, RETRIES_EXCEEDED, FLUSHED = 9, 10, 12, 5
"""Statuses of a completion (enum ibv_wc_status)."""

REFUSED = (REMOTE_INVALID, REMOTE_ACCESS, RETRIES_EXCEEDED, FLUSHED)
"""How a request that did not reach the memory ends."""


class RemotePeer:
    """One `rdma_peer.py`. `fds` are inherited, under their numbers."""

    def __init__(self, device: str, fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            [PYTHON, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )
        self._device = device
        self.begin_anew()

    def begin_anew(self) -> None:
        """Another queue pair and other memory, in place of those that it has."""
        self.end = self.ask("open", device=self._device, gid_index=1)

    def ask(self, do: str, **how: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.tell(do, **how)
        return self.answer()

    def tell(self, do: str, **how: Any) -> None:
        """A command whose answer is fetched later."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **how}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the peer has died"
        told: dict[str, Any] = json.loads(line)
        return told

    def read(self, key: int, address: int = 0, length: int = 8) -> int:
        """The status of one read."""
        status: int = self.ask("read", address=address, key=key, length=length)["status"]
        return status

    def write(self, key: int, data: bytes, address: int = 0) -> int:
        """The status of one write."""
        status: int = self.ask("write", address=address, key=key, data=data.hex())["status"]
        return status

    def close(self) -> None:
        """It goes, and its objects with it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
