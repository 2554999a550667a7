# SPDX-License-Identifier: Apache-2.0
"""What collectors ask over HTTP, and what they are answered: PULL.md, sections 2 and 3.

Rule: every answer is one of that table. Who asks has been proven by certificate; what they may is
decided here, by role, before anything else is looked at. Nothing that is asked changes anything,
the acknowledgement aside.

Does not speak HTTP (`web`) and does not read the log itself (`pulling`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio

from leased.chain.certificate import Identity, Role
from leased.chain.page import PAGE_BYTES_MAX, Trailer, write_trailer
from leased.durable.pages import Page, Pruned
from leased.ports import AnchorSlot, Clock
from leased.service.fleet.config import WAIT_NS_MAX
from leased.service.fleet.countersigning import Countersigning, Denied
from leased.service.fleet.pulling import PulledLog
from leased.service.fleet.web import Answer, Request
from leased.terms.errors import CallerError, ChainError, StateError
from leased.terms.exposition import MEDIA_TYPE
from leased.terms.moment import NS_PER_MS

PREFIX: Final = "/audit/v1/"
DIGITS_MAX: Final = 19
ACK_S: Final = 10
"""An acknowledgement is one commit; a disk that takes longer is answered for with 503."""

WAIT_MS_MAX: Final = WAIT_NS_MAX // NS_PER_MS
RECORDS_TYPE: Final = "application/vnd.leased.records"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
PROBLEM_TYPE: Final = "application/problem+json"
NO_STORE: Final = ("Cache-Control", "no-store")
IMMUTABLE: Final = ("Cache-Control", "private, max-age=31536000, immutable")

_TITLES: Final = {
    "malformed": "This cannot be meant",
    "role": "Not for this certificate",
    "unknown-key": "No signature by the key that was enrolled",
    "not-found": "Nothing is here",
    "method": "Not by this method",
    "timeout": "The request came too late",
    "fork": "The two sides have different records",
    "pruned": "The records are not kept any more",
    "too-large": "Too large",
    "behind": "The log is shorter than that",
    "slow-down": "Too often",
    "head": "The head is too large",
    "unavailable": "The log cannot be read",
}
_WORD_OF: Final = {
    400: "malformed",
    408: "timeout",
    413: "too-large",
    429: "slow-down",
    431: "head",
}


def problem(status: int, word: str, why: str, *headers: tuple[str, str], **members: Any) -> Answer:
    """An answer that is no success (RFC 9457)."""
    document = {
        "type": f"urn:leased:audit:{word}",
        "title": _TITLES[word],
        "status": status,
        "detail": why,
        **members,
    }
    return Answer(status, msgspec.json.encode(document), PROBLEM_TYPE, (*headers, NO_STORE))


def refuse(status: int, why: str) -> Answer:
    """What to say of a request that could not be read."""
    word = _WORD_OF.get(status)
    return problem(status if word else 400, word or "malformed", why)


class AuditRoutes:
    """Answers requests about one log."""

    def __init__(
        self,
        log: PulledLog,
        countersigning: Countersigning,
        *,
        node_id: bytes,
        clock: Clock,
        metrics: Callable[[], str],
        state: Callable[[], tuple[str, str]],
    ) -> None:
        """`state` is how the log is (healthy, drain or failed) and why."""
        self._log = log
        self._countersigning = countersigning
        self._node_id = node_id
        self._clock = clock
        self._metrics = metrics
        self._state = state
        self.answered: dict[int, int] = {}
        self.bytes_sent = 0

    async def attend(self, identity: Identity | None, request: Request) -> Answer:
        """Answer one request."""
        answer = await self._answer(identity, request)
        self.answered[answer.status] = self.answered.get(answer.status, 0) + 1
        self.bytes_sent += len(answer.body)
        return answer

    async def _answer(self, identity: Identity | None, request: Request) -> Answer:
        role = None if identity is None else identity.role
        if role is Role.COLLECTOR or (role is Role.SCRAPER and request.path == "/metrics"):
            assert identity is not None
            try:
                return await self._route(identity, request)
            except CallerError as error:
                return problem(400, "malformed", str(error))
        who = "a certificate of no role in this fleet" if identity is None else identity.uri()
        return problem(403, "role", f"{who} may not ask this")

    async def _route(self, identity: Identity, request: Request) -> Answer:
        """Find who answers. Raises CallerError."""
        if request.path == "/metrics":
            return await self._get(request, self._tell_metrics)
        if request.path == PREFIX + "logs":
            return await self._get(request, self._list_logs)
        log, _, what = request.path.removeprefix(PREFIX).partition("/")
        ours = request.path.startswith(PREFIX) and log == self._log.log_id.hex()
        gets = {
            "checkpoint": self._tell_checkpoint,
            "records": self._send_records,
            "proof": self._prove,
        }
        if not ours or (what != "ack" and what not in gets):
            return problem(404, "not-found", f"{request.path[:200]}: no such path or log")
        try:
            try:
                if what != "ack":
                    answer = await self._get(request, gets[what])
                elif request.method != "POST":
                    answer = problem(405, "method", "POST", ("Allow", "POST"))
                else:
                    answer = await self._take_ack(identity, request)
            except Pruned as error:
                slot, first = self._log.anchored, error.first_seq
                answer = await self._evidence(410, "pruned", str(error), slot, min_seq=first)
        except (ChainError, StateError, OSError, trio.TooSlowError) as error:
            answer = self._unavailable(str(error) or "the log did not answer in time")
        size, state = self._log.anchored.next_seq, self._state()[0]
        told = (("Leased-Log-Size", str(size)), ("Leased-Log-State", state))
        return msgspec.structs.replace(answer, headers=(*answer.headers, *told))

    @staticmethod
    async def _get(request: Request, answer: Callable[[Request], Awaitable[Answer]]) -> Answer:
        if request.method != "GET":
            return problem(405, "method", "GET", ("Allow", "GET"))
        return await answer(request)

    # -- what is asked -----------------------------------------------------------------------------

    async def _tell_metrics(self, request: Request) -> Answer:
        _only(request)
        return Answer(200, self._metrics().encode(), MEDIA_TYPE, (NO_STORE,))

    async def _list_logs(self, request: Request) -> Answer:
        _only(request)
        try:
            first = await self._log.first_seq()
        except (StateError, OSError) as error:
            return self._unavailable(str(error))
        log = {
            "log_id": self._log.log_id.hex(),
            "origin": self._log.origin,
            "vkey": self._log.key.text(),
            "min_seq": first,
            "size": self._log.anchored.next_seq,
            "epoch_ns": self._log.epoch_ns,
            "node_id": self._node_id.hex(),
            "state": self._state()[0],
        }
        return Answer(200, msgspec.json.encode([log]), "application/json", (NO_STORE,))

    async def _tell_checkpoint(self, request: Request) -> Answer:
        _only(request)
        slot = self._log.anchored
        note = self._log.note(await self._log.tree(slot.next_seq, slot))
        return Answer(200, note.encode(), TEXT_TYPE, (NO_STORE,))

    async def _send_records(self, request: Request) -> Answer:
        _only(request, "from", "prev", "max_bytes", "wait")
        first = _number(request, "from")
        prev = _hash(request, "prev")
        bytes_max = _number(request, "max_bytes", PAGE_BYTES_MAX, least=1, most=PAGE_BYTES_MAX)
        wait_ms = _number(request, "wait", 0, most=WAIT_MS_MAX)
        slot = self._log.anchored
        if first > slot.next_seq:
            return await self._behind(slot)
        if first == slot.next_seq:
            if prev not in (None, slot.head):
                return await self._fork(slot, slot.head)
            state, why = self._state()
            if wait_ms and state == "failed":
                return self._unavailable(why)
            if wait_ms:
                await self._log.wait_beyond(first, wait_ms * NS_PER_MS)
            slot = self._log.anchored
            if first == slot.next_seq:
                tree = await self._log.tree(first, slot)
                return self._page(
                    request, Page(first, first, b"", slot.head, slot.head, tree, True)
                )
        page = await self._log.page(first, slot, bytes_max)
        if prev not in (None, page.prev):
            return await self._fork(slot, page.prev)
        return self._page(request, page)

    def _page(self, request: Request, page: Page) -> Answer:
        """Frames and trailer; for ever, unless the log ends there."""
        key_id = self._log.key.key_id.hex()
        tag = f'"{page.first}-{page.next_seq}-{page.head.hex()[:16]}-{key_id}"'
        headers = (NO_STORE,) if page.last else (IMMUTABLE, ("ETag", tag))
        if not page.last and tag in request.headers.get("if-none-match", ""):
            return Answer(304, headers=headers)
        now = self._clock.now()
        trailer = Trailer(
            page.next_seq,
            page.head,
            self._log.note(page.tree),
            now.wall_ns if page.last else 0,
            now.boot_ns if page.last else 0,
        )
        body = page.frames + write_trailer(trailer, self._log.log_id)
        return Answer(200, body, RECORDS_TYPE, headers)

    async def _prove(self, request: Request) -> Answer:
        _only(request, "seq", "size")
        slot = self._log.anchored
        sequence = _number(request, "seq")
        size = _number(request, "size", slot.next_seq)
        if size > slot.next_seq:
            return await self._behind(slot)
        if sequence >= size:
            raise CallerError(f"seq: record {sequence} is not among the first {size}")
        proof = await self._log.prove(sequence, size, slot)
        return Answer(200, msgspec.json.encode(proof), "application/json", (NO_STORE,))

    async def _take_ack(self, identity: Identity, request: Request) -> Answer:
        _only(request)
        try:
            text = request.body.decode()
        except UnicodeDecodeError as error:
            raise CallerError(f"the note is not UTF-8: {error}") from error
        with trio.fail_after(ACK_S):
            taken = await self._countersigning.take(identity.name, text)
        if not isinstance(taken, Denied):
            document = {"size": taken.size, "sequence": taken.sequence}
            return Answer(200, msgspec.json.encode(document), "application/json", (NO_STORE,))
        slot = self._log.anchored
        match taken.status:
            case 416:
                return await self._behind(slot)
            case 409:
                return await self._fork(slot, taken.hash)
            case 429:
                return problem(429, taken.word, taken.why, ("Retry-After", "1"))
        return problem(taken.status, taken.word, taken.why)

    # -- what is wrong -----------------------------------------------------------------------------

    async def _behind(self, slot: AnchorSlot) -> Answer:
        why = f"this log has {slot.next_seq} records; if you have more of it, it was rolled back"
        return await self._evidence(416, "behind", why, slot)

    async def _fork(self, slot: AnchorSlot, digest: bytes) -> Answer:
        why = "what you have before that is not what is here; keep both notes"
        return await self._evidence(409, "fork", why, slot, hash=digest.hex())

    async def _evidence(
        self, status: int, word: str, why: str, slot: AnchorSlot, **members: Any
    ) -> Answer:
        """With the node's own signed word on where it stands."""
        note = self._log.note(await self._log.tree(slot.next_seq, slot))
        return problem(status, word, why, size=slot.next_seq, checkpoint=note, **members)

    def _unavailable(self, why: str) -> Answer:
        size = self._log.anchored.next_seq
        return problem(503, "unavailable", why, ("Retry-After", "5"), verdict=why, size=size)


# ---- parameters ----------------------------------------------------------------------------------


def _only(request: Request, *known: str) -> None:
    """Raises CallerError for a parameter that is not known."""
    for name in request.query:
        if name not in known:
            raise CallerError(f"{name[:40]}: no such parameter here")


def _number(
    request: Request,
    name: str,
    default: int | None = None,
    *,
    least: int = 0,
    most: int = 2**63 - 1,
) -> int:
    """A whole number in its one decimal form. Raises CallerError."""
    text = request.query.get(name)
    if text is None:
        if default is None:
            raise CallerError(f"{name}: is needed")
        return default
    canonical = text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")
    if canonical and len(text) <= DIGITS_MAX and least <= int(text) <= most:
        return int(text)
    raise CallerError(f"{name}: a whole number from {least} to {most}")


def _hash(request: Request, name: str) -> bytes | None:
    """32 bytes in hex, if given. Raises CallerError."""
    text = request.query.get(name)
    if text is None:
        return None
    if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text):
        return bytes.fromhex(text)
    raise CallerError(f"{name}: 64 lower-case hex digits")
