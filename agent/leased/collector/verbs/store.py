# SPDX-License-Identifier: Apache-2.0
"""Verbs on what is derived from the raw segments: refresh, rebuild; and demo, which makes a fleet.

Rule: what they write can be made again from the raw segments by `rebuild`, with the same bytes.

Does not pull.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from leased.collector.accounts.periods import day, label_of_day
from leased.collector.accounts.terms_file import TERMS_FILE, load_terms, load_terms_for
from leased.collector.api.verbs import serve
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.manifests import is_there
from leased.collector.config import CONFIG
from leased.collector.demo import Wish, make_fleet
from leased.collector.fleet import Fleet
from leased.collector.metering.engines import load_store, maker
from leased.collector.metering.reference import read_archive
from leased.collector.metering.sources import Source
from leased.collector.metering.store import Refreshed, Store, StoreBusy
from leased.collector.metering.store_source import StoreSource
from leased.collector.telemetry import demo as telemetry
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.economics.contracts import Terms
from leased.terms.errors import EX_DATAERR, InvalidParameter, StateError
from leased.terms.moment import DAY_NS

FIRST_S_MAX: Final = 120.0
LOOK_S: Final = 0.2
READ_AT_ONCE: Final = 100_000
NODES_MAX: Final = 1_000
DAYS_MAX: Final = 400


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs, "refresh", "bring usage and peaks up to the last record", "leased-collector refresh"
    )
    add_terms(one)
    one.set_defaults(act=refresh)
    one = verb(
        verbs,
        "rebuild",
        "make everything derived again from the raw segments, and compare",
        "leased-collector --state /backup/collector rebuild",
    )
    add_terms(one)
    one.add_argument(
        "--reference",
        action="store_true",
        help="also fold every chain without SQL and compare every hour",
    )
    one.set_defaults(act=rebuild)
    one = verb(
        verbs,
        "demo",
        "make a fleet of hosts that never were, to look around in",
        "leased-collector --state /tmp/demo demo --nodes 20",
    )
    one.add_argument("--nodes", type=int, default=10, metavar="N", help="default: 10")
    one.add_argument("--days", type=int, default=90, metavar="N", help="default: 90")
    one.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    one.add_argument("--until", metavar="DATE", help="where it ends (default: today, 00:00 UTC)")
    one.add_argument(
        "--leases", type=int, default=24, metavar="N", help="per node and day (default: 24)"
    )
    one.add_argument("--config", type=Path, metavar="FILE", help="of the server, with --serve")
    one.add_argument(
        "--serve", action="store_true", help="then serve it, console and all (none is made twice)"
    )
    one.set_defaults(act=demo, check=False)


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Where prices, and the list of nodes that nobody waits for, come from."""
    parser.add_argument(
        "--terms",
        type=Path,
        metavar="FILE",
        help=f"prices (default: what --config names, else {TERMS_FILE} beside it)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"prices and engine (default: {CONFIG})"
    )


def add_last(parser: argparse.ArgumentParser, default: str) -> None:
    """How far back, by the records: whatever the clock says, the same records give the same."""
    parser.add_argument(
        "--last",
        default=default,
        metavar="PERIOD",
        help=f"back from the last full hour that the fleet's records reach (default: {default})",
    )


def terms_by(options: argparse.Namespace) -> Terms:
    """The prices that the options name. Raises ConfigError."""
    return load_terms_for(options.config) if options.terms is None else load_terms(options.terms)


@contextmanager
def opened(options: argparse.Namespace, console: Console) -> Iterator[tuple[StoreSource, Terms]]:
    """The store, brought up to date unless another process is at it, and the terms."""
    terms, store = terms_by(options), _store(options)
    with closing(ArchiveReader(options.state)) as archive:
        try:
            _bring_along(store, archive, terms, console)
        except StateError as error:
            if not store.rollups.listing().nodes:
                raise
            console.note(f"{error}; answering from what is there")
    console.end_progress()
    with closing(StoreSource(store.rollups)) as source:
        yield source, terms


def fleet_of(options: argparse.Namespace, terms: Terms) -> Fleet:
    """The fleet as all its records say: it takes as long as they are."""
    fleet = Fleet()
    with closing(ArchiveReader(options.state)) as archive:
        while fleet.follow(archive, READ_AT_ONCE):
            pass
    fleet.retired = frozenset(terms.retired_nodes)
    return fleet


def _bring_along(store: Store, archive: ArchiveReader, terms: Terms, console: Console) -> None:
    """Bring the store up to date. While another process makes the first of it there is nothing to
    answer from, and it is waited for. Raises StateError, StoreBusy."""
    ends_s = time.monotonic() + FIRST_S_MAX
    while True:
        try:
            store.refresh(archive, retired=terms.retired_nodes, progress=console.progress)
            return
        except StoreBusy:
            if store.rollups.listing().nodes or time.monotonic() > ends_s:
                raise
        console.progress("waiting for another process that makes the first of it")
        time.sleep(LOOK_S)


