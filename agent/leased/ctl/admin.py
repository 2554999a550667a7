# SPDX-License-Identifier: Apache-2.0
"""Operators' verbs: admin status, revoke, fence, unfence, rotate-key, reload.

Rule: they go through the admin socket and nowhere else; each prints what the agent says came of it,
and whom it touched.

Does not drain (`drain`) and puts no policy in force (`policy`).
"""

from __future__ import annotations

import argparse

from leased.client import Session
from leased.ctl import drain, render
from leased.ctl.agent import find_lease, online
from leased.ctl.asks import parse_bandwidth, parse_duration, parse_size
from leased.ctl.console import Console
from leased.ctl.devices import find_resource
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_UNAVAILABLE, InvalidParameter
from leased.terms.quantity import MILLI
from leased.wire import parameters, portrayal, replies


def register(verbs: Verbs) -> None:
    """Add `admin` with its verbs."""
    parent = verb(
        verbs,
        "admin",
        "what operators do",
        "leasectl admin drain gpu:GPU-4c1a --grace 30s",
        json=False,
    )
    below = parent.add_subparsers(dest="admin_verb", metavar="VERB", required=True)
    one = verb(below, "status", "how the agent is", "leasectl admin status")
    one.set_defaults(act=online(status, admin=True))
    _register_leases(below)
    drain.register_admin(below)
    _register_resources(below)
    one = verb(
        below,
        "rotate-key",
        "replace the key that the node signs its log with",
        "leasectl admin rotate-key",
    )
    one.set_defaults(act=online(rotate_key, admin=True))
    one = verb(below, "reload", "read the configuration again", "leasectl admin reload")
    one.set_defaults(act=online(reload, admin=True))


def _register_leases(below: Verbs) -> None:
    one = verb(below, "revoke", "take a lease back", "leasectl admin revoke 7fa3 --grace 30s")
    one.add_argument("lease", help="an id or its beginning")
    one.add_argument("--reason", choices=tuple(portrayal.REASON), help="default: operator_revoke")
    one.add_argument("--grace", metavar="TIME", help="notice (default: none)")
    one.set_defaults(act=online(revoke, admin=True))


def _register_resources(below: Verbs) -> None:
    one = verb(
        below,
        "fence",
        "take free capacity out of use",
        "leasectl admin fence mem:node1:4096 1GiB",
    )
    one.add_argument("resource", help="a resource")
    one.add_argument("capacity", nargs="?", help="how much (default: all of it)")
    one.set_defaults(act=online(fence, admin=True))
    one = verb(below, "unfence", "put fenced capacity back", "leasectl admin unfence 7fa3")
    one.add_argument("what", help="a fenced lease (its id or the beginning), or a resource")
    one.set_defaults(act=online(unfence, admin=True))


async def status(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Print how the agent is; 69 if it grants nothing."""
    told = await session.ask(parameters.Status(), replies.StatusReply)
    full = told.log_why or ""
    ready = told.reaper_connected and not told.draining and not full
    counts = render.plain(told.leases)
    held = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
    pairs = [
        ("version", told.version),
        ("node", told.node_id),
        ("started", f"{console.time_of_boot(told.started_boottime_ns)}, epoch {told.epoch}"),
        ("log", f"{told.log_id}, {told.next_sequence} records"),
        ("head", told.head),
        ("durability", f"{told.durability} ({told.filesystem})"),
        ("policy", f"generation {told.policy_generation}, {told.policy_hash[:16]}"),
        ("reaper", "connected" if told.reaper_connected else "NOT connected: nothing is granted"),
        ("grants", "stopped (drained)" if told.draining else f"NONE: {full}" if full else "open"),
        ("connections", str(told.connections)),
        ("leases", held),
    ]
    console.answer(options.json, {"status": render.plain(told)}, *render.fields(pairs))
    return 0 if ready else EX_UNAVAILABLE


async def revoke(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Take a lease back."""
    lease_id = await find_lease(session, options.lease)
    grace_ns = None if options.grace is None else parse_duration(options.grace)
    asked = parameters.Revoke(
        lease_id=lease_id,
        command_id=session.command_id(),
        reason=options.reason,
        grace_ns=grace_ns,
    )
    lease = (await session.ask(asked, replies.LeaseReply)).lease
    line = f"{render.short(lease_id)} {lease.runtime.state}: {render.when(lease, console)}"
    console.answer(options.json, {"lease": render.plain(lease)}, line)
    return 0


async def fence(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Take capacity out of use."""
    resource_id = await find_resource(session, options.resource)
    kind = resource_id.split(":")[0]
    if options.capacity is None:
        [one] = [r for r in (await session.devices()).resources if r.resource_id == resource_id]
        capacity = one.capacity if one.use is None else one.use.free
    else:
        capacity = parse_capacity(kind, options.capacity)
    asked = parameters.Fence(
        command_id=session.command_id(), resource_id=resource_id, capacity=capacity
    )
    await session.ask(asked, replies.EmptyReply)
    return await _show_use(options, console, session, resource_id)


async def unfence(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Put capacity back."""
    if ":" in options.what:
        resource_id = await find_resource(session, options.what)
        asked = parameters.Unfence(command_id=session.command_id(), resource_id=resource_id)
        await session.ask(asked, replies.UnfenceReply)
        return await _show_use(options, console, session, resource_id)
    lease_id = await find_lease(session, options.what)
    asked = parameters.Unfence(command_id=session.command_id(), lease_id=lease_id)
    told = await session.ask(asked, replies.UnfenceReply)
    if options.json:
        console.document({"lease": render.plain(told.lease)})
    elif told.lease is not None:
        console.say(f"{render.short(lease_id)} {told.lease.runtime.state}")
    return 0


async def _show_use(
    options: argparse.Namespace, console: Console, session: Session, resource_id: str
) -> int:
    """Read back what a resource is like now."""
    now = [one for one in (await session.devices()).resources if one.resource_id == resource_id]
    console.answer(options.json, {"resources": render.plain(now)}, *render.resource_table(now))
    return 0


async def rotate_key(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Replace the signing key."""
    told = await session.ask(parameters.RotateKey(), replies.RotateKeyReply)
    document = {"old_vkey": told.old_vkey, "vkey": told.vkey}
    line = f"the log is signed by {told.vkey} from here on"
    console.answer(options.json, document, line, f"before: {told.old_vkey}")
    return 0


async def reload(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Read the configuration again."""
    await session.ask(parameters.Reload(), replies.EmptyReply)
    told = await session.ask(parameters.Status(), replies.StatusReply)
    line = f"configuration read again; policy generation {told.policy_generation}"
    console.answer(options.json, {"policy_hash": told.policy_hash}, line)
    return 0


def parse_capacity(kind: str, text: str) -> int:
    """An amount of `kind` in its raw unit: "1GiB", "500m", "10Gbit". Raises InvalidParameter."""
    if kind in ("mem", "block"):
        return parse_size(text)
    if kind == "net":
        return parse_bandwidth(text)
    for suffix, scale in (("m", 1), ("", MILLI)):
        digits = text.removesuffix(suffix)
        if len(digits) < 19 and digits.isascii() and digits.isdigit() and text.endswith(suffix):
            return int(digits) * scale
    raise InvalidParameter("capacity", f'"{text}": write it like 2 or 500m')
