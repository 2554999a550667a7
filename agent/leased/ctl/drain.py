# SPDX-License-Identifier: Apache-2.0
"""The verbs drain and resume: empty a host, a kind or a resource, see it through, and take it back.

Rule: what is said at the end was seen: that nothing is leased or being cleaned any more, and for a
driver's upgrade that nobody has the driver, the agent's own workers included. What is still held
when the patience ends is named, and the exit status says so.

Does not end anybody: the agent does, by the deadlines that its notices tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import trio

from leased.client import Refused, Session
from leased.ctl import render
from leased.ctl.agent import await_answer, online
from leased.ctl.asks import parse_duration
from leased.ctl.console import Console, relative
from leased.ctl.devices import find_resource
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_TEMPFAIL, InvalidParameter
from leased.terms.moment import NS_PER_S
from leased.terms.resource import KIND_SCOPES, in_scope
from leased.wire import objects, parameters, portrayal, replies

DRIVER_UPGRADE: Final = "driver-upgrade"
DETACHABLE: Final = "gpu:"
REASONS: Final = {DRIVER_UPGRADE: "maintenance", "maintenance": "maintenance"}
LOOK_S: Final = 0.5


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "drain",
        "empty the host, a kind or a resource, and wait until it is",
        "leasectl drain gpu --for driver-upgrade --grace 5min",
    )
    _add_scope(one)
    one.add_argument(
        "--for",
        dest="purpose",
        choices=tuple(REASONS),
        help="what the holders are told; driver-upgrade (of gpu, where nothing is named) also"
        " frees the driver",
    )
    one.add_argument("--no-wait", action="store_true", help="begin it, and wait for nothing")
    one.add_argument("--timeout-after", metavar="TIME", help="give up then (default: never)")
    one.set_defaults(act=online(drain, admin=True))
    _register_resume(verbs, "leasectl resume gpu")


def register_admin(below: Verbs) -> None:
    """Add them to `admin`, where a drain is begun and not waited for."""
    one = verb(
        below,
        "drain",
        "grant no more, and notify the holders",
        "leasectl admin drain mem:node1:4096 --grace 60s",
    )
    _add_scope(one)
    one.set_defaults(act=online(drain, admin=True), purpose=None, no_wait=True)
    _register_resume(below, "leasectl admin resume mem:node1:4096")


def _register_resume(verbs: Verbs, example: str) -> None:
    one = verb(verbs, "resume", "undo a drain", example)
    _add_resource(one)
    one.set_defaults(act=online(resume, admin=True))


def _add_scope(parser: argparse.ArgumentParser) -> None:
    _add_resource(parser)
    parser.add_argument("--grace", metavar="TIME", help="notice (default: leases run to their end)")


def _add_resource(parser: argparse.ArgumentParser) -> None:
    kinds = ", ".join(portrayal.KIND)
    parser.add_argument(
        "resource", nargs="?", help=f"a resource, or a kind ({kinds}) (default: the whole host)"
    )


async def drain(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Drain, and see it through."""
    upgrade = options.purpose == DRIVER_UPGRADE
    scope = await _scope(session, options.resource or ("gpu" if upgrade else None))
    if upgrade and scope != DETACHABLE:
        why = "a running agent lets go of the driver of gpu only: drain this, and stop leased"
        raise InvalidParameter("resource", why)
    asked = parameters.Drain(
        command_id=session.command_id(),
        resource_id=scope or None,
        grace_ns=None if options.grace is None else parse_duration(options.grace),
        reason=REASONS.get(options.purpose),  # type: ignore[arg-type]
    )
    affected = (await session.ask(asked, replies.DrainReply)).affected
    if not options.json:
        leases = render.counted(len(affected), "lease")
        console.say(f"no more grants on {_named(scope)}; {leases} told to leave")
    if options.no_wait:
        console.answer(options.json, {"resource_id": scope, "affected": affected}, *affected)
        return 0
    seconds = float("inf")
    if options.timeout_after is not None:
        seconds = parse_duration(options.timeout_after) / NS_PER_S
    return await _see_through(options, console, session, scope, affected, seconds)


