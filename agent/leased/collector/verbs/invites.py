# SPDX-License-Identifier: Apache-2.0
"""The verbs of invites: invite, invites, withdraw.

Rule: an invite is shown once, to whoever makes it, or written to a file that nobody else may read;
it is kept by its hash only.

Does not let nodes in (`api.enrolling`).
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from leased.chain.certificate import NODE_ID
from leased.collector.api import settings
from leased.collector.invites import Invite, Invites, draw
from leased.collector.transport import check_url
from leased.collector.witness import os_entropy
from leased.ctl import minting, render
from leased.ctl.asks import parse_duration
from leased.ctl.console import Console, relative
from leased.ctl.usage_text import Verbs, verb
from leased.durable.reading import read_file
from leased.terms.errors import EX_NOINPUT, ConfigError, InvalidParameter
from leased.terms.moment import DAY_NS

VALID_MAX_NS: Final = 7 * DAY_NS


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "invite",
        "make a one-time invite by which a node enrols itself (leasectl audit enrol)",
        "leased-collector invite alpha https://alpha:7443 --host alpha --out alpha.invite",
        json=False,
    )
    one.add_argument("name", help="what the node will be called here")
    one.add_argument("url", help="where it will listen: https://host:port")
    one.add_argument("--node", default="", metavar="ID", help="only this node may use it")
    one.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address for its certificate (default: the host of the URL)",
    )
    one.add_argument("--valid", default="1h", metavar="TIME", help="how long (default: 1h; to 7d)")
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there, readable by you only"
    )
    one.add_argument("--config", type=Path, metavar="FILE", help=f"default: {settings.CONFIG}")
    one.set_defaults(act=invite)
    one = verb(verbs, "invites", "invites and what became of them", "leased-collector invites")
    one.set_defaults(act=invites)
    one = verb(
        verbs,
        "withdraw",
        "make an unused invite useless",
        "leased-collector withdraw 5a1c0f3e9b2d7c40",
        json=False,
    )
    one.add_argument("id", help="its id, as `leased-collector invites` shows it")
    one.set_defaults(act=withdraw)


def invite(options: argparse.Namespace, console: Console) -> int:
    """Make an invite."""
    if options.node and not NODE_ID.fullmatch(options.node):
        raise InvalidParameter("node", f"{options.node}: a node id has 32 lower-case hex digits")
    endpoint = check_url(options.url, options.node)
    valid_ns = parse_duration(options.valid)
    if not 0 < valid_ns <= VALID_MAX_NS:
        raise InvalidParameter("valid", "from 1s to 7d: an invite is for today")
    config = options.config or settings.CONFIG
    http = settings.load(options.config).http
    if not http.client_ca:
        raise ConfigError(f"{config}: http.client_ca is not set: whom should the node believe?")
    try:
        ca = read_file(config.parent / http.client_ca)
    except OSError as error:
        raise ConfigError(f"{config.parent / http.client_ca}: {error.strerror}") from error
    now_ns = time.time_ns()
    made = draw(os_entropy, minting.fingerprint(ca))
    hosts = tuple(options.host or [endpoint.host])
    kept = Invite(made.id, options.name, options.url, options.node, hosts, now_ns + valid_ns)
    options.state.mkdir(mode=0o700, exist_ok=True)
    with closing(Invites(options.state)) as book:
        book.make(kept, made.secret, now_ns)
    if options.out is None:
        console.say(made.text())
    else:
        _write(options.out, made.text())
    console.note(f"invite {made.id} for {options.name}: once, within {options.valid}")
    return 0


def _write(path: Path, text: str) -> None:
    """A new file of the caller's own. Raises InvalidParameter, OSError."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise InvalidParameter("out", f"{path}: {error.strerror}") from error
    with open(file, "w", encoding="ascii") as out:
        out.write(text + "\n")


def invites(options: argparse.Namespace, console: Console) -> int:
    """List them."""
    options.state.mkdir(mode=0o700, exist_ok=True)
    with closing(Invites(options.state)) as book:
        found = book.remembered()
    now_ns = console.wall_ns()
    if options.json:
        shown = [
            {"id": one.id, "name": one.name, "url": one.url, "node_id": one.node_id}
            | {"hosts": one.hosts, "expires_ns": one.expires_ns, "used_ns": one.used_ns}
            for one in found
        ]
        console.document({"invites": shown})
        return 0
    rows = [(one.id, one.name, one.url, _state(one, now_ns)) for one in found]
    console.say(*render.table(("INVITE", "NODE", "ADDRESS", "STATE"), rows))
    return 0


def _state(one: Invite, now_ns: int) -> str:
    if one.used_ns:
        return f"used {relative(one.used_ns - now_ns)}"
    when = relative(one.expires_ns - now_ns)
    return f"open, ends {when}" if one.expires_ns > now_ns else f"expired {when}"


def withdraw(options: argparse.Namespace, console: Console) -> int:
    """Make one useless."""
    with closing(Invites(options.state)) as book:
        done = book.withdraw(options.id)
    console.say(f"{options.id}: {'withdrawn' if done else 'there is no unused one of this id'}")
    return 0 if done else EX_NOINPUT
