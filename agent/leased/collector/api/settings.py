# SPDX-License-Identifier: Apache-2.0
"""The settings of the collector's HTTP side: one frozen value, every default in it.

Rule: as the agent's: a key that is not known is refused with the one it looks like, a bare number
is not a duration, and `configs/leased-collector.toml` spells out every default with its reason.

Does not open what it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.collector.accounts.terms_file import terms_path
from leased.collector.api.callers import LOOPBACK, Token
from leased.collector.api.routes import Scope
from leased.collector.config import CONFIG as CONFIG
from leased.collector.metering.engines import SECTION, StoreConfig, check_store
from leased.collector.planning import reserving, scheduled_scaling, slo, spot, thresholds
from leased.collector.telemetry.store import KEEP_NS, ROWS_MAX
from leased.collector.webhooks import choosing
from leased.durable.reading import read_text
from leased.terms import reading
from leased.terms.errors import ConfigError
from leased.terms.identity import parse_tenant
from leased.terms.moment import DAY_NS, NS_PER_S
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.quantity import parse_instant

_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class Http(msgspec.Struct, frozen=True):
    """Where it listens, and its limits."""

    listen: tuple[str, ...] = ("127.0.0.1:8080", "[::1]:8080")
    tls_listen: tuple[str, ...] = ()
    certificate: str = ""
    certificate_key: str = ""
    client_ca: str = ""
    ca_key: str = ""
    connections_max: int = 1024
    body_bytes_max: int = 64 * 1024
    requests_per_s_max: int = 200
    requests_burst: int = 400
    stop_ns: int = 5 * NS_PER_S


class Access(msgspec.Struct, frozen=True):
    """Who may ask. `loopback` is what this host may without a token: none, read or write."""

    loopback: str = "read"
    tokens_file: str = ""


class Governance(msgspec.Struct, frozen=True):
    """The policy that nodes get: the operator's document below what the API says; and the prices
    of what they grant."""

    fleet: str = "leased"
    policy_file: str = ""
    policy_valid_ns: int = DAY_NS
    share_valid_ns: int = 900 * NS_PER_S
    terms_file: str = ""


class Samples(msgspec.Struct, frozen=True):
    """How long, and how many, rollups of the nodes' telemetry are kept."""

    keep_ns: int = KEEP_NS
    rows_max: int = ROWS_MAX


class Settings(msgspec.Struct, frozen=True):
    """Everything."""

    http: Http = Http()
    access: Access = Access()
    governance: Governance = Governance()
    telemetry: Samples = Samples()
    webhooks: choosing.Chosen = choosing.Chosen()
    capacity: thresholds.Thresholds = thresholds.Thresholds()
    slo_tiers: tuple[slo.Tier, ...] = slo.TIERS
    reservations: reserving.Offer = reserving.Offer()
    spot_optimization: spot.SpotConfig = spot.SpotConfig()
    scheduled_scaling: scheduled_scaling.ScalingConfig = scheduled_scaling.ScalingConfig()
    store: StoreConfig = StoreConfig()


def load(path: Path | None) -> Settings:
    """The settings in `path`; without one, those of /etc if there are any. Raises ConfigError."""
    if path is None:
        if not CONFIG.exists():
            return Settings()
        path = CONFIG
    try:
        return parse(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str) -> Settings:
    """Raises ConfigError naming the key."""
    mine = {key: value for key, value in reading.read_toml(text).items() if key not in ELSEWHERE}
    settings = Settings(**reading.fields(mine, _SECTIONS, "", also=ELSEWHERE))
    check_store(settings.store)
    http = settings.http
    if http.tls_listen and not (http.certificate and http.certificate_key):
        raise ConfigError("http.tls_listen: needs http.certificate and http.certificate_key")
    if http.ca_key and not http.client_ca:
        raise ConfigError("http.ca_key: needs http.client_ca, whose key it is")
    if not http.listen and not http.tls_listen:
        raise ConfigError("http.listen: it would listen nowhere")
    for name in ("connections_max", "body_bytes_max", "requests_per_s_max", "requests_burst"):
        if getattr(http, name) < 1:
            raise ConfigError(f"http.{name.replace('_bytes', '')}: must be above zero")
    if settings.governance.policy_valid_ns < 60 * NS_PER_S:
        raise ConfigError("governance.policy_valid: at least 60s, or nodes would lose it at once")
    if (
        not 60 * NS_PER_S
        <= settings.governance.share_valid_ns
        <= settings.governance.policy_valid_ns
    ):
        raise ConfigError("governance.share_valid: 60s at least, policy_valid at most")
    for name in ("keep_ns", "rows_max"):
        if getattr(settings.telemetry, name) < 1:
            raise ConfigError(f"telemetry.{name.replace('_ns', '')}: must be above zero")
    thresholds.check_marks(settings.capacity)
    slo.check_tiers(settings.slo_tiers)
    reserving.check_offer(settings.reservations)
    spot.check_spot(settings.spot_optimization)
    scheduled_scaling.check_scaling(settings.scheduled_scaling)
    choosing.check_chosen(settings.webhooks)
    return settings


