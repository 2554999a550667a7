# SPDX-License-Identifier: Apache-2.0
"""Verbs of the puller: pull, nodes, enrol, verdict, resolve.

Rule: what is told while it runs is one line a thing, on standard error, or JSON lines with --json.
`enrol` and `resolve` may be run beside a running `pull`, which takes them up within seconds.

Does not pull (`pulling`).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import trio

from leased.chain.note import NoteKey, parse_key, write_note
from leased.chain.signing import parse_pem
from leased.collector import config as configuration
from leased.collector.archive.manifest import LogEntry, ManifestTables
from leased.collector.archive.manifests import is_there, open_manifest, own_directory, share
from leased.collector.case import bundles_of, resolution_text
from leased.collector.enrolment import enrol as enrol_log
from leased.collector.enrolment import read_enrolment
from leased.collector.pulling import Reached, name_of
from leased.collector.pulling import pull as pull_nodes
from leased.collector.reconcile import Verdict
from leased.collector.retention import upkeep
from leased.collector.witness import load_cosigner, os_entropy
from leased.ctl import render
from leased.ctl.console import Console
from leased.ctl.enrolled import FILE_BYTES_MAX
from leased.ctl.usage_text import Verbs, verb
from leased.durable.reading import read_file
from leased.terms.errors import (
    EX_DATAERR,
    EX_NOINPUT,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    CallerError,
    ChainError,
    InvalidParameter,
)

_EXAMPLE: Final = "leasectl audit enrolment | ssh collector leased-collector enrol"


class NoSuchNode(CallerError):
    """Nobody is followed under this name."""

    wire = "io.leased.Collector.NoSuchNode"
    exit_status = EX_NOINPUT

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: no such node; see `leased-collector nodes`")


def node_named(state: Path, word: str, heard: Iterable[str] = ()) -> str:
    """The id of the node that is called `word`, or whose id begins so (tables show the beginning),
    of those whose records are here or that are `heard` of. Raises NoSuchNode, InvalidParameter."""
    names: dict[str, str] = dict.fromkeys(heard, "")
    if is_there(state):
        with closing(open_manifest(state, read_only=True)) as manifest:
            names |= {entry.node: entry.name for entry in manifest.logs()}
    found = [node for node, name in names.items() if name == word]
    found = found or [node for node in names if word and node.startswith(word)]
    if len(found) > 1:
        raise InvalidParameter("node", f"{word} fits several: {', '.join(sorted(found))}")
    if not found:
        raise NoSuchNode(word)
    return found[0]


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "pull",
        "pull, verify, keep and cosign every node's log",
        "leased-collector pull --once",
    )
    add_config(one)
    one.add_argument("--once", action="store_true", help="to the end of each log, then stop")
    one.add_argument("--node", action="append", default=[], metavar="NAME", help="only this node")
    one.set_defaults(act=pull)
    one = verb(verbs, "nodes", "who is followed, and where", "leased-collector nodes")
    one.set_defaults(act=nodes)
    one = verb(
        verbs,
        "enrol",
        "follow a node's log, by what `leasectl audit enrolment` prints there",
        f"{_EXAMPLE} alpha https://alpha:7443 -",
        json=False,
    )
    one.add_argument("name", help="what the node is called here")
    one.add_argument("url", help="where it listens: https://host:port")
    one.add_argument("file", help='the enrolment ("-": standard input)')
    one.add_argument(
        "--replace", action="store_true", help="the node has begun a new log: follow that from now"
    )
    one.set_defaults(act=enrol)
    one = verb(
        verbs,
        "share",
        "let several collectors follow the fleet: the manifest moves to PostgreSQL",
        "leased-collector share 'host=/run/postgresql dbname=leased'",
        json=False,
    )
    one.add_argument("database", help="a libpq connection string, without a password")
    one.add_argument(
        "--name", default="", help="of the collector that had it alone, as nodes know it"
    )
    one.set_defaults(act=share_fleet)
    one = verb(verbs, "forget", "follow a node no longer", "leased-collector forget alpha")
    one.add_argument("name", help="the node; what was pulled of it stays")
    one.set_defaults(act=forget)
    one = verb(
        verbs, "verdict", "what is wrong with a log, and the evidence", "leased-collector verdict"
    )
    one.add_argument("name", nargs="?", help="of this node (default: of all that have one)")
    one.set_defaults(act=verdict)
    one = verb(
        verbs,
        "resolve",
        "lift a verdict by an operator's signed word",
        'leased-collector resolve alpha --operator mia --key mia.pem --reason "disk replaced"',
        json=False,
    )
    one.add_argument("name", help="the node")
    one.add_argument("--operator", required=True, metavar="NAME", help="the name of the key")
    one.add_argument(
        "--key", required=True, type=Path, metavar="FILE", help="an Ed25519 key, PKCS#8 PEM"
    )
    one.add_argument("--reason", required=True, metavar="TEXT", help="one line that says why")
    one.set_defaults(act=resolve)
    one = verb(
        verbs,
        "cosigner",
        "this collector's cosigning key, for the nodes' configuration",
        "leased-collector cosigner",
    )
    add_config(one)
    one.set_defaults(act=cosigner)


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option --config."""
    parser.add_argument(
        "--config",
        type=Path,
        default=configuration.CONFIG,
        metavar="FILE",
        help=f"the configuration (default: {configuration.CONFIG})",
    )


