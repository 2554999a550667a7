# SPDX-License-Identifier: Apache-2.0
"""The verbs of the HTTP side: serve, token, key.

Rule: a token is shown once, to whom makes it, and is kept by its hash only. SIGTERM and SIGINT stop
the server in order, SIGHUP reads tokens and the operator's document again.

Does not answer requests (`application`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from leased.chain.note import NoteKey
from leased.collector import config
from leased.collector.accounts.terms_file import load_terms
from leased.collector.api import settings
from leased.collector.api.callers import hash_of
from leased.collector.api.certificates import estranged
from leased.collector.api.routes import Scope
from leased.collector.extras import how_to_have
from leased.collector.governance.directory import DIRECTORY, KEY_NAME, load_signer
from leased.collector.own_door import read_listening
from leased.collector.retention_rule import load_rule
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.durable.reading import read_text
from leased.terms.errors import EX_NOINPUT, CallerError, ConfigError, LeasedError, StateError

GARBAGE: Final = (20_000, 20, 1_000)
"""When the collector of cycles looks (see `gc.set_threshold`). An answer is thousands of rows,
freed by their counts of references; with the usual 700 it looks through them as they are made, and
every now and then through all that is known of the fleet, while somebody waits."""

SWITCH_S: Final = 0.001
"""How long a thread that computes is left alone when another wants the interpreter; 5 ms are usual.
Threads that find long answers give it up at each read, and are to have it back before that."""

TOKEN_PREFIX: Final = "leased_"
"""So that scanners for secrets find one that was committed somewhere."""


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "serve",
        "serve the HTTP API and hand nodes their policy",
        "leased-collector serve --config ./leased-collector.toml",
        json=False,
    )
    one.add_argument("--config", type=Path, metavar="FILE", help=f"default: {settings.CONFIG}")
    one.add_argument("--check", action="store_true", help="check the configuration and exit")
    one.set_defaults(act=serve)
    one = verb(
        verbs,
        "token",
        "make a bearer token, and the lines that let the API know it",
        "leased-collector token grafana --scope read --scope cost",
        json=False,
    )
    one.add_argument("name", help="what it is called in records of changes")
    one.add_argument(
        "--scope", action="append", choices=tuple(map(str, Scope)), help="default: read"
    )
    one.add_argument("--tenant", action="append", help="one that it may see (default: all)")
    one.set_defaults(act=token)
    one = verb(
        verbs,
        "key",
        "print the key by which nodes check their policy",
        "leased-collector key",
        json=False,
    )
    one.add_argument("--config", type=Path, metavar="FILE", help=f"default: {settings.CONFIG}")
    one.set_defaults(act=key)


Beside = Callable[[Any], Awaitable[None]]


async def _nothing(desk: Any) -> None:
    del desk


def serve(options: argparse.Namespace, console: Console, *, beside: Beside = _nothing) -> int:
    """Run until told to stop; `beside` goes on as long as that."""
    # What serves HTTP is an extra of the package: who only verifies and bills does without.
    try:
        from leased.collector.api.desk import Desk
    except ModuleNotFoundError as error:
        raise StateError(how_to_have(error, "collector")) from error
    directory = options.config.parent if options.config is not None else settings.CONFIG.parent
    read = partial(settings.load, options.config)
    _tell_strangers(read(), directory, console)
    if options.check:
        settings.load_ground(read(), directory)
        settings.load_tokens(read(), directory)
        prices = settings.terms_of(read(), directory)
        if prices is not None:
            load_terms(prices)
        path = options.config or settings.CONFIG
        if path.exists():
            pull = config.load(path)
            read_listening(pull.own_log, (pull.certificate, pull.key, pull.ca))
            load_rule(path)
        console.say("the configuration can be meant")
        return 0
    with closing(Desk(read, options.state, directory, say=console.note)) as desk:
        trio.run(_serve, desk, console, beside)
    # All that has to last is closed. An answer that nobody waits for any more may still be computed
    # in a thread (a cancelled request leaves it there): when it came back into an interpreter that
    # is being taken apart, Python would end that thread in the middle of DuckDB's C++, which then
    # aborts the process, and a stop in order would be told as a crash.
    if _is_at_work():
        console.out.flush()
        console.err.flush()
        os._exit(0)
    return 0


def _tell_strangers(told: settings.Settings, directory: Path, console: Console) -> None:
    if told.http.certificate and told.http.client_ca:
        with suppress(OSError, UnicodeError):  # the server says what cannot be read
            pem = read_text(directory / told.http.certificate)
            if said := estranged(pem, told.governance.fleet):
                console.alarm(said)


def _is_at_work() -> bool:
    """Whether a thread of trio's is there that may be at something."""
    return any(one.daemon and one.is_alive() for one in threading.enumerate())


async def _serve(desk: Any, console: Console, beside: Beside) -> None:
    gc.set_threshold(*GARBAGE)
    sys.setswitchinterval(SWITCH_S)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, desk, console, stop)
        nursery.start_soon(beside, desk)
        for address in desk.server.addresses:
            console.note(f"serving {address}")
        _announce("READY=1")
        await desk.run(stop)
        nursery.cancel_scope.cancel()


async def _obey(desk: Any, console: Console, stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                _announce("STOPPING=1")
                stop.set()
                continue
            try:
                desk.reload()
                console.note("tokens and policy were read again")
            except LeasedError as error:
                console.note(f"refused, the old ones stay in force: {error}")


def _announce(state: str) -> None:
    """Tell systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.sendto(state.encode(), address.replace("@", "\0", 1))


def token(options: argparse.Namespace, console: Console) -> int:
    """Make a token."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    scopes = ", ".join(f'"{scope}"' for scope in options.scope or [Scope.READ])
    lines = [
        "[[tokens]]",
        f"name = {json.dumps(options.name, ensure_ascii=False)}",
        f'sha256 = "{hash_of(secret)}"',
        f"scopes = [{scopes}]",
    ]
    if options.tenant:
        lines.append(f"tenants = {json.dumps(options.tenant, ensure_ascii=False)}")
    try:
        settings.parse_tokens("\n".join(lines))
    except ConfigError as error:
        # Of the command line: there is no file, and no hash that says anything to anybody.
        raise CallerError(str(error.__cause__ or error)) from error
    console.note("the token, shown this once:")
    console.say(secret)
    console.note("for the tokens file, which the API reads again at SIGHUP:")
    for line in lines:
        console.err.write(line + "\n")
    return 0


def key(options: argparse.Namespace, console: Console) -> int:
    """Print the verifier key text."""
    fleet = settings.load(options.config).governance.fleet
    signer = load_signer(options.state / DIRECTORY)
    if signer is None:
        console.note("there is no key yet: `leased-collector serve` makes it at its first start")
        return EX_NOINPUT
    console.say(NoteKey(KEY_NAME.format(fleet=fleet), signer.public_key).text())
    return 0
