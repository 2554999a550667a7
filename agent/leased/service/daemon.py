# SPDX-License-Identifier: Apache-2.0
"""The agent: builds everything, owns the nursery and the order of start and stop.

Rule: nothing serves before recovery is done, and the reaper is there before anything is granted. A
clean stop seals `NodeStopped` and leaves every lease to the reaper; an error in the sequencer ends
the process at once, and what happened is decided from the log at the next start. This is the one
place that catches what nobody expected, to say it and exit.

Does not contain a decision of its own.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from leased import __version__
from leased.service.agent import Agent, build
from leased.service.config import DEFAULT_CONFIG_PATH, Config, budgets
from leased.service.config_file import load
from leased.service.lifeline import Lifeline, take_listen_fds
from leased.service.opening import find_footing, make_runtime_directory, open_node_log
from leased.terms.errors import EX_SOFTWARE, EX_USAGE, ChainError, LeasedError, StateError
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import print_duration

OPEN_FILES = 1 << 18
"""A lease costs the agent up to four descriptors (memory, pidfd, cgroup.events, connection)."""

GARBAGE = (20_000, 20, 1_000)
"""When the collector of cycles looks (see `gc.set_threshold`). What a request makes is freed by its
count of references; with the usual 700 the collector looks through every few grants, and through
all that the table keeps along with them, and finds nothing."""

EPILOG = """examples:
  leased                                 run with /etc/leased/leased.toml (systemd does this)
  leased --config ./leased.toml          run with another configuration
  leased --config ./leased.toml --check  can it be meant? shows its time budgets

A SIGTERM stops the agent and leaves its leases to the reaper; a SIGHUP reads the configuration
again. Exit status: 0 stopped, 64 a command line that cannot be meant, 78 a configuration or state
that cannot be used, 65 the log does not hold, 70 our own mistake.
"""


def main(argv: list[str] | None = None) -> int:
    """The program `leased`; its exit status."""
    options = _parse(argv)
    try:
        config = load(options.config) if options.config is not None else _default_config()
        if options.check:
            return _print_check(config)
        return trio.run(
            partial(_serve, config, options.config, fail_closed=options.fail_closed),
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    except LeasedError as error:
        # A log that cannot be used is of the highest class, also where it is found at the start.
        _tell(2 if isinstance(error, StateError | ChainError) else 3, str(error))
        return error.exit_status
    except BaseExceptionGroup as group:
        return _explain(group)


def _tell(level: int, text: str) -> None:
    """With the level, for a journal; a person at a terminal is spared it."""
    mark = "" if sys.stderr.isatty() else f"<{level}>"
    print(f"{mark}leased: {text}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="leased",
        description="Grants leases with a TTL on this host's hardware, and takes them back.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG_PATH}, if there"
    )
    parser.add_argument(
        "--fail-closed",
        action="store_true",
        help="if the log cannot be used: stay, refuse every grant with the reason, and try again",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--version", action="version", version=f"leased {__version__}")
    return parser.parse_args(argv)


def _default_config() -> Config:
    return load(DEFAULT_CONFIG_PATH) if DEFAULT_CONFIG_PATH.exists() else Config()


def _print_check(config: Config) -> int:
    for budget in budgets(config):
        print(f"{budget.limit_key}: {budget}")
    return 0


def _explain(group: BaseExceptionGroup[BaseException]) -> int:
    """Say what ended the agent: the first cause that has a name, else everything."""
    named = group.subgroup(lambda error: isinstance(error, LeasedError | OSError))
    if named is None:
        raise group
    error: BaseException = named
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    # A refusal has said what to do; anything else broke off in the middle.
    refused = isinstance(error, StateError | ChainError)
    _tell(2, f"{error}{'' if refused else '; the log decides at the next start'}")
    return error.exit_status if isinstance(error, LeasedError) else EX_SOFTWARE


# ---- one run -------------------------------------------------------------------------------------


async def _serve(config: Config, config_path: Path | None, *, fail_closed: bool) -> int:
    _raise_limits()
    gc.set_threshold(*GARBAGE)
    lifeline = Lifeline.from_environment(os.environ)
    handed = take_listen_fds(os.environ)
    started_ns = time.monotonic_ns()
    footing = find_footing(config)
    make_runtime_directory(config)
    opened = await open_node_log(
        config, footing, handed=handed, lifeline=lifeline, fail_closed=fail_closed
    )
    if opened is None:
        return 0
    async with trio.open_nursery() as nursery:
        agent = await build(
            config,
            footing,
            opened,
            handed=handed,
            lifeline=lifeline,
            nursery=nursery,
            reread=lambda: load(config_path) if config_path is not None else _default_config(),
        )
        gc.freeze()  # what is here now stays: the collector need not look at it again
        took_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        lifeline.ready(f"serving; {agent.leases_live} leases live")
        agent.say(
            f"serving after {took_ms} ms: {agent.replayed} events replayed,"
            f" {agent.leases_live} leases live"
        )
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await _obey(agent, lifeline, signals)
        await _stop(agent, lifeline, config)
        nursery.cancel_scope.cancel()
    agent.close()
    return 0


async def _obey(agent: Agent, lifeline: Lifeline, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            return
        lifeline.reloading(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000)
        try:
            await agent.reload()
        except LeasedError as error:
            agent.say(f"the configuration was refused, the old one stays in force: {error}")
        lifeline.ready(f"serving; {agent.leases_live} leases live")


async def _stop(agent: Agent, lifeline: Lifeline, config: Config) -> None:
    lifeline.stopping(f"stopping; {agent.leases_live} leases stay with the reaper")
    with trio.move_on_after(config.timing.stop_ns / NS_PER_S) as patience:
        await agent.stop()
    if patience.cancelled_caught:
        limit = print_duration(config.timing.stop_ns)
        agent.say(f"the stop could not be sealed within timing.stop = {limit}: the log lacks it")


def _raise_limits() -> None:
    """As far as we may: without the privilege (no unit, a container) what there is has to do, and
    the listener takes no more than it has descriptors for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (OPEN_FILES, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
            return
        except (ValueError, OSError):
            continue


if __name__ == "__main__":
    sys.exit(main())
