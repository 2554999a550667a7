# SPDX-License-Identifier: Apache-2.0
"""Where a webhook may go: public addresses, and private ones only where the operator says so.

Rule: what counts is the address that is connected to, looked at after the name was resolved and
before a byte is sent; a name may mean another address at the next delivery. An address within
another (IPv4 in IPv6, 6to4, Teredo, NAT64) is looked at, too. Plain HTTP goes to addresses that
were allowed by name only.

Does not resolve names and does not connect (`post`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
URL_CHARS_MAX: Final = 2048
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is global unicast: what the library calls global is more, site-local (fec0::/10)
and translated IPv4 (::ffff:0:a.b.c.d) among it."""

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


class Target(msgspec.Struct, frozen=True):
    """Where to. `path` has the query with it."""

    secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.secure else 80)
        return host if usual else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """A target. Raises ValueError, which does not repeat the URL: there may be a secret in it."""
    if len(url) > URL_CHARS_MAX or not _VISIBLE.fullmatch(url):
        raise ValueError(f"visible ASCII, at most {URL_CHARS_MAX} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not an URL") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("an URL such as https://example.org/hooks")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("an URL without a user, a password and a fragment")
    if port == 0:
        raise ValueError("a port from 1 to 65535")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, parts.hostname, port or (443 if secure else 80), path)


def parse_network(text: str) -> Network:
    """A network such as "10.0.0.0/8". Raises ValueError."""
    return ipaddress.ip_network(text)


def refusal(address: str, allowed: Sequence[Network], *, secure: bool) -> str:
    """Why nothing is sent to an address; "": it may be."""
    try:
        outer = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "not an address"
    if all(any(one in network for network in allowed) for one in _within(outer)):
        return ""
    if not secure:
        return "plain HTTP goes only to addresses that private_networks allows"
    for one in _within(outer):
        outside = isinstance(one, ipaddress.IPv6Address) and one not in _UNICAST
        if outside or not one.is_global or one.is_multicast:
            return "a private address that private_networks does not allow"
    return ""


def _within(address: Address) -> list[Address]:
    """The addresses that packets to `address` can end at."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    if any(address in network for network in _NAT64):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if int(address) >> 32 == 0 and int(address) > 1:  # ::a.b.c.d, long out of use
        return [ipaddress.IPv4Address(int(address))]
    return [address]
