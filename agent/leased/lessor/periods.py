# SPDX-License-Identifier: Apache-2.0
"""Periods: budgets begin anew, and tenants get a meter when they get a budget.

Rule: that a period begins is sealed once, also over restarts: it is told apart by when it began on
the wall's clock, which is handed in. One from before the last on record is none: the clock was set
back, or is not set yet (it begins in 1970 where nothing keeps it). Unless that last one has run
for its whole length, for then it was the clock that was ahead. What leases may still use up then
counts for the new one.

Does not know when midnight is (`service.policy.calendar`).
"""

from __future__ import annotations

from typing import Final

from leased.lessor.admission import Admission
from leased.lessor.draft import Draft
from leased.lessor.ledger import fresh, rows_of
from leased.lessor.quota import TenantBook
from leased.lessor.table import LeaseTable
from leased.terms import event as events
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease
from leased.terms.moment import DAY_NS
from leased.terms.policy import Period, Running

_LENGTH_NS: Final = {Period.DAY: DAY_NS, Period.WEEK: 7 * DAY_NS, Period.MONTH: 31 * DAY_NS}


def begin_periods(draft: Draft, admission: Admission) -> None:
    """Seal every period of the calendar that has begun since the last one on record."""
    for running in admission.calendar.periods:
        if _has_begun(draft, running):
            draft.emit(
                events.PeriodBegan(
                    draft.event_id(), running.period.value, running.began_wall_ns, draft.now_ns
                )
            )


def _has_begun(draft: Draft, running: Running) -> bool:
    ledger, period = draft.table.ledger, running.period
    last_wall_ns = ledger.began_wall_ns[period]
    if running.began_wall_ns >= last_wall_ns:
        return running.began_wall_ns > last_wall_ns
    return draft.now_ns - ledger.began_ns[period] >= _LENGTH_NS[period]


def meter_tenants(draft: Draft, book: TenantBook) -> None:
    """Count for those who have a budget now, and no longer for those who have none."""
    table = draft.table
    for tenant in table.ledger.tenants():
        if not book.limits(tenant).metered:
            draft.emit(events.Metered(draft.event_id(), tenant, ()))
    for tenant, account in tuple(table.accounts.items()):
        if book.limits(tenant).metered and table.ledger.meter(tenant) is None:
            ends = _ends(table, tuple(account.charges))
            meter = fresh(ends, draft.now_ns)
            draft.emit(events.Metered(draft.event_id(), TenantId(tenant), rows_of(meter)))


def _ends(table: LeaseTable, lease_ids: tuple[LeaseId, ...]) -> list[tuple[Lease, int]]:
    current = table.deadlines.current
    return [(table.leases[one], current[one]) for one in lease_ids if one in current]
