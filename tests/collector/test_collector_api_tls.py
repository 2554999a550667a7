# SPDX-License-Identifier: Apache-2.0
"""The API over mutual TLS: who shows a certificate of the fleet is known by it, and nobody else."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.chain.certificate import Role
from tests.doubles.collector_server import CollectorServer, over_tls
from tests.doubles.fleet_pki import FleetPki

NODE, OTHER = "1" * 32, "2" * 32


@pytest.fixture
def server(tmp_path: Path, pki: FleetPki) -> Iterator[CollectorServer]:
    with over_tls(tmp_path / "collector", pki) as running:
        yield running


def port_of(server: CollectorServer) -> int:
    return int(re.sub(r".*:", "", server.wait_for(r"serving https://127\.0\.0\.1:\d+$")[0]))


def ask(port: int, context: ssl.SSLContext, path: str) -> tuple[int, object]:
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        is_json = "json" in (answer.getheader("content-type") or "")
        return answer.status, json.loads(body) if is_json else body
    finally:
        connection.close()


def test_a_certificate_says_who_asks(server: CollectorServer, pki: FleetPki) -> None:
    port = port_of(server)
    node = pki.client(pki.issue(Role.NODE, NODE))
    status, offer = ask(port, node, f"/v1/nodes/{NODE}/policy")
    assert status == 200 and isinstance(offer, dict) and pki.fleet in offer["note"]
    assert ask(port, node, f"/v1/nodes/{OTHER}/policy")[0] == 404
    assert ask(port, node, "/v1/governance/quotas")[0] == 403
    # The whole URL, of the scheme that is spoken here (RFC 9112, 3.2.2).
    assert ask(port, node, f"https://localhost:{port}/v1/nodes/{NODE}/policy")[0] == 200
    assert ask(port, node, f"http://localhost:{port}/v1/nodes/{NODE}/policy")[0] == 404
    scraper = pki.client(pki.issue(Role.SCRAPER, "prometheus"))
    status, metrics = ask(port, scraper, "/metrics")
    assert status == 200 and "leased_policy_generation" in str(metrics)
    assert ask(port, scraper, "/v1/governance/costs")[0] == 403
    # Another role of the fleet is nobody here; who shows nothing is somebody on this host.
    assert ask(port, pki.client(pki.issue(Role.COLLECTOR, "east")), "/metrics")[0] == 200
    assert ask(port, pki.client(None), f"/v1/nodes/{NODE}/policy")[0] == 403


def test_who_connects_without_end_keeps_nobody_out(tmp_path: Path, pki: FleetPki) -> None:
    """Without a certificate, or with a node's: the limit of connections kept out whoever came."""
    with over_tls(tmp_path / "collector", pki, more="\nconnections_max = 5") as server:
        port = port_of(server)
        nodes = [pki.client(pki.issue(Role.NODE, name)) for name in (NODE, OTHER)]
        waits = http.client.HTTPSConnection("localhost", port, timeout=30, context=nodes[0])
        held: list[socket.socket] = []
        for context in (None, nodes[1]):
            for _ in range(8):
                raw = socket.create_connection(("127.0.0.1", port), 30)
                if context is not None:
                    raw = context.wrap_socket(raw, server_hostname="localhost")
                held.append(raw)
            for _ in range(2):  # once for the connection, once on it
                waits.request("GET", f"/v1/nodes/{NODE}/policy")
                answer = waits.getresponse()
                assert answer.status == 200 and answer.read()
        for one in (waits, *held):
            one.close()


def test_what_another_ca_has_signed_is_refused(
    server: CollectorServer, pki: FleetPki, tmp_path: Path
) -> None:
    port = port_of(server)
    foreign = FleetPki(tmp_path / "foreign").issue(Role.NODE, NODE)
    for certificate in (foreign, pki.expired(Role.NODE, NODE)):
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            ask(port, pki.client(certificate), f"/v1/nodes/{NODE}/policy")
    assert server.ask("GET", "/v1/governance/quotas").status == 200