def pull(options: argparse.Namespace, console: Console) -> int:
    """Pull; 65 if a log has a verdict that wants an operator, 69 if a node was not reached."""

    def tell(name: str, text: str) -> None:
        if options.json:
            console.line({"node": name, "told": text})
        else:
            console.note(f"{name}: {text}")

    def alarm(name: str, text: str) -> None:
        if options.json:
            console.line({"node": name, "told": text, "priority": "crit"})
        else:
            console.alarm(f"{name}: {text}")

    config = configuration.load(options.config)
    if options.node:
        with closing(open_manifest(options.state, read_only=True)) as manifest:
            for name in options.node:
                _followed(manifest, name)
    reached: list[Reached] | None = None

    async def until_told() -> None:
        nonlocal reached
        async with trio.open_nursery() as nursery:
            await nursery.start(_end_at_a_stop, nursery.cancel_scope)
            reached = await pull_nodes(
                options.state,
                config,
                once=options.once,
                only=options.node,
                tell=tell,
                alarm=alarm,
                upkeep=lambda archive, do: upkeep(
                    archive, options.config, console.wall_ns(), os_entropy().hex(), do
                ),
            )
            nursery.cancel_scope.cancel()

    try:
        trio.run(until_told)
    except BaseExceptionGroup as group:
        error = _single(group)
        raise error from error.__cause__
    if reached is None:
        return EX_TEMPFAIL if options.once else 0
    lines = render.table(("NODE", "LOG", "VERDICT", "RECORDS", "COSIGNED", ""), _rows(reached))
    console.answer(options.json, {"nodes": msgspec.to_builtins(reached)}, *lines)
    if any(Verdict(one.verdict).sticky for one in reached):
        return EX_DATAERR
    return EX_UNAVAILABLE if any(one.unreachable for one in reached) else 0