def _store(options: argparse.Namespace) -> Store:
    """The store, by the engine that is configured. Raises ConfigError."""
    return Store(options.state, make_engine=maker(*load_store(options.config)))


def refresh(options: argparse.Namespace, console: Console) -> int:
    """Bring everything up to date."""
    retired = terms_by(options).retired_nodes
    with closing(ArchiveReader(options.state)) as archive:
        done = _store(options).refresh(archive, retired=retired, progress=console.progress)
    _tell(options, console, done, [])
    return 0


def rebuild(options: argparse.Namespace, console: Console) -> int:
    """Make everything again; 65 if something was not what the raw segments say."""
    retired = terms_by(options).retired_nodes
    with closing(ArchiveReader(options.state)) as archive:
        store = _store(options)
        done, changed = store.rebuild(archive, retired=retired, progress=console.progress)
        if options.reference:
            console.progress("folding every chain")
            floor_ns = archive.kept.floor().floor_ns
            changed += compare(StoreSource(store.rollups), read_archive(archive), floor_ns)
    _tell(options, console, done, changed)
    return EX_DATAERR if changed else 0


def demo(options: argparse.Namespace, console: Console) -> int:
    """Make a fleet, and serve it if that is asked for."""
    if not (options.serve and is_there(options.state)):
        _make(options, console)
    if options.serve:
        console.note("look around: the console is at /, the API below /v1")
        return serve(options, console, beside=partial(_go_on, options=options, console=console))
    return 0


async def _go_on(desk: Any, *, options: argparse.Namespace, console: Console) -> None:
    """Its hosts send telemetry for as long as it is served."""

    def fleet() -> Fleet:
        # Before all records are read, leases are there that have ended since.
        return desk.books.fleet if desk.books.is_read else Fleet()

    await telemetry.follow(options.state, fleet, desk.telemetry, console.wall_ns)


def _make(options: argparse.Namespace, console: Console) -> None:
    wish = _wish(options, console)
    console.note(
        f"--seed {wish.seed} --until {day(wish.until_ns)}: the same two make the same chains"
    )
    with closing(Archive(options.state)) as archive:
        watch = telemetry.Watch(wish.until_ns)
        records = make_fleet(archive, wish, console.progress, watch)
        done = Store(options.state).refresh(archive, progress=console.progress)
        console.progress("telemetry")
        telemetry.fill(options.state, watch.held(), wish.until_ns, console.wall_ns())
    console.answer(
        options.json,
        {"nodes": wish.nodes, "records": records, "closed_days": done.closed},
        f"{wish.nodes} nodes, {records} records, {done.closed} days",
        f"look around: leased-collector --state {options.state} costs",
    )


def compare(one: Source, other: Source, floor_ns: int = 0) -> list[str]:
    """What two sources do not say alike, from an instant on."""
    window = (floor_ns, 1 << 62)
    asked: dict[str, Callable[[Source], Any]] = {
        "usage": lambda source: source.cells(window),
        "peaks": lambda source: source.peaks(window),
        "tasks": lambda source: source.tasks(window),
        "idle stretches": lambda source: source.quiet(window),
        "heads": lambda source: source.nodes(),
        "what is held now": lambda source: Counter(source.held()),
    }
    return [f"{what}, by the reference" for what, ask in asked.items() if ask(one) != ask(other)]


def _wish(options: argparse.Namespace, console: Console) -> Wish:
    for name, value, most in (
        ("nodes", options.nodes, NODES_MAX),
        ("days", options.days, DAYS_MAX),
        ("leases", options.leases, 10_000),
    ):
        if not 1 <= value <= most:
            raise InvalidParameter(name, f"1 to {most}")
    until_ns = console.wall_ns() // DAY_NS * DAY_NS
    if options.until is not None:
        until_ns = label_of_day(options.until, "until")
    return Wish(options.nodes, options.days, options.seed, until_ns, options.leases)


def _tell(
    options: argparse.Namespace, console: Console, done: Refreshed, changed: list[str]
) -> None:
    document = {
        "logs": done.logs,
        "records": done.records,
        "closed_days": done.closed,
        "revised": list(done.revised),
        "changed_files": changed,
    }
    lines = [f"{done.records} records of {done.logs} logs, {done.closed} days closed"]
    if done.revised:
        count = len(done.revised)
        lines.append(f"{count} closed stretches were revised by records that came later")
    lines += [f"was not what the raw segments say: {name}" for name in changed]
    console.answer(options.json, document, *lines)
