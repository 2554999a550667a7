# SPDX-License-Identifier: Apache-2.0
"""The verb of webhooks: `leased-collector webhook add|list|change|rotate|remove|test|deliveries|
replay`.

Rule: they work on the state directory, beside a running server (which sees what they did within a
second) or without one. A secret goes to standard output once, when it is made; one that the
receiver has is read from standard input, never from the command line.

Does not send (`courier`).
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from leased.collector.api import settings, webhooks
from leased.collector.governance.directory import DIRECTORY
from leased.collector.governance.register import Register
from leased.collector.webhooks.outbox import Outbox
from leased.collector.webhooks.receivers import Receivers
from leased.collector.webhooks.signing import load_keys, public_text
from leased.collector.witness import os_entropy
from leased.ctl import render
from leased.ctl.console import Console
from leased.ctl.usage_text import Parser, Verbs, verb
from leased.terms.errors import InvalidParameter, StateError
from leased.terms.quantity import parse_instant

Act = Callable[[argparse.Namespace, Console, Receivers], int]
_ID = "as `webhook list` shows it"
_KINDS = 'a kind ("quota.changed"), a family ("lease.*"), or "*"; may be repeated'


def register(verbs: Verbs) -> None:
    """Add the verb and its verbs."""
    top = verb(
        verbs,
        "webhook",
        "who is told what happens, and what became of it",
        "leased-collector webhook add https://hooks.example.org/leased --event 'lease.*'",
        json=False,
    )
    under = top.add_subparsers(
        dest="what", metavar="WHAT", required=True, parser_class=Parser, title="what"
    )
    one = _add(under, "add", "tell somebody", "add https://hooks.example.org/l --event '*'", _new)
    one.add_argument("url", help="https://…; http:// only where private_networks allows it")
    one.add_argument("--event", action="append", required=True, metavar="KIND", help=_KINDS)
    one.add_argument("--tenant", action="append", help="only of this one; may be repeated")
    one.add_argument("--description", default="", metavar="TEXT", help="for people")
    _add_secret(one)
    _add(under, "list", "who is told what", "list --json", _list)
    one = _add(under, "change", "another address, other events, off or on", "change ID --off", _set)
    one.add_argument("id", help=_ID)
    one.add_argument("--url", help="another address")
    one.add_argument("--event", action="append", metavar="KIND", help="in place of what it was")
    one.add_argument("--description", metavar="TEXT", help="for people")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--off", dest="enabled", action="store_false", default=None, help="for now")
    how.add_argument("--on", dest="enabled", action="store_true", default=None, help="again")
    one = _add(under, "rotate", "another secret; both sign for a day", "rotate ID", _rotate)
    one.add_argument("id", help=_ID)
    _add_secret(one)
    one = _add(under, "remove", "tell it nothing more", "remove ID", _remove)
    one.add_argument("id", help=_ID)
    one = _add(under, "test", "let it hear something", "test ID", _test)
    one.add_argument("id", help=_ID)
    one = _add(
        under, "deliveries", "what became of what it was to hear", "deliveries ID --dead", _show
    )
    one.add_argument("id", help=_ID)
    one.add_argument("--dead", action="store_true", help="only what was given up")
    one.add_argument("--count", type=int, default=50, metavar="N", help="default: 50")
    one = _add(under, "replay", "send again what was given up, or one message", "replay ID", _again)
    one.add_argument("id", help=_ID)
    one.add_argument("--message", metavar="MSG", help="this one, whatever became of it")
    one.add_argument("--since", metavar="INSTANT", help="what happened since (default: everything)")


def _add(verbs: Verbs, name: str, summary: str, example: str, act: Act) -> argparse.ArgumentParser:
    one = verb(verbs, name, summary, f"leased-collector webhook {example}")
    one.add_argument("--config", type=Path, metavar="FILE", help=f"default: {settings.CONFIG}")
    one.set_defaults(act=_carry_out, act_on=act)
    return one


def _add_secret(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--secret-from-stdin", action="store_true", help="the receiver's own (whsec_…)"
    )


def _carry_out(options: argparse.Namespace, console: Console) -> int:
    act: Act = options.act_on
    with _open(options) as receivers:
        return act(options, console, receivers)


@contextmanager
def _open(options: argparse.Namespace) -> Iterator[Receivers]:
    """Receivers, in one transaction. Raises StateError."""
    chosen = settings.load(options.config)
    directory = options.state / DIRECTORY
    if not directory.is_dir():
        raise StateError(f"{directory}: there is none; `leased-collector serve` makes it")
    with closing(Register(directory)) as kept, kept.transaction():
        yield Receivers(
            kept,
            Outbox(kept.connection, f"urn:leased:fleet:{chosen.governance.fleet}"),
            allowed=chosen.webhooks.private_networks,
            entropy=os_entropy,
            overlap_ns=chosen.webhooks.overlap_ns,
        )


def _actor() -> str:
    try:
        return f"local:{getpass.getuser()}"
    except (KeyError, OSError):
        return "local"


def _secret(options: argparse.Namespace) -> str | None:
    return sys.stdin.readline(256).strip() if options.secret_from_stdin else None


def _new(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    webhook = receivers.add(
        options.url,
        options.event,
        tenants=options.tenant,
        description=options.description,
        secret=_secret(options),
        actor=_actor(),
        now_ns=console.wall_ns(),
    )
    return _tell_secret(options, console, receivers, webhook)


def _rotate(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    webhook = receivers.find(options.id)
    changed = receivers.rotate(webhook, _secret(options), _actor(), console.wall_ns())
    return _tell_secret(options, console, receivers, changed)


def _tell_secret(
    options: argparse.Namespace, console: Console, receivers: Receivers, webhook: Any
) -> int:
    seen = webhooks.shown(webhook, receivers.outbox, secret=not options.secret_from_stdin)
    if options.json:
        console.document(render.plain(seen))
        return 0
    console.note(f"webhook {webhook.id}")
    if seen.secret is not None:
        console.note("its secret, shown this once:")
        console.say(seen.secret)
    return 0


def _set(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    changed = receivers.change(
        receivers.find(options.id),
        url=options.url,
        events=options.event,
        description=options.description,
        enabled=options.enabled,
        actor=_actor(),
        now_ns=console.wall_ns(),
    )
    return _tell(options, console, [webhooks.shown(changed, receivers.outbox)])


def _list(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    found = [webhooks.shown(one, receivers.outbox) for one in receivers.outbox.webhooks()]
    chosen = settings.load(options.config).webhooks
    directory = (options.config or settings.CONFIG).parent
    keys = [public_text(key) for key in load_keys(chosen.signing_keys, directory)]
    return _tell(options, console, found, keys)


def _tell(
    options: argparse.Namespace,
    console: Console,
    found: list[webhooks.WebhookSeen],
    keys: Sequence[str] | None = None,
) -> int:
    if options.json:
        more = {} if keys is None else {"public_keys": list(keys)}
        console.document({"webhooks": render.plain(found), **more})
        return 0
    for key in keys or ():
        console.note(f"what is sent can be checked by {key}")
    rows = [
        (
            one.id,
            one.url,
            ", ".join(one.events),
            "everybody" if one.tenants is None else ", ".join(one.tenants),
            str(one.pending),
            str(one.dead),
            "on" if one.disabled_because is None else f"off, {one.disabled_because}",
        )
        for one in found
    ]
    console.say(*render.table(("ID", "URL", "EVENTS", "OF", "WAITING", "DEAD", "STATE"), rows))
    return 0


def _remove(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    receivers.remove(receivers.find(options.id), _actor(), console.wall_ns())
    return _done(options, console, {"removed": options.id})


def _test(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    message = receivers.test(receivers.find(options.id), console.wall_ns())
    return _done(options, console, {"message": message})


def _again(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    try:
        since_ns = 0 if options.since is None else parse_instant(options.since)
    except ValueError as error:
        raise InvalidParameter("since", str(error)) from error
    count = receivers.replay(
        receivers.find(options.id),
        message=options.message,
        since_ns=since_ns,
        actor=_actor(),
        now_ns=console.wall_ns(),
    )
    return _done(options, console, {"replayed": count})


def _done(options: argparse.Namespace, console: Console, told: dict[str, Any]) -> int:
    line = ", ".join(f"{name} {value}" for name, value in told.items())
    console.answer(options.json, told, line)
    return 0


def _show(options: argparse.Namespace, console: Console, receivers: Receivers) -> int:
    if options.count < 1:
        raise InvalidParameter("count", "at least 1")
    webhook, state = receivers.find(options.id), "dead" if options.dead else None
    found = receivers.outbox.deliveries(webhook.id, state=state, before=None, count=options.count)
    seen = [webhooks.delivery_shown(one) for one in found]
    rows = [
        (one.message, one.kind, one.happened_at, one.state, str(one.attempts), one.why)
        for one in seen
    ]
    lines = render.table(("MESSAGE", "KIND", "HAPPENED", "STATE", "ATTEMPTS", ""), rows)
    console.answer(options.json, {"deliveries": render.plain(seen)}, *lines)
    return 0
