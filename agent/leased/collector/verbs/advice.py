# SPDX-License-Identifier: Apache-2.0
"""Verbs that advise: placement, sensitivity.

Rule: they read and change nothing.

Does not compute (`advice`).
"""

from __future__ import annotations

import argparse
from decimal import Decimal

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.planning import advice
from leased.collector.telemetry.store import recorded
from leased.collector.verbs.pull import node_named
from leased.collector.verbs.store import add_last, add_terms, opened
from leased.ctl.answer_text import show_answer
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.economics.placement import Strategy
from leased.terms.errors import InvalidParameter


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs,
        "placement",
        "where a request would go best",
        "leased-collector placement --gpu 2 --cpu 8 --mem 64 --strategy binpack",
        csv=True,
    )
    for kind in advice.KINDS:
        name = "GiB" if kind in ("mem", "block") else "units"
        one.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=f"{name} of {kind}")
    one.add_argument("--strategy", choices=[s.value for s in Strategy], default="spread")
    one.add_argument(
        "--near", action="append", default=[], metavar="NODE", help="where its data is"
    )
    one.add_argument(
        "--tenant", default="", help="whose; near is then where it has most, unless --near says it"
    )
    one.add_argument(
        "--project", help="the workload of --tenant: what it lives by says which node is good"
    )
    _finish(one, placement)
    one = verb(
        verbs,
        "sensitivity",
        "which resource each workload lives by",
        "leased-collector sensitivity --last 30d",
        csv=True,
    )
    add_last(one, "30d")
    _finish(one, sensitivity)


def _finish(parser: argparse.ArgumentParser, act: object) -> None:
    add_terms(parser)
    parser.set_defaults(act=act)


def placement(options: argparse.Namespace, console: Console) -> int:
    """Score nodes."""
    asked = advice.raw_amounts(options)
    for kind, amount in asked.items():
        if amount < 0:
            raise InvalidParameter(kind, "not negative")
    if not asked:
        raise InvalidParameter("gpu", "ask for something")
    if options.project is not None and not options.tenant:
        raise InvalidParameter("tenant", "a project is some tenant's: give --tenant, too")
    near = tuple(node_named(options.state, word) for word in options.near)
    with opened(options, console) as (source, terms):
        strategy = Strategy(options.strategy)
        request = advice.Request(asked, strategy, near, options.tenant, options.project)
        with recorded(options.state) as samples:
            accounts = Accounts(source, terms, clock_ns=console.wall_ns())
            answer = advice.placement(accounts, request, samples)
    return _show(answer, options, console)


def sensitivity(options: argparse.Namespace, console: Console) -> int:
    """Tell what workloads live by."""
    with opened(options, console) as (source, terms):
        accounts = Accounts(source, terms, clock_ns=console.wall_ns())
        with recorded(options.state) as samples:
            answer = advice.sensitivities(accounts, accounts.last(options.last), samples)
    return _show(answer, options, console)


def _show(answer: msgspec.Struct, options: argparse.Namespace, console: Console) -> int:
    show_answer(msgspec.to_builtins(answer, builtin_types=(Decimal,)), options, console)
    return 0
