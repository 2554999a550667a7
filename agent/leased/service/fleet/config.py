# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[listener]`: the door through which collectors pull the log.

Rule: there is no such door unless certificates are configured; there is none without them.

Does not read files (`config_file` reads the table, `tls` the certificates) and does not listen.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from leased.chain.certificate import NAME
from leased.chain.note import COSIGNATURE_V1, NoteKey, parse_key
from leased.chain.quorum import WitnessPolicy, flat
from leased.terms.errors import ChainError, ConfigError
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.reading import Keys, duration, fields, integer, rows, table, text

PORT: Final = 7443
WAIT_NS_MAX: Final = 60 * NS_PER_S
"""PULL.md section 2: what a reader may ask for."""


class Countersigner(msgspec.Struct, frozen=True):
    """Whose countersignatures count: the name in the certificate, and the key that cosigns."""

    name: str
    key: NoteKey


class Listening(msgspec.Struct, frozen=True):
    """The `[listener]` table. Off where `certificate` is empty."""

    certificate: str = ""
    key: str = ""
    ca: str = ""
    address: str = ""
    port: int = PORT
    connections_max: int = 64
    requests_per_s_max: int = 50
    handshake_ns: int = 10 * NS_PER_S
    head_ns: int = 10 * NS_PER_S
    idle_ns: int = 120 * NS_PER_S
    write_ns: int = 10 * NS_PER_S
    gather_ns: int = 100 * NS_PER_MS
    ack_apart_ns: int = 1 * NS_PER_S
    quorum: int = 0
    collectors: tuple[Countersigner, ...] = ()

    @property
    def policy(self) -> WitnessPolicy:
        """Whose countersignatures it takes before records may go."""
        return flat({one.name: one.key for one in self.collectors}, self.quorum)

    @property
    def on(self) -> bool:
        """Whether there is such a door."""
        return bool(self.certificate)


def check(listening: Listening) -> Listening:
    """Return it if it can be meant. Raises ConfigError."""
    files = (listening.certificate, listening.key, listening.ca)
    if any(files) and not all(files):
        raise ConfigError("listener: certificate, key and ca go together; give all three or none")
    if any(file and not file.startswith("/") for file in files):
        raise ConfigError("listener: certificate, key and ca are absolute paths")
    if listening.port > 65_535:
        raise ConfigError("listener.port: a port, or 0 for any that is free")
    for name in listening.__struct_fields__:
        if name.endswith(("_ns", "_max")) and getattr(listening, name) <= 0:
            raise ConfigError(f"listener.{name.removesuffix('_ns')}: must be above zero")
    if listening.idle_ns <= WAIT_NS_MAX:
        raise ConfigError("listener.idle: not above 60s, which a reader may ask us to wait")
    names = [one.name for one in listening.collectors]
    ids = [one.key.key_id for one in listening.collectors]
    if len(set(names)) < len(names) or len(set(ids)) < len(ids):
        raise ConfigError("listener.collectors: a name and a key may stand there once")
    if not 0 <= listening.quorum <= len(names):
        raise ConfigError(
            f"listener.quorum: 0 (all) to {len(names)}, how many collectors there are"
        )
    return listening


def _key(value: Any) -> NoteKey:
    try:
        key = parse_key(text(value))
    except ChainError as error:
        raise ValueError(error.why) from error
    if key.kind != COSIGNATURE_V1:
        raise ValueError("a cosigning key (type 04), as the collector shows it")
    return key


def _name(value: Any) -> str:
    if not NAME.fullmatch(text(value)):
        raise ValueError("1 to 63 of a-z 0-9 . _ -, as in the certificate")
    return str(value)


def _collector(value: Any) -> Countersigner:
    found = fields(table(value), _COLLECTOR_KEYS, "listener.collectors.")
    if len(found) < len(_COLLECTOR_KEYS):
        raise ValueError("needs a name and a key")
    return Countersigner(**found)


_COLLECTOR_KEYS: Final[Keys] = {"name": ("name", _name), "key": ("key", _key)}
KEYS: Final[Keys] = {
    "certificate": ("certificate", text),
    "key": ("key", text),
    "ca": ("ca", text),
    "address": ("address", text),
    "port": ("port", integer),
    "connections_max": ("connections_max", integer),
    "requests_per_s_max": ("requests_per_s_max", integer),
    "handshake": ("handshake_ns", duration),
    "head": ("head_ns", duration),
    "idle": ("idle_ns", duration),
    "write": ("write_ns", duration),
    "gather": ("gather_ns", duration),
    "ack_apart": ("ack_apart_ns", duration),
    "quorum": ("quorum", integer),
    "collectors": ("collectors", lambda value: rows(value, _collector)),
}
