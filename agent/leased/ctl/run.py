# SPDX-License-Identifier: Apache-2.0
"""Verbs that put work under a lease: run, alloc, shell, exec.

Rule: `run` ends as its command ends (128+n for a signal), or with 79 if the lease was lost under
it; the lease is given back as soon as the command is gone. Ctrl-C reaches the command once: what
the terminal sends to both of us is not sent again. The parent renews at a third of the TTL; a
stopped (^Z) parent renews nothing, and the deadline holds.

Does not kill the command when time is up: the reaper does, whatever becomes of this process.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Final

import msgspec
import trio

from leased.client import Refused, Session, acquisition
from leased.client.holding import Holding
from leased.ctl import child as children
from leased.ctl import receipts, render
from leased.ctl.agent import find_lease, name_requeued, online, socket_path
from leased.ctl.asks import add_rank, add_request, as_call, request, take_duration
from leased.ctl.child import Child, Orders
from leased.ctl.console import Console, length
from leased.ctl.forwarding import Forwarding
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_LEASE_LOST, InvalidParameter, LeasedError, NoSuchLease
from leased.terms.moment import NS_PER_S
from leased.wire import parameters, replies

NOTICE_SIGNALS: Final = {
    "TERM": signal.SIGTERM,
    "INT": signal.SIGINT,
    "HUP": signal.SIGHUP,
    "USR1": signal.SIGUSR1,
    "USR2": signal.SIGUSR2,
    "none": None,
}
QUEUE_LOOK_S: Final = 2.0


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "run",
        "run a command under a lease",
        "leasectl run --cpu 2 --mem 4GiB --ttl 60s --wait 30min -- python train.py",
        json=False,
    )
    _add_run(one)
    one.add_argument(
        "--json",
        action="store_true",
        help="print the lease and its receipt as one line of JSON, version 1, on standard error:"
        " standard output is the command's",
    )
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    one.set_defaults(act=run)
    one = verb(
        verbs,
        "alloc",
        "hold a lease: with a shell inside it, or for a time",
        "leasectl alloc --mem 1GiB --for 10min --json > grant.json",
    )
    _add_run(one)
    one.add_argument(
        "--for",
        dest="duration",
        metavar="TIME",
        help="print the lease and leave it there; it ends then unless it is renewed",
    )
    one.set_defaults(act=alloc)
    one = verb(verbs, "shell", "start a shell inside a lease", "leasectl shell 7fa3", json=False)
    one.add_argument("lease", help="an id or its beginning")
    one.set_defaults(act=shell)
    one = verb(
        verbs,
        "exec",
        "run a command inside a lease",
        "leasectl exec 7fa3 -- nvidia-smi",
        json=False,
    )
    one.add_argument("lease", help="an id or its beginning")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    one.set_defaults(act=execute)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add_request(parser)
    add_rank(parser)
    receipts.add_keep(parser)
    parser.add_argument("--no-renew", action="store_true", help="let the deadline end it")
    parser.add_argument(
        "--notice-signal",
        choices=tuple(NOTICE_SIGNALS),
        default="TERM",
        help="what the command gets when it has to leave (default: TERM)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Run a command under a lease of its own."""
    return _run(options, console, _command(options))


def alloc(options: argparse.Namespace, console: Console) -> int:
    """A shell under a lease of its own, or a lease for a time."""
    if options.duration is not None:
        return online(_alloc_for)(options, console)
    return _run(options, console, _shell())


def shell(options: argparse.Namespace, console: Console) -> int:
    """A shell inside a lease that exists."""
    return _enter(options, _shell(), console)


def execute(options: argparse.Namespace, console: Console) -> int:
    """A command inside a lease that exists."""
    return _enter(options, _command(options), console)


def _command(options: argparse.Namespace) -> list[str]:
    command: list[str] = options.command
    if command and command[0] == "--":
        command = command[1:]
    if not command or not command[0]:
        raise InvalidParameter("command", "say what to run, after --")
    return command


