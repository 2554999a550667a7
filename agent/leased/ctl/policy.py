# SPDX-License-Identifier: Apache-2.0
"""Verbs on policies and quotas: policy show, check, apply, reset; quota show.

Rule: `check` says what a file would change and whom it would touch, and changes nothing; `apply`
says the same, and then what the agent answered and that it reads the same back. Numbers stand in
the unit of what they count, with their share of the host where that means something.

Does not read files (`policy_file`) and does not judge (`lessor`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from leased.client import Session
from leased.ctl import render
from leased.ctl.agent import online
from leased.ctl.console import Console
from leased.ctl.policy_file import load_policy
from leased.ctl.refusals import RATES, quantity
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_CONFIG, EX_SOFTWARE, ConfigError
from leased.terms.policy import digest
from leased.terms.policy_writing import lines_of
from leased.wire import objects, parameters, replies
from leased.wire.policy_document import encode_policy

INDEX_ONE: Final = 1_000_000
DIVIDED: Final = ("fair_share", "reservation")
"""Modes of rules that are everybody's, and say of whom they speak."""


def register(verbs: Verbs) -> None:
    """Add `policy` and `quota` with their verbs."""
    parent = verb(
        verbs,
        "policy",
        "which limits are in force, and which would be",
        "leasectl policy check policy.toml",
        json=False,
    )
    below = parent.add_subparsers(dest="policy_verb", metavar="VERB", required=True)
    one = verb(below, "show", "the policy in force, key by key", "leasectl policy show")
    one.add_argument(
        "--document", action="store_true", help="as the JSON document that apply takes"
    )
    one.set_defaults(act=online(show, admin=True))
    one = verb(
        below,
        "check",
        "what a file would change and whom it would touch",
        "leasectl policy check policy.toml",
    )
    _add_file(one)
    one.add_argument(
        "--offline", action="store_true", help="ask no agent: only whether it can be meant"
    )
    one.set_defaults(act=check)
    one = verb(
        below,
        "apply",
        "put a file in force, until it expires or another follows",
        "leasectl policy apply policy.toml",
    )
    _add_file(one)
    one.set_defaults(act=online(apply, admin=True))
    one = verb(below, "reset", "put the configured policy back", "leasectl policy reset")
    one.set_defaults(act=online(reset, admin=True))
    parent = verb(verbs, "quota", "what you may have, and have", "leasectl quota show", json=False)
    below = parent.add_subparsers(dest="quota_verb", metavar="VERB", required=True)
    one = verb(
        below,
        "show",
        "every limit with its usage",
        "leasectl quota show",
    )
    one.add_argument("tenant", nargs="?", help="(operators) another tenant; default: everybody")
    one.set_defaults(act=online(quota))


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="TOML like policy.toml, or JSON (*.json)")


