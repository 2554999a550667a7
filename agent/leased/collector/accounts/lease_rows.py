# SPDX-License-Identifier: Apache-2.0
"""Usage by the lease: which leases an amount is made of, and from which records that follows.

Rule: leases are folded anew from the sealed records, up to the record that the hours were computed
from, and must add up to those hours, kind by kind, or there is no answer: two ways to one number.
A row is one lease and what it is priced by; of a lease that was resized or that the clock was
stepped under there is one row. Where records were removed by the rule of retention there are hours
and no leases.

Does not know who asks (`reports`). Reads whole chains: it takes as long as they are, so nobody
else is to wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts, NoData
from leased.collector.accounts.answers import UsageReport, UsageRow
from leased.collector.accounts.periods import Window
from leased.collector.accounts.usage_rows import Priced, priced, row_of
from leased.collector.archive.archive import ArchiveReader
from leased.economics.contracts import Terms
from leased.economics.hourly import NodeSpan
from leased.economics.intervals import Ledger
from leased.economics.peaks import labelled, peak
from leased.economics.pools import Interval, Pool
from leased.terms.errors import InvalidParameter, StateError
from leased.terms.moment import HOUR_NS
from leased.terms.quantity import print_instant

LEASES_MAX: Final = 100_000
"""In one answer: fifty megabytes of it."""

_Span = tuple[int, int, int]


class Question(msgspec.Struct, frozen=True):
    """What is asked, as the accounts know it: `report` has the whole period, to be told by the
    lease; `chains` are those that it follows from."""

    report: UsageReport
    window: Window
    chains: tuple[NodeSpan, ...]
    terms: Terms


class _Lease:
    """What was seen of a lease, at one price."""

    def __init__(self) -> None:
        self.spans: list[_Span] = []
        self.records: set[int] = set()
        self.provisional = False


def question(accounts: Accounts, tenant: str, window: Window) -> Question:
    """What the accounts know. Raises InvalidParameter, UnknownTenant, NoData."""
    whole = accounts.usage(tenant, window, "total")
    chains = accounts.source.contributing(window.pair, whole.tenant)
    return Question(whole, window, chains, accounts.terms)


def usage_by_lease(
    archive: ArchiveReader, asked: Question, *, leases_max: int = LEASES_MAX
) -> UsageReport:
    """The same by the lease. Raises NoData, InvalidParameter, StateError."""
    floor_ns = archive.kept.floor().floor_ns
    if asked.window.from_ns < floor_ns:
        since = print_instant(floor_ns)
        why = f"records from before {since} were removed: ask from there on, or by the hour"
        raise NoData(f"start: {why}")
    rows: list[UsageRow] = []
    for chain in asked.chains:
        found = _leases(archive, chain, asked.report.tenant, asked.window)
        if len(rows) + len(found) > leases_max:
            raise InvalidParameter("end", f"more than {leases_max} leases: ask for less time")
        rows.extend(_row(chain, *key, one, asked.terms) for key, one in found.items())
    if _amounts(rows) != _amounts(asked.report.rows):
        raise StateError(
            "the leases do not add up to the hours: `leased-collector rebuild --reference` says"
            " which is wrong"
        )
    rows.sort(key=lambda row: (row.start, str(row.lease_id), row.kind, row.tier or ""))
    return msgspec.structs.replace(asked.report, granularity="lease", rows=rows)


def _leases(
    archive: ArchiveReader, chain: NodeSpan, tenant: str, window: Window
) -> dict[tuple[bytes, Priced], _Lease]:
    """What a tenant held on one chain."""
    ledger = Ledger()
    found: dict[tuple[bytes, Priced], _Lease] = {}
    for interval in _intervals(archive, chain, ledger):
        subject = interval.subject
        if interval.pool is not Pool.TENANT or subject is None or subject.tenant != tenant:
            continue
        spans = list(labelled(interval, ledger.timeline, window.pair))
        if not spans or not interval.allotment.capacity:  # no hour has what is nothing
            continue
        assert interval.lease_id is not None, "a tenant holds by a lease"
        allotment = interval.allotment
        price = (allotment.kind, allotment.tier, subject.priority, subject.tag)
        one = found.setdefault((interval.lease_id, price), _Lease())
        one.spans.extend(spans)
        one.records |= {interval.opened_by, interval.closed_by}
        one.provisional |= interval.provisional
    return found


def _intervals(archive: ArchiveReader, chain: NodeSpan, ledger: Ledger) -> Iterator[Interval]:
    """Of one chain, up to the record that its hours were computed from."""
    for sequence, event, moment in archive.events(chain.log_id):
        if sequence > chain.last_sequence:
            break
        yield from ledger.observe(sequence, event, moment)
    yield from ledger.open_intervals()


def _row(chain: NodeSpan, lease: bytes, price: Priced, one: _Lease, terms: Terms) -> UsageRow:
    amount, cost = 0, Fraction(0)
    for start_ns, end_ns, capacity in _by_card(one.spans, terms):
        held = capacity * (end_ns - start_ns)
        amount += held
        cost += priced(terms, start_ns // HOUR_NS, held, price)
    return msgspec.structs.replace(
        row_of(
            (min(one.spans)[0], max(end_ns for _, end_ns, _ in one.spans)),
            price,
            amount,
            cost,
            peak(one.spans).capacity,
            terms.decimals,
        ),
        node=chain.node_id,
        log_id=chain.log_id,
        lease_id=lease.hex(),
        first_record=min(one.records),
        last_record=max(one.records),
        provisional=one.provisional,
    )


def _by_card(spans: list[_Span], terms: Terms) -> Iterator[_Span]:
    """Spans, cut where prices change: on full hours, as cells are."""
    borders = [-(-card.since_ns // HOUR_NS) * HOUR_NS for card in terms.cards]
    for start_ns, end_ns, capacity in spans:
        cuts = [start_ns, *(at for at in borders if start_ns < at < end_ns), end_ns]
        for at_ns, until_ns in zip(cuts, cuts[1:], strict=False):
            yield at_ns, until_ns, capacity


def _amounts(rows: list[UsageRow]) -> dict[tuple[object, ...], int]:
    """What rows add up to, by what they are priced by."""
    found: dict[tuple[object, ...], int] = {}
    for row in rows:
        tag = (row.cost_center, row.project, row.request_class, row.budget_group)
        key = (row.kind, row.tier, row.priority, *tag)
        found[key] = found.get(key, 0) + int(row.cap_ns)
    return found
