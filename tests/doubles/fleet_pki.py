# SPDX-License-Identifier: Apache-2.0
"""A fleet of a test's own: its CA and certificates on disk, right ones and wrong ones, and the TLS
of a client that has one of them.

Rule: made by the code that operators use (`ctl.minting`), never by another.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path

from leased.chain.certificate import Identity, Role
from leased.ctl import minting

FLEET = "gpu.example.org"
LOCAL = ("localhost", "127.0.0.1", "::1")


class FleetPki:
    """A CA in a directory. `now` is when its certificates are made."""

    fleet = FLEET

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.now = datetime.now(UTC)
        made = minting.found(self.fleet, now=self.now, days=3650)
        self.ca = self._write("ca", made)
        self._authority = minting.open_authority(made.certificate, made.key)

    def issue(
        self, role: Role, name: str, *, hosts: Sequence[str] = LOCAL, days: int = 30, file: str = ""
    ) -> Path:
        """A certificate; its key lies beside it."""
        made = self._authority.issue(
            Identity(self.fleet, role, name), hosts, now=self.now, days=days
        )
        return self._write(file or f"{role.value}-{name}", made)

    def expired(self, role: Role, name: str) -> Path:
        """One whose end was yesterday."""
        now, self.now = self.now, self.now - timedelta(days=31)
        try:
            return self.issue(role, name, days=30, file=f"expired-{name}")
        finally:
            self.now = now

    def _write(self, stem: str, made: minting.Minted) -> Path:
        key, certificate = self.directory / f"{stem}.key", self.directory / f"{stem}.pem"
        key.touch(mode=0o600)
        key.write_bytes(made.key)
        certificate.write_bytes(made.certificate)
        return certificate

    def client(self, certificate: Path | None) -> ssl.SSLContext:
        """The TLS of a client that trusts this CA and shows `certificate`."""
        context = ssl.create_default_context(cafile=self.ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context


def answered(tls: ssl.SSLSocket) -> ssl.SSLSocket:
    """The same connection once the node has answered on it: only then has it surely seen who is
    there, for a client is through with its handshake first.
    """
    tls.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = HTTPResponse(tls)
    answer.begin()
    answer.read()
    return tls
