# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[telemetry]`: what is sampled how often, and where it is sent.

Rule: nothing is sent until an endpoint is given, and then over TLS; without it only to a receiver
on this very host.

Does not read the certificates (`sender`).
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S
from leased.terms.reading import Keys, duration, flag, integer, size, text

PATH: Final = "/v1/metrics"
PORT: Final = 4318
"""OTLP over HTTP, where the endpoint names no port."""

INTERVAL_NS_MIN: Final = NS_PER_S


class Streaming(msgspec.Struct, frozen=True):
    """The `[telemetry]` table."""

    interval_ns: int = 10 * NS_PER_S
    leases_max: int = 512
    gpus: bool = True
    endpoint: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    tenants: bool = True
    buffer_bytes_max: int = 8 << 20
    timeout_ns: int = 10 * NS_PER_S
    retry_ns_max: int = 300 * NS_PER_S
    job_mapping_dir: str = ""

    @property
    def on(self) -> bool:
        """Whether anything is sent."""
        return bool(self.endpoint)


class Endpoint(msgspec.Struct, frozen=True):
    """Where to, taken apart."""

    host: str
    port: int
    path: str
    tls: bool

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(endpoint: str) -> Endpoint:
    """Take a URL apart. Raises ValueError saying how it is meant."""
    url = urlsplit(endpoint)
    port = url.port  # ValueError: not a port
    if url.scheme not in ("https", "http") or not url.hostname or url.query or url.fragment:
        raise ValueError(f'a URL such as "https://collector.example:{PORT}{PATH}"')
    if url.username or url.password:
        raise ValueError("no name and password here: the node shows its certificate")
    if url.scheme == "http" and not _is_here(url.hostname):
        raise ValueError("http only to this host (a receiver on 127.0.0.1); else https")
    path = url.path if url.path not in ("", "/") else PATH
    return Endpoint(url.hostname, port or PORT, path, url.scheme == "https")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(streaming: Streaming) -> Streaming:
    """Return it if it can be meant. Raises ConfigError."""
    for name in streaming.__struct_fields__:
        if name.endswith(("_ns", "_max")) and getattr(streaming, name) <= 0:
            key = name.replace("_ns", "").replace("_bytes", "")
            raise ConfigError(f"telemetry.{key}: must be above zero")
    if streaming.interval_ns < INTERVAL_NS_MIN:
        raise ConfigError("telemetry.interval: at least 1s")
    if bool(streaming.certificate) != bool(streaming.key):
        raise ConfigError("telemetry: certificate and key go together; give both or none")
    for name in ("ca", "certificate", "key", "job_mapping_dir"):
        path = getattr(streaming, name)
        if path and not path.startswith("/"):
            raise ConfigError(f"telemetry.{name}: must be absolute")
    return streaming


def _endpoint(value: Any) -> str:
    if text(value):
        parse_endpoint(value)
    return str(value)


KEYS: Final[Keys] = {
    "interval": ("interval_ns", duration),
    "leases_max": ("leases_max", integer),
    "gpus": ("gpus", flag),
    "endpoint": ("endpoint", _endpoint),
    "ca": ("ca", text),
    "certificate": ("certificate", text),
    "key": ("key", text),
    "tenants": ("tenants", flag),
    "buffer_max": ("buffer_bytes_max", size),
    "timeout": ("timeout_ns", duration),
    "retry_max": ("retry_ns_max", duration),
    "job_mapping_dir": ("job_mapping_dir", text),
}
