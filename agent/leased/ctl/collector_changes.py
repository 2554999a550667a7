# SPDX-License-Identifier: Apache-2.0
"""The verbs of leasectl collector that may change something: quota, webhook.

Rule: what changes a quota says why, and its answer is what is in force now; with --if-match it is
refused where somebody else was faster. A secret of a webhook is never shown here: they are made
where it is shown once (`leased-collector webhook add`).

Does not judge limits: the collector does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Final

from leased.ctl import render
from leased.ctl.answer_text import show_answer
from leased.ctl.collector_link import Link, below
from leased.ctl.console import Console
from leased.ctl.usage_text import Parser, Verbs, verb
from leased.terms.errors import InvalidParameter

QUOTAS: Final = "/v1/governance/quotas"
WEBHOOKS: Final = "/v1/webhooks"
LIST_MAX: Final = 1_000_000
"""Rows of a list, where nobody says how many: all there are."""

_ID: Final = "as `webhook list` shows it"

Show = Callable[[argparse.Namespace, Console, Link], int]
Add = Callable[..., argparse.ArgumentParser]


def register(under: Verbs, add: Add) -> None:
    """Add both verbs with theirs."""
    at = _family(under, "quota", "what tenants may have, and how that changes", "quota show acme")
    add = _within("quota", add)
    add(at, "list", "every tenant's limits", quota_list)
    one = add(
        at, "show", "a tenant's limits, whence they come, what is used of them", quota_show, "acme"
    )
    one.add_argument("tenant", help="whose")
    one = add(
        at, "set", "change limits", quota_set, "acme gpus=8 memory_gb=512 --reason 'launch week'"
    )
    one.add_argument("tenant", help="whose")
    one.add_argument("limits", nargs="+", metavar="NAME=LIMIT", help='"none": no limit of its own')
    one.add_argument("--reason", required=True, metavar="TEXT", help="why, for the record")
    one.add_argument("--until", metavar="INSTANT", help="for so long; then the base counts again")
    one.add_argument("--grace", metavar="PERIOD", help="how long what is above may be renewed")
    one.add_argument("--if-match", metavar="TAG", help="only if it is still this (`quota show`)")
    add(at, "schedules", "limits that other hours have", schedules)
    one = add(
        at,
        "schedule",
        "other limits at certain hours",
        schedule,
        "acme gpus=16 --cron '0 20 * * 1-5' --for 10h --timezone Europe/Berlin",
    )
    one.add_argument("tenant", help="whose")
    one.add_argument("limits", nargs="+", metavar="NAME=LIMIT", help="as with set")
    one.add_argument("--cron", required=True, metavar="LINE", help="when they begin, five fields")
    one.add_argument("--for", dest="duration", required=True, metavar="PERIOD", help="how long")
    one.add_argument("--timezone", default="UTC", metavar="ZONE", help="of the line (default: UTC)")
    one.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    one = add(at, "unschedule", "take a schedule away", unschedule, "ID")
    one.add_argument("id", help="as `quota schedules` shows it")
    one = add(at, "log", "every sealed change", changes, "--tenant acme")
    one.add_argument("--tenant", help="only of this one")
    one.add_argument("--limit", type=int, default=100, metavar="N", help="default: 100")
    _register_webhooks(under, add)


def _register_webhooks(under: Verbs, add: Add) -> None:
    at = _family(under, "webhook", "who is told what, and what became of it", "webhook list")
    add = _within("webhook", add)
    add(at, "list", "who is told what", webhooks)
    one = add(at, "deliveries", "what became of what it was to hear", deliveries, "ID --dead")
    one.add_argument("id", help=_ID)
    one.add_argument("--dead", action="store_true", help="only what was given up")
    one.add_argument("--limit", type=int, default=50, metavar="N", help="default: 50")
    one = add(at, "replay", "send again what was given up, or one message", replay, "ID")
    one.add_argument("id", help=_ID)
    one.add_argument("--message", metavar="MSG", help="this one, whatever became of it")
    one.add_argument("--since", metavar="INSTANT", help="what happened since (default: everything)")
    one = add(at, "test", "let it hear something", test, "ID")
    one.add_argument("id", help=_ID)


def _family(under: Verbs, name: str, summary: str, example: str) -> Verbs:
    top = verb(under, name, summary, f"leasectl collector {example}", json=False)
    return top.add_subparsers(
        dest="how", metavar="HOW", required=True, parser_class=Parser, title="how"
    )


def _within(family: str, add: Add) -> Add:
    def inner(
        at: Verbs, name: str, summary: str, show: Show, words: str = ""
    ) -> argparse.ArgumentParser:
        one = add(at, name, summary, show, words)
        one.epilog = f"example:\n  leasectl collector {family} {name} {words}".rstrip()
        return one

    return inner


# ---- quotas --------------------------------------------------------------------------------------


def quota_list(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Every tenant."""
    told = link.rows(QUOTAS, "quotas", LIST_MAX)
    rows = [
        (one["tenant"], one["policy"]["mode"], _limits(one["quotas"]), str(one["revision"]))
        for one in told["quotas"]
    ]
    console.answer(
        options.json, told, *render.table(("TENANT", "MODE", "LIMITS", "REVISION"), rows)
    )
    return 0


