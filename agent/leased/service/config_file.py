# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML in, one Config out, or a ConfigError that names file, key, value and
reason.

Rule: the tables below say for every key which field it sets and how its text is read; a key that is
in no table is refused (with the one it looks like), so a typo never means "default". What is absent
keeps its built-in default. Policies of other origin (`SetPolicy`, the collector) go through the
same table.

Does not judge what the values mean together (`config.check`, `terms.policy_check`,
`economics.rates`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.epochs import EPOCH_NS_MIN
from leased.durable import tpm
from leased.durable.reading import read_text
from leased.economics import rates
from leased.hardware.config import HardwareConfig
from leased.hardware.keys import KEYS as HARDWARE_KEYS
from leased.service import config, uplink
from leased.service.fleet.config import KEYS as LISTENER_KEYS
from leased.service.fleet.config import Listening
from leased.service.telemetry.streaming import KEYS as _TELEMETRY_KEYS
from leased.service.telemetry.streaming import Streaming
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId, parse_tenant
from leased.terms.lease import Priority
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.reading import Keys, read_toml
from leased.terms.reading import choice as _choice
from leased.terms.reading import duration as _duration
from leased.terms.reading import fields as _fields
from leased.terms.reading import flag as _flag
from leased.terms.reading import integer as _integer
from leased.terms.reading import member as _member
from leased.terms.reading import rows as _rows
from leased.terms.reading import section as _section
from leased.terms.reading import shown as _shown
from leased.terms.reading import size as _size
from leased.terms.reading import table as _table
from leased.terms.reading import text as _text
from leased.terms.resource import ResourceKind, TierKind

ID_MAX: Final = 2**32 - 2
"""The largest uid; 2**32 - 1 means "none" to the kernel."""


def load(path: Path) -> config.Config:
    """The configuration in `path`, with the policy of its policy_file. Raises ConfigError."""
    read = parse(_read(path), str(path))
    if not read.policy_file:
        return read
    if read.policy != Policy():
        raise ConfigError(f"{path}: policy_file and [policy] are both given; one of them counts")
    # Beside the configuration, if it is not absolute.
    policy = parse_policy(_read(path.parent / read.policy_file), read.policy_file)
    try:
        return config.check(msgspec.structs.replace(read, policy=policy))
    except ConfigError as error:
        raise ConfigError(f"{read.policy_file}: {error}") from error


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error


def parse(text: str, file: str) -> config.Config:
    """The configuration in `text`; `file` is what errors call it. Raises ConfigError."""
    try:
        fields = _fields(read_toml(text), _SECTIONS, "")
        return config.check(config.Config(**fields))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def parse_policy(text: str, file: str) -> Policy:
    """The policy document in `text`; `file` is what errors call it. Raises ConfigError."""
    try:
        return read_policy(read_toml(text), "")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


# ---- reading single values -----------------------------------------------------------------------


def _path(value: Any) -> Path:
    return Path(_text(value))


def _mode(value: Any) -> int:
    text = _text(value)
    if len(text) != 4 or text[0] != "0" or any(digit not in "01234567" for digit in text):
        raise ValueError('a mode in octal, such as "0666"')
    return int(text, 8)


def _epoch(value: Any) -> int:
    """A duration of a second or more, or 0."""
    epoch_ns = _duration(value)
    if 0 < epoch_ns < EPOCH_NS_MIN:
        raise ValueError("an epoch is at least 1s, or 0s: not sealed")
    return epoch_ns


def _range(value: Any) -> tuple[int, int]:
    """A uid, gid or core: 1000, or "1000-1999"."""
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= ID_MAX:
            return int(first), int(last)
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ID_MAX:
        return value, value
    raise ValueError('a number, or a range such as "1000-1999"')


def _unmapped(value: Any) -> str:
    text = _text(value)
    if text:
        parse_tenant(text.replace("{uid}", "0"))
    return text


# ---- reading sections ----------------------------------------------------------------------------


def _policy(value: Any) -> Policy:
    return read_policy(_table(value), "policy.")


def _tenant(value: Any) -> config.TenantMapping:
    found = _fields(_table(value), _TENANT_KEYS, "tenants.")
    if "tenant" not in found:
        raise ValueError("needs a name")
    return config.TenantMapping(**found)


def _rates(value: Any) -> rates.RateCard:
    """Rates by kind, by "kind.tier", and multipliers by priority; a kind that is absent keeps its
    default.
    """
    table = dict(_table(value))
    multipliers = _table(table.pop("multipliers_pm", {}))
    fields = _fields({k: v for k, v in table.items() if k in _CARD_KEYS}, _CARD_KEYS, "rates.")
    priced = {(rate.kind, rate.tier, rate.priority): rate for rate in rates.DEFAULT_CARD.rates}
    for key, text in table.items():
        if key in _CARD_KEYS:
            continue
        kind_name, _, tier_name = key.partition(".")
        where = f"rates.{key}"
        try:
            kind = _member(ResourceKind, kind_name)
            tier = _member(TierKind, tier_name) if tier_name else None
        except ValueError as error:
            raise ConfigError(f"{where}: not a kind, nor kind.tier ({error})") from error
        if not isinstance(text, str):
            raise ConfigError(
                f"{where} = {_shown(text)}: a decimal in quotes, such as "
                '"0.0005": money is never a float'
            )
        nano, pico = rates.parse_rate(text, where)
        priced[kind, tier, None] = rates.Rate(kind, nano, tier, pico=pico)
    scaled = tuple(
        (_member(Priority, name), _integer(multiplier)) for name, multiplier in multipliers.items()
    )
    return rates.check(
        rates.RateCard(rates=tuple(priced.values()), multipliers_pm=scaled, **fields)
    )


def _hardware(**fields: Any) -> HardwareConfig:
    return HardwareConfig(**{"cgroup_root": config.CGROUP_ROOT, **fields})


_CARD_KEYS: Final[Keys] = {"currency": ("currency", _text), "decimals": ("decimals", _integer)}
_TENANT_KEYS: Final[Keys] = {
    "name": ("tenant", lambda value: TenantId(parse_tenant(_text(value), "name"))),
    "uids": ("uids", lambda value: _rows(value, _range)),
    "gids": ("gids", lambda value: _rows(value, _range)),
}
_PATH_KEYS: Final[Keys] = {
    "state_dir": ("state_dir", _path),
    "runtime_dir": ("runtime_dir", _path),
}
_SOCKET_KEYS: Final[Keys] = {
    "message_max": ("message_bytes_max", _size),
    "unfinished_max": ("unfinished_bytes_max", _size),
    "connections_max": ("connections_max", _integer),
    "connections_per_uid_max": ("connections_per_uid_max", _integer),
    "calls_queued_max": ("calls_queued_max", _integer),
    "write_timeout": ("write_timeout_ns", _duration),
    "user_mode": ("user_mode", _mode),
    "admin_mode": ("admin_mode", _mode),
}
_SEQUENCING_KEYS: Final[Keys] = {
    "commands_max": ("commands_max", _integer),
    "batch_commands_max": ("batch_commands_max", _integer),
}
_TIMING_KEYS: Final[Keys] = {
    "tick": ("tick_ns", _duration),
    "commit": ("commit_ns", _duration),
    "arm": ("arm_ns", _duration),
    "cut": ("cut_ns", _duration),
    "backstop": ("backstop_ns", _duration),
    "reclaim_max": ("reclaim_ns_max", _duration),
    "heartbeat": ("heartbeat_ns", _duration),
    "stop": ("stop_ns", _duration),
}
_LOG_KEYS: Final[Keys] = {
    "durability": ("durability", lambda value: _choice(("strict", "best-effort"), value)),
    "epoch": ("epoch_ns", _epoch),
    "retention": ("retention_ns", _duration),
    "free_min": ("free_bytes_min", _size),
    "counter": ("counter", _section(tpm.CounterConfig, tpm.KEYS, "log.counter.")),
}
_JOURNALD_KEYS: Final[Keys] = {
    "copied": ("copied", _flag),
    "renewals": ("renewals", _flag),
    "events_per_s_max": ("events_per_s_max", _integer),
    "burst_events_max": ("burst_events_max", _integer),
}
_COLLECTOR_KEYS: Final[Keys] = {
    "url": ("url", _text),
    "fleet": ("fleet", _text),
    "policy_key": ("policy_key", _text),
    "token_file": ("token_file", _text),
    "ca": ("ca", _text),
    "certificate": ("certificate", _text),
    "certificate_key": ("certificate_key", _text),
    "wait": ("wait_ns", _duration),
    "retry": ("retry_ns", _duration),
}
_SECTIONS: Final[Keys] = {
    "paths": ("paths", _section(config.Paths, _PATH_KEYS, "paths.")),
    "sockets": ("sockets", _section(config.Sockets, _SOCKET_KEYS, "sockets.")),
    "sequencing": ("sequencing", _section(config.Sequencing, _SEQUENCING_KEYS, "sequencing.")),
    "timing": ("timing", _section(config.Timing, _TIMING_KEYS, "timing.")),
    "policy": ("policy", _policy),
    "rates": ("rates", _rates),
    "hardware": ("hardware", _section(_hardware, HARDWARE_KEYS, "hardware.")),
    "log": ("log", _section(config.Log, _LOG_KEYS, "log.")),
    "collector": ("collector", _section(uplink.Collector, _COLLECTOR_KEYS, "collector.")),
    "listener": ("listener", _section(Listening, LISTENER_KEYS, "listener.")),
    "journald": ("journald", _section(config.JournaldCopy, _JOURNALD_KEYS, "journald.")),
    "telemetry": ("telemetry", _section(Streaming, _TELEMETRY_KEYS, "telemetry.")),
    "tenants": ("tenants", lambda value: _rows(value, _tenant)),
    "unmapped": ("unmapped", _unmapped),
    "policy_file": ("policy_file", _text),
}
