# SPDX-License-Identifier: Apache-2.0
"""A token that cannot be sent is told, and tried again later: it ends nobody."""

from __future__ import annotations

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
