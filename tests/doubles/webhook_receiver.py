# SPDX-License-Identifier: Apache-2.0
"""A receiver of webhooks that shares no code with ours: Python's http.server over TLS, the
`standardwebhooks` library and the `cloudevents` one, in a process of its own.

    python -m tests.doubles.webhook_receiver CERTIFICATE KEY [STATUS[:HEADER]]...

Rule: it prints one JSON line for all it hears: its port, then each request as it came. The n-th
request is answered with the n-th status, the rest with 200. `hang` never answers, `drop` closes the
connection, `slow` answers 200 after a third of a second; `302:URL` redirects there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 30


class Receiver:
    """One running receiver, as a test sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._read = b""
        self.port = int(self.next()["port"])

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/hooks?of=test"

    def next(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next request: `headers` by lower-case name, `body` as text."""
        while b"\n" not in self._read:
            assert self._more(patience_s), f"nothing within {patience_s} s"
        line, _, self._read = self._read.partition(b"\n")
        return dict(json.loads(line))

    def hears_nothing(self) -> bool:
        """Whether nothing has come until now."""
        return not self._read and not self._more(0)

    def _more(self, patience_s: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], patience_s)[0]:
            return False
        found = os.read(self.process.stdout.fileno(), 65536)
        assert found, "the receiver has ended"
        self._read += found
        return True


def judged(heard: dict[str, Any], secret: str) -> dict[str, Any]:
    """A request that two other people's libraries hold for genuine: its event. Raises what they
    raise."""
    from cloudevents.v1.http import from_http
    from standardwebhooks import Webhook

    event: dict[str, Any] = Webhook(secret).verify(heard["body"].encode(), heard["headers"])
    read = from_http(heard["headers"], heard["body"].encode())
    assert read["id"] == heard["headers"]["webhook-id"] == event["id"]
    assert read["specversion"] == "1.0" and read["type"] == event["type"]
    assert len(heard["body"]) <= 20_000
    return event


@contextlib.contextmanager
def receiver(certificate: Path, *statuses: str) -> Iterator[Receiver]:
    """Runs for the block."""
    words = [certificate, certificate.with_suffix(".key"), *statuses]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doubles.webhook_receiver", *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    try:
        yield Receiver(process)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    certificate, key, *statuses = sys.argv[1:]
    saying = threading.Lock()

    def say(seen: dict[str, Any]) -> None:
        with saying:
            print(json.dumps(seen), flush=True)

    class Listening(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, _, more = (statuses.pop(0) if statuses else "200").partition(":")
            say({"path": self.path, "headers": headers, "body": body, "answered": status})
            if status == "hang":
                threading.Event().wait()
            if status == "slow":
                threading.Event().wait(1 / 3)
                status = "200"
            if status == "drop":
                self.close_connection = True
                return
            self.send_response(int(status))
            if status == "302":
                self.send_header("Location", more)
            elif more:
                self.send_header("Retry-After", more)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing beside the lines."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listening)
    server.daemon_threads = True
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    say({"port": server.server_address[1]})
    server.serve_forever()


if __name__ == "__main__":
    main()
