# SPDX-License-Identifier: Apache-2.0
"""What is CRIT in the journal is the whole story of a log that grants nothing: such a line is kept
until the journal has it, through storms, a journal that does not read, and the agent's end."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from leased.service.config import JournaldCopy
from leased.service.telling.journald import BACKLOG_MAX, KEPT_MAX, Journald
from leased.service.telling.narration import CRITICAL, NOTICE
from tests.service.journald.test_journald_copy import Ticks, copier, entries, journal

pytestmark = pytest.mark.autojump

__all__ = ["journal"]


def lines(journal: socket.socket) -> list[bytes]:
    return [entry["MESSAGE"] for entry in entries(journal)]


def stuff(out: Journald) -> None:
    """Until the journal takes no more."""
    while not out.dropped:
        out.say("noise")
        out.flush(1)
    out.dropped = 0


async def test_a_journal_that_reads_later_has_them_in_their_order(
    journal: socket.socket,
) -> None:
    out = copier(journal)
    stuff(out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.run)
        out.say("it drains", priority=CRITICAL)
        out.say("it has room", priority=NOTICE)
        out.say("it drains again", priority=CRITICAL)
        await trio.sleep(5)
        assert set(lines(journal)) == {b"noise"}
        await trio.sleep(5)
        assert lines(journal) == [b"it drains", b"it has room", b"it drains again"]
        nursery.cancel_scope.cancel()
    out.close()


def test_its_end_is_kept_like_it(journal: socket.socket) -> None:
    out = copier(journal)
    stuff(out)
    out.say("it has room again", priority=NOTICE, LEASED_LOG_STATE="healthy")
    assert not out.flush(1) and set(lines(journal)) == {b"noise"}
    assert out.flush(1) and lines(journal) == [b"it has room again"]
    out.close()


def test_a_full_backlog_makes_room_for_one(journal: socket.socket) -> None:
    out = copier(journal)
    for _ in range(BACKLOG_MAX):
        out.say("noise")
    out.say("it drains", priority=CRITICAL)
    assert out.dropped == 1
    told = []
    for _ in range(BACKLOG_MAX // 4):
        out.flush(4)
        told += lines(journal)
    assert told[-1] == b"it drains" and len(told) == BACKLOG_MAX
    out.dropped = 0
    for count in range(BACKLOG_MAX + 2 * KEPT_MAX):
        out.say("it drains", priority=CRITICAL if count >= BACKLOG_MAX else NOTICE)
    out.say("it drains", priority=CRITICAL)
    assert out.dropped == 2 * KEPT_MAX + 1, "bounded all the same"
    told = []
    for _ in range(BACKLOG_MAX // 4):
        out.flush(4)
        told += [entry["PRIORITY"] for entry in entries(journal)]
    assert told.count(b"2") == KEPT_MAX
    out.close()


async def test_the_end_waits_a_moment_for_the_journal_and_then_says_it_elsewhere(
    journal: socket.socket,
) -> None:
    read, write = os.pipe()
    out = Journald(
        JournaldCopy(), monotonic_ns=Ticks(), address=journal.getsockname(), stderr_fd=write
    )
    stuff(out)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run)
            await trio.testing.wait_all_tasks_blocked()
            out.say("it drains", priority=CRITICAL)
            out.say("noise")
            nursery.cancel_scope.cancel()
    out.close()
    assert os.read(read, 4096) == b"leased: it drains\n"
    assert b"it drains" not in lines(journal)
    for end in (read, write):
        os.close(end)


def test_what_is_said_when_no_task_runs_any_more_is_written(
    journal: socket.socket,
) -> None:
    out = copier(journal)
    out.say("the state that is left is not the only one that counts")
    out.close()
    assert len(lines(journal)) == 1
    out.close()
