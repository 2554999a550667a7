# SPDX-License-Identifier: Apache-2.0
"""Of what a receiver of webhooks answers its head counts."""

from __future__ import annotations

import pytest
import trio.testing

from leased.collector.webhooks.guard import parse_target
from leased.collector.webhooks.post import Heard, Line, Undelivered

TARGET = parse_target("https://example.org/hooks")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


async def heard(said: bytes, *, ends: bool) -> tuple[Heard, bool]:
    """What one delivery hears, and whether another may follow."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(said)
    if ends:
        await theirs.send_eof()
    line = Line(ours, TARGET)
    return await line.post([], b"{}", 0), line.reusable


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        OK + b"tru",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(100_000),
    ],
)
@pytest.mark.autojump
async def test_an_answer_whose_body_does_not_come_was_given(said: bytes, ends: bool) -> None:
    assert await heard(said, ends=ends) == (Heard(200), False)
    assert trio.current_time() <= 1


async def test_what_is_answered_whole_is_followed_by_the_next() -> None:
    assert await heard(OK + b"thank", ends=False) == (Heard(200), True)
    assert await heard(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"thank", ends=True) == (
        Heard(200),
        True,
    )


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", b"\0\r\n\r\n"])
async def test_without_a_head_there_is_no_answer(said: bytes) -> None:
    with pytest.raises(Undelivered):
        await heard(said, ends=True)


async def test_an_answer_in_crumbs_is_read_no_further_than_one_that_is_whole() -> None:
    """Each piece of a byte costs the collector what one of 16 KiB does."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    some, many = b"1\r\nx\r\n" * 60, b"1\r\nx\r\n" * 10_000
    assert await heard(head + some + b"0\r\n\r\n", ends=False) == (Heard(200), True)
    assert await heard(head + many + b"0\r\n\r\n", ends=False) == (Heard(200), False)


async def test_who_announces_answers_without_end_has_given_none() -> None:
    with pytest.raises(Undelivered, match="without end"):
        await heard(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 99 + OK, ends=True)
