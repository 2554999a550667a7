# SPDX-License-Identifier: Apache-2.0
"""The way to a collector: one request of its API, and what a refusal means.

Rule: plain HTTP to this host only. Over TLS the other end has a certificate that the given CA (or
the host's own) vouches for, with the host's name; and where that certificate is one of the fleet,
it says "collector": a node's does not do. A token is read from a file that nobody else may read,
never from the command line. An answer is bounded, and read whole or not at all.

Does not know what is asked for (`collector`) and does not try again.
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from leased.chain.certificate import Role, read_certificate
from leased.durable.reading import read_file
from leased.terms.errors import (
    EX_DATAERR,
    EX_NOINPUT,
    EX_NOPERM,
    EX_PROTOCOL,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    CallerError,
    InvalidParameter,
    LeasedError,
)
from leased.terms.reading import UNREADABLE

URL: Final = "http://localhost:8080"
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""A year of a fleet's hours as CSV is some tens of MiB; more than this is no answer."""

TOKEN_BYTES_MAX: Final = 4096
PAGE_ROWS: Final = 1000
_JSON: Final = msgspec.json.Decoder(float_hook=Decimal)
_HERE: Final = ("localhost", "127.0.0.1", "::1")
_STATUSES: Final = {
    **dict.fromkeys((400, 413, 415, 422), EX_DATAERR),
    **dict.fromkeys((401, 403), EX_NOPERM),
    404: EX_NOINPUT,
    **dict.fromkeys((405, 406), EX_PROTOCOL),
    **dict.fromkeys((409, 412, 429, 503), EX_TEMPFAIL),
}
_STEPS: Final = {
    401: "send a token: --token-file",
    403: "ask for a token with that scope: `leased-collector token`",
    409: "read it again, and change that",
    412: "read it again, and change that",
}


_OF_CERTIFICATES: Final = {
    **dict.fromkeys((18, 19, 20, 21), "; --ca FILE says whose certificates it may have"),
    **dict.fromkeys((62, 64), "; ask for it by a name that is in it"),
}
"""What helps, by X509_V_ERR: nobody here vouches for it; it is another host's."""


class Unreachable(LeasedError):
    """No collector answers there, or not as one of this fleet does."""

    wire = "io.leased.Collector.Unreachable"
    exit_status = EX_UNAVAILABLE


class Refusal(CallerError):
    """The collector refused: `kind` is the type of its problem, the last part of the URN."""

    wire = "io.leased.Collector.Refusal"

    def __init__(self, status: int, told: Mapping[str, Any], retry_after: str | None) -> None:
        self.kind = str(told.get("type", "")).rpartition(":")[2] or f"status-{status}"
        self.exit_status = _STATUSES.get(status, EX_UNAVAILABLE)
        detail, parameter = str(told.get("detail", "")), told.get("parameter")
        if parameter and not detail.startswith(f"{parameter}: "):
            detail = f"{parameter}: {detail}"
        text = f"{self.kind}: {detail}"
        step = f"try again in {retry_after} s" if retry_after else _STEPS.get(status, "")
        super().__init__(f"{text} ({step})" if step else text)


def add_link(parser: argparse.ArgumentParser) -> None:
    """The options that say where the collector is and who asks; each also by the environment."""
    say = os.environ.get
    parser.add_argument(
        "--url",
        default=say("LEASED_COLLECTOR", URL),
        help=f"where it serves ($LEASED_COLLECTOR; default: {URL})",
    )
    for name, what in (
        ("token-file", "a bearer token, which others may not read"),
        ("ca", "whose certificates it may have (default: those of this host)"),
        ("certificate", "whom to show"),
        ("certificate-key", "and its key"),
    ):
        variable = f"LEASED_COLLECTOR_{name.replace('-', '_').upper()}"
        parser.add_argument(
            f"--{name}",
            type=Path,
            metavar="FILE",
            default=Path(say(variable, "")) if say(variable) else None,
            help=f"{what} (${variable})",
        )