def _shell() -> list[str]:
    return [os.environ.get("SHELL") or "/bin/sh"]


def _enter(options: argparse.Namespace, command: Sequence[str], console: Console) -> int:
    """Join a lease and become `command`; returns only if that failed."""
    path = socket_path(options)

    async def main() -> dict[str, str]:
        with closing(Session(path, timeout_s=options.timeout)) as session:
            lease_id = await find_lease(session, options.lease)
        return await children.join(lease_id, path, options.timeout)

    environment = trio.run(main)
    try:
        children.execute(command, {**os.environ, **environment})
    except OSError as error:
        message, status = children.not_executed(command, error)
        console.note(message)
        return status


async def _alloc_for(options: argparse.Namespace, console: Console, session: Session) -> int:
    take_duration(options)
    granted, fds = await _acquire(options, console, session, bind="deadline")
    for fd in fds:
        os.close(fd)
    lease = granted.lease
    try:
        console.answer(
            options.json, receipts.grant_document(granted), f"export LEASE_ID={lease.lease_id}"
        )
        console.out.flush()
    except OSError:  # nobody was told of it: nobody can use it, or give it back
        with suppress(LeasedError):
            await session.release(lease.lease_id)
        raise
    if not options.json:
        console.note(f"{render.held(lease.runtime.allotments)}; ends {render.when(lease, console)}")
        console.note(f"enter it with: leasectl shell {render.short(lease.lease_id)}")
    # Last: the lease is there, whatever becomes of the file.
    receipts.keep(options.receipt, granted)
    return 0


async def _acquire(
    options: argparse.Namespace, console: Console, session: Session, *, bind: str = "cgroup"
) -> tuple[replies.AcquireReply, list[int]]:
    """Acquire what `options` say, telling of the wait meanwhile."""
    asked, notes = request(options)
    await name_requeued(session, asked)
    for note in notes:
        console.note(note)
    asked |= {"command_id": session.command_id(), "bind": bind}
    acquire = as_call(asked, parameters.Acquire)
    patience_s = session.timeout_s + (acquire.wait_ns or 0) / NS_PER_S
    refused: LeasedError | None = None
    granted: tuple[replies.AcquireReply, list[int]] | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_of_wait, session, acquire, console)
        try:
            granted = await acquisition.request(session, acquire, patience_s)
        except LeasedError as error:
            refused = error  # raised outside, where no nursery wraps it
        nursery.cancel_scope.cancel()
    console.end_progress()
    if refused is not None:
        raise refused
    assert granted is not None, "granted or refused"
    return granted


async def _tell_of_wait(session: Session, acquire: parameters.Acquire, console: Console) -> None:
    """In the queue, or while what was granted is made ready."""
    began_ns = console.boot_ns()
    assert acquire.command_id is not None
    with closing(session.another()) as looking:
        while True:
            await trio.sleep(QUEUE_LOOK_S)
            waited = length(console.boot_ns() - began_ns)
            try:
                told = await looking.why(acquire.command_id)
            except LeasedError:
                console.progress(f"waiting for {waited}")
                continue
            place = "" if told.position is None else f": place {told.position}"
            reason = f", {told.refusal.reason}" if told.refusal is not None else ""
            console.progress(f"waiting for {waited}{place}{reason}")


# ---- run --------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    request(options)  # what cannot be meant is refused before there is a process
    child = children.fork_child(command)
    return trio.run(_run_child, options, console, child)


async def _run_child(options: argparse.Namespace, console: Console, child: Child) -> int:
    session = Session(socket_path(options), timeout_s=options.timeout)
    try:
        granted, fds = await _acquire(options, console, session)
    except BaseException:
        session.close()
        child.dismiss()
        raise
    held = Holding(session, granted, fds)
    held.close()  # the command gets its own when it joins; we have no use for any
    try:
        receipts.keep(options.receipt, granted)
        if options.json:
            console.aside(receipts.grant_document(granted))
        return await _hold(options, console, session, child, held)
    finally:
        await _give_back(session, held, console)
        session.close()


