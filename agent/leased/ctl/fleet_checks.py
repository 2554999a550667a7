# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at where a fleet pulls this node's log: the certificates, and for how long.

Rule: a certificate near its end is said a month before, one past it as what it is: the door is shut
and tenants do not notice. So it is where the three files are not a node's certificate, its key and
the CA of both.

Does not connect anywhere, and does not know this node's id (the agent refuses another's).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from leased.chain.certificate import Role, parse_identity
from leased.ctl import minting
from leased.ctl.console import length
from leased.ctl.findings import Finding, Grade, read_text
from leased.ctl.pki import SOON_NS, expiry
from leased.ctl.service_checks import CONFIG_FILE
from leased.durable.reading import read_file
from leased.terms.errors import CallerError, ConfigError
from leased.terms.moment import NS_PER_S
from leased.terms.reading import read_toml

_FILES: Final = ("certificate", "key", "ca")


def certificates(root: Path, *, wall_ns: Callable[[], int] = time.time_ns) -> Iterator[Finding]:
    """Those of `[listener]`."""
    try:
        table = read_toml(read_text(root / CONFIG_FILE) or "").get("listener", {})
    except ConfigError:
        return  # `timing` says so
    paths = {name: str(table.get(name, "")) for name in _FILES}
    if not any(paths.values()):
        yield Finding(Grade.NOTE, "listener", "off: no collector can pull this node's log")
        return
    if missing := ", ".join(name for name in _FILES if not paths[name]):
        text = f"[listener] lacks {missing}: the agent does not start"
        yield Finding(Grade.FAIL, "listener", text, "give certificate, key and ca, or none of them")
        return
    key = root / paths["key"].lstrip("/")
    if key.exists() and key.stat().st_mode & 0o077:
        advice = f"run `chmod 600 {paths['key']}`"
        yield Finding(Grade.WARN, "listener", f"{paths['key']}: others may read it", advice)
    for name in ("certificate", "ca"):
        yield _judge(root, paths[name], wall_ns(), of_ca=name == "ca")
    try:
        pems = [read_file(root / paths[name].lstrip("/")) for name in _FILES]
    except FileNotFoundError as error:
        if error.filename != str(key):
            return  # said above
        why = "no such file"
    except OSError:
        return
    else:
        why = minting.mismatch(*pems)
    if why:
        text = f"{paths['certificate']}, {paths['key']} and {paths['ca']} do not go together: {why}"
        yield Finding(Grade.WARN, "listener", text, "bring all three from where the CA is")


def _judge(root: Path, path: str, now_ns: int, *, of_ca: bool) -> Finding:
    """One certificate."""
    place = root / path.lstrip("/")
    advice = f"renew it: `leasectl pki renew {path}`, then `leasectl admin reload`"
    try:
        pem = read_file(place)
        if of_ca:
            who, until_ns = minting.ca_of(pem)
            advice = (
                "renew it where its key is (`leasectl pki renew`), bring ca.pem to every node and"
                " collector, then `leasectl admin reload`"
            )
        else:
            who, until_ns = expiry(place)
            if parse_identity(who).role is not Role.NODE:
                text = f"{path} is of {who}, and not of a node: collectors cannot connect"
                return Finding(Grade.WARN, "listener", text, "make one with `leasectl pki node`")
    except (CallerError, OSError) as error:
        return Finding(Grade.WARN, "listener", f"{path}: {error}", "make one with `leasectl pki`")
    left_ns = until_ns - now_ns
    if left_ns <= 0:
        text = f"{who}: past its end since {length(-left_ns)}: collectors cannot connect"
        return Finding(Grade.WARN, "listener", text, advice)
    text = f"{who}: {length(max(left_ns, NS_PER_S))} left"
    if left_ns < SOON_NS:
        return Finding(Grade.WARN, "listener", text, advice)
    return Finding(Grade.OK, "listener", text)
