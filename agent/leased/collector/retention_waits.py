# SPDX-License-Identifier: Apache-2.0
"""What is still needed of the months that retention would let go: open bills and quotas.

Rule: a bill is open until it is issued, of whoever had something in its month or owes a fee or a
minimum for it, lease or no lease. Hours go only with those of every tenant's month that they are
in, in its own time zone, and not before what later records say of their bill was billed.

Does not remove anything (`retention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.corrections import corrected
from leased.collector.accounts.invoices import Invoices
from leased.collector.archive.archive import ArchiveReader
from leased.collector.governance.directory import DIRECTORY as GOVERNANCE
from leased.collector.governance.register import DATABASE as REGISTER
from leased.collector.governance.register import Register
from leased.collector.metering.rollup import Listing
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.retention_rule import Rule
from leased.economics.contracts import Terms
from leased.economics.hourly import NodeSpan
from leased.terms.moment import DAY_NS, NS_PER_S

RETENTION_DAYS: Final = "log_retention_days"
LATER: Final = "9999-99"
"""No month is later."""


def back(now_ns: int, months: int | None) -> int | None:
    """The beginning of the month that is so many before the running one; None: no such."""
    if months is None:
        return None
    now = datetime.fromtimestamp(now_ns // NS_PER_S, UTC)
    name = periods.month_beside(f"{now.year:04}-{now.month:02}", -months)
    return None if name < "1970" else periods.month(name).from_ns


def known_ns(archive: ArchiveReader, terms: Terms, now_ns: int) -> int:
    """What time it is at the latest, for what does not come back: by this host's clock, and by the
    last records of most of the nodes that were heard within a day of the last that was. A fleet
    that is silent keeps what it has, unless nobody waits for it."""
    listing = Store(archive.directory).rollups.listing()
    heard = {entry.log_id: entry.contact_ns for entry in archive.logs()}
    spans = _waited(listing, terms)
    since_ns = max((heard.get(one.log_id, 0) for one in spans), default=0) - DAY_NS
    said = sorted(one.watermark_ns for one in spans if heard.get(one.log_id, 0) >= since_ns)
    return min(now_ns, said[len(said) // 2]) if said else now_ns


def usage_begin(rule: Rule, terms: Terms, now_ns: int) -> int:
    """From where on hours are kept: a whole month earlier where that month of somebody's begins
    before it does in UTC; 0: all."""
    begin_ns = back(now_ns, rule.usage_months)
    if begin_ns is None or rule.usage_months is None:
        return 0
    name = periods.day(begin_ns)[:7]
    zones = [zone for _, zone in terms.time_zones]
    if any(periods.month(name, zone).from_ns < begin_ns for zone in zones):
        return back(now_ns, rule.usage_months + 1) or 0
    return begin_ns


def waits(state: Path, terms: Terms, floor_ns: int, begin_ns: int) -> str:
    """Why no month before the floor may go yet, nor hours before `begin_ns`: "" if they may.
    Raises StateError."""
    store = Store(state)
    listing = store.rollups.listing()
    if not listing.nodes:
        return "usage was never brought up to date: `leased-collector refresh`"
    late = [one.node_id for one in _waited(listing, terms) if one.watermark_ns < floor_ns]
    if late:
        return f"node {min(late)} has no record since {periods.day(floor_ns)}"
    with closing(StoreSource(store.rollups)) as source:
        accounts = Accounts(source, terms, Invoices(state))
        return _open_bill(accounts, floor_ns) or _uncorrected(accounts, begin_ns)


def _waited(listing: Listing, terms: Terms) -> list[NodeSpan]:
    """The logs that somebody waits for."""
    unwaited = frozenset((*terms.retired_nodes, *listing.retired))
    return [one for one in listing.nodes if unwaited.isdisjoint((one.node_id, one.log_id))]


def _open_bill(accounts: Accounts, floor_ns: int) -> str:
    # A day earlier, for the zones in which it was the month before at the first record.
    for month in _names(accounts.source.first_ns() - DAY_NS, floor_ns):
        try:
            tenants = _due(accounts, month)
        except NoData:
            continue
        if tenants:
            return f"the bill of {tenants[0]} for {month} is open: `leased-collector issue`"
    return ""


def _due(accounts: Accounts, month: str) -> list[str]:
    """Of whom a bill of a month is not issued yet that says something. Raises NoData."""
    found = []
    for tenant in accounts.billed(month):
        period = accounts.month(month, tenant)
        window = period.pair
        had = accounts.source.sums(window, tenant) or accounts.source.tasks(window, tenant)
        credits = any((c.tenant, c.month) == (tenant, month) for c in accounts.terms.credits)
        if had or credits or accounts.terms.owes(tenant, window):
            found.append(tenant)
    issued = accounts.invoices.issued if accounts.invoices else None
    return [one for one in found if issued is None or issued(one, month) is None]


def _uncorrected(accounts: Accounts, begin_ns: int) -> str:
    """What would be billed to nobody when its hours are gone."""
    invoices = accounts.invoices
    if invoices is None or begin_ns <= invoices.begin_ns():
        return ""
    for tenant in invoices.tenants():
        going = {one.period for one in invoices.of_tenant(tenant) if int(one.from_ns) < begin_ns}
        for name, _ in accounts.corrections(tenant, LATER) if going else ():
            if corrected(name) in going:
                return f"the {name} of {tenant} is on no bill yet: `leased-collector issue`"
    return ""


def asked_for(state: Path, floor_ns: int, now_ns: int) -> str:
    """Whose quota keeps records of before the floor, now or within a schedule; "": nobody's."""
    directory = state / GOVERNANCE
    if not (directory / REGISTER).exists():
        return ""
    with closing(Register(directory)) as register:
        said = [(one.tenant, one.limits) for one in register.quotas()]
        said += [(one.tenant, one.limits) for one in register.schedules()]
        overrides = (one for one in register.overrides() if one.expires_ns > now_ns)
        said += [(one.tenant, one.limits) for one in overrides]
    for tenant, limits in said:
        days = limits.get(RETENTION_DAYS, 0)
        if floor_ns > now_ns - days * DAY_NS:
            return f"{tenant}'s quota {RETENTION_DAYS} keeps the last {days} days"
    return ""


def _names(first_ns: int, end_ns: int) -> Iterator[str]:
    at = datetime.fromtimestamp(max(0, first_ns) // NS_PER_S, UTC)
    while (month := periods.month(f"{at.year:04d}-{at.month:02d}")).to_ns <= end_ns:
        yield month.name
        at = datetime.fromtimestamp(month.to_ns // NS_PER_S, UTC)
