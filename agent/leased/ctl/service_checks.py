# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at in the installation: state, sockets, units, compiled parts, budgets.

Rule: everything is read below `root`; a socket counts as reachable when somebody answers on it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import trio

from leased.chain.segment import SEGMENT_BYTES
from leased.client import CallTimeout, Session
from leased.client.amounts import amount
from leased.ctl import privilege_checks
from leased.ctl.asks import parse_duration
from leased.ctl.console import length
from leased.ctl.findings import Finding, Grade, read_text
from leased.ctl.refusals import quantity
from leased.durable.filesystem import NETWORK
from leased.terms.errors import EX_CONFIG, ConfigError, InvalidParameter, LeasedError
from leased.terms.reading import read_toml
from leased.wire.objects import Resource

STATE_DIRECTORY: Final = "var/lib/leased"
CONFIG_FILE: Final = "etc/leased/leased.toml"
VOLATILE: Final = frozenset(("tmpfs", "ramfs"))
ANSWER_S: Final = 2.0
CHECK_S: Final = 30.0
_SUBORDINATE: Final = re.compile(r"^[^#:\n]+:(\d+):(\d+)$", re.MULTILINE)
UNITS: Final = ("leased.service", "leased-reaper.service")
BESIDE: Final = ("leased-cgroup.service", "leased.socket", "leased-admin.socket")
"""Without the first those do not start, without the others nobody starts them."""
HARDENING: Final = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "LockPersonality": "yes",
    "RestrictRealtime": "yes",
}
NVIDIA_CLASSES: Final = ("char-nvidia", "char-nvidia-frontend", "char-nvidia-uvm")
BUDGET_DEFAULTS: Final = {"cut": "5s", "backstop": "2s", "reclaim_max": "60s"}


def state_directory(root: Path) -> Iterator[Finding]:
    """Where the log lies."""
    path = root / STATE_DIRECTORY
    name = f"/{STATE_DIRECTORY}"
    if not path.exists():
        yield Finding(Grade.NOTE, "state", f"{name} does not exist", "the agent's unit makes it")
        return
    kind = _filesystem(root, path)
    if kind in VOLATILE:
        yield Finding(
            Grade.FAIL, "state", f"{name} on {kind}", "the log would not survive a reboot: move it"
        )
    elif kind in NETWORK:
        yield Finding(
            Grade.FAIL, "state", f"{name} on {kind}", "a log belongs to one host: use a local disk"
        )
    else:
        yield Finding(Grade.OK, "state", f"{name} on {kind}")
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    if free < SEGMENT_BYTES:
        need = f"no room for a segment of the log ({quantity('mem', SEGMENT_BYTES)}): grants stop"
        yield Finding(Grade.FAIL, "room", f"{quantity('mem', free)} free in {name}", need)


def _filesystem(root: Path, path: Path) -> str:
    """The type of the file system that holds `path`: that of the longest mount point above it."""
    below = "/" + str(path.relative_to(root))
    best, kind = "", "unknown"
    for line in filter(None, (read_text(root / "proc/self/mountinfo") or "").split("\n")):
        mounted, _, described = line.partition(" - ")
        point = mounted.split(" ")[4]
        fits = point == "/" or below == point or below.startswith(point + "/")
        if fits and len(point) >= len(best):
            best, kind = point, described.split(" ")[0]
    return kind


def sockets(root: Path, users: str, admins: str) -> Iterator[Finding]:
    """Whether an agent answers where leasectl would ask it, and the reaper beside it."""
    agent, admin = (root / path.lstrip("/") for path in map(os.path.abspath, (users, admins)))
    answer = _agent("agent", agent, required=True)
    yield answer
    yield _agent("agent (admin)", admin, required=False)
    if answer.grade is Grade.OK:
        yield from _fenced(agent)
    reaper = agent.parent / "reaper.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.settimeout(ANSWER_S)
            sock.connect(str(reaper))
            # The kernel connects to one that is stopped, too. What is no packet of its protocol, of
            # whatever version, it answers by hanging up.
            sock.send(b"?")
            sock.recv(1)
        except PermissionError:
            yield Finding(Grade.NOTE, "reaper", "may be asked by root only")
        except TimeoutError:
            advice = "stopped, or hangs: no lease ends in time; journalctl -u leased-reaper"
            yield Finding(Grade.FAIL, "reaper", f"no answer after {ANSWER_S:g} s", advice)
        except OSError as error:
            advice = "no grants, and no lease ends in time: systemctl start leased-reaper.service;"
            advice += " journalctl -u leased-reaper says what keeps it"
            yield Finding(Grade.FAIL, "reaper", f"{reaper.name}: {error.strerror}", advice)
        else:
            yield Finding(Grade.OK, "reaper", "answers")