class Link:
    """One connection, made when something is asked for first."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises InvalidParameter."""
        if "@" in options.url:
            # Not repeated: a password may be in it. It would be ignored, and nobody told.
            raise InvalidParameter(
                "url", "no user and no password in it: who asks is said by --token-file"
            )
        try:
            parts = urlsplit(options.url)
            port = parts.port
        except ValueError as error:
            raise InvalidParameter("url", f"{options.url}: {error}") from error
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
            raise InvalidParameter("url", f"{options.url}: such as {URL} or https://host:8443")
        if parts.scheme == "http" and host not in _HERE:
            raise InvalidParameter("url", f"{options.url}: http:// is for this host; use https://")
        self._where = f"{host}:{port or (443 if parts.scheme == 'https' else 80)}"
        self._headers = {"Accept": "application/json"}
        if options.token_file is not None:
            self._headers["Authorization"] = f"Bearer {_read_token(options.token_file)}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(host, port, timeout=options.timeout)
        else:
            self._connection = http.client.HTTPSConnection(
                host, port, timeout=options.timeout, context=_context(options)
            )

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """What is there, as JSON. Raises Refusal, Unreachable."""
        raw = self.raw("GET", path, query)
        try:
            told = _JSON.decode(raw)
        except msgspec.DecodeError as error:
            raise Unreachable(f"{self._where}: {path} is no JSON: {error}") from error
        if not isinstance(told, dict):
            raise Unreachable(f"{self._where}: {path} is no JSON object")
        return told

    def rows(self, path: str, key: str, count: int, **query: object) -> dict[str, Any]:
        """The pages of a list as one answer, up to `count` rows. Raises Refusal, Unreachable."""
        first: dict[str, Any] = {}
        cursor = None
        found: list[Any] = []
        while not first or (cursor is not None and len(found) < count):
            most = min(PAGE_ROWS, count - len(found))
            told = self.get(path, limit=most, cursor=cursor, **query)
            first = first or told
            found += told[key]
            cursor = told.get("next_cursor")
        return {**first, key: found, "next_cursor": cursor}

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None, **headers: str
    ) -> dict[str, Any]:
        """Ask for a change; what it is now. Raises Refusal, Unreachable."""
        sent = None if body is None else msgspec.json.encode(body)
        raw = self.raw(method, path, {}, sent, headers)
        return dict(_JSON.decode(raw)) if raw else {}

    def raw(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of an answer. Raises Refusal, Unreachable."""
        asked = urlencode({k: str(v) for k, v in query.items() if v is not None})
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            if self._connection.sock is None:
                self._connection.connect()
                self._look_who_it_is()
            self._connection.request(method, f"{path}?{asked}" if asked else path, body, sent)
            answer = self._connection.getresponse()
            if answer.headers.get_content_type() == "text/event-stream":
                self._connection.close()
                raise InvalidParameter("path", f"{path}: a stream, which has no end: curl -N")
            raw = answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unreachable(f"{self._where}: {_why(error)}") from error
        if len(raw) > ANSWER_BYTES_MAX:
            self._connection.close()
            raise Unreachable(f"{self._where}: an answer above {ANSWER_BYTES_MAX} bytes")
        if answer.status < 300:
            return raw
        raise Refusal(answer.status, _problem(raw), answer.getheader("retry-after"))

    def _look_who_it_is(self) -> None:
        """A host of the fleet has a certificate of the same CA, maybe with the same name in it."""
        stream = self._connection.sock
        if not isinstance(stream, ssl.SSLSocket):
            return
        try:
            identity = read_certificate(stream.getpeercert(binary_form=True) or b"").identity
        except CallerError:
            return  # none of a fleet: its CA and its name count
        if identity.role is not Role.COLLECTOR:
            self._connection.close()
            raise Unreachable(f"{self._where}: {identity.uri()} answers, and that is no collector")


def below(*parts: str) -> str:
    """A path, of parts that may hold anything."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _why(error: Exception) -> str:
    """Why nobody answered, and what helps."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message + _OF_CERTIFICATES.get(error.verify_code, "")
    why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    why = why or type(error).__name__
    return f"{why}; does `leased-collector serve` run?"


def _problem(raw: bytes) -> Mapping[str, Any]:
    try:
        told = msgspec.json.decode(raw)
    except UNREADABLE:
        return {"detail": "and it does not say why"}
    return told if isinstance(told, dict) else {}


def _read_token(file: Path) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise InvalidParameter("token-file", f"{file}: others may read it (chmod 600)")
        text = read_file(file, most=TOKEN_BYTES_MAX, pipe=True).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a token"
        raise InvalidParameter("token-file", f"{file}: {why}") from error
    if not text or any(character.isspace() for character in text):
        raise InvalidParameter("token-file", f"{file}: not what `leased-collector token` prints")
    return text


def _context(options: argparse.Namespace) -> ssl.SSLContext:
    """What is shown, and how whoever answers is judged. Raises InvalidParameter."""
    try:
        context = ssl.create_default_context(cafile=options.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if options.certificate is not None:
            context.load_cert_chain(options.certificate, options.certificate_key)
    except OSError as error:  # an SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        files = f"{options.ca}, {options.certificate}"
        raise InvalidParameter("certificate", f"{files}: cannot be used ({why})") from error
    return context
