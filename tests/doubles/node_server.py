# SPDX-License-Identifier: Apache-2.0
"""A node's listener over real TLS, serving a `PulledNode` as PULL.md says, and only that.

It argues back: what the protocol does not allow ends the test (`complaints`). `sabotage` is asked
before each answer and may replace it, so that a lost answer or a page of garbage can be played.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from leased.chain.certificate import Role
from leased.chain.note import COSIGNATURE_V1, NoteKey, open_note, parse_checkpoint
from leased.chain.proof import inclusion_path, subtree_of
from leased.collector.reconcile import Problem
from leased.terms import event as e
from leased.terms.errors import ChainError
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.nodes import PulledNode

Reply = tuple[int, str, bytes]
Sabotage = Callable[[str, Reply], Reply | None]


class NodeServer:
    """One listener. `node` may be exchanged while it runs, as when a host is restored."""

    def __init__(self, node: PulledNode) -> None:
        self.node = node
        node.clock = time.time_ns
        self.cosigner: NoteKey | None = None
        self.acked: list[int] = []
        self.requests: list[str] = []
        self.shown: list[bytes | None] = []
        """The certificate that came with each request."""
        self.complaints: list[str] = []
        self.sabotage: Sabotage = lambda target, reply: reply
        self.open_now = 0
        self.open_most = 0
        self.seal_acks = True
        self.retry_after = ""
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def serve_connection(self, stream: trio.SSLStream) -> None:
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass
        finally:
            self.open_now -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SSLStream) -> None:
        http = h11.Connection(h11.SERVER)
        body = b""
        request = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                target = request.target.decode()
                self.requests.append(target)
                self.shown.append(stream.getpeercert(binary_form=True))
                reply = self.sabotage(target, await self._reply(request.method, target, body))
                if reply is None:
                    return
                status, kind, content = reply
                headers = [("content-type", kind), ("content-length", str(len(content)))]
                if self.retry_after:
                    headers.append(("retry-after", self.retry_after))
                out = http.send(h11.Response(status_code=status, headers=headers))
                out += http.send(h11.Data(data=content)) + http.send(h11.EndOfMessage())
                await stream.send_all(out)
                http.start_next_cycle()
            else:
                return

    async def _reply(self, method: bytes, target: str, body: bytes) -> Reply:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        log, _, what = parts.path.removeprefix("/audit/v1/").partition("/")
        if log != self.node.log_id.hex():
            return self._problem(Problem(404, "not-found"))
        if what == "records":
            return await self._records(query)
        if what == "checkpoint":
            return 200, "text/plain; charset=utf-8", self.node.note().encode()
        if what == "proof":
            return 200, "application/json", self.proof(int(query["seq"]))
        if what == "ack" and method == b"POST":
            return self._ack(body.decode())
        self.complaints.append(f"asked for {method!r} {target}")
        return self._problem(Problem(404, "not-found"))

    async def _records(self, query: dict[str, str]) -> Reply:
        first, prev = int(query["from"]), bytes.fromhex(query["prev"])
        with trio.move_on_after(int(query["wait"]) / 1000):
            while first == self.node.size:
                await self.node.grown.wait()
        answer = self.node.page(first, prev, int(query["max_bytes"]))
        if isinstance(answer, Problem):
            return self._problem(answer)
        return 200, "application/vnd.leased.records", answer

    def proof(self, sequence: int) -> bytes:
        node = self.node
        path = inclusion_path(
            sequence, node.size, lambda start, stop: subtree_of(node.hashes[start:stop])
        )
        key = NoteKey(node.origin, node.signer.public_key)
        return json.dumps(
            {
                "format": "leased-proof/1",
                "log_id": node.log_id.hex(),
                "origin": node.origin,
                "vkey": key.text(),
                "sequence": sequence,
                "size": node.size,
                "record_hash": node.hashes[sequence].hex(),
                "path": [one.hex() for one in path],
                "checkpoint": node.note(),
            }
        ).encode()

    def _ack(self, note: str) -> Reply:
        assert self.cosigner is not None and self.cosigner.kind == COSIGNATURE_V1
        try:
            signed = open_note(note, [self.cosigner])
        except ChainError as error:
            self.complaints.append(f"an acknowledgement that does not hold: {error}")
            return self._problem(Problem(403, "unknown-key"))
        checkpoint = parse_checkpoint(signed.text)
        if checkpoint.size > self.node.size:
            return self._problem(Problem(416, "behind", size=self.node.size))
        if checkpoint.root != self.node.tree(checkpoint.size).root():
            return self._problem(Problem(409, "fork", checkpoint=self.node.note()))
        self.acked.append(checkpoint.size)
        if self.seal_acks:
            raw = signed.signatures[0].signature
            fields = (checkpoint.size, checkpoint.root, 1, int.from_bytes(raw[:8], "big"), raw[8:])
            self.node.seal([e.HeadCountersigned(e.EventId(self.node.entropy()), *fields)])
        return 200, "application/json", json.dumps({"size": checkpoint.size}).encode()

    def _problem(self, problem: Problem) -> Reply:
        members = {
            "type": f"urn:leased:audit:{problem.word}",
            "status": problem.status,
            "size": self.node.size,
            "hash": problem.hash,
            "min_seq": problem.min_seq,
            "checkpoint": problem.checkpoint,
        }
        return problem.status, "application/problem+json", json.dumps(members).encode()


@asynccontextmanager
async def serving(pki: FleetPki, *servers: NodeServer) -> AsyncIterator[None]:
    """The servers, listening on ports of their own until the block ends."""
    async with trio.open_nursery() as nursery:
        for server in servers:
            certificate = pki.issue(Role.NODE, server.node.node_id.hex())
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            context.load_verify_locations(pki.ca)
            [listener] = await trio.open_tcp_listeners(server.port, host="127.0.0.1")
            server.port = listener.socket.getsockname()[1]
            tls = trio.SSLListener(listener, context, https_compatible=True)
            nursery.start_soon(trio.serve_listeners, server.serve_connection, [tls])
        yield
        nursery.cancel_scope.cancel()
