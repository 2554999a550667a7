# SPDX-License-Identifier: Apache-2.0
"""What cannot be sent, and answers that are none: they are told, and tried again later."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from leased.service.policy.exchange import ExchangeFailed, PolicyExchange
from leased.service.uplink import Collector


@pytest.mark.parametrize("token", [b"caf\xc3\xa9", b"\xff", b"one\ntwo", b"a\0b"])
async def test_a_file_that_holds_no_token(token: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(token)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    told = Collector(f"http://127.0.0.1:{port}", token_file=str(file))
    async with listener:
        with pytest.raises(ExchangeFailed, match="token: not a token"):
            await PolicyExchange(told, "ab" * 16).ask(None, "")
    file.unlink()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    told = Collector(
        f"http://127.0.0.1:{listener.socket.getsockname()[1]}", token_file=str(file)
    )
    async with listener:
        with pytest.raises(ExchangeFailed, match="No such file"):
            await PolicyExchange(told, "ab" * 16).ask(None, "")


CRUMBS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000
PROMISES = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000


@pytest.mark.parametrize(
    "answer",
    [CRUMBS + b"0\r\n\r\n", PROMISES + b"HTTP/1.1 304 Not Modified\r\n\r\n"],
    ids=["crumbs", "promises"],
)
async def test_an_answer_that_is_taken_apart_for_ever_is_none(
    answer: bytes, nursery: trio.Nursery
) -> None:
    """Whoever answers a node so, the collector or who stands before it, had the agent's turns."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(answer)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    told = Collector(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    with pytest.raises(ExchangeFailed, match="or in crumbs"):
        await PolicyExchange(told, "ab" * 16).ask(None, "")
