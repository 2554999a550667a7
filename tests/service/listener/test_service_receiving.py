# SPDX-License-Identifier: Apache-2.0
"""Receiving: many sockets are read by one call, and none of them decides what becomes of another.
"""

from __future__ import annotations

import errno
import os
import socket

from leased.service.api.receiving import READ_BYTES, SAW_FDS, receive_many
from tests.service.listener.conftest import Pair


def read(pairs: list[Pair]) -> list[bytes | int]:
    return receive_many([ours.fileno() for ours, _ in pairs])


def test_each_has_its_own_whatever_became_of_the_others(pairs: list[Pair]) -> None:
    for at, word in ((0, b"first"), (2, b"second\0third"), (5, b"last")):
        pairs[at][1].send(word)
    pairs[3][1].close()
    pairs[4][0].close()
    sockets = [ours.fileno() if ours.fileno() >= 0 else 1 << 20 for ours, _ in pairs]
    assert receive_many(sockets) == [
        b"first",
        -errno.EAGAIN,
        b"second\0third",
        b"",
        -errno.EBADF,
        b"last",
    ]
    assert read(pairs[:1]) == [-errno.EAGAIN], "what was read is gone"


def test_nobody_is_no_call(pairs: list[Pair]) -> None:
    assert receive_many([]) == []


def test_descriptors_are_seen_and_neither_they_nor_their_bytes_are_read(pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    left, right = os.pipe()
    try:
        theirs.send(b"plain")
        socket.send_fds(theirs, [b"with"], [left])
        open_before = len(os.listdir("/proc/self/fd"))
        assert [read(pairs[:1]) for _ in range(2)] == [[SAW_FDS], [SAW_FDS]]
        assert len(os.listdir("/proc/self/fd")) == open_before
        wire, received, _, _ = socket.recv_fds(ours, 99, 9)
        assert wire == b"plainwith" and len(received) == 1
        os.close(received[0])
    finally:
        os.close(left)
        os.close(right)


def test_who_sends_much_keeps_nobody_from_being_read(pairs: list[Pair]) -> None:
    """Sockets stand in the same order at each turn: there must be room for the last of them."""
    for at, (_, theirs) in enumerate(pairs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_BYTES)
        assert theirs.send(bytes([at]) * READ_BYTES, socket.MSG_DONTWAIT) == READ_BYTES
    assert read(pairs) == [bytes([at]) * READ_BYTES for at in range(len(pairs))]
