# SPDX-License-Identifier: Apache-2.0
"""The collector's configuration: `leased-collector.toml` in, frozen values out, or a ConfigError
that names file, key, value and reason.

Rule: a key that is in no table is refused with the one it looks like; what is absent keeps its
default. `configs/leased-collector.toml` spells every default out with its reason.

Does not open files but the configuration itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from leased.chain.note import NoteKey, parse_key
from leased.chain.page import PAGE_BYTES_MAX
from leased.durable.reading import read_text
from leased.terms.errors import ChainError, ConfigError
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_MS, NS_PER_S
from leased.terms.reading import (
    Keys,
    Read,
    duration,
    fields,
    integer,
    read_toml,
    rows,
    section,
    size,
    table,
    text,
)

T = TypeVar("T")
CONFIG: Final = Path("/etc/leased/leased-collector.toml")
OTHER_SECTIONS: Final = (
    "http",
    "access",
    "governance",
    "billing",
    "capacity",
    "slo_tiers",
    "reservations",
    "spot_optimization",
    "scheduled_scaling",
    "store",
    "telemetry",
    "webhooks",
    "retention",
)
"""Read by other parts of the collector, each by its own table."""


OWN_LOG: Final[dict[str, Any]] = {"address": "", "port": 7443, "quorum": 0, "collectors": []}


class NodeConfig(msgspec.Struct, frozen=True):
    """A node to pull: what it is called, where it listens, and the file that says who it is."""

    name: str = ""
    url: str = ""
    enrolment: str = ""


class PullConfig(msgspec.Struct, frozen=True):
    """How nodes are pulled. Times in ns, sizes in bytes."""

    name: str = ""
    ca: str = "/etc/leased/pki/ca.pem"
    certificate: str = "/etc/leased/pki/collector.pem"
    key: str = "/etc/leased/pki/collector.key"
    connections_max: int = 1024
    pages_max: int = 16
    workers: int = 2
    page_bytes: int = PAGE_BYTES_MAX
    wait_ns: int = 30 * NS_PER_S
    pace_ns: int = 1 * NS_PER_S
    interval_ns: int = 5 * NS_PER_S
    timeout_ns: int = 30 * NS_PER_S
    cosign_ns: int = 60 * NS_PER_S
    backoff_max_ns: int = 300 * NS_PER_S
    operators: tuple[NoteKey, ...] = ()
    nodes: tuple[NodeConfig, ...] = ()
    own_log: dict[str, Any] = msgspec.field(default_factory=OWN_LOG.copy)
    """`[own_log]`, as `own_door` reads it."""


def read_config(path: Path | None) -> dict[str, Any]:
    """The configuration in `path`; without one that of /etc, if there is any. Raises
    ConfigError."""
    path = path or CONFIG
    return {} if path == CONFIG and not path.exists() else read_document(path)


def read_document(path: Path, *, pipe: bool = False) -> dict[str, Any]:
    """What a TOML file says. Raises ConfigError, which names the file."""
    try:
        return read_toml(read_text(path, pipe=pipe))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_section(
    path: Path | None, name: str, section: tuple[str, Read], check: Callable[[T], T]
) -> T:
    """One section of it, its defaults where it is not there. Raises ConfigError."""
    found = read_config(path)
    try:
        return check(fields({name: found.get(name, {})}, {name: section}, "")[name])
    except ConfigError as error:
        raise ConfigError(f"{path or CONFIG}: {error}") from error


def load(path: Path) -> PullConfig:
    """The configuration in `path`. Raises ConfigError."""
    found = read_document(path)
    ours = {key: value for key, value in found.items() if key not in OTHER_SECTIONS}
    try:
        read = fields(ours, _SECTIONS, "", also=OTHER_SECTIONS)
        config = msgspec.structs.replace(
            read.get("pull", PullConfig()),
            nodes=read.get("nodes", ()),
            own_log={**OWN_LOG, **read.get("own_log", {})},
        )
        return _checked(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _checked(config: PullConfig) -> PullConfig:
    """What must go together. Raises ConfigError."""
    limits = (
        ("pull.connections_max", config.connections_max, 1, 100_000),
        ("pull.pages_max", config.pages_max, 1, 10_000),
        ("pull.workers", config.workers, 1, 1_000),
        ("pull.page_size", config.page_bytes, 1, PAGE_BYTES_MAX),
        ("pull.wait", config.wait_ns, 0, 60 * NS_PER_S),
        ("pull.interval", config.interval_ns, 100 * NS_PER_MS, HOUR_NS),
        ("pull.timeout", config.timeout_ns, 100 * NS_PER_MS, HOUR_NS),
        ("pull.cosign", config.cosign_ns, 1 * NS_PER_S, DAY_NS),
    )
    for key, value, least, most in limits:
        if not least <= value <= most:
            raise ConfigError(f"{key} = {value}: from {least} to {most}")
    for node in config.nodes:
        if not (node.name and node.url and node.enrolment):
            raise ConfigError(f'nodes: "{node.name}" wants name, url and enrolment')
    names = [node.name for node in config.nodes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"nodes: {name} stands twice")
    if config.name and (any(char.isspace() for char in config.name) or "+" in config.name):
        raise ConfigError(f'pull.name = "{config.name}": no spaces and no +')
    return config


def _key(value: Any) -> NoteKey:
    try:
        return parse_key(text(value))
    except ChainError as error:
        raise ValueError(error.why) from error


_PULL_KEYS: Final[Keys] = {
    "name": ("name", text),
    "ca": ("ca", text),
    "certificate": ("certificate", text),
    "key": ("key", text),
    "connections_max": ("connections_max", integer),
    "pages_max": ("pages_max", integer),
    "workers": ("workers", integer),
    "page_size": ("page_bytes", size),
    "wait": ("wait_ns", duration),
    "pace": ("pace_ns", duration),
    "interval": ("interval_ns", duration),
    "timeout": ("timeout_ns", duration),
    "cosign": ("cosign_ns", duration),
    "backoff_max": ("backoff_max_ns", duration),
    "operators": ("operators", lambda value: rows(value, _key)),
}
_NODE_KEYS: Final[Keys] = {
    "name": ("name", text),
    "url": ("url", text),
    "enrolment": ("enrolment", text),
}
_SECTIONS: Final[Keys] = {
    "pull": ("pull", section(PullConfig, _PULL_KEYS, "pull.")),
    "own_log": ("own_log", table),
    "nodes": (
        "nodes",
        lambda value: rows(value, section(NodeConfig, _NODE_KEYS, "nodes.")),
    ),
}