def _agent(topic: str, path: Path, *, required: bool) -> Finding:
    async def ask() -> str:
        with closing(Session(path, timeout_s=ANSWER_S)) as session:
            return (await session.info()).version

    try:
        return Finding(Grade.OK, topic, f"answers, version {trio.run(ask)}")
    except LeasedError as error:
        if isinstance(error.__cause__, PermissionError):
            return Finding(Grade.NOTE, topic, "may be asked by others only")
        grade = Grade.FAIL if required else Grade.NOTE
        why, _, _ = str(error).partition("; ")  # what follows sends to the doctor
        advice = "systemctl start leased.service; journalctl -u leased.service says why it ended"
        if isinstance(error, CallTimeout):  # it is there, and a start would do nothing
            advice = "it is stopped, or hangs: systemctl restart leased.service; leases go on"
        return Finding(grade, topic, why, advice if required else "")


def _fenced(path: Path) -> Iterator[Finding]:
    """Capacity that is there and is not leased."""

    async def ask() -> list[Resource]:
        with closing(Session(path, timeout_s=ANSWER_S)) as session:
            return (await session.devices()).resources

    try:
        fenced = [
            f"{amount(one.kind, one.use.fenced)} of {one.resource_id}"
            for one in trio.run(ask)
            if one.use is not None and one.use.fenced
        ]
    except LeasedError:
        return  # it has gone meanwhile
    if fenced:
        advice = (
            "not proven clean, so not leased: `leasectl --admin ls` has the lease, `why ID` what"
            " failed; when that is mended, `leasectl admin unfence ID` (of what `admin fence` took,"
            " the resource)"
        )
        yield Finding(Grade.WARN, "fenced", ", ".join(fenced), advice)


def registry(root: Path) -> Iterator[Finding]:
    """systemd's registry of Varlink services."""
    directory = root / "run/varlink/registry"
    if (directory / "io.leased").exists():
        yield Finding(Grade.OK, "varlink registry", "io.leased is listed")
    elif directory.exists():
        yield Finding(Grade.NOTE, "varlink registry", "io.leased is not listed")
    else:
        yield Finding(Grade.NOTE, "varlink registry", "none on this host")


def journal(root: Path) -> Iterator[Finding]:
    """journald, which gets a copy."""
    if (root / "run/systemd/journal/socket").exists():
        yield Finding(Grade.OK, "journald", "runs")
    else:
        yield Finding(
            Grade.NOTE, "journald", "does not run", "the copy of the events is not kept; the log is"
        )


def compiled_parts(root: Path) -> Iterator[Finding]:
    """The extension that the workers and the journal need."""
    del root
    if importlib.util.find_spec("leased._native") is not None:
        yield Finding(Grade.OK, "compiled parts", "installed")
    else:
        yield Finding(
            Grade.FAIL,
            "compiled parts",
            "leased._native is missing",
            "reinstall the package; from source: python native/build_native.py",
        )


def units(root: Path) -> Iterator[Finding]:
    """How systemd runs us, if it does."""
    if not (root / "run/systemd/system").exists():
        yield Finding(Grade.NOTE, "systemd", "does not run here", "the agent starts its own reaper")
        return
    for unit in (*UNITS, *BESIDE):
        shown = _show_unit(unit) or {}
        state = shown.get("LoadState", "not-found")
        if state != "loaded":
            yield _not_loaded(unit, state)
        elif unit in UNITS:
            yield from judge_unit(unit, shown, root)


def _not_loaded(unit: str, state: str) -> Finding:
    if state == "not-found":
        return Finding(Grade.WARN, unit, "not installed")
    advice = f"systemctl status {unit} says what is wrong with its file"
    if state == "masked":
        advice = f"it cannot be started: systemctl unmask {unit}; systemctl start {unit}"
    return Finding(Grade.WARN, unit, state, advice)