async def _end_at_a_stop(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """As systemd says it: parts of the fleet are given back, for others to take at once."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def _rows(reached: list[Reached]) -> list[tuple[str, ...]]:
    return [
        (
            one.name,
            render.short(one.log_id),
            one.verdict,
            str(one.size),
            str(one.cosigned_size),
            one.unreachable,
        )
        for one in reached
    ]


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a nest of groups, or the group."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found


def nodes(options: argparse.Namespace, console: Console) -> int:
    """List what is followed."""
    with closing(open_manifest(options.state, read_only=True)) as manifest:
        found = [(name, url, manifest.log(log_id)) for name, url, log_id in manifest.nodes()]
    known = [(name, url, entry) for name, url, entry in found if entry is not None]
    told = [
        {"name": name, "url": url, "log_id": entry.log_id, "node_id": entry.node}
        for name, url, entry in known
    ]
    rows = [(name, url, render.short(entry.log_id), entry.verdict) for name, url, entry in known]
    lines = render.table(("NODE", "ADDRESS", "LOG", "VERDICT"), rows)
    console.answer(options.json, {"nodes": told}, *lines)
    return 0


def enrol(options: argparse.Namespace, console: Console) -> int:
    """Follow a log."""
    if options.file == "-":
        raw, source = sys.stdin.buffer.read(FILE_BYTES_MAX + 1), "standard input"
    else:
        try:
            raw, source = read_file(options.file, pipe=True), options.file
        except OSError as error:
            raise InvalidParameter("file", f"{options.file}: {error.strerror}") from error
    pinned = read_enrolment(raw, source)
    options.state.mkdir(mode=0o700, exist_ok=True)
    with closing(open_manifest(options.state)) as manifest:
        now_ns, replace = console.wall_ns(), options.replace
        told = enrol_log(manifest, options.name, options.url, pinned, now_ns, replace=replace)
    console.say(told or f"{options.name}: followed already")
    return 0


def share_fleet(options: argparse.Namespace, console: Console) -> int:
    """Move the manifest; the collector must not run meanwhile."""
    logs = share(options.state, options.database, options.name)
    console.say(f"{logs} logs: every collector that opens {options.state} now follows its share")
    return 0


def forget(options: argparse.Namespace, console: Console) -> int:
    """Follow a node no longer."""
    with closing(open_manifest(options.state)) as manifest:
        done = manifest.leave(options.name)
    line = f"{options.name}: {'forgotten' if done else 'was not followed'}"
    console.answer(options.json, {"forgotten": done}, line)
    return 0 if done else EX_NOINPUT


def verdict(options: argparse.Namespace, console: Console) -> int:
    """Show sticky verdicts with their bundles; 65 if there are any. That of a log that was replaced
    is shown to who asks for its node."""
    with closing(open_manifest(options.state, read_only=True)) as manifest:
        logs, replaced = manifest.logs(), manifest.replaced()
    if options.name is not None and options.name not in [entry.name for entry in logs]:
        raise NoSuchNode(options.name)
    chosen = [
        entry
        for entry in logs
        if options.name == entry.name or (options.name is None and entry.log_id not in replaced)
        if Verdict(entry.verdict).sticky
    ]
    told, lines = [], list[str]()
    for entry in chosen:
        bundles = [str(path) for path in bundles_of(options.state, entry)]
        told.append(
            {
                "node": entry.name,
                "log_id": entry.log_id,
                "verdict": entry.verdict,
                "why": entry.why,
                "since_ns": entry.since_ns,
                "evidence": bundles,
            }
        )
        lines.append(f"{entry.name}: {entry.verdict}: {entry.why}")
        lines += [f"  leasectl evidence verify {path}" for path in bundles]
    console.answer(options.json, {"verdicts": told}, *lines)
    return EX_DATAERR if chosen else 0


def resolve(options: argparse.Namespace, console: Console) -> int:
    """Leave an operator's signed word; a running pull, or the next, judges it."""
    try:
        signer = parse_pem(read_file(options.key, pipe=True))
    except OSError as error:
        raise InvalidParameter("key", f"{options.key}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidParameter("key", f"{options.key}: {error}") from error
    key = NoteKey(options.operator, signer.public_key)
    try:
        parse_key(key.text())
    except ChainError as error:
        raise InvalidParameter("operator", f"{options.operator!r} is no name of a key") from error
    with closing(open_manifest(options.state)) as manifest:
        entry = _followed(manifest, options.name)
        if not Verdict(entry.verdict).sticky:
            raise CallerError(f"{options.name} is {entry.verdict}: there is nothing to resolve")
        text = resolution_text(entry, options.reason)
        manifest.add_resolution(entry.log_id, write_note(text, [(key, signer.sign(text.encode()))]))
    console.say(f"{options.name}: left for the puller, signed by {key.text()}")
    console.note("it counts if [pull] operators has that key; the next pull looks at it")
    return 0


def _followed(manifest: ManifestTables, name: str) -> LogEntry:
    """The log that is followed at a node. Raises NoSuchNode."""
    for known, _, log_id in manifest.nodes():
        entry = manifest.log(log_id) if known == name else None
        if entry is not None:
            return entry
    raise NoSuchNode(name)


def cosigner(options: argparse.Namespace, console: Console) -> int:
    """Print the cosigning key, made if there is none."""
    name = name_of(configuration.load(options.config))
    directory = own_directory(options.state, name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = load_cosigner(directory, name, os_entropy).key
    console.answer(options.json, {"name": key.name, "key": key.text()}, key.text())
    return 0
