# SPDX-License-Identifier: Apache-2.0
"""The verb pki: a fleet's CA, and the certificates of its nodes, collectors and scrapers.

Rule: keys are written readable by their owner only and never printed; nothing that is there is
overwritten, but by `renew`, which puts certificate and key in place whole. A CA that is renewed
keeps its key. Everything works without a network and without an agent.

Does not hand certificates out: copying them is the operator's part.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from leased.chain.certificate import NAME, NODE_ID, Certificate, Identity, Role, read_certificate
from leased.client import Session
from leased.ctl import minting, render
from leased.ctl.agent import online
from leased.ctl.console import Console, length
from leased.ctl.minting import END_DAYS, Authority, Minted
from leased.ctl.usage_text import Verbs, verb
from leased.durable.files import DirectoryDisk, write_aside
from leased.durable.reading import read_file
from leased.terms.errors import CallerError, InvalidParameter
from leased.terms.moment import NS_PER_S
from leased.wire import parameters, replies

PKI_DIRECTORY: Final = Path("/etc/leased/pki")
CA_DAYS: Final = 3650
SOON_NS: Final = 30 * 86_400 * NS_PER_S
CA: Final = "ca"


def register(verbs: Verbs) -> None:
    """Add `pki` with its verbs."""
    parent = verb(
        verbs,
        "pki",
        "make a fleet's certificates",
        "leasectl pki init gpu.example.org",
        json=False,
    )
    below = parent.add_subparsers(dest="pki_verb", metavar="VERB", required=True)
    one = verb(below, "init", "make the CA of a fleet", "leasectl pki init gpu.example.org")
    one.add_argument("fleet", help="the fleet's name, such as gpu.example.org")
    _add_place(one, CA_DAYS)
    one.set_defaults(act=init)
    one = verb(
        below,
        "node",
        "make a node's certificate",
        "leasectl pki node --host node-17.example.org",
    )
    one.add_argument("--id", metavar="HEX", help="its node id (default: ask this host's agent)")
    _add_hosts(one)
    one.set_defaults(act=node)
    for role, example in (
        (Role.COLLECTOR, "leasectl pki collector west --host collect.example.org"),
        (Role.SCRAPER, "leasectl pki scraper prometheus"),
    ):
        one = verb(below, role.value, f"make a {role.value}'s certificate", example)
        one.add_argument("name", help="1 to 63 of a-z 0-9 . _ -")
        _add_hosts(one)
        one.set_defaults(act=named, role=role)
    one = verb(
        below, "show", "say whose certificates are whose", "leasectl pki show /etc/leased/pki/*.pem"
    )
    one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="certificates in PEM")
    one.set_defaults(act=show)
    one = verb(
        below,
        "renew",
        "replace a certificate and its key; of the CA, its end",
        "leasectl pki renew /etc/leased/pki/node-0123456789abcdef0123456789abcdef.pem",
    )
    one.add_argument("file", type=Path, help="the certificate; its key lies beside it")
    _add_place(one, None)
    one.set_defaults(act=renew)


def _add_place(parser: argparse.ArgumentParser, days: int | None) -> None:
    usual = str(days) if days else f"{END_DAYS}, a CA {CA_DAYS}"
    parser.add_argument(
        "--dir",
        type=Path,
        default=PKI_DIRECTORY,
        help=f"where the CA is (default: {PKI_DIRECTORY})",
    )
    parser.add_argument(
        "--days", type=int, default=days, help=f"how long it is good for (default: {usual})"
    )


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address that it is reached by (may be repeated)",
    )
    _add_place(parser, END_DAYS)


# ---- the verbs -----------------------------------------------------------------------------------


def init(options: argparse.Namespace, console: Console) -> int:
    """Make a CA."""
    minted = minting.found(options.fleet, now=_now(console), days=_days(options))
    options.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    put_files(options.dir, CA, minted)
    return _tell(options, console, CA)


def node(options: argparse.Namespace, console: Console) -> int:
    """Make a node's certificate."""
    if options.id is None:
        return online(_node_here, admin=True)(options, console)
    return _node(options, console, options.id)


async def _node_here(options: argparse.Namespace, console: Console, session: Session) -> int:
    told = await session.ask(parameters.Status(), replies.StatusReply)
    return _node(options, console, told.node_id)


def _node(options: argparse.Namespace, console: Console, name: str) -> int:
    if not NODE_ID.fullmatch(name):
        raise InvalidParameter("id", f'"{name}": a node id has 32 lower-case hex digits')
    return _issue(options, console, Role.NODE, name)


def named(options: argparse.Namespace, console: Console) -> int:
    """Make the certificate of somebody with a name."""
    if not NAME.fullmatch(options.name):
        raise InvalidParameter("name", f'"{options.name}": 1 to 63 of a-z 0-9 . _ -')
    return _issue(options, console, options.role, options.name)


def show(options: argparse.Namespace, console: Console) -> int:
    """Say what certificates say."""
    told = [_describe(path, console) for path in options.files]
    lines = [line for one in told for line in render.fields([*one.items()])]
    console.answer(options.json, {"certificates": told}, *lines)
    return 0


