# SPDX-License-Identifier: Apache-2.0
"""One question to the collector: "is there another policy for this node than the one I have?"

Rule: a connection per question, with a deadline above the time that the collector may wait; what
comes back is bounded, and is text until somebody has checked its signature.

Does not check it (`chain.policy_note`) and does not try again (`uplink`).
"""

from __future__ import annotations

import ssl
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import h11
import trio

from leased.durable.reading import read_file
from leased.service.policy.waiting import HEADER
from leased.service.uplink import Collector
from leased.terms.moment import NS_PER_S
from leased.terms.pieces import Pieces
from leased.terms.reading import UNREADABLE, read_answer

CONNECT_S: Final = 10
ANSWER_S: Final = 15
"""Above the time that was asked for: the way there and back."""

ANSWER_BYTES_MAX: Final = 16 << 20
"""A policy of 50,000 tenants."""

READ_BYTES: Final = 8192
"""In crumbs they are taken apart in 30 ms, in which nothing else is done."""

UNCHANGED: Final = 304


class ExchangeFailed(Exception):
    """No answer, or none that can be used. Says why."""


class Offer(NamedTuple):
    """What the collector offers: a signed note and the policy that it names."""

    note: str
    policy: str


class PolicyExchange:
    """Asks. `node` is this node's id in hex."""

    def __init__(self, collector: Collector, node: str) -> None:
        parts = urlsplit(collector.url)
        self._collector = collector
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = parts.scheme == "https"
        self._target = f"/v1/nodes/{node}/policy?wait={collector.wait_ns // NS_PER_S}"
        self._authority = f"[{self._host}]" if ":" in self._host else self._host

    async def ask(self, generation: int | None, waiting: str) -> Offer | None:
        """Another policy than that of `generation`; None: there is none. `waiting` is who waits
        here for more. Raises ExchangeFailed."""
        limit_s = CONNECT_S + ANSWER_S + self._collector.wait_ns / NS_PER_S
        try:
            with trio.fail_after(limit_s):
                stream = await self._connect()
                async with stream:
                    status, body = await self._exchange(stream, generation, waiting)
        except trio.TooSlowError:
            raise ExchangeFailed(f"no answer in {limit_s:.0f} s") from None
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ExchangeFailed(str(error.__cause__ or error) or "connection lost") from error
        except h11.RemoteProtocolError as error:
            raise ExchangeFailed(f"not HTTP: {error}") from error
        except (UnicodeDecodeError, h11.LocalProtocolError) as error:
            raise ExchangeFailed(f"{self._collector.token_file}: not a token") from error
        if status == UNCHANGED:
            return None
        return _read_offer(status, body)

    async def _connect(self) -> trio.abc.Stream:
        with trio.fail_after(CONNECT_S):
            stream: trio.abc.Stream = await trio.open_tcp_stream(self._host, self._port)
        if not self._tls:
            return stream
        collector = self._collector
        context = ssl.create_default_context(cafile=collector.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if collector.certificate:
            context.load_cert_chain(collector.certificate, collector.certificate_key)
        return trio.SSLStream(stream, context, server_hostname=self._host, https_compatible=True)

    def _request(self, generation: int | None, waiting: str) -> h11.Request:
        headers = [
            ("Host", f"{self._authority}:{self._port}"),
            ("Accept", "application/json"),
            ("Connection", "close"),
        ]
        if generation is not None:
            headers.append(("If-None-Match", f'"{generation}"'))
        if waiting:
            headers.append((HEADER, waiting))
        if self._collector.token_file:
            token = read_file(self._collector.token_file).decode("ascii").strip()
            headers.append(("Authorization", f"Bearer {token}"))
        return h11.Request(method="GET", target=self._target, headers=headers)

    async def _exchange(
        self, stream: trio.abc.Stream, generation: int | None, waiting: str
    ) -> tuple[int, bytes]:
        connection = h11.Connection(h11.CLIENT)
        request = await trio.to_thread.run_sync(self._request, generation, waiting)
        for event in (request, h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")
        status, body, pieces = 0, bytearray(), Pieces(ANSWER_BYTES_MAX)
        while True:
            told = await _next(connection, stream)
            if isinstance(told, h11.Response):
                status = told.status_code
            elif isinstance(told, h11.EndOfMessage):
                return status, bytes(body)
            elif not isinstance(told, h11.Data | h11.InformationalResponse):
                raise ExchangeFailed("the connection ended before the answer did")
            else:
                data = told.data if isinstance(told, h11.Data) else b""
                body += data
                if not pieces.fit(len(data)):
                    raise ExchangeFailed(f"more than {ANSWER_BYTES_MAX} bytes, or in crumbs")


async def _next(connection: h11.Connection, stream: trio.abc.Stream) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))


def _read_offer(status: int, body: bytes) -> Offer:
    try:
        found = read_answer(body)
        if status == 200:
            return Offer(str(found["note"]), str(found["policy"]))
        said = str(found["detail"])[:200]
    except (*UNREADABLE, KeyError, TypeError):
        said = "an answer that is no answer"
    raise ExchangeFailed(f"status {status}: {said}")
