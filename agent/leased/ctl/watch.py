# SPDX-License-Identifier: Apache-2.0
"""The verb watch: changes as they happen, one a line.

Rule: the first lines are the state as it is. A reader that was too slow is told of the gap, with
exit status 75, and loses nothing by starting again. With --json each line is one document.
"""

from __future__ import annotations

import argparse

from leased.client import Session
from leased.client.amounts import amount
from leased.ctl import render
from leased.ctl.agent import await_answer, find_lease, online
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_TEMPFAIL
from leased.wire import objects, parameters, replies


def register(verbs: Verbs) -> None:
    """Add the verb."""
    one = verb(verbs, "watch", "follow changes as they happen", "leasectl watch --json")
    one.add_argument("lease", nargs="?", help="only this lease, until it is closed")
    one.add_argument("--devices", action="store_true", help="follow resources instead")
    one.set_defaults(act=online(watch))


async def watch(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Follow leases or resources."""
    await await_answer(session)
    if options.devices:
        return await _watch_devices(options, console, session)
    lease_id = None if options.lease is None else await find_lease(session, options.lease)
    async with session.follow(parameters.Watch(lease_id), replies.WatchReply) as changes:
        async for change in changes:
            if options.json:
                console.line(render.plain(change))
            else:
                for lease in change.leases:
                    console.say(_line(change.sequence, lease, console))
                if change.notice is not None:
                    console.say(_notice(change.sequence, change.notice, console))
                console.out.flush()
            if change.gap:
                return _gap(console)
    return 0


async def _watch_devices(options: argparse.Namespace, console: Console, session: Session) -> int:
    async with session.follow(parameters.DeviceWatch(), replies.DeviceWatchReply) as changes:
        async for change in changes:
            if options.json:
                console.line(render.plain(change))
            else:
                for one in change.resources:
                    console.say(_resource(change.sequence, one))
                console.out.flush()
            if change.gap:
                return _gap(console)
    return 0


def _gap(console: Console) -> int:
    console.note("too slow for the changes: some were left out; watch again")
    return EX_TEMPFAIL


def _line(sequence: int, lease: objects.Lease, console: Console) -> str:
    parts = (
        str(sequence),
        render.short(lease.lease_id),
        lease.runtime.state,
        lease.runtime.tenant,
        render.held(lease.runtime.allotments),
        render.when(lease, console),
    )
    return "  ".join(parts)


def _notice(sequence: int, notice: objects.Notice, console: Console) -> str:
    until = console.time_of_boot(notice.deadline_boottime_ns)
    return f"{sequence}  {render.short(notice.lease_id)}  notice: {notice.reason}, leave {until}"


def _resource(sequence: int, one: objects.Resource) -> str:
    free = "-" if one.use is None else amount(one.kind, one.use.free)
    of = amount(one.kind, one.capacity)
    return f"{sequence}  {one.resource_id}  {one.health}  {free} of {of} free"
