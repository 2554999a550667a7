# SPDX-License-Identifier: Apache-2.0
"""The outbox: who is noted while it is open is flushed once, in order, at its end."""

from __future__ import annotations

import pytest

from leased.service.api.outbox import Outbox


class Sender:
    """Somebody with something to send; flushing may make others note themselves."""

    def __init__(self, log: list[str], name: str) -> None:
        self.closed = False
        self._log, self._name = log, name

    def flush(self) -> None:
        self._log.append(self._name)


def test_nobody_is_held_back_outside() -> None:
    assert not Outbox().note(Sender([], "a"))


def test_each_is_flushed_once_in_the_order_of_its_first_answer() -> None:
    log: list[str] = []
    outbox, first, second = Outbox(), Sender(log, "first"), Sender(log, "second")
    with outbox:
        assert outbox.note(first) and outbox.note(second) and outbox.note(first)
        assert log == []
    assert log == ["first", "second"]
    assert not outbox.note(first), "it is closed again"


def test_only_the_outermost_flushes_and_who_has_gone_is_passed_over() -> None:
    log: list[str] = []
    outbox, here, gone = Outbox(), Sender(log, "here"), Sender(log, "gone")
    with outbox:
        with outbox:
            outbox.note(gone)
            outbox.note(here)
        assert log == []
        gone.closed = True
    assert log == ["here"]


def test_an_error_inside_loses_no_answer() -> None:
    log: list[str] = []
    outbox = Outbox()
    with pytest.raises(ZeroDivisionError), outbox:
        outbox.note(Sender(log, "answered"))
        raise ZeroDivisionError
    assert log == ["answered"]
