# SPDX-License-Identifier: Apache-2.0
"""What a certificate of the fleet says: which fleet, which role, whose name (PULL.md section 1).

Rule: the role is one URI in subjectAltName, and it is believed only of a certificate whose chain to
the fleet's CA the TLS library has checked. A certificate with two such URIs, or whose use does not
go with its role, has no role at all.

Does not check chains, dates or signatures (TLS does) and makes no certificates (`ctl.minting`).
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from leased.terms.errors import CallerError


class Role(enum.StrEnum):
    """What somebody of the fleet is."""

    NODE = "node"
    COLLECTOR = "collector"
    SCRAPER = "scraper"


NEEDS: Final = {
    Role.NODE: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.COLLECTOR: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.SCRAPER: ExtendedKeyUsageOID.CLIENT_AUTH,
}
"""The use that a certificate of the role must allow."""

FLEET: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
NAME: Final = re.compile(r"(?!\.\.?\Z)[a-z0-9._-]{1,63}")
NODE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SCHEME = "spiffe://"


class Identity(msgspec.Struct, frozen=True):
    """Who a certificate says one is. `name` of a node is its id in hex."""

    fleet: str
    role: Role
    name: str

    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"{_SCHEME}{self.fleet}/{self.role}/{self.name}"


class Certificate(msgspec.Struct, frozen=True):
    """What of a certificate is asked for: who, and from when to when in seconds since the Unix
    epoch."""

    identity: Identity
    not_before_s: int
    not_after_s: int


def parse_identity(uri: str) -> Identity:
    """Return who `uri` is. Raises CallerError."""
    fleet, _, rest = uri.removeprefix(_SCHEME).partition("/")
    role, _, name = rest.partition("/")
    if not uri.startswith(_SCHEME) or not FLEET.fullmatch(fleet) or role not in tuple(Role):
        raise CallerError(f"{uri[:120]}: not {_SCHEME}<fleet>/<node, collector or scraper>/<name>")
    if not (NODE_ID if role == Role.NODE else NAME).fullmatch(name):
        raise CallerError(f"{uri[:120]}: not a name of a {role}")
    return Identity(fleet, Role(role), name)


def read_certificate(der: bytes) -> Certificate:
    """What a certificate says. Raises CallerError for one that is of no role."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        not_before_s = int(certificate.not_valid_before_utc.timestamp())
        not_after_s = int(certificate.not_valid_after_utc.timestamp())
    except x509.ExtensionNotFound as error:
        raise CallerError(f"the certificate says neither role nor use: {error}") from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CallerError(f"not a certificate: {error}") from error
    ours = [uri for uri in uris if uri.startswith(_SCHEME)]
    if len(ours) != 1:
        raise CallerError(f"a certificate of the fleet has one URI of it, and this has {len(ours)}")
    identity = parse_identity(ours[0])
    if NEEDS[identity.role] not in uses:
        raise CallerError(f"{identity.uri()}: its use does not go with its role")
    return Certificate(identity, not_before_s, not_after_s)
