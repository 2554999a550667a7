# SPDX-License-Identifier: Apache-2.0
"""The load generator measures what it says: a tiny Varlink peer counts what it really sent.

Rule: every figure that the ratios rest on (operations, descriptors, percentiles) is compared with
the peer's own count.

Does not measure anything worth publishing: the peer is a Python thread.
"""

from __future__ import annotations

import array
import json
import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.loadgen import compile_load

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


class Peer(threading.Thread):
    """Answers Acquire (with one descriptor), Renew and Release, one reply per call; counts them."""

    def __init__(self, path: Path, *, refuse: bool = False) -> None:
        super().__init__(daemon=True)
        self.calls: dict[str, int] = {}
        self.live: dict[str, None] = {}
        self.refuse = refuse
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(256)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._unfinished: dict[socket.socket, bytes] = {}

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    accepted, _ = self._listener.accept()
                    self._selector.register(accepted, selectors.EVENT_READ)
                else:
                    self._serve(key.fileobj)  # type: ignore[arg-type]

    def _serve(self, connection: socket.socket) -> None:
        got = connection.recv(65536)
        if not got:
            self._selector.unregister(connection)
            connection.close()
            return
        *calls, rest = (self._unfinished.pop(connection, b"") + got).split(b"\0")
        self._unfinished[connection] = rest
        for call in calls:
            self._answer(connection, json.loads(call))

    def _answer(self, connection: socket.socket, call: dict[str, object]) -> None:
        method = str(call["method"]).rpartition(".")[2]
        if method == "GetInfo":  # what each connection says first
            connection.sendall(b'{"parameters":{}}\0')
            return
        parameters = call["parameters"]
        assert isinstance(parameters, dict)
        self.calls[method] = self.calls.get(method, 0) + 1
        if self.refuse:
            connection.sendall(b'{"error":"io.leased.Lease.Refused","parameters":{}}\0')
            return
        if method == "Acquire":
            lease_id = f"{self.calls[method]:032x}"
            self.live[lease_id] = None
            descriptor = os.open("/dev/null", os.O_RDONLY)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            reply = {"parameters": {"lease": {"lease_id": lease_id}}}
            connection.sendmsg([json.dumps(reply).encode() + b"\0"], ancillary)
            os.close(descriptor)
            return
        lease_id = str(parameters["lease_id"])
        assert lease_id in self.live
        if method == "Release":
            del self.live[lease_id]
        connection.sendall(json.dumps({"parameters": {"lease_id": lease_id}}).encode() + b"\0")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[Peer, Path]]:
    path = tmp_path / "io.leased"
    started = Peer(path)
    started.start()
    yield started, path


def _run(load: Path, path: Path, *options: str) -> dict[str, object]:
    done = subprocess.run(
        [load, "--socket", path, *options], capture_output=True, text=True, check=True, timeout=30
    )
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def test_renew_counts_what_the_peer_saw(load: Path, peer: tuple[Peer, Path]) -> None:
    served, path = peer
    options = ("--mode", "renew", "--clients", "4", "--seconds", "0.3", "--warmup", "0")
    result = _run(load, path, *options)
    latency = result["latency"]
    assert isinstance(latency, dict)
    # The last call of each connection may end past the window and is not counted.
    assert served.calls["Renew"] - 4 <= latency["count"] <= served.calls["Renew"]
    assert latency["min_ns"] <= latency["p50_ns"] <= latency["p99_ns"] <= latency["max_ns"]
    assert served.calls["Acquire"] == 4 == result["fds_received"]


def test_grant_acquires_exactly_and_releases_all(load: Path, peer: tuple[Peer, Path]) -> None:
    served, path = peer
    result = _run(load, path, "--mode", "grant", "--clients", "8", "--count", "300")
    latency, release = result["latency"], result["release"]
    assert isinstance(latency, dict) and isinstance(release, dict)
    assert served.calls == {"Acquire": 300, "Release": 300} and not served.live
    assert latency["count"] == 300 == result["fds_received"] and release["count"] == 300


def test_cycle_pairs_every_grant_with_a_release(load: Path, peer: tuple[Peer, Path]) -> None:
    served, path = peer
    _run(load, path, "--mode", "cycle", "--clients", "3", "--seconds", "0.2", "--warmup", "0")
    assert served.calls["Acquire"] == served.calls["Release"] > 3 and not served.live


def test_an_error_reply_ends_the_run(load: Path, tmp_path: Path) -> None:
    path = tmp_path / "io.leased"
    Peer(path, refuse=True).start()
    done = subprocess.run(
        [load, "--socket", path, "--mode", "renew"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and "io.leased.Lease.Refused" in done.stderr


def test_fdatasync_is_measured(load: Path, tmp_path: Path) -> None:
    options = ("--mode", "fdatasync", "--seconds", "0.1", "--warmup", "0", "--bytes", "512")
    result = _run(load, tmp_path, *options)
    latency = result["latency"]
    assert isinstance(latency, dict) and latency["count"] > 0 and not list(tmp_path.iterdir())
