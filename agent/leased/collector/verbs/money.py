# SPDX-License-Identifier: Apache-2.0
"""Verbs on money, over the whole fleet: usage, costs, node-costs, bill, chargeback, capacity,
forecast, idle, reservations, spot, scaling.

Rule: they read, beside a running collector or without one. With --json they print what the HTTP API
sends, with --csv one row a line.

Does not compute (`accounts`, `capacity`, `forecast`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.clocks import notice
from leased.collector.accounts.cost_shares import GroupBy
from leased.collector.accounts.crediting import CreditLeft, left
from leased.collector.accounts.focus_1_4 import VERSIONS
from leased.collector.accounts.focus_table import parquet_of
from leased.collector.accounts.invoices import Invoices
from leased.collector.accounts.lease_rows import question, usage_by_lease
from leased.collector.accounts.node_costs import node_costs
from leased.collector.accounts.periods import Window
from leased.collector.api import settings
from leased.collector.archive.archive import ArchiveReader
from leased.collector.holdings import Holdings
from leased.collector.planning import capacity as looks
from leased.collector.planning import forecast as futures
from leased.collector.planning import idle_leases
from leased.collector.planning.reserving import reservations
from leased.collector.planning.scheduled_scaling import scheduled_scaling
from leased.collector.planning.spot import spot
from leased.collector.telemetry.store import recorded
from leased.collector.telemetry.views import queue_depth
from leased.collector.verbs.store import add_last, add_terms, fleet_of, opened
from leased.ctl.answer_text import show_answer
from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.whole_file import write_whole
from leased.economics.attribution import Basis, Spread
from leased.terms.errors import InvalidParameter


class IssuedBill(msgspec.Struct, frozen=True):
    """One bill that is final now."""

    tenant: str
    invoice_id: str
    total: Decimal
    sha256: str


class Issued(msgspec.Struct, frozen=True):
    """The bills of a month, and what no bill has given yet of credits for it and before."""

    month: str
    currency: str
    bills: list[IssuedBill]
    credits_left: list[CreditLeft]


def _idle(accounts: Accounts, chosen: argparse.Namespace) -> msgspec.Struct:
    with recorded(chosen.state) as samples:
        known = None if samples is None else Holdings(fleet_of(chosen, accounts.terms))
        return idle_leases.idle(accounts, samples, known)


def _capacity(accounts: Accounts, chosen: argparse.Namespace) -> msgspec.Struct:
    with recorded(chosen.state) as samples:
        # Records are of when they were pulled last, and so is the queue.
        depth = None if samples is None else queue_depth(samples, samples.last_s())
    found = settings.load(chosen.config)
    ground = settings.load_ground(found, (chosen.config or settings.CONFIG).parent)
    soft, marks = looks.soft_of(ground), found.capacity
    ask = partial(looks.capacity, accounts, soft, marks, queue_depth=depth)
    told = ask()
    if told.recommendations:  # unless a worker came or went just now
        nodes = fleet_of(chosen, accounts.terms).nodes()
        told = ask(turned_ns=[one.turned_wall_ns for one in nodes])
    return told


def _reservations(accounts: Accounts, chosen: argparse.Namespace) -> msgspec.Struct:
    return reservations(accounts, chosen.last, settings.load(chosen.config).reservations)


def _spot(accounts: Accounts, chosen: argparse.Namespace) -> msgspec.Struct:
    percents = chosen.percent or []
    if any(not 0 <= one <= 100 for one in percents):
        raise InvalidParameter("percent", "0 to 100")
    mix = settings.load(chosen.config).spot_optimization
    return spot(accounts, chosen.last, mix, [one * 10 for one in percents])


def _scaling(accounts: Accounts, chosen: argparse.Namespace) -> msgspec.Struct:
    plan = settings.load(chosen.config).scheduled_scaling
    return scheduled_scaling(accounts, chosen.last, plan)


Answer = Callable[[Accounts, argparse.Namespace], msgspec.Struct]


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = _add(verbs, "usage", "what a tenant held, hour by hour", "usage acme --last 7d", _usage)
    one.add_argument("tenant", help="whose")
    _add_window(one)
    one.add_argument(
        "--by", choices=("hour", "day", "lease", "total"), default="day", help="default: day"
    )
    one = _add(verbs, "costs", "what every tenant cost", "costs --last 30d --top 5", _costs)
    _add_window(one)
    one.add_argument("--top", type=int, default=10, metavar="N", help="the rest is OTHER")
    one.add_argument("--basis", choices=[b.value for b in Basis], default=Basis.RATE_CARD.value)
    one.add_argument("--group-by", choices=[g.value for g in GroupBy], help="besides by tenant")
    one = _add(
        verbs,
        "node-costs",
        "what each node cost, and what of it was idle",
        "node-costs --last 7d",
        lambda accounts, options: node_costs(accounts, _window(accounts, options)),
    )
    _add_window(one)
    _register_bills(verbs)
    one = _add(
        verbs,
        "chargeback",
        "what a month's infrastructure cost, by cost centre",
        "chargeback 2026-01 --spread proportional",
        lambda accounts, options: accounts.chargeback(options.month, spread=options.spread),
    )
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument("--spread", choices=[s.value for s in Spread], default=Spread.NONE.value)
    _add(verbs, "capacity", "what there is and who has it", "capacity --json", _capacity)
    one = _add(
        verbs,
        "forecast",
        "how much will be held",
        "forecast --horizon 90d --kind gpu",
        lambda accounts, options: futures.forecast(accounts, options.horizon, options.kind),
    )
    one.add_argument("--horizon", default="90d")
    one.add_argument("--kind", default="cpu", help="cpu, gpu, mem, block or net")
    _add(verbs, "idle", "nodes and leases that nobody uses, and what they cost", "idle", _idle)
    example = "reservations --last 90d"
    one = _add(verbs, "reservations", "what is worth reserving", example, _reservations)
    add_last(one, "90d")
    one = _add(verbs, "spot", "what a share of spot capacity would cost", "spot", _spot)
    add_last(one, "30d")
    one.add_argument(
        "--percent", action="append", type=int, metavar="N", help="what if so much; may be repeated"
    )
    one = _add(verbs, "scaling", "what scaling by schedule would have cost", "scaling", _scaling)
    add_last(one, "30d")


def _register_bills(verbs: Verbs) -> None:
    one = _add(verbs, "bill", "the bill of a tenant", "bill acme 2026-01 --out acme.json", _bill)
    one.add_argument("tenant", help="whose")
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument("--out", type=Path, metavar="FILE", help="write the canonical bytes there")
    one = verb(
        verbs,
        "export",
        "the bill of a tenant as FOCUS (CSV or Parquet), for other people's tools",
        "leased-collector export acme 2026-01 > acme.csv",
        json=False,
    )
    one.add_argument("tenant", help="whose")
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument("--focus", choices=tuple(VERSIONS), default="1.2", help="default: 1.2")
    one.add_argument("--parquet", type=Path, metavar="FILE", help="write Parquet there, not CSV")
    add_terms(one)
    one.set_defaults(act=_export)
    one = _add(
        verbs,
        "issue",
        "make the bills of a month final; what comes later (records, credits) is on the next",
        "issue 2026-01",
        _issue,
    )
    one.add_argument("month", help='such as "2026-01"')
    one.add_argument("--tenant", action="append", help="only this one; may be repeated")


def _add(
    verbs: Verbs, name: str, summary: str, example: str, answer: Answer
) -> argparse.ArgumentParser:
    one = verb(verbs, name, summary, f"leased-collector {example}", csv=True)
    add_terms(one)
    one.set_defaults(act=_show, answer=answer)
    return one


def _add_window(parser: argparse.ArgumentParser) -> None:
    add_last(parser, "30d")
    parser.add_argument("--start", metavar="DATE", help="instead of --last")
    parser.add_argument("--end", metavar="DATE", help="its whole day")


def _window(accounts: Accounts, options: argparse.Namespace) -> Window:
    if options.start is None and options.end is None:
        return accounts.last(options.last)
    return periods.window(options.start or "", options.end or "")


def _usage(accounts: Accounts, options: argparse.Namespace) -> msgspec.Struct:
    window = _window(accounts, options)
    if options.by == "lease":
        with closing(ArchiveReader(options.state)) as archive:
            return usage_by_lease(archive, question(accounts, options.tenant, window))
    return accounts.usage(options.tenant, window, options.by)


def _costs(accounts: Accounts, options: argparse.Namespace) -> msgspec.Struct:
    window, by = _window(accounts, options), options.group_by
    return accounts.costs(window, top=options.top, basis=options.basis, group_by=by)


def _bill(accounts: Accounts, options: argparse.Namespace) -> msgspec.Struct:
    if options.out is not None:
        write_whole(options.out, accounts.bill(options.tenant, options.month).canonical())
    return accounts.summary(options.tenant, options.month)


def _issue(accounts: Accounts, options: argparse.Namespace) -> msgspec.Struct:
    bills = accounts.issue(options.month, options.tenant)
    rows = [IssuedBill(b.tenant, b.invoice_id, Decimal(b.total), b.digest().hex()) for b in bills]
    rest = left(accounts.terms, Invoices(options.state), options.month, options.tenant)
    return Issued(options.month, accounts.terms.currency, rows, rest)


def _export(options: argparse.Namespace, console: Console) -> int:
    """Print FOCUS."""
    with opened(options, console) as (source, terms):
        accounts = Accounts(source, terms, Invoices(options.state), clock_ns=console.wall_ns())
        if not (terms.currency.isupper() and len(terms.currency) == 3):
            console.note(f"{terms.currency} is no currency of ISO 4217: validators will say so")
        if options.parquet is None:
            text = accounts.focus(options.tenant, options.month, options.focus)
            console.say(text.rstrip("\n"))
        else:
            rows = accounts.focus_rows(options.tenant, options.month, options.focus)
            write_whole(options.parquet, parquet_of(rows, VERSIONS[options.focus]))
    return 0


def _show(options: argparse.Namespace, console: Console) -> int:
    """Ask and print."""
    with opened(options, console) as (source, terms):
        accounts = Accounts(source, terms, Invoices(options.state), clock_ns=console.wall_ns())
        answer = options.answer(accounts, options)
        for node in accounts.ahead():
            console.note(notice(node))
    show_answer(msgspec.to_builtins(answer, builtin_types=(Decimal,)), options, console)
    return 0
