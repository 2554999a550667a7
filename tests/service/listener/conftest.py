# SPDX-License-Identifier: Apache-2.0
"""Connections without a listener."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Six connections: our end and the peer's."""
    with contextlib.ExitStack() as open_sockets:
        made = [socket.socketpair() for _ in range(6)]
        for pair in made:
            for end in pair:
                open_sockets.enter_context(end)
        yield made
