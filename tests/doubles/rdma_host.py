# SPDX-License-Identifier: Apache-2.0
"""A soft-RoCE device on a dummy link, and remote peers (`tests/vm/guest/rdma_peer.py`) that come
through it. Only in the VM: this needs a kernel with RDMA.

Rule: the device is made for a test and removed after it, and what was on it before is on it
afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from leased.hardware.rdma.nldev import Nldev, Row
from leased.terms.errors import DeviceError

PEER = Path(__file__).resolve().parents[1] / "vm/guest/rdma_peer.py"
PYTHON = os.environ.get("LEASED_PEER_PYTHON", "/usr/bin/python3")
ADDRESS = "10.77.0.1"
REMOTE_ACCESS, RETRIES_EXCEEDED, FLUSHED = 10, 12, 5
"""Statuses of a completion (enum ibv_wc_status)."""


def run(*command: str) -> str:
    """A command's output; its failure is the test's."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class SoftDevice:
    """One rxe device."""

    def __init__(self, name: str, link: str) -> None:
        self.name, self.link = name, link
        directory = Path("/sys/class/infiniband") / name
        self.guid = (directory / "node_guid").read_text().strip().replace(":", "")
        self.peers: list[RemotePeer] = []

    def objects(self) -> list[Row]:
        """Everything on it, by the kernel's list."""
        with Nldev() as nldev:
            [found] = [link for link in nldev.links() if link.name == self.name]
            return nldev.objects(found.number)

    def counts(self) -> dict[str, int]:
        """How many objects of each kind that programs made."""
        rows = [row for row in self.objects() if not row.kernel]
        return {kind: sum(row.kind == kind for row in rows) for kind in {row.kind for row in rows}}

    def peer(self) -> RemotePeer:
        """A program on another machine, as far as it can tell."""
        peer = RemotePeer(self.name)
        self.peers.append(peer)
        return peer


class RemotePeer:
    """One `rdma_peer.py`."""

    def __init__(self, device: str) -> None:
        self.process = subprocess.Popen(
            [PYTHON, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.end = self.ask("open", device=device, gid_index=1)

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

    def close(self) -> None:
        """It goes, and its objects with it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


@contextlib.contextmanager
def soft_device(name: str = "rxetest") -> Iterator[SoftDevice]:
    """A device of our own."""
    link = f"{name}l"
    try:
        run("modprobe", "rdma_rxe")
    except (AssertionError, FileNotFoundError) as error:
        pytest.skip(f"not proven: anything of RDMA (no rdma_rxe here: {error})")
    run("ip", "link", "add", link, "type", "dummy")
    try:
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        run("rdma", "link", "add", name, "type", "rxe", "netdev", link)
        device = SoftDevice(name, link)
        before = device.counts()
        try:
            yield device
            for peer in device.peers:
                peer.close()
            assert device.counts() == before, "something is left on the device"
        finally:
            for peer in device.peers:
                peer.process.kill()
            with contextlib.suppress(AssertionError):
                run("rdma", "link", "delete", name)
    finally:
        run("ip", "link", "delete", link)


async def a_moment() -> None:
    """Before looking again at what the kernel tells nobody of."""
    await trio.to_thread.run_sync(select.select, [], [], [], 0.05)


def is_registered(name: str) -> bool:
    """Whether the kernel lists the device."""
    try:
        with Nldev() as nldev:
            return any(link.name == name for link in nldev.links())
    except DeviceError:
        return False
