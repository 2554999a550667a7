# SPDX-License-Identifier: Apache-2.0
"""The verb audit enrol: this node enrols its log at a collector, by an invite.

Rule: the invite is read from a file or standard input, never from the command line. Its secret is
sent to nobody but whoever shows a certificate of the CA whose hash the invite names. The key of the
certificate is made here and stays here.

Does not follow a log (`leased-collector` does) and changes no configuration.
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from leased.chain.invitation import Invitation, parse_invitation, request_message
from leased.chain.signing import parse_pem
from leased.ctl import minting
from leased.ctl.console import Console
from leased.ctl.pki import PKI_DIRECTORY, put_files
from leased.ctl.proofs import enrolment_document
from leased.ctl.usage_text import Verbs, verb
from leased.durable.files import DirectoryDisk
from leased.durable.keyfile import KEY_FILE
from leased.durable.reading import read_file
from leased.terms.errors import CallerError, InvalidParameter, PermissionDenied, StateError
from leased.terms.reading import UNREADABLE

TOKEN_BYTES_MAX: Final = 4096
ANSWER_BYTES_MAX: Final = 1 << 20
TIMEOUT_S: Final = 30
PORT: Final = 8443


def register(below: Verbs, directory: Path) -> None:
    """Add the verb to those of `audit`."""
    one = verb(
        below,
        "enrol",
        "enrol this node's log at a collector, by an invite",
        "leasectl audit enrol https://collector:8443 --invite-file /run/invite",
    )
    one.add_argument("url", help="where the collector serves: https://host:port")
    one.add_argument(
        "--invite-file",
        required=True,
        metavar="FILE",
        help='what `leased-collector invite` printed ("-": standard input)',
    )
    one.add_argument("--log", type=Path, default=directory, metavar="DIR", help="of this log")
    one.add_argument(
        "--without-seal-key", action="store_true", help="keep the key of the open epoch here"
    )
    one.add_argument(
        "--dir",
        type=Path,
        default=PKI_DIRECTORY,
        help=f"where the certificate goes (default: {PKI_DIRECTORY})",
    )
    one.set_defaults(act=enrol)


def enrol(options: argparse.Namespace, console: Console) -> int:
    """Enrol."""
    invite = _read_invite(options.invite_file)
    seal_key = not options.without_seal_key
    document = enrolment_document(options.log, console.wall_ns(), with_seal_key=seal_key)
    enrolment = msgspec.json.encode(document).decode()
    stem = f"node-{document['node_id']}"
    asks = not (options.dir / f"{stem}.pem").exists()
    left = options.dir / f"{stem}.key"
    if asks and left.exists():  # before the invite is used up
        raise CallerError(f"{left} is there without its certificate; remove it")
    key, request = minting.request(document["node_id"]) if asks else (b"", b"")
    signature = _sign(options.log, request_message(enrolment, request.decode(), invite.id))
    body = {"enrolment": enrolment, "request": request.decode(), "signature": signature}
    host, port = _where(options.url)
    ca = _known_ca(host, port, invite.ca_sha256)
    told = _send(host, port, ca, invite, msgspec.json.encode(body))
    files = []
    if told["certificate"]:
        options.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = minting.Minted(told["certificate"].encode(), key)
        put_files(options.dir, stem, made)
        files = [str(options.dir / f"{stem}.pem"), str(options.dir / f"{stem}.key")]
        if not (options.dir / "ca.pem").exists():
            (options.dir / "ca.pem").write_bytes(ca)
    result = {"name": told["name"], "log_id": told["log_id"], "files": files}
    line = f"enrolled as {told['name']}: log {told['log_id']} is followed there"
    console.answer(options.json, result, line, *(f"  {file}" for file in files))
    if asks and not files and not options.json:
        console.note("no certificate was made there: make one with `leasectl pki node`")
    return 0


def _read_invite(file: str) -> Invitation:
    """Raises InvalidParameter."""
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(TOKEN_BYTES_MAX)
        else:
            if os.stat(file).st_mode & 0o077:
                raise InvalidParameter("invite-file", f"{file}: others may read it (chmod 600)")
            raw = read_file(file, most=TOKEN_BYTES_MAX, pipe=True)
    except OSError as error:
        raise InvalidParameter("invite-file", f"{file}: {error.strerror}") from error
    found = parse_invitation(raw.decode("ascii", "replace"))
    if found is None:
        raise InvalidParameter("invite-file", f"{file}: not what `leased-collector invite` prints")
    return found


def _sign(log: Path, signed: bytes) -> str:
    """By the log's key. Raises StateError."""
    with closing(DirectoryDisk(log)) as disk:
        try:
            return b64encode(parse_pem(disk.read(KEY_FILE)).sign(signed)).decode()
        except (OSError, ValueError) as error:
            raise StateError(f"{log / KEY_FILE}: {error}; run it as root on the node") from error


def _where(url: str) -> tuple[str, int]:
    if "@" in url:  # not repeated: a password may be in it
        raise InvalidParameter("url", "no user and no password in it: the invite says who asks")
    try:
        parts = urlsplit(url)
        port = parts.port or PORT
    except ValueError as error:
        raise InvalidParameter("url", f"{url}: {error}") from error
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise InvalidParameter("url", f"{url}: a collector's address is https://host:port")
    return parts.hostname, port


def _known_ca(host: str, port: int, pin: str) -> bytes:
    """The CA's certificate, as anybody may fetch it; believed by its hash alone. Raises
    CallerError."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    status, raw = _ask(host, port, anybody, "GET", "/v1/ca", None, {})
    if status != 200 or minting.fingerprint(raw) != pin:
        raise CallerError(f"{host}:{port} does not show the CA that the invite names: do not go on")
    return raw


def _send(host: str, port: int, ca: bytes, invite: Invitation, body: bytes) -> dict[str, Any]:
    """Hand the request in, to whom the CA vouches for. Raises CallerError, PermissionDenied."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca.decode("ascii"))
    headers = {"Authorization": f"Bearer {invite.text()}", "Content-Type": "application/json"}
    status, raw = _ask(host, port, context, "POST", "/v1/enrolments", body, headers)
    try:
        told = msgspec.json.decode(raw)
    except UNREADABLE as error:
        raise CallerError(f"{host}:{port}: {status}, and no JSON: {error}") from error
    if status == 200:
        return dict(told)
    kind = str(told.get("type", "")).rpartition(":")[2]
    why = f"{host}:{port}: {kind}: {told.get('detail', '')}"
    raise PermissionDenied(why) if status in (401, 403) else CallerError(why)


def _ask(
    host: str,
    port: int,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise StateError(f"{host}:{port}: {error}; is `leased-collector serve` there?") from error
    finally:
        connection.close()