def _show_unit(unit: str) -> dict[str, str] | None:
    facts = ("LoadState", "ActiveState", "DeviceAllow", "MainPID", "CapabilityBoundingSet")
    names = (*facts, *HARDENING)
    try:
        told = subprocess.run(
            ["systemctl", "show", unit, f"--property={','.join(names)}"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)


def judge_unit(unit: str, shown: dict[str, str], root: Path) -> Iterator[Finding]:
    """What the properties of a unit say."""
    active = shown.get("ActiveState", "unknown")
    yield Finding(Grade.OK if active == "active" else Grade.WARN, unit, active)
    lax = [name for name, wanted in HARDENING.items() if shown.get(name) != wanted]
    if lax:
        settings = ", ".join(f"{name}={shown.get(name, '')}" for name in lax)
        yield Finding(
            Grade.WARN, f"{unit} hardening", settings, "a drop-in weakens the unit that was shipped"
        )
    else:
        yield Finding(Grade.OK, f"{unit} hardening", "as shipped")
    yield from privilege_checks.capabilities(unit, shown, root)
    if unit == "leased.service" and "nvidia" in (read_text(root / "proc/devices") or ""):
        allowed = shown.get("DeviceAllow", "")
        missing = [name for name in NVIDIA_CLASSES if f"{name} " not in allowed + " "]
        if missing:
            yield Finding(
                Grade.WARN,
                f"{unit} devices",
                f"{', '.join(missing)} not allowed",
                "the agent cannot see the GPUs: add DeviceAllow= lines",
            )


def configuration(root: Path) -> Iterator[Finding]:
    """Whether the agent would start with it: asked of its program, for it alone knows every key."""
    file = root / CONFIG_FILE
    if not file.exists():
        return
    words = [sys.executable, "-P", "-m", "leased.service.daemon", "--check", "--config", str(file)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHECK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(Grade.NOTE, "configuration", f"could not be checked: {error}")
        return
    if done.returncode == 0:
        yield Finding(Grade.OK, "configuration", f"/{CONFIG_FILE} can be meant")
    elif done.returncode == EX_CONFIG:
        why = re.sub(r"^<\d>", "", done.stderr.strip()).removeprefix("leased: ")
        unreadable = os.strerror(errno.EACCES) in why and os.geteuid() != 0
        advice = "the agent does not start with it, nor reload it"
        grade = Grade.NOTE if unreadable else Grade.FAIL
        yield Finding(grade, "configuration", why, "" if unreadable else advice)


def timing(root: Path) -> Iterator[Finding]:
    """The budgets in force, added up."""
    table: dict[str, Any] = {}
    text = read_text(root / CONFIG_FILE)
    if text is not None:
        try:
            table = read_toml(text).get("timing", {})
        except ConfigError as error:
            yield Finding(Grade.FAIL, "configuration", f"/{CONFIG_FILE}: {error}")
            return
    budgets = {name: table.get(name, value) for name, value in BUDGET_DEFAULTS.items()}
    try:
        spent = {name: parse_duration(str(value)) for name, value in budgets.items()}
    except InvalidParameter as error:
        yield Finding(Grade.FAIL, "configuration", f"/{CONFIG_FILE}: timing: {error}")
        return
    steps = ("cut", "backstop")
    total = sum(spent[name] for name in steps)
    sums = f"{' + '.join(f'{name} {length(spent[name])}' for name in steps)} = {length(total)}"
    bound = spent["reclaim_max"]
    grade = Grade.OK if total <= bound else Grade.FAIL
    advice = "" if total <= bound else "the steps do not fit: raise reclaim_max or lower a step"
    yield Finding(grade, "deadline to proof", f"{sums}, at most {length(bound)}", advice)


def subordinates(root: Path) -> Iterator[Finding]:
    """Users with more uids than one, by whom a limit per tenant is had as often."""
    try:
        table = read_toml(read_text(root / CONFIG_FILE) or "")
    except ConfigError:
        return  # `timing` says so
    if "{uid}" not in str(table.get("unmapped", "{uid}")):
        return
    named = [_bounds(one) for entry in table.get("tenants", ()) for one in entry.get("uids", ())]
    ranges = [
        (int(first), int(first) + int(count) - 1)
        for first, count in _SUBORDINATE.findall(read_text(root / "etc/subuid") or "")
    ]
    apart = [
        (first, last)
        for first, last in ranges
        if not any(low <= first and last <= high for low, high in named)
    ]
    if apart:
        yield Finding(
            Grade.NOTE,
            "subordinate ids",
            f"{sum(last - first + 1 for first, last in apart)} uids (/etc/subuid), each a tenant",
            "a limit per tenant holds for each: name them beside their user in [[tenants]]"
            ' (uids = [1000, "100000-165535"]), or let unmapped be empty',
        )


def _bounds(entry: object) -> tuple[int, int]:
    """The first and the last of what a list of uids names; nothing, if that cannot be meant."""
    first, _, last = str(entry).partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        return 1, 0
