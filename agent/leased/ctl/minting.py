# SPDX-License-Identifier: Apache-2.0
"""Certificates of a fleet, made: its CA, and one for each node, collector and scraper.

Rule: a certificate says one role by one URI and allows what goes with it and nothing else
(`chain.certificate` reads it so). The CA signs nothing but ends: it allows no CA below it. Keys are
P-256, which every TLS library takes. A certificate never outlives its CA.

Does not write files (`pki`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leased.chain.certificate import FLEET, Identity, Role
from leased.terms.errors import CallerError, InvalidParameter
from leased.terms.moment import NS_PER_S

END_DAYS: Final = 397
"""Thirteen months: what is renewed once a year has a month of grace."""

BACKDATED: Final = timedelta(minutes=5)
"""A host whose clock is behind by this much takes a new certificate all the same."""

_CA_USAGE: Final = (False, False, False, False, False, True, True, False, False)
_END_USAGE: Final = (True, False, False, False, False, False, False, False, False)
_USES: Final = {
    Role.NODE: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    Role.COLLECTOR: (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    Role.SCRAPER: (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


class Minted(msgspec.Struct, frozen=True):
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Minted(...)"


class Authority:
    """A fleet's CA, with its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.fleet = _fleet_of(certificate)
        self.not_after = certificate.not_valid_after_utc

    def again(self, *, now: datetime, days: int) -> Minted:
        """The same CA with a new end: the same key, so what it has signed holds under either."""
        return _found(self.fleet, self._key, now, days)

    def issue(
        self, identity: Identity, hosts: Sequence[str], *, now: datetime, days: int
    ) -> Minted:
        """A certificate for `identity`, reachable as `hosts` (names and addresses)."""
        if identity.fleet != self.fleet:
            raise CallerError(f"{identity.uri()} is not of the fleet {self.fleet}")
        key = ec.generate_private_key(ec.SECP256R1())
        return Minted(self._certify(key.public_key(), identity, hosts, now, days), _key_pem(key))

    def certify(
        self, request: bytes, identity: Identity, hosts: Sequence[str], *, now: datetime, days: int
    ) -> bytes:
        """A certificate for the key of a request (PEM), whose holder has signed it. What the
        request says of names and uses counts for nothing. Raises CallerError."""
        try:
            asked = x509.load_pem_x509_csr(request)
            sound = asked.is_signature_valid
            key = asked.public_key()
        except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
            raise CallerError(f"not a certificate request in PEM: {error}") from error
        if not sound or not isinstance(key, ec.EllipticCurvePublicKey):
            raise CallerError("the request is not signed by the P-256 key that it is for")
        if not isinstance(key.curve, ec.SECP256R1):
            raise CallerError("the request is for a key of another curve than P-256")
        return self._certify(key, identity, hosts, now, days)

    def _certify(
        self,
        key: ec.EllipticCurvePublicKey,
        identity: Identity,
        hosts: Sequence[str],
        now: datetime,
        days: int,
    ) -> bytes:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri())]
        names += [_host(host) for host in hosts]
        not_after = min(now + timedelta(days=days), self.not_after)
        builder = (
            _begin(identity.name, key, now, not_after)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(*_END_USAGE), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USES[identity.role]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        return _pem(builder.sign(self._key, SHA256()))


def request(name: str) -> tuple[bytes, bytes]:
    """A new key, and a certificate request for it, as PEM. Who signs it says what it is for."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return _key_pem(key), asked.sign(key, SHA256()).public_bytes(Encoding.PEM)


def found(fleet: str, *, now: datetime, days: int) -> Minted:
    """A new CA for `fleet`. Raises InvalidParameter."""
    if not FLEET.fullmatch(fleet):
        raise InvalidParameter("fleet", f'"{fleet}": a name such as gpu.example.org')
    return _found(fleet, ec.generate_private_key(ec.SECP256R1()), now, days)


def _found(fleet: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int) -> Minted:
    builder = (
        _begin(f"{fleet} leased CA", key.public_key(), now, now + timedelta(days=days))
        .issuer_name(_name(f"{fleet} leased CA"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(*_CA_USAGE), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{fleet}")]),
            critical=False,
        )
    )
    return Minted(_pem(builder.sign(key, SHA256())), _key_pem(key))


def open_authority(certificate: bytes, key: bytes) -> Authority:
    """The CA of two PEM texts. Raises CallerError."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        signing = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise CallerError(f"not a CA's certificate and key: {error}") from error
    if not isinstance(signing, ec.EllipticCurvePrivateKey) or (
        signing.public_key() != parsed.public_key()
    ):
        raise CallerError("the CA's key is not that of its certificate")
    return Authority(parsed, signing)


def mismatch(certificate: bytes, key: bytes, authorities: bytes) -> str:
    """What keeps a certificate, its key and the CAs' certificates (PEM) from going together; "" if
    nothing does."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        if load_pem_private_key(key, password=None).public_key() != parsed.public_key():
            return "the key is another's"
        trusted = x509.load_pem_x509_certificates(authorities)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        return str(error)
    for one in trusted:
        try:
            parsed.verify_directly_issued_by(one)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return ""
    return "the certificate is of another CA"


def hosts_of(certificate: bytes) -> list[str]:
    """The names and addresses in a certificate (PEM): a renewal keeps them."""
    parsed = x509.load_pem_x509_certificate(certificate)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]


def der_of(certificate: bytes) -> bytes:
    """The first certificate of a PEM text. Raises CallerError."""
    try:
        return x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    except ValueError as error:
        raise CallerError(f"not a certificate in PEM: {error}") from error


def ca_of(certificate: bytes) -> tuple[str, int]:
    """Whose CA a certificate is and when it ends, in ns of the wall clock. Raises CallerError."""
    der_of(certificate)
    parsed = x509.load_pem_x509_certificate(certificate)
    not_after_s = int(parsed.not_valid_after_utc.timestamp())
    return f"the CA of {_fleet_of(parsed)}", not_after_s * NS_PER_S


def is_ca(certificate: bytes) -> bool:
    """Whether it is a fleet's CA, and not one of those that a CA has signed."""
    try:
        ca_of(certificate)
    except CallerError:
        return False
    return True


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 by which people compare certificates."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(SHA256()).hex()


def _begin(
    name: str, key: ec.EllipticCurvePublicKey, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    """What every certificate has."""
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - BACKDATED)
        .not_valid_after(not_after.astimezone(UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _fleet_of(certificate: x509.Certificate) -> str:
    """The fleet whose CA it is. Raises CallerError."""
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise CallerError(f"not a fleet's CA: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if not constraints.ca or len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise CallerError("not a fleet's CA: it names no fleet, or may not sign")
    return uris[0].removeprefix("spiffe://")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(text: str) -> x509.GeneralName:
    """A name or an address. Raises InvalidParameter."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not FLEET.fullmatch(text.lower()):
        raise InvalidParameter("host", f'"{text}": neither a host name nor an address')
    return x509.DNSName(text.lower())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
