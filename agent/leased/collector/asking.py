# SPDX-License-Identifier: Apache-2.0
"""What is asked of a node, and its answers taken apart (PULL.md sections 2 and 3).

Rule: an answer is a page, a Problem that says something, or Unreachable; nothing a node sends is
believed beyond that.

Does not judge (`ingest`, `reconcile`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from leased.chain.head import Head
from leased.chain.note import NOTE_BYTES_MAX
from leased.chain.page import PAGE_BYTES_MAX
from leased.collector.reconcile import Problem
from leased.collector.transport import Answer, Connection, Unreachable
from leased.terms.reading import UNREADABLE

SMALL_BYTES_MAX: Final = 256 * 1024
BODY_BYTES_MAX: Final = 3 * PAGE_BYTES_MAX
"""A batch is never cut: one of the largest usual segment is 3 MiB, of an unusual one more."""

SAID_CHARS_MAX: Final = 200
"""Of what a node says of itself: it is told in a line, and may be 12 MiB."""

PROBLEM: Final = "application/problem+json"
PAGE_TYPE: Final = "application/vnd.leased.records"


class SlowDown(Unreachable):
    """The node asks for time; `seconds` says how much."""

    def __init__(self, why: str, seconds: int) -> None:
        super().__init__(why)
        self.seconds = seconds


class _Acknowledged(msgspec.Struct):
    """What is answered to an acknowledgement."""

    size: int


class _ProblemBody(msgspec.Struct):
    """The members of a problem document that mean something here."""

    type: str = ""
    detail: str = ""
    size: int | None = None
    hash: str = ""
    min_seq: int | None = None
    checkpoint: str = ""
    verdict: str = ""


async def ask_page(
    connection: Connection,
    log_id: str,
    head: Head,
    *,
    bytes_max: int,
    wait_ms: int,
    timeout_s: float,
    before_body: Callable[[], Awaitable[object]] | None = None,
) -> bytes | Problem:
    """The records after `head`. Raises Unreachable."""
    target = (
        f"/audit/v1/{log_id}/records?from={head.size}&prev={head.hash.hex()}"
        f"&max_bytes={bytes_max}&wait={wait_ms}"
    )
    answer = await _ask(
        connection,
        "GET",
        target,
        timeout_s=timeout_s + wait_ms / 1000,
        body_bytes_max=BODY_BYTES_MAX,
        before_body=before_body,
    )
    if answer.status == 200:
        if answer.headers.get("content-type") != PAGE_TYPE:
            raise Unreachable(f"{target}: answered by something else than a node")
        return answer.body
    return _problem(answer, target)


async def ask_checkpoint(connection: Connection, log_id: str, *, timeout_s: float) -> str | Problem:
    """The node's signed note of its log now. Raises Unreachable."""
    target = f"/audit/v1/{log_id}/checkpoint"
    answer = await _ask(
        connection, "GET", target, timeout_s=timeout_s, body_bytes_max=NOTE_BYTES_MAX
    )
    return _text(answer) if answer.status == 200 else _problem(answer, target)


async def ask_proof(
    connection: Connection, log_id: str, sequence: int, *, timeout_s: float
) -> bytes | Problem:
    """The node's proof that a record is in its tree. Raises Unreachable."""
    target = f"/audit/v1/{log_id}/proof?seq={sequence}"
    answer = await _ask(
        connection, "GET", target, timeout_s=timeout_s, body_bytes_max=SMALL_BYTES_MAX
    )
    return answer.body if answer.status == 200 else _problem(answer, target)


async def acknowledge(
    connection: Connection, log_id: str, note: str, *, timeout_s: float
) -> int | Problem:
    """Hand a cosigned note to the node; the size that it holds as acknowledged. Raises
    Unreachable."""
    target = f"/audit/v1/{log_id}/ack"
    answer = await _ask(
        connection,
        "POST",
        target,
        body=note.encode(),
        timeout_s=timeout_s,
        body_bytes_max=SMALL_BYTES_MAX,
    )
    if answer.status != 200:
        return _problem(answer, target)
    try:
        return msgspec.json.decode(answer.body, type=_Acknowledged).size
    except UNREADABLE as error:
        raise Unreachable(f"{target}: an answer that says no size") from error


async def _ask(
    connection: Connection,
    method: str,
    target: str,
    *,
    timeout_s: float,
    body_bytes_max: int,
    body: bytes = b"",
    before_body: Callable[[], Awaitable[object]] | None = None,
) -> Answer:
    try:
        with trio.fail_after(timeout_s):
            return await connection.ask(
                method, target, body=body, body_bytes_max=body_bytes_max, before_body=before_body
            )
    except trio.TooSlowError as error:
        raise Unreachable(f"{target}: no answer in {timeout_s:g} s") from error


def _problem(answer: Answer, target: str) -> Problem:
    """An answer that is no page. Raises SlowDown, Unreachable."""
    told = _ProblemBody()
    if answer.headers.get("content-type") == PROBLEM:
        try:
            told = msgspec.json.decode(answer.body, type=_ProblemBody)
        except UNREADABLE as error:
            raise Unreachable(f"{target}: {answer.status}, and {error}") from error
    verdict = told.verdict[:SAID_CHARS_MAX]
    detail = told.detail[:SAID_CHARS_MAX] or verdict
    if answer.status in (429, 503):
        after = answer.headers.get("retry-after", "1")
        seconds = int(after) if after.isascii() and after.isdecimal() and len(after) < 6 else 1
        raise SlowDown(f"{target}: {answer.status} {verdict} {detail}".rstrip(), seconds)
    if answer.status not in (404, 409, 410, 416):
        raise Unreachable(f"{target}: {answer.status} {detail}".rstrip())
    word = told.type.rpartition(":")[2][:SAID_CHARS_MAX]
    members = (told.size, told.hash, told.min_seq, told.checkpoint, verdict)
    return Problem(answer.status, word, detail, *members)


def _text(answer: Answer) -> str:
    try:
        return answer.body.decode()
    except UnicodeDecodeError as error:
        raise Unreachable("a note that is not UTF-8") from error
