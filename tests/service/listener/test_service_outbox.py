# SPDX-License-Identifier: Apache-2.0
"""The outbox: who is noted while it is open sends once, in order, at its end, and all by one call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest

from leased.service.api.outbox import Outbox
from leased.service.api.sending import FDS_MAX, Letter, send_many
from tests.service.listener.conftest import Pair


class Sender:
    """Somebody with letters to send over a real socket, who notes what became of each."""

    def __init__(self, log: list[str], name: str, ours: socket.socket, *letters: bytes) -> None:
        self.closed = False
        self.counts: list[int] = []
        self._log, self._name, self._ours = log, name, ours
        self._letters = list(letters)

    def draw(self) -> Letter | None:
        if not self._letters:
            return None
        self._log.append(self._name)
        return Letter(self._ours.fileno(), self._letters.pop(0))

    def sent(self, count: int) -> None:
        self.counts.append(count)
        self.flush()

    def flush(self) -> None:
        while (letter := self.draw()) is not None:
            self.counts += send_many([letter])




def test_nobody_is_held_back_outside(pairs: list[Pair]) -> None:
    assert not Outbox().note(Sender([], "a", pairs[0][0]))


def test_each_sends_once_in_the_order_of_its_first_answer(pairs: list[Pair]) -> None:
    log: list[str] = []
    outbox = Outbox()
    first = Sender(log, "first", pairs[0][0], b"1", b"3")
    second = Sender(log, "second", pairs[1][0], b"2")
    with outbox:
        assert outbox.note(first) and outbox.note(second) and outbox.note(first)
        assert log == []
    assert log == ["first", "second", "first"], "what is behind a first letter comes after all"
    assert (first.counts, second.counts) == ([1, 1], [1])
    assert (pairs[0][1].recv(9), pairs[1][1].recv(9)) == (b"13", b"2")
    assert not outbox.note(first), "it is closed again"


def test_only_the_outermost_sends_and_who_has_gone_is_passed_over(pairs: list[Pair]) -> None:
    log: list[str] = []
    outbox = Outbox()
    here, gone = (Sender(log, str(at), pair[0], b"x") for at, pair in enumerate(pairs[:2]))
    with outbox:
        with outbox:
            outbox.note(gone)
            outbox.note(here)
        assert log == []
        gone.closed = True
    assert log == ["0"] and gone.counts == []


def test_an_error_inside_loses_no_answer(pairs: list[Pair]) -> None:
    log: list[str] = []
    outbox = Outbox()
    with pytest.raises(ZeroDivisionError), outbox:
        outbox.note(Sender(log, "answered", pairs[0][0], b"x"))
        raise ZeroDivisionError
    assert log == ["answered"] and pairs[0][1].recv(9) == b"x"


def test_a_socket_that_is_full_or_closed_keeps_nobody_from_theirs(pairs: list[Pair]) -> None:
    (full, _), (ours, theirs) = pairs[:2]
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(b"x" * 65536, socket.MSG_DONTWAIT)
    with socket.socket(socket.AF_UNIX) as stranger:
        outcomes = send_many(
            [
                Letter(full.fileno(), b"a"),
                Letter(stranger.fileno(), b"bb"),
                Letter(ours.fileno(), b"ccc"),
            ]
        )
    assert outcomes == [-errno.EAGAIN, -errno.ENOTCONN, 3]
    assert theirs.recv(9) == b"ccc"


def test_descriptors_leave_with_the_first_byte_and_stay_where_none_left(pairs: list[Pair]) -> None:
    (full, _), (ours, theirs) = pairs[:2]
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(b"x" * 65536, socket.MSG_DONTWAIT)
    kept, left, many = os.pipe(), os.pipe(), [0] * (FDS_MAX + 1)
    outcomes = send_many(
        [
            Letter(full.fileno(), b"a", kept),
            Letter(ours.fileno(), b"b", many),
            Letter(ours.fileno(), b"c", left),
        ]
    )
    assert outcomes == [-errno.EAGAIN, -errno.EMSGSIZE, 1]
    wire, received, _, _ = socket.recv_fds(theirs, 9, 9)
    assert wire == b"c" and len(received) == 2
    os.write(received[1], b"through")
    assert os.read(received[0], 9) == b"through"
    for fd in (*kept, *received):
        os.close(fd)  # still ours
    for fd in left:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
