# SPDX-License-Identifier: Apache-2.0
"""What the agent stands on before there is an agent: its clock, its names, and the node's log.

Rule: without a log there is no agent. Whoever starts it chooses what happens then: it ends, with
the reason and a status that says whether another try can help, or it stays and fails closed
(`closed`), which is what a service manager's unit wants.

Does not replay the log (`recovery`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from leased import __version__
from leased.durable.binding import Binding
from leased.durable.files import explain
from leased.durable.log import OpenedLog, open_log
from leased.durable.tpm import TpmCounter
from leased.hardware import verbs
from leased.hardware.clock import BootClock
from leased.hardware.identity import node_id, read_machine_id
from leased.service.api.doors import Door, open_doors
from leased.service.closed import keep_closed
from leased.service.config import Config
from leased.service.entropy import EntropyPool
from leased.service.lifeline import Lifeline
from leased.service.log.reader import VERIFY_NS_MAX
from leased.service.telling.journald import Journald
from leased.terms.errors import ChainError, LogBusy, StateError


class Footing(NamedTuple):
    """Made once per process."""

    clock: BootClock
    entropy: EntropyPool
    machine_id: bytes
    node: bytes
    journald: Journald


class Opened(NamedTuple):
    """A log, and the doors if they are open already (the agent was closed before)."""

    log: OpenedLog
    doors: list[Door]


def find_footing(config: Config) -> Footing:
    """Clock, randomness, who this node is, and where to say it. Raises DeviceError for a kernel on
    which nothing could be proven."""
    verbs.check_kernel()
    clock, machine_id = BootClock(), read_machine_id()
    journald = Journald(config.journald, monotonic_ns=lambda: clock.now().boot_ns)
    return Footing(clock, EntropyPool(), machine_id, node_id(machine_id), journald)


def _binding(config: Config, footing: Footing) -> Binding | None:
    """What finds out whether the log is the newest there was, if anything is to."""
    settings = config.log.counter
    if not settings.on:
        return None
    pace = (config.paths.counter_stamp, footing.clock.now)
    return Binding(TpmCounter(settings, pace), accept=settings.accept)


def refuse_what_anybody_may_write(config: Config) -> None:
    """Whoever may write into one of these directories can put another log, key or socket in the
    place of ours, but where only owners remove (mode 1777). Raises StateError, too for one that
    cannot be looked at."""
    paths = config.paths
    for path in (paths.state_dir, paths.audit_dir, paths.runtime_dir):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(explain(error, path)) from error
        if mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise StateError(f"{path}: anybody may write there; run `chmod o-w {path}`")


def make_runtime_directory(config: Config) -> None:
    """The reaper's door and ours are in it. Raises StateError where there can be none: a reaper
    that cannot come would be waited for."""
    path = config.paths.runtime_dir
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(explain(error, path)) from error
    if not os.access(path, os.W_OK):
        raise StateError(f"{path}: cannot be written: its sockets would be there; remount it")


async def open_node_log(
    config: Config,
    footing: Footing,
    *,
    handed: Mapping[str, Sequence[int]],
    lifeline: Lifeline,
    fail_closed: bool,
) -> Opened | None:
    """Open the log, or stay closed until it can be opened; None: told to stop meanwhile. Raises
    StateError or ChainError if the agent is not to stay."""

    def attempt() -> OpenedLog:
        refuse_what_anybody_may_write(config)
        return open_log(
            config.paths.audit_dir,
            moment=footing.clock.now(),
            entropy=footing.entropy,
            machine_id=footing.machine_id,
            origin=f"lease-log.local/{footing.node.hex()}",
            best_effort=config.log.durability == "best-effort",
            epoch_ns=config.log.epoch_ns,
            binding=_binding(config, footing),
        )

    lifeline.extend(VERIFY_NS_MAX, "verifying the log")
    try:
        return Opened(attempt(), [])
    except (StateError, ChainError) as fault:
        if not fail_closed or isinstance(fault, LogBusy):
            raise
        first = fault
    doors = open_doors(config, handed, __version__)
    log = await keep_closed(
        first,
        open_log=attempt,
        config=config,
        node_id=footing.node,
        doors=doors,
        handed=handed,
        clock=footing.clock,
        lifeline=lifeline,
        journald=footing.journald,
    )
    return None if log is None else Opened(log, doors)
