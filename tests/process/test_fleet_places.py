# SPDX-License-Identifier: Apache-2.0
"""The real agent's door to its fleet under whoever wants all of it: who gets in, and who goes."""

from __future__ import annotations

import contextlib
import socket
import ssl

import httpx
import pytest

from leased.chain.certificate import Role
from tests.doubles.fleet_pki import answered
from tests.process.test_fleet_pull import PATIENCE_S, read_all, serving


def test_the_slow_and_the_many_cannot_keep_a_collector_out() -> None:
    limits = 'connections_max = 3\nhandshake = "1s"\nhead = "4s"\nwrite = "1s"\n'
    with serving(limits) as site:
        idle = [socket.create_connection(("localhost", site.port)) for _ in range(3)]
        with site.client() as client:  # who shows no certificate makes room
            assert client.get("/audit/v1/logs").status_code == 200
        for sock in idle:  # nobody shook hands: closed after a second at the latest
            sock.settimeout(PATIENCE_S)
            assert _ended(sock)
        with answered(site.connect()) as slow:
            slow.sendall(b"GET /audit/v1/logs HTTP/1.1\r\nHo")
            answer = read_all(slow)
            assert answer.startswith(b"HTTP/1.1 408"), answer
        with site.client() as client:
            assert client.get("/audit/v1/logs").status_code == 200


def test_no_certificate_takes_all_places() -> None:
    """A node's may ask nothing of another, and a collector's that fell into other hands as well as
    any: with 64 connections each kept the fleet's collectors out for as long as it liked."""
    with serving("connections_max = 4\n") as site, contextlib.ExitStack() as stack:
        kept = stack.enter_context(answered(site.connect()))
        node = site.pki.issue(Role.NODE, "f" * 32)
        other = site.pki.issue(Role.COLLECTOR, "east")
        comers = ((Role.COLLECTOR, "north"), (Role.SCRAPER, "prometheus"))
        for hostile, (role, name) in zip((node, other), comers, strict=True):
            for _ in range(6):
                stack.enter_context(answered(site.connect(hostile)))
            # It stays: one that closed may be counted still when the next comes.
            stack.enter_context(answered(site.connect(site.pki.issue(role, name))))
            answered(kept)
        # Nobody has two: whoever comes finds none, and is not shaken hands with.
        with pytest.raises((httpx.TransportError, ssl.SSLError)), site.client() as client:
            client.get("/audit/v1/logs")
        answered(kept)


def _ended(sock: socket.socket) -> bool:
    with sock:
        try:
            return sock.recv(1) == b""
        except ConnectionError:
            return True
