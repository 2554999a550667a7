# SPDX-License-Identifier: Apache-2.0
"""The verb adopt: running work brought under a lease of its owner's, by an operator.

Rule: the work ends with the lease, so somebody has to renew it: this command does, for as long as
it stays, or `--for` says until when. Interrupted, it says when the end will be and kills nothing.

Does not move anybody: the agent does.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import AsyncIterator

import trio

from leased.client import Session
from leased.client.holding import Holding
from leased.ctl import render
from leased.ctl.agent import find_lease, online
from leased.ctl.asks import add_request, as_call, refuse_request, request, take_duration
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_LEASE_LOST, InvalidParameter
from leased.wire import objects, parameters, replies

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PID_MAX = 2**31 - 1
WHOLE = {"mem": "budget", "block": "raw"}
"""In which shape running work gets what, where it does not say: it takes no descriptors."""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    one = verb(
        verbs,
        "adopt",
        "bring a running process, and all below it, under a lease",
        "leasectl adopt --pid 4711 --gpu 1 --for 4h",
    )
    one.add_argument("lease", nargs="?", help="in place of a new one (an id, or its beginning)")
    one.add_argument("--pid", type=int, required=True, help="the process")
    one.add_argument(
        "--for",
        dest="duration",
        metavar="TIME",
        help="leave it there; the work ends then unless the lease is renewed (default: stay and"
        " renew)",
    )
    add_request(one)
    one.set_defaults(act=online(adopt, admin=True))


async def adopt(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Bring work under a lease, and keep that."""
    must_be_there(options.pid)
    asked = await _asked(options, console, session)
    lease = (await session.ask(asked, replies.LeaseReply, pidfd_of=options.pid)).lease
    stays = options.lease is None and options.duration is None
    if options.json and not stays:
        console.document({"lease": render.plain(lease), "pid": options.pid})
        return 0
    if stays:
        return await _stay(options.pid, lease, console, session)
    _tell(options.pid, lease, console)
    return 0


async def _asked(
    options: argparse.Namespace, console: Console, session: Session
) -> parameters.Adopt:
    command_id = session.command_id()
    if options.lease is not None:
        if options.duration is not None:
            raise InvalidParameter("for", "the lease has its end: `leasectl renew` moves it")
        refuse_request(options, "the lease has it, or not: leave it away")
        lease_id = await find_lease(session, options.lease)
        return parameters.Adopt(lease_id=lease_id, command_id=command_id)
    if options.wait is not None:
        raise InvalidParameter("wait", "running work does not wait for a lease")
    take_duration(options)
    wanted, notes = request(options)
    for note in notes:
        console.note(note)
    for ask in wanted["resources"]:
        if ask["kind"] in WHOLE:
            ask.setdefault("shape", WHOLE[ask["kind"]])
    return as_call({**wanted, "command_id": command_id}, parameters.Adopt)


def must_be_there(pid: int) -> None:
    """Raises InvalidParameter if there is no such process."""
    try:
        if not 0 < pid <= PID_MAX:  # of 0 and below the kernel thinks of groups
            raise ProcessLookupError
        os.kill(pid, 0)
    except ProcessLookupError as error:
        raise InvalidParameter("pid", f"there is no process {pid}") from error
    except PermissionError:
        pass  # the agent judges who may move it


def _tell(pid: int, lease: objects.Lease, console: Console) -> None:
    name, runtime = render.short(lease.lease_id), lease.runtime
    console.say(f"process {pid} and all below it are in {name}")
    ends = render.when(lease, console)
    console.note(f"{render.held(runtime.allotments)}, for {runtime.tenant}; ends {ends}")


async def _stay(pid: int, lease: objects.Lease, console: Console, session: Session) -> int:
    """Renew until it is over. 0 if the work ended by itself, 79 if the lease was lost."""
    name = render.short(lease.lease_id)
    held = Holding(session, replies.AcquireReply(lease, [], [], attached=False), ())
    with trio.open_signal_receiver(*_INTERRUPTS) as signals:
        _tell(pid, lease, console)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.keep)
            nursery.start_soon(held.heed)
            nursery.start_soon(_until_interrupted, signals, nursery)
            await held.lost.wait()
            nursery.cancel_scope.cancel()
    now = await session.describe(lease.lease_id)
    if not held.lost.is_set():
        console.note(f"{name} is renewed no more; it ends {render.when(now, console)}")
        return 0
    console.say(f"{name} {now.runtime.state} ({render.ending(now)})")
    return 0 if now.runtime.ended == "released" else EX_LEASE_LOST


async def _until_interrupted(signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
    async for _ in signals:
        nursery.cancel_scope.cancel()
        return
