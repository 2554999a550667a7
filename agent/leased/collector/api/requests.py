# SPDX-License-Identifier: Apache-2.0
"""Requests and responses: between ASGI's dictionaries and the values of the route table.

Rule: what is not in a route's structs is refused and named; a parameter or a key that is given
twice is refused; a body is JSON whatever its Content-Type says if that is absent or what curl says
by itself (`application/x-www-form-urlencoded`), because the documented commands are sent like that.

Does not know routes (`application`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncIterator, Callable, Mapping
from decimal import Decimal
from typing import Any, Final, get_args
from urllib.parse import parse_qsl, unquote

import msgspec
import trio

from leased.collector.api.forms import MEANT
from leased.collector.api.problems import Problem
from leased.collector.api.routes import Route
from leased.terms.errors import ConfigError
from leased.terms.reading import read_json

_KEY: Final = re.compile(r"[!-~]{1,128}")
_MEDIA: Final = re.compile(r"application/(json|[a-z0-9.+-]+\+json|x-www-form-urlencoded)")
_ABSOLUTE: Final = re.compile(rb"(?i)(https?)://([^/?#@]+)(/[^?#]*)?")
_PATH: Final = re.compile(r"^(.*?)(?: - at `\$(.*?)`)?$", re.DOTALL)
_PATTERN: Final = re.compile("matching regex '(.*)'$")
_MEANT: Final = {repr(pattern)[1:-1]: what for pattern, what in MEANT.items()}
"""As an error quotes a pattern."""
_UNKNOWN: Final = re.compile("unknown field `(.*)`$")
_MISSING: Final = re.compile("missing required field `(.*)`$")
_WORDS: Final = re.compile(r"\^\(([a-z0-9.\\|-]+)\)\$(?:\(\?!\\+n\))?")
TAGS: Final = r'^(\*|(W/)?"[!#-~]{1,100}"( *, *(W/)?"[!#-~]{1,100}"){0,15})$'
"""Entity tags, as If-Match and If-None-Match have them."""

QUERY_FIELDS_MAX: Final = 32
BODY_S_MAX: Final = 30
"""Whoever stops in the middle has one of the connections that there are, and may be anybody: an
invite is in the body."""

TAKE_S_MAX: Final = 30
TAKE_BYTES_PER_S: Final = 16 * 1024
"""An answer is waited for so long, and for so much longer as it is larger: over HTTP/2 who gives no
window takes nothing, and is no error of the connection."""

_LAST: Final = {"Connection": "close"}
HEADER_JOINED: Final = frozenset(("accept", "if-match", "if-none-match"))


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """By name in lower case. Raises nothing: what is given twice is joined, or the first counts."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in found and key in HEADER_JOINED:
            found[key] += ", " + text
        else:
            found.setdefault(key, text)
    return found


def origin_form(scope: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request whose target is a whole URL (RFC 9112, 3.2.2) as if it had named the path alone:
    the host of the URL is the one that is asked for, whatever `Host` says. A URL of another scheme
    than the connection's, or with a user in it, is of nothing here."""
    match = _ABSOLUTE.fullmatch(scope.get("raw_path", b""))
    if match is None or not scope["http_version"].startswith("1."):
        return scope
    scheme, authority, path = match.groups()
    if scheme.lower().decode() != scope["scheme"]:
        return scope
    path = path or b"/"
    headers = [pair for pair in scope["headers"] if pair[0].lower() != b"host"]
    headers.append((b"host", authority))
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}


def check_tags(headers: Mapping[str, str]) -> None:
    """Raises Problem 422 for a condition that is none: it would be ignored, and that may hurt."""
    for name in ("If-Match", "If-None-Match"):
        given = headers.get(name.lower())
        if given is not None and re.match(TAGS, given) is None:
            raise Problem(422, 'One or more entity tags, such as "abc".', parameter=name)


def is_key(text: str) -> bool:
    """Whether it may be an Idempotency-Key."""
    return _KEY.fullmatch(text) is not None


def check_accept(headers: Mapping[str, str], media_types: tuple[str, ...]) -> None:
    """Raises Problem 406 if nothing that can be sent is accepted."""
    accepted = headers.get("accept", "*/*")
    for one in accepted.split(","):
        wanted, _, parameters = one.strip().partition(";")
        wanted = wanted.strip().lower()
        if re.search(r"\bq=0(\.0*)?\s*(;|$)", parameters):
            continue
        if wanted in ("*/*", "") or any(_covers(wanted, media) for media in media_types):
            return
    raise Problem(406, f"There is {', '.join(media_types)}.", parameter="Accept")


def prefers(headers: Mapping[str, str], one: str, other: str) -> bool:
    """Whether `one` is accepted, and `other` is not or less."""
    return _weight(headers, one) > _weight(headers, other)


def _weight(headers: Mapping[str, str], media: str) -> float:
    best = (-1, 0.0)
    for part in headers.get("accept", "*/*").split(","):
        wanted, _, parameters = part.strip().partition(";")
        wanted = wanted.strip().lower()
        if wanted == "*/*" or _covers(wanted, media):
            match = re.search(r"\bq=([01](?:\.\d{0,3})?)", parameters)
            exactness = (wanted == media) + (wanted != "*/*")
            best = max(best, (exactness, float(match[1]) if match else 1.0))
    return best[1] if best[0] >= 0 else 0.0


