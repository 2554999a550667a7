# SPDX-License-Identifier: Apache-2.0
"""The verb audit acknowledged: which collector has how much of this node's log on record, and whom
the removal of old segments waits for.

Rule: what counts is what the log itself says (HeadCountersigned), of the collectors in the agent's
configuration; the agent need not run. The chain is verified, signatures and bodies are not
(`verify` does).

Does not look at ages or at what live leases still need: who is named here stands in the way first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.note import NoteKey
from leased.chain.quorum import flat
from leased.ctl import render
from leased.ctl.console import Console
from leased.ctl.service_checks import CONFIG_FILE, STATE_DIRECTORY
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.witnesses import read_listener
from leased.durable.reader import LogFacts, read_log
from leased.durable.reading import read_text
from leased.durable.retention import SEGMENTS_KEPT
from leased.terms.errors import ChainError, ConfigError, StateError
from leased.terms.reading import read_toml

CONFIG: Final = Path("/") / CONFIG_FILE


class Held(msgspec.Struct, frozen=True):
    """So many records a collector has acknowledged; `awaited`: less than what is to go next."""

    name: str
    acknowledged: int
    awaited: bool


class Acknowledged(msgspec.Struct, frozen=True):
    """`quorum` of the collectors must have a record before it may go. Records `first_sequence` to
    `next_to_go` - 1 are to go next; 0: nothing is, before the log has grown."""

    quorum: int
    size: int
    first_sequence: int
    next_to_go: int
    collectors: tuple[Held, ...]

    @property
    def awaited(self) -> list[str]:
        """Whom the next removal waits for."""
        return [one.name for one in self.collectors if one.awaited]


def register(below: Verbs) -> None:
    """Add the verb to those of `audit`."""
    one = verb(
        below,
        "acknowledged",
        "which collector has how much on record, and whom pruning waits for",
        "leasectl audit acknowledged",
    )
    one.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help=f"the agent's configuration (default: {CONFIG})",
    )
    one.set_defaults(act=acknowledged)


def acknowledged(options: argparse.Namespace, console: Console) -> int:
    """Tell."""
    log, keys, quorum = _configured(options.config)
    opened = read_log(log, bodies=False, signatures=False, countersigned=True)
    opened.close()
    told = judge(opened.facts, keys, quorum)
    pairs = [("records", f"{told.first_sequence} to {told.size - 1}")]
    for one in told.collectors:
        shown = f"the first {one.acknowledged} records" if one.acknowledged else "nothing"
        pairs.append((one.name, shown))
    pairs.append(("pruning", _waits(told)))
    console.answer(options.json, render.plain(told), *render.fields(pairs))
    return 0


def judge(facts: LogFacts, keys: dict[str, NoteKey], quorum: int) -> Acknowledged:
    """What the log shows of these collectors, of which `quorum` must have a record (0: all)."""
    newest = {one.key_id: one.size for one in facts.shown.newest}
    sizes = {
        name: newest.get(int.from_bytes(key.key_id, "big"), 0) for name, key in keys.items()
    }
    follows = len(facts.segments) > SEGMENTS_KEPT
    next_to_go = int(facts.segments[1][4:20], 16) if follows else 0
    reached = flat(keys, quorum).reached(sizes, 0)
    held = tuple(
        Held(name, size, reached < next_to_go and size < next_to_go)
        for name, size in sorted(sizes.items())
    )
    least = quorum if 0 < quorum <= len(keys) else len(keys)
    return Acknowledged(least, facts.head.size, facts.shown.begins, next_to_go, held)


def _waits(told: Acknowledged) -> str:
    last, names = told.next_to_go - 1, told.awaited
    if not told.collectors:
        return "off: no collector is in the configuration, and without one nothing goes"
    if not told.next_to_go:
        return "nothing is to go yet: two segments always stay"
    which = f"records {told.first_sequence} to {last}"
    if not names:
        return f"{which} go once they are old enough and no lease rests on them"
    lacking = told.quorum - (len(told.collectors) - len(names))
    whom = " and ".join(names) if lacking == len(names) else f"{lacking} of {', '.join(names)}"
    return f"waits for {whom}: {which} stay until acknowledged"


def _configured(path: Path) -> tuple[Path, dict[str, NoteKey], int]:
    """The log, the collectors' keys, and how many of them it takes. Raises ConfigError,
    StateError."""
    try:
        table: dict[str, Any] = read_toml(read_text(path))
        state = str(table.get("paths", {}).get("state_dir", f"/{STATE_DIRECTORY}"))
        return Path(state) / "audit", *read_listener(table)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; give the agent's with --config") from error
    except (ConfigError, ChainError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; `leasectl doctor` says what is wrong") from error