async def _hold(
    options: argparse.Namespace, console: Console, session: Session, child: Child, held: Holding
) -> int:
    notice_reader, notice_writer = os.pipe2(os.O_CLOEXEC)
    orders = Orders(held.lease_id, socket_path(options), options.timeout)
    # From here on a signal is the command's: one that ended us alone would leave it behind.
    forwarding = Forwarding(child)
    forwarding.begin()
    child.begin(orders, notice_reader)
    os.close(notice_reader)
    try:
        failure = await child.outcome()
        if failure is not None:
            console.note(failure.message)
            await child.status()
            return failure.status
        return await _attend(options, console, session, child, held, notice_writer)
    finally:
        forwarding.end()
        os.close(notice_writer)


async def _attend(
    options: argparse.Namespace,
    console: Console,
    session: Session,
    child: Child,
    held: Holding,
    notice_writer: int,
) -> int:
    """Renew, forward, tell of notices, until the command is gone."""
    async with trio.open_nursery() as nursery:
        if not options.no_renew:
            nursery.start_soon(held.keep)
        nursery.start_soon(held.heed)
        nursery.start_soon(_pass_notice, options, console, child, held, notice_writer)
        nursery.start_soon(_tell_of_leaving, console, child, held)
        status = await child.status()
        nursery.cancel_scope.cancel()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and await _was_lost(session, held, console):
            return EX_LEASE_LOST
        return 128 + number
    return os.waitstatus_to_exitcode(status)


async def _pass_notice(
    options: argparse.Namespace, console: Console, child: Child, held: Holding, notice_writer: int
) -> None:
    notice = await held.notice.wait()
    until = console.time_of_boot(notice.deadline_boottime_ns)
    name = render.short(held.lease_id)
    console.note(f"lease {name} has to be given back ({notice.reason}): {until}")
    number = NOTICE_SIGNALS[options.notice_signal]
    try:
        os.write(notice_writer, msgspec.json.encode(notice) + b"\n")
    except BrokenPipeError:
        pass  # the command does not care for notices by pipe
    try:
        if number is not None:
            signal.pidfd_send_signal(child.pidfd, number)
    except OSError:
        pass  # it has left already


async def _tell_of_leaving(console: Console, child: Child, held: Holding) -> None:
    """A container's engine and systemd have cgroups of their own, into which they move what they
    run: then the lease is given back, and nobody is killed who could tell of it."""
    await held.lost.wait()
    if child.is_outside(held.lease.runtime.cgroup):
        console.note(
            f"lease {render.short(held.lease_id)} is over ({held.lost_why}): the command has left"
            " its cgroup, and goes on without it; see CONTAINERS in leasectl(1)"
        )


async def _was_lost(session: Session, held: Holding, console: Console) -> bool:
    """Whether the command was killed because its lease had ended; says so.

    The reaper kills at the deadline and the agent records that after it (decision 0069), so we may
    know of the end before the agent does.
    """
    name, overdue = render.short(held.lease_id), console.boot_ns() >= held.deadline_ns
    try:
        lease = await session.describe(held.lease_id)
        if lease.runtime.ended is None and overdue:
            lease = await session.wait(lease.lease_id, until="ended", timeout_s=session.timeout_s)
    except NoSuchLease:
        console.note(f"lease {name} is lost")
        return True
    except LeasedError:
        if overdue:
            console.note(f"lease {name} is lost: its deadline has passed")
        return overdue or held.lost.is_set()
    if lease.runtime.ended is None or lease.runtime.ended == "released":
        return False
    console.note(f"lease {name} is lost: {render.ending(lease)}")
    return True


async def _give_back(session: Session, held: Holding, console: Console) -> None:
    with trio.CancelScope(shield=True):
        try:
            await session.release(held.lease_id)
        except (NoSuchLease, Refused):
            pass  # it is over already, which is what was wanted
        except LeasedError as error:
            if console.boot_ns() < held.deadline_ns:
                console.note(f"{error}; lease {render.short(held.lease_id)} ends at its deadline")
