# SPDX-License-Identifier: Apache-2.0
"""The application: the route table as an ASGI application.

Rule: a request is judged in one order: who asks, how often, whether they may, what they accept,
what they say; then it is carried out, and a write is one transaction together with its seal and the
reply that is kept for its Idempotency-Key. What raises is answered as a problem; what nobody
expected is answered as 500, and goes on to whoever looks after the process.

Does not listen (`server`) and knows no resource (`quotas` and its neighbours).
"""

from __future__ import annotations

import hashlib
import inspect
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import trio
from starlette.routing import Route as Row
from starlette.routing import Router

from leased.collector.accounts.answers import Reach
from leased.collector.accounts.reaching import nameless
from leased.collector.api import requests
from leased.collector.api.callers import CHALLENGE, Gate
from leased.collector.api.pace import Pace
from leased.collector.api.problems import MEDIA_TYPE, Problem
from leased.collector.api.routes import JSON, Answer, Call, Caller, Route, matches
from leased.collector.governance.register import Reply
from leased.terms.errors import ConfigError, InvalidParameter, StateError
from leased.terms.moment import NS_PER_S

FIXED: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
Scope = Mapping[str, Any]


class Keeper(Protocol):
    """What the application needs of the register."""

    def transaction(self) -> AbstractContextManager[None]: ...
    def reply(self, caller: str, key: str) -> Reply | None: ...
    def keep_reply(self, caller: str, key: str, reply: Reply, now_ns: int) -> None: ...