def _covers(wanted: str, media: str) -> bool:
    return media == "*/*" or wanted == media or wanted == media.partition("/")[0] + "/*"


def read_path(route: Route, found: Mapping[str, str]) -> Any:
    """The path's parameters. Raises Problem 404: what cannot be a name names nothing."""
    if route.takes_path is None:
        return None
    try:
        return msgspec.convert(dict(found), route.takes_path)
    except msgspec.ValidationError as error:
        why, where = _named(error, route.takes_path)
        raise Problem(404, why, parameter=where) from None


def read_query(route: Route, query: bytes) -> Any:
    """The query's parameters. Raises Problem 400."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except (UnicodeError, ValueError) as error:
        raise Problem(400, f"The query cannot be read: {error}") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise Problem(400, "Given twice.", parameter=name)
        values[name] = value
    if route.takes_query is None:
        if values:
            raise Problem(400, "This takes no query.", parameter=next(iter(values)))
        return None
    kind = route.takes_query
    try:
        query_read = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        why, where = _named(error, kind)
        raise Problem(400, why, parameter=where) from None
    # The lax reading of text takes "null" for nothing; whoever means nothing leaves it out.
    for field, name in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
        if name in values and getattr(query_read, field) is None:
            raise Problem(400, "This is no value of it; leave it out.", parameter=name)
    return query_read


async def read_body(receive: Any, headers: Mapping[str, str], bytes_max: int) -> bytes:
    """The whole body. Raises Problem 408, 413 or 415."""
    media = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if not _MEDIA.fullmatch(media):
        raise Problem(415, "Send application/json.", parameter="Content-Type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "Send it as it is, not compressed.", parameter="Content-Encoding")
    chunks, size = [], 0
    with trio.move_on_after(BODY_S_MAX):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "The body ended early.")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > bytes_max:
                raise Problem(413, f"At most {bytes_max} bytes.", headers=_LAST)
            if not message.get("more_body"):
                return b"".join(chunks)
    raise Problem(408, f"The body did not come within {BODY_S_MAX} s.", headers=_LAST)


def decode_body(route: Route, raw: bytes) -> Any:
    """The body as the route's struct. Raises Problem 400."""
    if route.takes_body is None:
        return None
    if not raw.strip():
        raise Problem(400, "There is no body. Send a JSON object; {} says nothing.")
    try:
        decoded = msgspec.json.Decoder(route.takes_body, float_hook=_decimal).decode(raw)
        read_json(raw.decode(), "")
    except msgspec.ValidationError as error:
        why, where = _named(error, route.takes_body)
        raise Problem(400, why, parameter=where) from None
    except ConfigError as error:
        raise Problem(400, "Given twice.", parameter=str(error).partition(":")[0]) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Problem(400, f"Not JSON: {error}") from None
    return decoded


def _decimal(text: str) -> Decimal:
    return Decimal(text)


def _named(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> tuple[str, str | None]:
    """What is wrong, what would be right, and with which parameter."""
    match = _PATH.match(str(error))
    assert match is not None
    where = (match[2] or "").removeprefix(".")
    pattern, unknown = _PATTERN.search(match[1]), _UNKNOWN.search(match[1])
    if pattern is not None and pattern[1] in _MEANT:
        return f"It is {_MEANT[pattern[1]]}.", where or None
    if unknown is not None and not where:
        names = ", ".join(kind.__struct_encode_fields__)
        return f"There is no {unknown[1]}; there are {names}.", None
    missing = _MISSING.search(match[1])
    if missing is not None:
        return "It is needed.", f"{where}.{missing[1]}".removeprefix(".")
    words = _WORDS.fullmatch(pattern[1]) if pattern is not None else None
    choices = words[1].replace("\\", "").split("|") if words is not None else _members(kind, where)
    if choices and (words is not None or match[1].startswith("Invalid enum")):
        return f"It is one of {', '.join(choices)}.", where
    return match[1] + ".", where or None


def _members(kind: type[msgspec.Struct], name: str) -> list[str]:
    """The values of a field that is an enumeration."""
    for field in msgspec.structs.fields(kind):
        if field.encode_name == name:
            for one in (field.type, *get_args(field.type)):
                if isinstance(one, type) and issubclass(one, enum.Enum):
                    return [str(member.value) for member in one]
    return []


async def send_whole(send: Any, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """One answer."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    if status not in (204, 304):
        pairs.append((b"content-length", str(len(body)).encode()))
    with _patience(body):
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


def _patience(body: bytes) -> trio.CancelScope:
    return trio.move_on_after(TAKE_S_MAX + len(body) / TAKE_BYTES_PER_S)


async def send_head(send: Any, status: int, headers: Mapping[str, str]) -> None:
    """What goes before a stream, which has no length and here no content either."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b""})


async def send_stream(
    send: Any,
    receive: Any,
    status: int,
    headers: Mapping[str, str],
    chunks: AsyncIterator[bytes],
    holds: Callable[[], bool],
    waiting: dict[trio.CancelScope, Callable[[], bool]],
) -> None:
    """An answer that goes on until it ends, the client goes, the collector stops, or it does not
    hold any more."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(leave)
        waiting[nursery.cancel_scope] = holds
        try:
            async for chunk in chunks:
                if not holds():
                    break
                with _patience(chunk) as taking:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if taking.cancelled_caught:
                    break
        finally:
            del waiting[nursery.cancel_scope]
        nursery.cancel_scope.cancel()
    await send({"type": "http.response.body", "body": b""})
