# SPDX-License-Identifier: Apache-2.0
"""Who a certificate of the fleet says one is, as a caller of the API.

Rule: TLS has checked the chain and the dates; here the fleet and the role are. A node may ask for
what is its own, and send its telemetry; a scraper may read, as it may on a node; who changes
anything or looks at bills comes with a token.

Does not check chains and reads no files.
"""

from __future__ import annotations

import ssl

from leased.chain.certificate import Role, read_certificate
from leased.collector.api.routes import Caller, Scope
from leased.terms.errors import CallerError


def identify(certificate: bytes, fleet: str) -> Caller | None:
    """Who shows this certificate (DER); None: nobody of this fleet who may come so."""
    try:
        identity = read_certificate(certificate).identity
    except CallerError:
        return None
    if identity.fleet != fleet:
        return None
    if identity.role is Role.SCRAPER:
        return Caller(f"scraper:{identity.name}", frozenset({Scope.READ}))
    if identity.role is not Role.NODE:
        return None
    return Caller(f"node:{identity.name}", frozenset({Scope.NODE}), node=identity.name)


def estranged(pem: str, fleet: str) -> str:
    """What is to be said of a collector whose own certificate names another fleet than its
    configuration: `identify` knows nobody then, and who is refused is not told why. "": nothing."""
    try:
        named = read_certificate(ssl.PEM_cert_to_DER_cert(pem)).identity.fleet
    except (CallerError, ValueError):
        return ""  # none of a fleet
    if named == fleet:
        return ""
    told = f"http.certificate is of the fleet {named}, and [governance] fleet says {fleet}"
    return f"{told}: whoever shows a certificate of {named} is nobody here"