class Application:
    """One ASGI application. `counted` is told of every answer (route, status, seconds)."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        gate: Gate,
        pace: Pace,
        keeper: Keeper,
        wall_ns: Callable[[], int],
        body_bytes_max: int,
        written: Callable[[], None] = lambda: None,
        counted: Callable[[str, int], None] = lambda name, status: None,
    ) -> None:
        self._gate, self._pace, self._keeper = gate, pace, keeper
        self._wall_ns, self._body_bytes_max = wall_ns, body_bytes_max
        self._written, self._counted = written, counted
        self._waiting: dict[trio.CancelScope, Callable[[], bool]] = {}
        self._writer = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(4)
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        # What is spelled out goes before what is a parameter.
        paths = sorted(by_path, key=lambda path: (path.count("{"), path))
        rows = [Row(path, _Endpoint(self, by_path[path])) for path in paths]
        self._router = Router(rows, redirect_slashes=False, default=self._not_found)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (or refuse a WebSocket)."""
        if scope["type"] == "http":
            await self._router(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    def close(self) -> None:
        """End what waits: long polls and streams."""
        for waits in list(self._waiting):
            waits.cancel()

    def look_again(self) -> None:
        """Others may come from now on: end what waits for who may not any more."""
        for waits, is_still in list(self._waiting.items()):
            if not is_still():
                waits.cancel()

    async def _not_found(self, scope: Any, receive: Any, send: Any) -> None:
        detail = "No such path. /v1/openapi.json lists what there is."
        await self.send_problem(scope, send, Problem(404, detail))

    async def serve(self, route: Route, scope: Scope, receive: Any, send: Any) -> None:
        """Carry out one request of a known route."""
        headers = requests.headers_of(scope)
        try:
            call, raw = await self._read(route, scope, headers, receive)
            answer = await self._act(route, call, raw, partial(self._is_still, call, scope))
        except Problem as problem:
            await self.send_problem(scope, send, problem, route)
            return
        except (ConfigError, InvalidParameter) as error:
            await self.send_problem(scope, send, Problem(422, str(error)), route)
            return
        except (StateError, sqlite3.OperationalError) as error:
            busy = Problem(503, f"{error}", headers={"Retry-After": "1"})
            await self.send_problem(scope, send, busy, route)
            return
        except Exception:
            await self.send_problem(scope, send, Problem(500, "See the collector's log."), route)
            raise
        await self._send(route, scope, receive, send, answer, call)

    async def _read(
        self, route: Route, scope: Scope, headers: Mapping[str, str], receive: Any
    ) -> tuple[Call, bytes]:
        now_ns = self._wall_ns()
        caller = self._admit(route, scope, headers, now_ns)
        requests.check_accept(headers, (JSON if route.answer is not None else "*/*", *route.also))
        if route.conditional:
            requests.check_tags(headers)
        path = requests.read_path(route, scope.get("path_params", {}))
        query = requests.read_query(route, scope["query_string"])
        raw = b""
        if route.takes_body is not None:
            raw = await requests.read_body(receive, headers, self._body_bytes_max)
        body = requests.decode_body(route, raw)
        return Call(caller, path, query, body, now_ns, headers), raw

    def _admit(self, route: Route, scope: Scope, headers: Mapping[str, str], now_ns: int) -> Caller:
        try:
            caller = self._caller(scope, headers, now_ns)
        except Problem:
            self._keep_pace(f"unknown:{_peer(scope)}", now_ns)
            if route.scope is None:
                return Caller("anybody", frozenset(), frozenset(), authenticated=False)
            raise
        self._keep_pace(caller.name, now_ns)
        if route.scope is not None and route.scope not in caller.scopes:
            what = f"This needs the scope {route.scope}."
            if not caller.authenticated:
                what += " Without a token this host may only read (access.loopback);"
                what += " send a bearer token."
            raise Problem(403, what)
        return caller

    def _caller(self, scope: Scope, headers: Mapping[str, str], now_ns: int) -> Caller:
        certificate = scope.get("state", {}).get("certificate")
        return self._gate.caller(scope["method"], headers, _peer(scope), certificate, now_ns)

    def _is_still(self, call: Call, scope: Scope) -> bool:
        """Whether who began this would be let in now, and as the same."""
        try:
            return self._caller(scope, call.headers, self._wall_ns()) == call.caller
        except Problem:
            return False

    def _keep_pace(self, name: str, now_ns: int) -> None:
        wait_ns = self._pace.take(name, now_ns)
        if wait_ns:
            after = str(max(1, -(-wait_ns // NS_PER_S)))
            raise Problem(429, f"Try again in {after} s.", headers={"Retry-After": after})

    # -- carrying out ------------------------------------------------------------------------------

    async def _act(
        self, route: Route, call: Call, raw: bytes, still: Callable[[], bool]
    ) -> Answer:
        if route.writes:
            answer = await trio.to_thread.run_sync(
                self._write, route, call, raw, limiter=self._writer
            )
            self._written()
            return answer
        if inspect.iscoroutinefunction(route.act):
            return await self._await(partial(route.act, call), still)
        if route.slow:
            found: Answer = await trio.to_thread.run_sync(
                partial(_answer, route, call), limiter=self._readers, abandon_on_cancel=True
            )
            if found.then is None:
                return found
            return _for(call.caller, await self._await(found.then, still))
        return _for(call.caller, route.act(call))  # type: ignore[arg-type]

    async def _await(
        self, answer: Callable[[], Awaitable[Answer]], still: Callable[[], bool]
    ) -> Answer:
        """What may take long, and ends with the collector, or with who asks. Raises Problem."""
        with trio.CancelScope() as waits:
            self._waiting[waits] = still
            try:
                found = await answer()
            finally:
                del self._waiting[waits]
        if not still():
            detail = "You are not let in any more, or not as before. Ask again."
            raise Problem(401, detail, headers=CHALLENGE)
        if not waits.cancelled_caught:
            return found
        raise Problem(503, "The collector stops.", headers={"Retry-After": "1"})

    def _write(self, route: Route, call: Call, raw: bytes) -> Answer:
        key = call.headers.get("idempotency-key")
        if key is not None and not requests.is_key(key):
            raise Problem(400, "1 to 128 visible characters.", parameter="Idempotency-Key")
        target = f"{route.method} {route.path} {call.path}\n".encode()
        digest = hashlib.sha256(target + raw).digest()
        with self._keeper.transaction():
            if key is not None:
                known = self._keeper.reply(call.caller.name, key)
                if known is not None:
                    return _again(known, digest)
            answer: Answer = route.act(call)  # type: ignore[assignment]
            if key is not None:
                value = answer.value if answer.kept is None else answer.kept
                body = _ENCODER.encode(value) if value is not None else b""
                headers = {**answer.headers, **({"ETag": answer.tag} if answer.tag else {})}
                reply = Reply(digest, _status(route, answer), headers, body)
                self._keeper.keep_reply(call.caller.name, key, reply, call.now_ns)
        return answer

    # -- answering ---------------------------------------------------------------------------------

    async def _send(
        self,
        route: Route,
        scope: Scope,
        receive: Any,
        send: Any,
        answer: Answer,
        call: Call,
    ) -> None:
        headers = {**FIXED, "Cache-Control": "no-store", **answer.headers}
        status = _status(route, answer)
        if answer.tag is not None:
            headers |= {"ETag": answer.tag, "Cache-Control": "private, no-cache"}
            known = call.headers.get("if-none-match")
            if not route.writes and known and matches(known, answer.tag):
                self._counted(route.name, 304)
                await requests.send_whole(send, 304, headers, b"")
                return
        self._counted(route.name, status)
        if answer.stream is not None:
            headers["Content-Type"] = answer.media_type
            if scope["method"] == "HEAD":
                await requests.send_head(send, status, headers)
                return
            still, waiting = partial(self._is_still, call, scope), self._waiting
            told = (status, headers, answer.stream)
            await requests.send_stream(send, receive, *told, still, waiting)
            return
        body = _body(answer)
        if body or status == 200:
            headers["Content-Type"] = answer.media_type
        await requests.send_whole(send, status, headers, body)

    async def send_problem(
        self, scope: Scope, send: Any, problem: Problem, route: Route | None = None
    ) -> None:
        """Answer with a problem."""
        self._counted(route.name if route is not None else "none", problem.status)
        headers = {**FIXED, "Cache-Control": "no-store", "Content-Type": MEDIA_TYPE}
        await requests.send_whole(
            send, problem.status, headers | problem.headers, problem.encoded()
        )


def _peer(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _status(route: Route, answer: Answer) -> int:
    return answer.status if answer.status != 200 else route.status


def _body(answer: Answer) -> bytes:
    if answer.raw is not None:
        return answer.raw
    return _ENCODER.encode(answer.value) if answer.value is not None else b""


def _for(caller: Caller, answer: Answer) -> Answer:
    """An answer as its caller may see it: which nodes are behind is told to who sees them all."""
    reach = getattr(answer.value, "reach", None)
    if caller.tenants is None or not isinstance(reach, Reach):
        return answer
    value = msgspec.structs.replace(answer.value, reach=nameless(reach))
    return msgspec.structs.replace(answer, value=value)


def _answer(route: Route, call: Call) -> Answer:
    """An answer as it is sent. A long one is written where it was found: nobody else waits."""
    found = _for(call.caller, route.act(call))  # type: ignore[arg-type]
    if found.then is not None or found.stream is not None:
        return found
    return msgspec.structs.replace(found, value=None, raw=_body(found))


def _again(known: Reply, request: bytes) -> Answer:
    """The answer of the first time. Raises Problem 422 if it was another request."""
    if known.request != request:
        detail = "This Idempotency-Key belongs to another request; take a new one."
        raise Problem(422, detail, parameter="Idempotency-Key")
    headers = {**known.headers, "Idempotency-Replayed": "true"}
    return Answer(status=known.status, headers=headers, raw=known.body)


class _Endpoint:
    """All methods of one path."""

    def __init__(self, application: Application, routes: Mapping[str, Route]) -> None:
        self._application = application
        self._routes = dict(routes)
        if "GET" in self._routes:
            self._routes.setdefault("HEAD", self._routes["GET"])
        self._allow = {"Allow": ", ".join(sorted((*self._routes, "OPTIONS")))}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        method = scope["method"]
        route = self._routes.get(method)
        if route is not None:
            await self._application.serve(route, scope, receive, send)
        elif method == "OPTIONS":
            await requests.send_whole(send, 204, {**FIXED, **self._allow}, b"")
        else:
            detail = f"{method} is not among {self._allow['Allow']}."
            problem = Problem(405, detail, headers=self._allow)
            await self._application.send_problem(scope, send, problem)
