# SPDX-License-Identifier: Apache-2.0
"""A receiver of OTLP over HTTP and TLS that shares no code with ours: Python's http.server, OpenSSL
and the protocol's own messages, in a process of its own.

    python -m tests.doubles.otlp_receiver CERTIFICATE KEY CA [STATUS[:RETRY-AFTER]]...

Rule: it prints one JSON line for all it sees: its port, then each request with who sent it and
every point. The n-th request is answered with the n-th status, the rest with 200; a body that is
not what its headers say is answered with 400, as the protocol wants. `hang` never answers, `drop`
closes the connection, `crumbs` answers in pieces of a byte, `partial` takes all points but one,
`lie` none of 2^62, and says so in lines.
"""

from __future__ import annotations

import contextlib
import gzip
import json
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
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CRUMBS = CHUNKED + b"1\r\n\n\r\n" * 99 + b"0\r\n\r\n"


class Receiver:
    """One running receiver, as a test sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.port = int(self.next()["port"])

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/v1/metrics"

    def next(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next thing it saw."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], patience_s)
        assert ready, f"nothing within {patience_s} s"
        line = self.process.stdout.readline()
        assert line, "the receiver has ended"
        return dict(json.loads(line))


@contextlib.contextmanager
def receiver(certificate: Path, ca: Path, *statuses: str) -> Iterator[Receiver]:
    """Runs for the block."""
    words = [certificate, certificate.with_suffix(".key"), ca, *statuses]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doubles.otlp_receiver", *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        bufsize=0,  # or a line that is read along with one before it is never ready again
    )
    try:
        yield Receiver(process)
    finally:
        process.kill()
        process.communicate()


def _points(body: bytes) -> Iterator[dict[str, Any]]:
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

    request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
    for told in request.resource_metrics:
        resource = {one.key: one.value.string_value for one in told.resource.attributes}
        for metric in (one for scope in told.scope_metrics for one in scope.metrics):
            kind = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points:
                value = point.WhichOneof("value")
                yield {
                    "name": metric.name,
                    "unit": metric.unit,
                    "kind": kind,
                    "resource": resource,
                    "value": getattr(point, value) if value else None,
                    "flags": point.flags,
                    "time": point.time_unix_nano,
                    "start": point.start_time_unix_nano,
                    "attributes": {one.key: one.value.string_value for one in point.attributes},
                }


def main() -> None:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

    certificate, key, ca, *statuses = sys.argv[1:]
    saying = threading.Lock()

    def say(seen: dict[str, Any]) -> None:
        with saying:
            print(json.dumps(seen), flush=True)

    class Listening(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            shown = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
            names = shown.get("subjectAltName", ())
            try:
                assert self.headers["Content-Encoding"] == "gzip", "not packed"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                points = list(_points(gzip.decompress(body)))
            except (AssertionError, OSError, DecodeError) as error:
                say({"bad": str(error)})
                self._answer(400)
                return
            status = statuses.pop(0) if statuses else "200"
            say({"path": self.path, "from": [v for k, v in names if k == "URI"], "points": points})
            if status == "hang":
                threading.Event().wait()
            if status in ("drop", "crumbs"):
                self.wfile.write(CRUMBS if status == "crumbs" else b"")
                self.close_connection = True
                return
            told = metrics_service_pb2.ExportMetricsServiceResponse()
            if status == "partial":
                told.partial_success.rejected_data_points = 1
                told.partial_success.error_message = "one of them is odd"
                status = "200"
            if status == "lie":
                told.partial_success.rejected_data_points = 1 << 62
                told.partial_success.error_message = "no\x1b[2J\nleased: serving" + "!" * 9000
                status = "200"
            code, _, after = status.partition(":")
            self._answer(int(code), after, told.SerializeToString())

        def _answer(self, code: int, after: str = "", told: bytes = b"") -> None:
            self.send_response(code)
            if after:
                self.send_header("Retry-After", after)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            """Say nothing beside the lines."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listening)
    server.daemon_threads = True
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    say({"port": server.server_address[1]})
    server.serve_forever()


if __name__ == "__main__":
    main()
