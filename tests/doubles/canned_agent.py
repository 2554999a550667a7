# SPDX-License-Identifier: Apache-2.0
"""A canned agent: a real socket with answers from a script, for the tests of the command line.

Rule: it speaks the protocol as it is (NUL-ended JSON), refuses what nobody scripted, and remembers
every call, so that a test can say what was asked. It grants nothing and ends nothing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Script = dict[str, Answer | list[Answer] | Callable[[Answer], Answer]]

LEASE_ID = "7fa3" + "0" * 28
OTHER_ID = "7fb4" + "0" * 28
RESOURCE = "mem:node0:4096"


INFO: Answer = {
    "vendor": "leased",
    "product": "a canned agent",
    "version": "1",
    "url": "",
    "interfaces": ["org.varlink.service"],
}


def lease(lease_id: str = LEASE_ID, **runtime: Any) -> Answer:
    """A lease as the wire has it; `runtime` overrides."""
    return {
        "lease_id": lease_id,
        "context": {
            "command_id": "c0" * 16,
            "ttl_ns": 60_000_000_000,
            "grace_ns": 10_000_000_000,
            "priority": "standard",
        },
        "runtime": {
            "state": "active",
            "generation": 1,
            "tenant": "research",
            "uid": 1000,
            "gid": 1000,
            "pid": 0,
            "trust": "confined",
            "cgroup": lease_id,
            "allotments": [
                {"resource_id": RESOURCE, "kind": "mem", "tier": "dram", "capacity": 268435456}
            ],
            "boot_id": "b0" * 16,
            "granted_boottime_ns": 0,
            "granted_wall_ns": 1_700_000_000_000_000_000,
            "deadline_boottime_ns": 142_000_000_000,
            "remaining_ns": 42_000_000_000,
            "fenced": [],
            **runtime,
        },
    }


def resource(**fields: Any) -> Answer:
    """A resource as the wire has it."""
    return {
        "resource_id": RESOURCE,
        "kind": "mem",
        "tier": "dram",
        "capacity": 1 << 30,
        "granule": 4096,
        "node": 0,
        "evidence": "measured",
        "health": "ok",
        "limits": ["no cgroup v2 memory controller"],
        "attributes": {},
        "use": {
            "free": 1 << 29,
            "leased": 1 << 29,
            "teardown": 0,
            "fenced": 0,
            "cordoned": False,
        },
        **fields,
    }


def refused(reason: str, what: str = "", **fields: Any) -> Answer:
    """The error Refused."""
    numbers = {"limit": 0, "usage": 0, "requested": 0, **fields}
    parameters = {"reason": reason, "what": what, **numbers}
    return {"error": "io.leased.Lease.Refused", "parameters": parameters}


class CannedAgent:
    """Serves `script` (method -> its answer, its answers, or a function of its parameters) on a
    socket. `fds` go along with every answer that can carry a lease's descriptors.
    """

    def __init__(self, directory: Path, script: Script, fds: Sequence[int] = ()) -> None:
        self.path = str(directory / "agent.sock")
        self.script = {"org.varlink.service.GetInfo": INFO, **script}
        self.calls: list[tuple[str, Answer]] = []
        self._fds = list(fds)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(self.path)
        self._door.listen(16)

    def __enter__(self) -> CannedAgent:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def asked(self, method: str) -> Answer:
        """The parameters of the only call of `method`."""
        [found] = [parameters for name, parameters in self.calls if name == method]
        return found

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rest = b""
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                *messages, rest = (rest + data).split(b"\0")
                for message in messages:
                    self._answer(connection, json.loads(message))

    def _answer(self, connection: socket.socket, call: Answer) -> None:
        method, parameters = call["method"], call.get("parameters", {})
        self.calls.append((method, parameters))
        scripted = self.script.get(method)
        if callable(scripted):
            scripted = scripted(parameters)
        if scripted is None:
            absent = {
                "error": "org.varlink.service.MethodNotFound",
                "parameters": {"method": method},
            }
            answers = [absent]
        else:
            answers = scripted if isinstance(scripted, list) else [scripted]
        for index, answer in enumerate(answers):
            wire = dict(answer) if "error" in answer else {"parameters": answer}
            if call.get("more") and index + 1 < len(answers):
                wire["continues"] = True
            raw = json.dumps(wire).encode() + b"\0"
            if self._fds and method in ("io.leased.Lease.Acquire", "io.leased.Lease.Join"):
                socket.send_fds(connection, [raw], self._fds)
            else:
                connection.sendall(raw)
