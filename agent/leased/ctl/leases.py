# SPDX-License-Identifier: Apache-2.0
"""Verbs on leases: ls, show, wait, why, plan, renew, extend, release, done.

Rule: what is printed after a change is what the agent answered, not what was asked for.
"""

from __future__ import annotations

import argparse
import os
from typing import Final

from leased.client import Refused, Session
from leased.ctl import render
from leased.ctl.agent import await_answer, find_lease, name_requeued, online
from leased.ctl.asks import add_rank, add_request, as_call, parse_duration, request
from leased.ctl.console import Console, relative
from leased.ctl.refusals import refusal_status, refusal_text
from leased.ctl.usage_text import Verbs, verb
from leased.terms.moment import NS_PER_S
from leased.terms.teardown import tell_failed
from leased.wire import objects, parameters, replies

TAKEN_FOR_GRANTED: Final = {
    "deadlines": "every lease in the way ends at its deadline (a renewal makes it later, a release "
    "earlier)",
    "queue": "those ahead in the queue do not want the same",
    "grace": "whoever has to leave takes all of its grace, and its teardown all that is published",
}
"""What a plan assumes, in words."""


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(verbs, "ls", "list your leases and waiting requests", "leasectl ls --closed")
    one.add_argument("--closed", action="store_true", help="also those that ended recently")
    one.set_defaults(act=online(ls))
    one = verb(verbs, "show", "show one lease", "leasectl show 7fa3")
    _add_lease(one)
    one.set_defaults(act=online(show))
    one = verb(
        verbs,
        "wait",
        "wait until a lease has come so far",
        "leasectl wait 7fa3 --until closed --timeout-after 5m",
    )
    _add_lease(one)
    one.add_argument("--until", choices=("active", "ended", "closed"), help="default: ended")
    one.add_argument("--timeout-after", metavar="TIME", help="give up then (default: never)")
    one.set_defaults(act=online(wait))
    one = verb(
        verbs, "why", "why a lease ended, or a request waits", "leasectl why 7fa3", json=True
    )
    _add_lease(one, "a lease or a waiting request, or the beginning of its id")
    one.set_defaults(act=online(why))
    what = "what a request would get now, changing nothing"
    one = verb(verbs, "plan", what, "leasectl plan --mem 4GiB --cpu 2")
    add_request(one)
    add_rank(one)
    one.set_defaults(act=online(plan))
    one = verb(verbs, "renew", "move a deadline", "leasectl renew 7fa3 --ttl 5min")
    _add_lease(one)
    one.add_argument("--ttl", metavar="TIME", help="from now (default: as last asked)")
    one.set_defaults(act=online(renew))
    one = verb(verbs, "release", "give leases back now", "leasectl release 7fa3")
    one.add_argument("lease", nargs="+", help="ids or their beginnings")
    one.add_argument("--wait", action="store_true", help="until it is proven clean, or fenced")
    one.set_defaults(act=online(release))
    one = verb(
        verbs,
        "extend",
        "once told to leave, ask for more time to save your work",
        "leasectl extend 7fa3 --for 2min",
    )
    _add_lease(one)
    one.add_argument(
        "--for",
        metavar="TIME",
        dest="needed",
        required=True,
        help="from now; `leasectl why` shows until when at most",
    )
    one.set_defaults(act=online(extend))
    one = verb(verbs, "done", "say that you have left, before a notice ends", "leasectl done 7fa3")
    _add_lease(one)
    one.set_defaults(act=online(done))


def _add_lease(parser: argparse.ArgumentParser, text: str = "an id or its beginning") -> None:
    parser.add_argument("lease", help=text)


async def ls(options: argparse.Namespace, console: Console, session: Session) -> int:
    """List leases."""
    listed = await session.leases(closed=options.closed)
    if options.json:
        console.document(
            {"leases": render.plain(listed.leases), "waiting": render.plain(listed.waiting)}
        )
        return 0
    if listed.leases or not listed.waiting:
        console.say(*render.lease_table(listed.leases, console))
    if listed.waiting:
        rows = [
            (render.short(one.command_id), str(one.position), one.reason) for one in listed.waiting
        ]
        console.say(*render.table(("REQUEST", "PLACE", "WAITS FOR"), rows))
    return 0


