# SPDX-License-Identifier: Apache-2.0
"""Renewal: how far the deadline of a lease may move.

Rule: what bounds a lease (the age its tenant may let it reach, the end of a burst, room lent
between those who wait) bounds its renewals: one that goes beyond is granted up to the bound, and
refused when that gains nothing. A renewal counts against budgets for what it adds.

Does not move anything (`lessor`), and leaves the ends of notices to the lifecycle.
"""

from __future__ import annotations

from collections.abc import Sequence

from leased.lessor.admission import Admission, over_quota
from leased.lessor.budget import is_spared
from leased.lessor.ledger import Key, keyed
from leased.lessor.quota import Limits, account_of
from leased.lessor.table import LeaseTable, end_ns
from leased.terms.lease import Lease
from leased.terms.policy import Mode
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Allotment

Bound = tuple[int, RefusalReason, str]
"""An instant beyond which no renewal goes, why, and by which key of the policy."""


def renewed_until_ns(
    table: LeaseTable,
    admission: Admission,
    lease: Lease,
    ttl_ns: int,
    now_ns: int,
    *,
    crowded: bool,
) -> int | Refusal:
    """The deadline that a renewal by `ttl_ns` leads to, or why there is none. `crowded`: somebody
    waits.
    """
    verdict = admission.meaning.judge_ttl(ttl_ns, lease.subject.priority)
    if verdict is not None:
        return verdict.refusal
    deadline_ns = now_ns + ttl_ns
    limits = admission.book.limits(lease.subject.tenant)
    terms = table.terms.get(lease.lease_id)
    longest = limits.duration_ns_max
    young = longest is None or deadline_ns <= lease.granted_ns + longest
    if terms is None and young and not limits.metered:
        return deadline_ns
    bound = None
    if terms is not None or not young:
        bound = _bound(table, limits, lease, crowded=crowded)
    if bound is not None and deadline_ns > bound[0]:
        deadline_ns, reason, rule = bound
        if deadline_ns <= lease.deadline_ns:
            return Refusal(reason, "ns", deadline_ns, lease.deadline_ns, ttl_ns, rule=rule)
    added_ns = deadline_ns - lease.deadline_ns
    if limits.metered and added_ns > 0:
        meter = table.ledger.meter(limits.holder)
        more = added_ns * _size(lease.subject.allotments)
        if is_spared(meter, limits, admission.prices, more):
            return deadline_ns
        overrun = admission.budget_overrun(limits, _more(lease, added_ns))
        if overrun is not None:
            return over_quota(overrun).refusal
    return deadline_ns


def beyond_bounds(
    table: LeaseTable, admission: Admission, lease: Lease, until_ns: int
) -> Refusal | None:
    """Why a lease that was told to leave, and somebody may wait for, cannot go on until then."""
    limits = admission.book.limits(lease.subject.tenant)
    bound = _bound(table, limits, lease, crowded=True)
    if bound is not None and until_ns > bound[0]:
        ends_ns, reason, rule = bound
        return Refusal(reason, "ns", ends_ns, end_ns(lease), until_ns, rule=rule)
    if limits.metered:
        overrun = admission.budget_overrun(limits, _more(lease, until_ns - end_ns(lease)))
        if overrun is not None:
            return over_quota(overrun).refusal
    return None


def _size(allotments: Sequence[Allotment]) -> int:
    """What a lease has, all kinds added up."""
    if len(allotments) == 1:
        return allotments[0].capacity
    return sum([one.capacity for one in allotments])


def _more(lease: Lease, ns: int) -> dict[Key, int]:
    more: dict[Key, int] = {}
    for key, capacity in keyed(lease.subject):
        more[key] = more.get(key, 0) + capacity * ns
    return more


def _bound(table: LeaseTable, limits: Limits, lease: Lease, *, crowded: bool) -> Bound | None:
    """The first instant that bounds the lease."""
    bounds: list[Bound] = []
    if limits.duration_ns_max is not None:
        ends_ns = lease.granted_ns + limits.duration_ns_max
        bounds.append((ends_ns, RefusalReason.DURATION, f"{limits.name}.duration_max"))
    terms = table.terms.get(lease.lease_id)
    if terms is not None:
        burst = _burst_rule(table, limits) if terms.burst_until_ns else ""
        if burst:
            bounds.append((terms.burst_until_ns, RefusalReason.BURST_ENDED, burst))
        if terms.backfill_until_ns and crowded:
            bounds.append((terms.backfill_until_ns, RefusalReason.BACKFILL_ENDED, ""))
    return min(bounds, default=None)


def _burst_rule(table: LeaseTable, limits: Limits) -> str:
    """The limit that may be exceeded in bursts and is; where there is none (""), what began as a
    burst is a lease like any other.
    """
    for one in limits.chain():
        account = account_of(table.accounts, one)
        if account is None:
            continue
        for row in one.rows:
            used = account.used(row.kind, row.tier, row.node)
            if row.mode is Mode.BURST and used > row.limit:
                return f"{one.name}.{row.name}"
    return ""
