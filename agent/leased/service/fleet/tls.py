# SPDX-License-Identifier: Apache-2.0
"""The node's side of TLS: its certificate, whose clients it takes, and reading both again.

Rule: TLS 1.3 with certificates on both sides, or no connection. What is configured is judged before
it is used: a key that others may read, a certificate of another role, of another node, of a CA that
no collector trusts or past its end is refused and named, and what was in force before stays in
force. Connections that are there go on as they began. There are no session tickets: every
connection shows its certificate.

Does not listen (`listener`) and makes no certificates (`leasectl pki`).
"""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.certificate import Certificate, Role, read_certificate
from leased.durable.reading import read_file
from leased.service.fleet.config import Listening
from leased.terms.errors import CallerError, ConfigError
from leased.terms.moment import NS_PER_S

ALPN: Final = "http/1.1"
_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME."""
HANDSHAKE_ERRORS: Final = (ssl.SSLError, ssl.CertificateError)


class Credentials(msgspec.Struct, frozen=True):
    """What the node shows, and how clients are judged."""

    context: ssl.SSLContext
    certificate: Certificate

    @property
    def fleet(self) -> str:
        """Whose clients are taken."""
        return self.certificate.identity.fleet


def load(
    listening: Listening,
    *,
    node_id: bytes,
    wall_ns: int,
    collector: str = "",
    replacing: bool = False,
) -> Credentials:
    """Read what is configured: a node's, or that of the `collector` of this name. `replacing`:
    another is in force, so it must be valid by now; a clock may be behind when there is none. That
    a collector's own is over ends no collector: whoever comes refuses it, and it pulls. Raises
    ConfigError saying which file, what is wrong with it and what to do."""
    _check_key(Path(listening.key))
    certificate = _own(Path(listening.certificate))
    identity = certificate.identity
    role, name = (Role.COLLECTOR, collector) if collector else (Role.NODE, node_id.hex())
    if (identity.role, identity.name) != (role, name):
        raise ConfigError(
            f"listener.certificate: {listening.certificate} is of {identity.uri()}, and this is"
            f" {role.value} {name}; make one with `leasectl pki {role.value}`"
        )
    if certificate.not_after_s * NS_PER_S <= wall_ns and (replacing or not collector):
        raise ConfigError(
            f"listener.certificate: {listening.certificate} is past its end; renew it with"
            " `leasectl pki renew`"
        )
    if replacing and certificate.not_before_s * NS_PER_S > wall_ns:
        since = datetime.fromtimestamp(certificate.not_before_s, UTC).isoformat()
        raise ConfigError(
            f"listener.certificate: {listening.certificate} is not valid before {since}, by this"
            " host's clock; the one in force stays: look at the clock, or reload when it is valid"
        )
    try:
        context = _context(listening)
        _shake_hands(listening)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"listener.certificate: {listening.certificate} is not by a CA of {listening.ca}, and"
            f" no collector would take it ({error.verify_message}); give the one that made it, or"
            " make another with `leasectl pki node`"
        ) from error
    except OSError as error:  # an SSLError is one
        why = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"listener: {listening.certificate}, {listening.key} and {listening.ca} do not go"
            f" together or cannot be read ({why})"
        ) from error
    return Credentials(context, certificate)


def _context(listening: Listening) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    for path in (listening.key, listening.ca):
        read_file(path)  # OpenSSL would wait for a pipe, and read a device for ever
    context.load_cert_chain(listening.certificate, listening.key)
    context.load_verify_locations(listening.ca)
    return context


def _shake_hands(listening: Listening) -> None:
    """As a collector would, whose CA is ours (PULL.md section 1); when is not asked. Raises
    SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(listening.certificate, listening.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(_NO_CHECK_TIME)
    client.load_verify_locations(listening.ca)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for side in (sides[0], sides[1], sides[0]):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _check_key(path: Path) -> None:
    """Nobody but its owner may read it. Raises ConfigError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"listener.key: {path}: {error.strerror}") from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"listener.key: {path}: others may read it (mode {stat.S_IMODE(found.st_mode):o});"
            f" run `chmod 600 {path}`"
        )


def _own(path: Path) -> Certificate:
    """The first certificate of the file. Raises ConfigError."""
    try:
        text = read_file(path).decode("ascii")
        begin = text.index(_BEGIN)
        end = text.index(_END, begin) + len(_END)
        return read_certificate(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except OSError as error:
        raise ConfigError(f"listener.certificate: {path}: {error.strerror}") from error
    except (CallerError, ValueError) as error:
        raise ConfigError(f"listener.certificate: {path}: {error}") from error


_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