async def show(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Show a lease."""
    asked = parameters.Describe(await find_lease(session, options.lease))
    told = await session.ask(asked, replies.DescribeReply)
    document = {"lease": render.plain(told.lease), "access": render.plain(told.access)}
    console.answer(options.json, document, *render.lease_fields(told.lease, told.access, console))
    return 0


async def wait(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Wait for a state."""
    lease_id = await find_lease(session, options.lease)
    seconds = None
    if options.timeout_after is not None:
        seconds = parse_duration(options.timeout_after) / NS_PER_S
    until = options.until or "ended"
    await await_answer(session)
    console.progress(f"waiting for {render.short(lease_id)} to be {until}")
    lease = await session.wait(lease_id, until=until, timeout_s=seconds)
    how = f" ({render.ending(lease)})" if lease.runtime.ended else ""
    line = f"{render.short(lease_id)} {lease.runtime.state}{how}"
    console.answer(options.json, {"lease": render.plain(lease)}, line)
    return 0


async def why(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Explain an end or a wait."""
    told = await session.why(await find_lease(session, options.lease, waiting=True))
    if options.json:
        console.document(render.plain(told))
        return 0
    if told.lease is not None:
        console.say(_why_ended(told.lease, console) + _why_more(told, console))
    if told.refusal is not None:
        waits = told.position is not None
        place = f"place {told.position} in the queue: " if waits else "refused: "
        console.say(place + refusal_text(told.refusal, console, waits=waits))
    elif told.position is not None:
        console.say(f"place {told.position} in the queue")
    return 0


def _why_more(told: replies.WhyReply, console: Console) -> str:
    """What failed of a teardown that fenced, for whom a lease made way, and since when it has to
    go.
    """
    text = ""
    if told.step is not None:
        number = told.errno or 0
        failed = tell_failed(told.step, number, os.strerror(number))
        text += f"; the step that failed is {failed}"
    if told.preemptor_tenant is not None and told.preemptor_lease_id is not None:
        text += (
            f"; it made way for {render.short(told.preemptor_lease_id)} of {told.preemptor_tenant}"
        )
    if told.told_boottime_ns is not None:
        text += f"; it was told {console.time_of_boot(told.told_boottime_ns)}"
    if told.latest_boottime_ns is not None:
        latest = console.time_of_boot(told.latest_boottime_ns)
        text += f"; with `leasectl extend`, {latest} at most ({told.rule})"
    return text


def _why_ended(lease: objects.Lease, console: Console) -> str:
    name, runtime = render.short(lease.lease_id), lease.runtime
    if runtime.ended is None and runtime.state == "draining":
        return f"{name} has to go ({runtime.reason or 'unknown'}): {render.when(lease, console)}"
    if runtime.ended is None:
        return f"{name} is {runtime.state}; it ends {render.when(lease, console)} if not renewed"
    text = f"{name} {render.ending(lease)}"
    if runtime.ended == "released" and runtime.reason is not None:
        text += f", when it had to go ({runtime.reason})"
    text += f"; it is {runtime.state} now"
    if runtime.cut_boottime_ns is not None:
        late_ns = runtime.cut_boottime_ns - runtime.deadline_boottime_ns
        cut = relative(runtime.cut_boottime_ns - console.boot_ns())
        text += f"; access was cut {cut}"
        if runtime.ended == "expired":
            text += f", {max(0, late_ns) // 1_000_000} ms after the deadline"
    if runtime.fenced:
        text += f"; fenced, because it could not be proven clean: {render.held(runtime.fenced)}"
    return text


async def plan(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Say what a request would get."""
    asked, notes = request(options)
    await name_requeued(session, asked)
    for note in notes:
        console.note(note)
    planned = await session.ask(as_call(asked, parameters.Plan), replies.PlanReply)
    if options.json:
        console.document(render.plain(planned))
    elif planned.grantable:
        console.say(f"would be granted now: {', '.join(planned.resource_ids) or 'yes'}")
    elif planned.refusal is not None:
        console.say(f"would be refused: {refusal_text(planned.refusal, console)}")
        if planned.position is not None:
            console.say(f"with --wait it would take place {planned.position} in the queue")
        for one in planned.removals:
            whose = render.short(one.lease_id) if one.lease_id else "a lease of another tenant"
            until = console.until(one.until_boottime_ns)
            what = render.held(one.allotments)
            console.say(
                f"{whose} ({one.level}, {what}) would have to leave: {one.reason}, by {until}"
            )
        if planned.within_boottime_ns is not None:
            until = console.until(planned.within_boottime_ns)
            console.say(f"with --wait it would have what they leave by {until}")
        granted_for = [TAKEN_FOR_GRANTED[one] for one in planned.assumes or ()]
        if granted_for:
            console.say(f"if {'; if '.join(granted_for)}")
    if planned.cost_nano and not options.json:
        whole, rest = divmod(planned.cost_nano, 10**9)
        cost = f"{whole}.{rest:09}".rstrip("0").removesuffix(".")
        console.say(f"it would cost {cost} until its first deadline, at the host's rates")
    if planned.refusal is not None:
        return refusal_status(planned.refusal)
    return 0


async def renew(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Move a deadline."""
    lease_id = await find_lease(session, options.lease)
    ttl_ns = None if options.ttl is None else parse_duration(options.ttl)
    renewed = await session.renew(lease_id, ttl_ns=ttl_ns)
    until = console.time_of_boot(renewed.deadline_boottime_ns)
    line = f"{render.short(lease_id)} renewed; ends {until}"
    console.answer(options.json, render.plain(renewed), line)
    return 0


async def release(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Give leases back."""
    released: list[objects.Lease] = []
    for text in options.lease:
        lease = await session.release(await find_lease(session, text))
        if options.wait:
            console.progress(f"waiting for the proof of {render.short(lease.lease_id)}")
            lease = await session.wait(lease.lease_id, until="closed")
        released.append(lease)
        if not options.json:
            console.say(f"{render.short(lease.lease_id)} {lease.runtime.state}")
    if options.json:
        console.document({"leases": render.plain(released)})
    return 0


async def extend(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Ask for more time."""
    lease_id = await find_lease(session, options.lease)
    lease = await session.extend(lease_id, parse_duration(options.needed))
    line = f"{render.short(lease_id)} {render.when(lease, console)}"
    console.answer(options.json, {"lease": render.plain(lease)}, line)
    return 0


async def done(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Leave early."""
    lease_id = await find_lease(session, options.lease)
    try:
        lease = await session.done(lease_id)
    except Refused as refused:
        console.note(refusal_text(refused.refusal, console))
        return refusal_status(refused.refusal)
    line = f"{render.short(lease_id)} {lease.runtime.state}"
    console.answer(options.json, {"lease": render.plain(lease)}, line)
    return 0