def quota_show(options: argparse.Namespace, console: Console, link: Link) -> int:
    """One tenant: what it may have and what it has."""
    quota = link.get(QUOTAS + below(options.tenant))
    used = link.get("/v1/governance/usage" + below(options.tenant))
    if options.json:
        console.document({"quota": quota, "usage": used})
        return 0
    console.say(f"{quota['tenant']}: {quota['policy']['mode']}, revision {quota['revision']}")
    rows = []
    for name, one in used["quotas"].items():
        figures = (one["limit"], one["used"], one["available"], one["fleet_used"])
        told = ("-" if figure is None else str(figure) for figure in figures)
        rows.append((name, *told, quota["sources"].get(name, "-")))
    console.say(*render.table(("NAME", "LIMIT", "USED", "AVAILABLE", "OF FLEET", "BY"), rows))
    for one in quota["overrides"]:
        limits = _limits(one["quotas"])
        console.say(f"until {one['expires_at']}: {limits} ({one['reason']}; {one['actor']})")
    for one in quota["scheduled"]:
        console.say(f"schedule {one['id']}: {_limits(one['quotas'])}, next {one['next_start']}")
    return 0


def quota_set(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Change limits."""
    body = {
        **read_limits(options.limits),
        "reason": options.reason,
        **_given(expires_at=options.until, grace_period=options.grace),
    }
    headers = {"If-Match": options.if_match} if options.if_match is not None else {}
    told = link.send("PATCH", QUOTAS + below(options.tenant), body, **headers)
    lines = [f"{told['tenant']}: {_limits(told['quotas'])}, revision {told['revision']}"]
    for name in ("expires_at", "grace_until", "note"):
        if told.get(name):
            lines.append(f"{name.replace('_', ' ')}: {told[name]}")
    console.answer(options.json, told, *lines)
    return 0


def schedules(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Every schedule."""
    told = link.rows(f"{QUOTAS}/scheduled", "scheduled", LIST_MAX)
    rows = [
        (
            *(one["id"], one["tenant"], one["schedule"], one["timezone"], one["duration"]),
            *(_limits(one["quotas"]), one["open_until"] or "-", one["next_start"] or "-"),
        )
        for one in told["scheduled"]
    ]
    names = ("ID", "TENANT", "CRON", "ZONE", "FOR", "LIMITS", "OPEN UNTIL", "NEXT")
    console.answer(options.json, told, *render.table(names, rows))
    return 0


def schedule(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Take a schedule in."""
    body = {
        "tenant": options.tenant,
        "schedule": options.cron,
        "duration": options.duration,
        "timezone": options.timezone,
        "quotas": read_limits(options.limits),
        "reason": options.reason,
    }
    told = link.send("POST", f"{QUOTAS}/scheduled", body)
    console.answer(
        options.json, told, f"{told['id']}: next {told['next_start']} to {told['next_end']}"
    )
    return 0


def unschedule(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Take a schedule away."""
    link.send("DELETE", f"{QUOTAS}/scheduled{below(options.id)}", None)
    return _done(options, console, {"removed": options.id})


def changes(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Sealed changes, the newest first."""
    where = "/v1/governance/changes"
    told = link.rows(where, "changes", max(1, options.limit), tenant=options.tenant)
    rows = [
        (
            *(str(one["sequence"]), one["at"], one["action"], one["tenant"] or "-"),
            *(one["actor"], one["reason"] or "-"),
        )
        for one in told["changes"]
    ]
    console.answer(
        options.json, told, *render.table(("NUMBER", "AT", "WHAT", "TENANT", "BY", "WHY"), rows)
    )
    return 0


def read_limits(words: list[str]) -> dict[str, object]:
    """Limits as they are typed. Raises InvalidParameter."""
    found: dict[str, object] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name or not value:
            raise InvalidParameter("limits", f'{word}: such as "gpus=8" or "gpus=none"')
        if name in found:
            raise InvalidParameter("limits", f"{name}: twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> object:
    """Whole numbers are numbers; a limit with a unit ("100/s", "2h") is text."""
    if text == "none":
        return None
    if not text.isascii():
        return text
    if text.isdecimal() and len(text) <= 18:
        return int(text)
    whole, dot, part = text.partition(".")
    if dot and whole.isdecimal() and part.isdecimal() and len(text) <= 18:
        return float(text)
    return text


def _limits(quotas: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in quotas.items()) or "-"


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


# ---- webhooks ------------------------------------------------------------------------------------


def webhooks(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Who is told what."""
    told = link.rows(WEBHOOKS, "webhooks", LIST_MAX)
    if options.json:
        console.document(told)
        return 0
    rows = [
        (
            *(one["id"], one["url"], ", ".join(one["events"])),
            "everybody" if one["tenants"] is None else ", ".join(one["tenants"]),
            *(str(one["pending"]), str(one["dead"])),
            "on" if one["disabled_because"] is None else f"off, {one['disabled_because']}",
        )
        for one in told["webhooks"]
    ]
    console.say(*render.table(("ID", "URL", "EVENTS", "OF", "WAITING", "DEAD", "STATE"), rows))
    return 0


def deliveries(options: argparse.Namespace, console: Console, link: Link) -> int:
    """What became of messages."""
    state = "dead" if options.dead else None
    where = f"{WEBHOOKS}{below(options.id)}/deliveries"
    told = link.rows(where, "deliveries", max(1, options.limit), state=state)
    if options.json:
        console.document(told)
        return 0
    rows = [
        (
            *(one["message"], one["kind"], one["happened_at"], one["state"]),
            *(str(one["attempts"]), one["why"]),
        )
        for one in told["deliveries"]
    ]
    console.say(*render.table(("MESSAGE", "KIND", "HAPPENED", "STATE", "ATTEMPTS", ""), rows))
    return 0


def replay(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Send again."""
    body = _given(message=options.message, since=options.since)
    return _done(options, console, link.send("POST", f"{WEBHOOKS}{below(options.id)}/replay", body))


def test(options: argparse.Namespace, console: Console, link: Link) -> int:
    """Let it hear something."""
    return _done(options, console, link.send("POST", f"{WEBHOOKS}{below(options.id)}/test", None))


def _done(options: argparse.Namespace, console: Console, told: dict[str, Any]) -> int:
    show_answer(told, options, console)
    return 0
