# SPDX-License-Identifier: Apache-2.0
"""Who stops in the middle of a request, or takes nothing of an answer, is waited for so long."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from leased.collector.api import requests
from leased.collector.api.problems import Problem
from leased.collector.api.server import PIECE_BYTES, Connection

pytestmark = pytest.mark.autojump


async def test_a_body_that_stops_coming() -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        await trio.sleep(0 if messages else float("inf"))
        return messages.pop()

    began = trio.current_time()
    with pytest.raises(Problem) as told:
        await requests.read_body(receive, {}, 1024)
    assert told.value.status == 408 and told.value.headers == {"Connection": "close"}
    assert trio.current_time() - began == requests.BODY_S_MAX


async def test_a_body_that_comes_in_drops() -> None:
    async def receive() -> dict[str, Any]:
        await trio.sleep(1)
        return {"type": "http.request", "body": b" ", "more_body": True}

    with pytest.raises(Problem) as told:
        await requests.read_body(receive, {}, 1024)
    assert told.value.status == 408


async def test_an_answer_that_nobody_takes() -> None:
    """As HTTP/2 without a window: the connection is well, and nothing goes through it."""

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await trio.sleep_forever()

    began = trio.current_time()
    await requests.send_whole(send, 200, {}, b"x" * requests.TAKE_BYTES_PER_S)
    assert trio.current_time() - began == requests.TAKE_S_MAX + 1


class Deaf(trio.abc.SendStream):
    """Takes so many pieces, each at the last moment, and then none."""

    def __init__(self, pieces: int) -> None:
        self.pieces, self.taken, self.closed = pieces, 0, False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(requests.TAKE_S_MAX - 1 if self.taken < self.pieces else float("inf"))
        self.taken += 1

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep(0)

    async def aclose(self) -> None:
        self.closed = True


class Told:
    """A protocol that is told what becomes of its connection."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def handle(self, event: Event) -> None:
        self.events.append(event)


def connection_to(stream: Deaf) -> tuple[Connection, Told]:
    told = Told()
    app: Any = wrap_app(None, 0, "asgi")  # type: ignore[arg-type]
    made = Connection(app, Config(), WorkerContext(None), {}, stream)  # type: ignore[arg-type]
    made.protocol = told  # type: ignore[assignment]
    return made, told


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_a_client_that_reads_slowly_is_waited_for_and_one_that_does_not_is_left(
    taken: int,
) -> None:
    stream = Deaf(taken)
    connection, told = connection_to(stream)
    began = trio.current_time()
    await connection.protocol_send(RawData(bytes(3 * PIECE_BYTES)))
    took = trio.current_time() - began
    whole = taken == 3
    assert took == taken * (requests.TAKE_S_MAX - 1) + (0 if whole else requests.TAKE_S_MAX)
    assert stream.closed is not whole and told.events == ([] if whole else [Closed()])


async def test_a_request_that_is_given_up_cuts_no_frame_but_the_end_does() -> None:
    stream = Deaf(0)
    connection, told = connection_to(stream)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.protocol_send, RawData(b"half of a frame"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        connection.end_by(began + 5)
    assert trio.current_time() - began == 5
    assert stream.closed