async def show(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Print the policy in force."""
    told = await session.ask(parameters.GetPolicy(), replies.GetPolicyReply)
    document = json.loads(told.document)
    if options.document:
        console.say(json.dumps(document, indent=2))
        return 0
    if options.json:
        console.document({"policy": {**render.plain(told), "document": document}})
        return 0
    origin = "of the configuration" if told.configured else "handed in"
    pairs = [
        ("policy", f"{told.policy_hash} (generation {told.generation}, {origin})"),
        ("open windows", ", ".join(told.windows) or "none"),
    ]
    console.say(*render.fields(pairs))
    for key, value in lines_of(document):
        console.say(f"{key} = {value}")
    return 0


def check(options: argparse.Namespace, console: Console) -> int:
    """Say what a file would change."""
    if options.offline:
        policy_hash = digest(load_policy(options.file)).hex()
        line = f"{options.file} can be meant: policy {policy_hash}"
        console.answer(options.json, {"policy_hash": policy_hash}, line)
        return 0
    return online(_check, admin=True)(options, console)


async def _check(options: argparse.Namespace, console: Console, session: Session) -> int:
    told = await _ask_check(options.file, session)
    lines = check_text(options.file, told, console)
    console.answer(options.json, {"check": render.plain(told)}, *lines)
    return 0 if told.why is None else EX_CONFIG


async def _ask_check(file: Path, session: Session) -> replies.CheckPolicyReply:
    document = encode_policy(load_policy(file))
    try:
        return await session.ask(parameters.CheckPolicy(document), replies.CheckPolicyReply)
    except ConfigError as error:
        raise ConfigError(f"{file}: {_as_written(str(error))}") from error


def _as_written(why: str) -> str:
    """What the agent said of a key, as a file of its own has it: not below [policy]."""
    return why.removeprefix("policy.")


async def apply(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Put a file in force."""
    told = await _ask_check(options.file, session)
    if told.why is not None:
        raise ConfigError(f"{options.file}: {_as_written(told.why)}")
    document = encode_policy(load_policy(options.file))
    asked = parameters.SetPolicy(command_id=session.command_id(), document=document)
    done = await session.ask(asked, replies.SetPolicyReply)
    now = await session.ask(parameters.GetPolicy(), replies.GetPolicyReply)
    held = now.policy_hash == done.policy_hash
    if options.json:
        console.document({"policy_hash": done.policy_hash, "changes": render.plain(told.changes)})
        return 0 if held else EX_SOFTWARE
    console.say(*check_text(options.file, told, console)[1:])
    if not held:
        console.note(f"another policy followed at once: {now.policy_hash}")
        return EX_SOFTWARE
    console.say(f"policy {done.policy_hash} is in force (generation {now.generation})")
    return 0


async def reset(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Put the configured policy back."""
    asked = parameters.SetPolicy(command_id=session.command_id())
    done = await session.ask(asked, replies.SetPolicyReply)
    line = f"the configured policy {done.policy_hash} is in force"
    console.answer(options.json, {"policy_hash": done.policy_hash}, line)
    return 0


def check_text(file: Path, told: replies.CheckPolicyReply, console: Console) -> list[str]:
    """What a check found, line by line; the first is the verdict."""
    lines = [f"{file} can be in force here: policy {told.policy_hash}"]
    if told.why is not None:
        lines = [f"{file} cannot be in force here: {_as_written(told.why)}"]
    if not told.changes:
        lines.append("it says what is in force already")
    for change in told.changes:
        if change.before is None:
            lines.append(f"  + {change.key} = {change.after}")
        elif change.after is None:
            lines.append(f"  - {change.key} = {change.before}")
        else:
            lines.append(f"  ~ {change.key} = {change.before} -> {change.after}")
    shares = [one for one in told.allowances if one.capacity]
    if shares:
        lines += ["", *render.table(("LIMIT", "ALLOWED", "OF THE HOST"), list(_shares(shares)))]
    over = [one for one in told.allowances if one.usage > one.limit]
    if over:
        lines += ["", "above their limits, as leases are now:"]
    lines += [f"  {_excess(one, console)}" for one in over]
    return lines


def _shares(allowances: Sequence[objects.Allowance]) -> Iterator[tuple[str, str, str]]:
    for one in allowances:
        yield (one.rule, quantity(one.what, one.limit), share(one.limit, one.capacity))


def share(part: int, whole: int) -> str:
    """A fraction of what the host has: "4 of 8 (50 %)" without the numbers."""
    per_mille = part * 1000 // whole
    return f"{per_mille // 10}.{per_mille % 10} %" if per_mille % 10 else f"{per_mille // 10} %"


def _excess(one: objects.Allowance, console: Console) -> str:
    text = f"{one.rule}: {_number(one, one.usage)} of {_number(one, one.limit)}"
    if one.until_boottime_ns is not None:
        text += f"; borne until {console.until(one.until_boottime_ns)}"
    if one.leaving:
        text += f", then {render.counted(one.leaving, 'lease')} told to leave"
    return text


async def quota(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Print limits and usage."""
    told = await session.ask(parameters.Quotas(options.tenant), replies.QuotasReply)
    if options.json:
        console.document(render.plain(told))
        return 0
    if not told.allowances:
        console.say("no limits but those of the host")
    else:
        rows = [_quota_row(one, console) for one in told.allowances]
        console.say(*render.table(("LIMIT", "USED", "ALLOWED", "MODE", "OF THE HOST", ""), rows))
    for one in told.evenness:
        even = one.index * 1000 // INDEX_ONE
        console.say(f"{one.rule}: evenness {even // 1000}.{even % 1000:03} (Jain's index)")
    return 0


def _quota_row(one: objects.Allowance, console: Console) -> tuple[str, ...]:
    allowed = _number(one, one.limit)
    if one.ceiling > one.limit and one.mode in ("soft", "burst", "fair_share"):
        allowed += f" (to {_number(one, one.ceiling)})"
    note = ""
    if one.usage > one.limit and one.until_boottime_ns is not None:
        note = f"above it, borne until {console.until(one.until_boottime_ns)}"
    host = share(one.limit, one.capacity) if one.capacity else ""
    rule = f"{one.rule} of {one.holder}" if one.mode in DIVIDED else one.rule
    used = "-" if one.what.startswith(("ns", *RATES)) else _number(one, one.usage)
    return (rule, used, allowed, one.mode, host, note)


def _number(one: objects.Allowance, number: int) -> str:
    return quantity(one.what, number)