async def _see_through(
    options: argparse.Namespace,
    console: Console,
    session: Session,
    scope: str,
    affected: Sequence[str],
    seconds: float,
) -> int:
    upgrade = options.purpose == DRIVER_UPGRADE
    left: list[objects.Lease] = []
    holders: list[objects.Holder] | None = None
    with trio.move_on_after(seconds):
        while left := await _left(session, scope):
            console.progress(_progress(left, console))
            await trio.sleep(LOOK_S)
        while upgrade:
            holders = await _holders(session, scope)
            if not holders:
                break
            console.progress(f"{len(holders)} still have the driver")
            if seconds == float("inf"):
                break
            await trio.sleep(LOOK_S)
    free = not left and (not upgrade or holders == [])
    fenced = [one for one in await _resources(session, scope) if one.use and one.use.fenced]
    if options.json:
        console.document(
            {
                "resource_id": scope,
                "affected": list(affected),
                "drained": not left,
                "leases": render.plain(left),
                "fenced": [one.resource_id for one in fenced],
                "holders": None if holders is None else render.plain(holders),
            }
        )
        return 0 if free else EX_TEMPFAIL
    for one in fenced:
        console.note(f"{one.resource_id} is fenced: see `leasectl devices`")
    if left:
        console.say(f"{_named(scope)} is not empty:")
        console.say(*render.lease_table(left, console))
    else:
        console.say(f"{_named(scope)} is empty: nothing of it is leased or being cleaned")
    if upgrade and not left:
        _tell_of_driver(scope, holders or [], console)
    return 0 if free else EX_TEMPFAIL


def _tell_of_driver(scope: str, holders: Sequence[objects.Holder], console: Console) -> None:
    kind = scope.rstrip(":")
    if holders:
        console.say("the driver is still held:")
        console.say(*render.holder_table(holders))
        return
    console.say(f"nobody has the {kind} driver: the agent has closed its own, and no process has")
    console.say("any of its nodes open or mapped. When it is replaced: systemctl daemon-reload,")
    console.say(f"for the new numbers of its nodes, then leasectl resume {kind}")


async def _left(session: Session, scope: str) -> list[objects.Lease]:
    """The leases on it that are not wholly over."""
    over = ("reclaimed", "fenced")
    return [
        lease
        for lease in (await session.leases()).leases
        if lease.runtime.state not in over
        and any(in_scope(a.resource_id, scope) for a in lease.runtime.allotments)
    ]


def _progress(left: Sequence[objects.Lease], console: Console) -> str:
    live = [lease for lease in left if lease.runtime.ended is None]
    cleaning = len(left) - len(live)
    parts = []
    if live:
        ends = (
            lease.runtime.drain_deadline_boottime_ns or lease.runtime.deadline_boottime_ns
            for lease in live
        )
        last = relative(max(ends) - console.boot_ns())
        parts.append(f"{len(live)} leased, the last until {last}")
    if cleaning:
        parts.append(f"{cleaning} being cleaned")
    return ", ".join(parts)


async def _holders(session: Session, scope: str) -> list[objects.Holder]:
    asked = parameters.LetGo(scope.rstrip(":"))  # type: ignore[arg-type]
    try:
        return (await session.ask(asked, replies.LetGoReply, timeout_s=60)).holders
    except Refused as refused:
        raise InvalidParameter("resource", f"somebody resumed it meanwhile: {refused}") from refused


async def _resources(session: Session, scope: str) -> list[objects.Resource]:
    listed = (await session.devices()).resources
    return [one for one in listed if in_scope(one.resource_id, scope)]


async def resume(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Grant again."""
    scope = await _scope(session, options.resource)
    asked = parameters.Resume(command_id=session.command_id(), resource_id=scope or None)
    await await_answer(session)
    await session.ask(asked, replies.EmptyReply, timeout_s=60)
    console.answer(options.json, {"resource_id": scope}, f"grants on {_named(scope)} resumed")
    return 0


async def _scope(session: Session, text: str | None) -> str:
    """What is meant: "" is the host, "gpu:" a kind. Raises InvalidParameter."""
    if text is None:
        return ""
    if f"{text.rstrip(':')}:" in KIND_SCOPES:
        return f"{text.rstrip(':')}:"
    return await find_resource(session, text)


def _named(scope: str) -> str:
    if scope in KIND_SCOPES:
        return f"every {scope.rstrip(':')}"
    return scope or "this host"
