# SPDX-License-Identifier: Apache-2.0
"""HTTP over streams in memory and a clock that tests turn: whatever a peer sends, the conversation
ends or goes on, and nothing else happens."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from leased.service.fleet.config import Listening
from leased.service.fleet.routes import refuse
from leased.service.fleet.web import Answer, Request, converse

LIMITS = Listening(requests_per_s_max=1_000_000)


YES = Answer(200, b"yes", "text/plain")


class Echo:
    """Remembers what was asked and answers with what it is told to."""

    def __init__(self, answer: Answer = YES) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    async def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        return self.answer


async def _talk(sent: bytes, echo: Echo, limits: Listening = LIMITS) -> bytes:
    """Everything that comes back if this is sent and no more."""
    client, server = trio.testing.memory_stream_pair()
    await client.send_all(sent)
    await client.send_eof()
    await converse(server, echo, refuse, limits)
    await server.aclose()
    back = b""
    while part := await client.receive_some():
        back += part
    return back


HEAD = b"GET /a/b?x=1&y=%20 HTTP/1.1\r\nHost: node\r\n\r\n"


async def test_a_request_is_taken_apart_and_answered() -> None:
    echo = Echo()
    back = await _talk(HEAD, echo)
    [asked] = echo.asked
    assert (asked.method, asked.path, asked.query) == ("GET", "/a/b", {"x": "1", "y": " "})
    assert back.startswith(b"HTTP/1.1 200 \r\n")
    assert back.endswith(b"Content-Length: 3\r\nContent-Type: text/plain\r\n\r\nyes")


async def test_bodies_come_whole_however_they_are_sent() -> None:
    echo = Echo()
    await _talk(b"POST /ack HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\n\r\nhello", echo)
    chunked = b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    await _talk(
        b"POST /ack HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked, echo
    )
    assert [one.body for one in echo.asked] == [b"hello", b"hello"]


async def test_a_body_that_is_waited_for_is_asked_for() -> None:
    echo = Echo()
    client, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, server, echo, refuse, LIMITS)
        await client.send_all(
            b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.receive_some()).startswith(b"HTTP/1.1 100")
        await client.send_all(b"ok")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
        await client.send_eof()
    assert [one.body for one in echo.asked] == [b"ok"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99_999, b"413"),
        (
            b"POST / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1\r\nx\r\n" * 100,
            b"413",
        ),
        (b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"y" * 20_000, b"431"),
        (b"GET /?x=1&x=2 HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (b"GET /%ff HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (b"GET /?%ff HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (
            b"GET /?"
            + b"&".join(b"a%d=1" % n for n in range(50))
            + b" HTTP/1.1\r\nHost: n\r\n\r\n",
            b"400",
        ),
        (b"HELLO\r\n\r\n", b"400"),
    ],
)
async def test_what_cannot_be_meant_is_answered_so(sent: bytes, status: bytes) -> None:
    echo = Echo()
    back = await _talk(sent, echo)
    assert back.startswith(b"HTTP/1.1 " + status), back[:80]
    assert not echo.asked


@pytest.mark.autojump
async def test_a_head_that_does_not_end_and_a_peer_that_says_nothing() -> None:
    for sent, told in ((b"", b""), (b"GET / HTT", b"HTTP/1.1 408")):
        client, server = trio.testing.memory_stream_pair()
        await client.send_all(sent)
        began = trio.current_time()
        await converse(server, Echo(), refuse, LIMITS)
        waited_s = trio.current_time() - began
        assert waited_s == pytest.approx(LIMITS.idle_ns / 1e9 if not sent else LIMITS.head_ns / 1e9)
        await server.aclose()
        assert (await client.receive_some()).startswith(told)


@pytest.mark.autojump
async def test_a_peer_that_does_not_read_is_let_go() -> None:
    client, server = trio.testing.lockstep_stream_pair()
    echo = Echo(Answer(200, bytes(1 << 20)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, HEAD)
        began = trio.current_time()
        await converse(server, echo, refuse, LIMITS)
        assert trio.current_time() - began == pytest.approx(LIMITS.write_ns / 1e9)
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_requests_beyond_the_rate_are_put_off() -> None:
    echo = Echo()
    limits = msgspec.structs.replace(LIMITS, requests_per_s_max=3)
    began = int(trio.current_time())
    back = await _talk(HEAD * 8, echo, limits)
    # Who is told so is told when the second is over: whatever it sends, it gets no more of them.
    assert (back.count(b"HTTP/1.1 200"), back.count(b"HTTP/1.1 429")) == (6, 2)
    assert trio.current_time() == began + 2 and len(echo.asked) == 6


async def test_an_answer_that_closes_is_the_last() -> None:
    echo = Echo(Answer(403, b"no", "text/plain", closes=True))
    back = await _talk(HEAD * 3, echo)
    assert back.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in back


_TOKENS = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/",
        b"/audit/v1/logs",
        b"?from=0",
        b"%",
        b"%zz",
        b"&",
        b"=",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"Host: n\r\n",
        b"Content-Length: 3\r\n",
        b"\r\n",
        b"\n",
        b"Content-Length: 3, 4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\n",
        b"\x00",
        b"\xff",
        b"CONNECT n:1",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"abc",
        b": ",
        b" ",
        b"http://[",
    ]
)


@given(st.lists(_TOKENS | st.binary(max_size=8), max_size=24))
def test_nothing_a_peer_sends_raises(parts: list[bytes]) -> None:
    trio.run(_talk, b"".join(parts), Echo())


async def test_a_head_request_has_no_body_and_the_next_one_its_answer() -> None:
    """A body would be more than the protocol has room for: that ended the whole agent."""
    echo = Echo()
    back = await _talk(HEAD.replace(b"GET", b"HEAD", 1) + HEAD, echo)
    first, second, body = back.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200") and b"Content-Length: 3" in first
    assert second.startswith(b"HTTP/1.1 200") and body == b"yes"
    refused = await _talk(b"HEAD /%ff HTTP/1.1\r\nHost: n\r\n\r\n", echo)
    assert refused.startswith(b"HTTP/1.1 400") and refused.endswith(b"\r\n\r\n")
    broken = b"HEAD / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"
    assert (await _talk(broken, echo)).startswith(b"HTTP/1.1 400")
    assert [one.method for one in echo.asked] == ["HEAD", "GET"]
