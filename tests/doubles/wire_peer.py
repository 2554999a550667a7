# SPDX-License-Identifier: Apache-2.0
"""A Varlink peer that uses none of the program's own code: JSON, NUL, descriptors, a socket.

Rule: what it sends is what the test says, byte for byte; it waits for an answer with a timeout and
keeps every descriptor it got until `drop_fds`.

Does not retry and does not understand.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAIT_S = 30.0
READ_BYTES = 1 << 18
FDS_MAX = 250


class Remote(Exception):
    """An error reply: its name and its parameters."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(f"{name} {parameters}")
        self.name = name
        self.parameters = parameters


class Peer:
    """One connection."""

    def __init__(self, path: Path, *, timeout_s: float = WAIT_S) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout_s)
        self.fds: list[int] = []
        self._buffer = b""
        try:
            self.sock.connect(str(path))
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it and what came over it."""
        self.sock.close()
        self.drop_fds()

    def drop_fds(self) -> None:
        """Close the descriptors that came."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """These bytes, with these descriptors."""
        if not fds:
            self.sock.sendall(data)
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        assert self.sock.sendmsg([data], rights) == len(data)

    def ask(
        self, method: str, *, more: bool = False, fds: Sequence[int] = (), **named: Any
    ) -> None:
        """Send a call and wait for nothing."""
        self.send(message(method, more=more, **named), fds)

    def answer(self) -> dict[str, Any]:
        """The next message, whole. Raises EOFError at the end of the connection."""
        while b"\0" not in self._buffer:
            space = socket.CMSG_SPACE(FDS_MAX * 4)
            data, ancillary, _, _ = self.sock.recvmsg(READ_BYTES, space)
            for _, _, content in ancillary:
                self.fds.extend(array.array("i", content))
            if not data:
                raise EOFError("the agent closed the connection")
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        return found

    def reply(self) -> dict[str, Any]:
        """The parameters of the next message. Raises Remote for an error."""
        answer = self.answer()
        if "error" in answer:
            raise Remote(answer["error"], answer.get("parameters") or {})
        return answer.get("parameters") or {}

    def call(self, method: str, *, fds: Sequence[int] = (), **named: Any) -> dict[str, Any]:
        """One call, one answer. Raises Remote."""
        self.ask(method, fds=fds, **named)
        return self.reply()

    def ended(self) -> bool:
        """Whether the agent closes the connection without another word."""
        try:
            self.answer()
        except (EOFError, ConnectionError):
            return True
        return False


def message(method: str, *, more: bool = False, **named: Any) -> bytes:
    """The bytes of a call."""
    full = method if method.count(".") > 1 else f"io.leased.{method}"
    call: dict[str, Any] = {"method": full, "parameters": named}
    if more:
        call["more"] = True
    return json.dumps(call).encode() + b"\0"