def renew(options: argparse.Namespace, console: Console) -> int:
    """Make the same certificate again, with a new end and, but for the CA's, a new key."""
    pem = _pem(options.file)
    is_ca = minting.is_ca(pem)
    options.days = options.days or (CA_DAYS if is_ca else END_DAYS)
    if is_ca:
        authority = minting.open_authority(pem, _read(options.file.with_suffix(".key")))
        minted = authority.again(now=_now(console), days=_days(options))
    else:
        identity = read_certificate(minting.der_of(pem)).identity
        minted = _authority(options.dir).issue(
            identity, minting.hosts_of(pem), now=_now(console), days=_days(options)
        )
    put_files(options.file.parent, options.file.stem, minted, again=True)
    return _tell(options, console, options.file.stem, options.file.parent)


def _issue(options: argparse.Namespace, console: Console, role: Role, name: str) -> int:
    authority = _authority(options.dir)
    identity = Identity(authority.fleet, role, name)
    minted = authority.issue(identity, options.host, now=_now(console), days=_days(options))
    stem = f"{role.value}-{name}"
    put_files(options.dir, stem, minted)
    return _tell(options, console, stem)


def _tell(
    options: argparse.Namespace, console: Console, stem: str, folder: Path | None = None
) -> int:
    """Say what was made."""
    folder = folder or options.dir
    told = _describe(folder / f"{stem}.pem", console)
    line = f"{told['file']} (key: {stem}.key): {told['who']}, until {told['until']}"
    document = {"certificate": told, "key": str(folder / f"{stem}.key")}
    console.answer(options.json, document, line)
    return 0


# ---- certificates on disk ------------------------------------------------------------------------


def expiry(path: Path) -> tuple[str, int]:
    """Who a certificate is of and when it ends, in ns of the wall clock. Raises CallerError."""
    found = read_certificate(minting.der_of(_pem(path)))
    return found.identity.uri(), found.not_after_s * NS_PER_S


def _pem(path: Path) -> bytes:
    """A file with a certificate in it. Raises CallerError."""
    pem = _read(path)
    try:
        minting.der_of(pem)
    except CallerError as error:
        raise CallerError(f"{path}: {error}") from error
    return pem


def _describe(path: Path, console: Console) -> dict[str, str]:
    """What people want to know of a certificate. Raises CallerError."""
    pem = _pem(path)
    try:
        found: Certificate | None = read_certificate(minting.der_of(pem))
    except CallerError:
        found = None
    if found is None:
        who, until_ns = minting.ca_of(pem)
    else:
        who, until_ns = found.identity.uri(), found.not_after_s * NS_PER_S
    left_ns = until_ns - console.wall_ns()
    left = f"{length(left_ns)} left" if left_ns > 0 else "EXPIRED"
    told = {
        "file": str(path),
        "who": who,
        "until": f"{_instant(until_ns):%Y-%m-%d %H:%M:%S}Z ({left})",
        "sha256": minting.fingerprint(pem),
    }
    hosts = minting.hosts_of(pem)
    return {**told, "hosts": ", ".join(hosts)} if hosts else told


def _authority(folder: Path) -> Authority:
    """The CA in `folder`. Raises CallerError."""
    return minting.open_authority(_read(folder / f"{CA}.pem"), _read(folder / f"{CA}.key"))


def put_files(folder: Path, stem: str, minted: Minted, *, again: bool = False) -> None:
    """Write a key and its certificate: neither takes its name before both are durable. `again`:
    over those that are there, and for the same owner, who may be a service's. Raises CallerError if
    one is there, OSError where they cannot be written."""
    key, certificate = f"{stem}.key", f"{stem}.pem"
    try:
        disk = DirectoryDisk(folder)
    except OSError as error:
        raise CallerError(f"{folder}: {error.strerror}") from error
    try:
        names = disk.names()
        for name, data, mode in ((key, minted.key, 0), (certificate, minted.certificate, 0o644)):
            if name in names and not again:
                raise CallerError(
                    f"{folder / name} is there already; `leasectl pki renew` replaces, or remove it"
                )
            write_aside(disk, name, data)
            if mode:
                os.chmod(folder / f"{name}.new", mode)
            if name in names:
                former = os.stat(folder / name)
                os.chown(folder / f"{name}.new", former.st_uid, former.st_gid)
        for name in (key, certificate):
            disk.rename(f"{name}.new", name)
        disk.sync_names()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        disk.close()


def _read(path: Path) -> bytes:
    try:
        return read_file(path, pipe=True)
    except OSError as error:
        hint = "; make the CA first: `leasectl pki init FLEET`" if path.stem == CA else ""
        raise CallerError(f"{path}: {error.strerror}{hint}") from error


def _days(options: argparse.Namespace) -> int:
    if not 1 <= options.days <= CA_DAYS * 3:
        raise InvalidParameter("days", f"from 1 to {CA_DAYS * 3}")
    return int(options.days)


def _now(console: Console) -> datetime:
    return _instant(console.wall_ns())


def _instant(wall_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=wall_ns // NS_PER_S)
