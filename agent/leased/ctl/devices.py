# SPDX-License-Identifier: Apache-2.0
"""Verbs on resources: devices, holders.

Rule: what a host does not offer is listed with the reason, like what it does.
"""

from __future__ import annotations

import argparse

from leased.client import Session
from leased.ctl import render
from leased.ctl.agent import online
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import InvalidParameter


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(verbs, "devices", "what this host has to lease", "leasectl devices --kind mem")
    one.add_argument("--kind", choices=("mem", "cpu", "gpu", "block", "net"), help="only these")
    one.add_argument("--wide", action="store_true", help="also what cannot be enforced, and why")
    one.set_defaults(act=online(devices))
    one = verb(
        verbs,
        "holders",
        "who uses a resource, lease or no lease",
        "leasectl holders mem:node0:4096",
    )
    one.add_argument(
        "resource", nargs="?", help="a resource, or a unique beginning of its id (default: all)"
    )
    one.set_defaults(act=online(holders))


async def devices(options: argparse.Namespace, console: Console, session: Session) -> int:
    """List resources."""
    told = await session.devices()
    resources = [one for one in told.resources if options.kind in (None, one.kind)]
    absences = [one for one in told.absences if options.kind in (None, one.kind)]
    if options.json:
        console.document(
            {
                "resources": render.plain(resources),
                "absences": render.plain(absences),
                "notes": told.notes,
                "graces": render.plain(told.graces),
            }
        )
        return 0
    if resources:
        console.say(*render.resource_table(resources))
        console.say(*render.bounds_table(resources))
        console.say(render.notices(told.graces))
    for absence in absences:
        console.say(f"no {absence.kind}: {absence.why}")
    for note in told.notes:
        console.say(f"note: {note}")
    if options.wide:
        for one in resources:
            for limit in one.limits:
                console.say(f"{one.resource_id}: {limit}")
    return 0


async def holders(options: argparse.Namespace, console: Console, session: Session) -> int:
    """List the processes that use a resource."""
    resource_id = None
    if options.resource is not None:
        resource_id = await find_resource(session, options.resource)
    found = await session.holders(resource_id)
    if options.json:
        console.document({"resource_id": resource_id, "holders": render.plain(found)})
        return 0
    if not found:
        console.note(f"nobody uses {resource_id or 'anything that is leased here'}")
        return 0
    console.say(*render.holder_table(found))
    return 0


async def find_resource(session: Session, text: str) -> str:
    """The resource whose id is `text`, or begins with it. Raises InvalidParameter."""
    known = [one.resource_id for one in (await session.devices()).resources]
    if text in known:
        return text
    fitting = [one for one in known if one.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise InvalidParameter("resource", f"{text}: no such resource; see `leasectl devices`")
    raise InvalidParameter("resource", f"{text} fits several: {', '.join(fitting)}")