def load_ground(settings: Settings, directory: Path) -> Policy:
    """The operator's document. Raises ConfigError."""
    if not settings.governance.policy_file:
        return Policy()
    path = directory / settings.governance.policy_file
    try:
        return read_policy(reading.read_toml(read_text(path)), "")
    except (OSError, UnicodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def terms_of(settings: Settings, directory: Path) -> Path | None:
    """The file of prices; None: the built-in ones."""
    return terms_path(directory, settings.governance.terms_file)


def load_tokens(settings: Settings, directory: Path) -> tuple[Token, ...]:
    """The tokens that are known. Raises ConfigError."""
    if not settings.access.tokens_file:
        return ()
    path = directory / settings.access.tokens_file
    try:
        if path.stat().st_mode & 0o022:
            raise ConfigError(f"others may write it; run `chmod go-w {path}`")
        return parse_tokens(read_text(path))
    except (OSError, UnicodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The rows of a file of tokens. Raises ConfigError."""
    found = reading.fields(reading.read_toml(text), {"tokens": ("tokens", _token_rows)}, "")
    tokens: tuple[Token, ...] = found.get("tokens", ())
    for number, one in enumerate(tokens):
        if any(one.name == other.name or one.sha256 == other.sha256 for other in tokens[:number]):
            raise ConfigError(f"tokens.{one.name}: listed twice, by its name or by its hash")
    return tokens


# ---- reading single values -----------------------------------------------------------------------


def _addresses(value: Any) -> tuple[str, ...]:
    return tuple(reading.rows(value, _address))


def _address(value: Any) -> str:
    match = _ADDRESS.fullmatch(reading.text(value))
    if match is None or int(match[2]) > 65_535:
        raise ValueError('an address and a port, such as "127.0.0.1:8080" or "[::1]:8080"')
    return match[0]


def _loopback(value: Any) -> str:
    return reading.choice(tuple(LOOPBACK), value)


def _fleet(value: Any) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", reading.text(value)):
        raise ValueError('a name such as "fleet.example.org"')
    return str(value)


def _token_rows(value: Any) -> Any:
    return reading.rows(value, _token)


def _token(value: Any) -> Token:
    found = reading.fields(reading.table(value), _TOKEN_KEYS, "tokens.")
    for key in ("name", "sha256", "scopes"):
        if key not in found:
            raise ValueError(f"needs {key}")
    return Token(**found)


def _hash(value: Any) -> str:
    if not _HASH.fullmatch(reading.text(value)):
        raise ValueError("64 hex digits, as `leased-collector token` prints them")
    return str(value)


def _scopes(value: Any) -> frozenset[Scope]:
    return frozenset(
        Scope(one)
        for one in reading.rows(value, lambda one: reading.choice(tuple(map(str, Scope)), one))
    )


def _tenants(value: Any) -> frozenset[str]:
    return frozenset(reading.rows(value, lambda one: str(parse_tenant(reading.text(one)))))


def _node(value: Any) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", reading.text(value)):
        raise ValueError("a node id, 32 hex digits")
    return str(value)


_HTTP_KEYS: Final[reading.Keys] = {
    "listen": ("listen", _addresses),
    "tls_listen": ("tls_listen", _addresses),
    "certificate": ("certificate", reading.text),
    "certificate_key": ("certificate_key", reading.text),
    "client_ca": ("client_ca", reading.text),
    "ca_key": ("ca_key", reading.text),
    "connections_max": ("connections_max", reading.integer),
    "body_max": ("body_bytes_max", reading.size),
    "requests_per_s_max": ("requests_per_s_max", reading.integer),
    "requests_burst": ("requests_burst", reading.integer),
    "stop": ("stop_ns", reading.duration),
}
_ACCESS_KEYS: Final[reading.Keys] = {
    "loopback": ("loopback", _loopback),
    "tokens_file": ("tokens_file", reading.text),
}
_GOVERNANCE_KEYS: Final[reading.Keys] = {
    "fleet": ("fleet", _fleet),
    "policy_file": ("policy_file", reading.text),
    "terms_file": ("terms_file", reading.text),
    "policy_valid": ("policy_valid_ns", reading.duration),
    "share_valid": ("share_valid_ns", reading.duration),
}
_TELEMETRY_KEYS: Final[reading.Keys] = {
    "keep": ("keep_ns", reading.duration),
    "rows_max": ("rows_max", reading.integer),
}
_TOKEN_KEYS: Final[reading.Keys] = {
    "name": ("name", reading.text),
    "sha256": ("sha256", _hash),
    "scopes": ("scopes", _scopes),
    "tenants": ("tenants", _tenants),
    "node": ("node", _node),
    "expires_at": ("expires_wall_ns", lambda value: parse_instant(reading.text(value))),
}
_SECTIONS: Final[Mapping[str, tuple[str, reading.Read]]] = {
    "http": ("http", reading.section(Http, _HTTP_KEYS, "http.")),
    "access": ("access", reading.section(Access, _ACCESS_KEYS, "access.")),
    "governance": ("governance", reading.section(Governance, _GOVERNANCE_KEYS, "governance.")),
    "telemetry": ("telemetry", reading.section(Samples, _TELEMETRY_KEYS, "telemetry.")),
    "slo_tiers": slo.SECTION,
    "capacity": thresholds.SECTION,
    "webhooks": choosing.SECTION,
    "reservations": reserving.SECTION,
    "spot_optimization": spot.SECTION,
    "scheduled_scaling": scheduled_scaling.SECTION,
    "store": SECTION,
}
ELSEWHERE: Final = ("pull", "own_log", "nodes", "billing", "collector", "retention")
"""Sections of the same file that other parts of the collector read."""
