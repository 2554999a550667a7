# SPDX-License-Identifier: Apache-2.0
"""Granting: an offer becomes a lease.

Rule: what is granted is sealed with its terms, where they are not the usual ones, and with what it
means for its tenant's limits, in the same step: nobody is ever above a limit without a record of
it.

Does not judge (`admission`).
"""

from __future__ import annotations

from leased.lessor.admission import Admission, Offer
from leased.lessor.cuts import mark_soft
from leased.lessor.draft import Draft
from leased.lessor.ledger import Meter, rows_of
from leased.lessor.queue import level_of
from leased.terms import event as events
from leased.terms.command import Acquire
from leased.terms.effect import Prepare
from leased.terms.identity import LeaseId
from leased.terms.lease import LEVEL_OF, Subject
from leased.terms.reply import Granted


def grant(
    draft: Draft,
    admission: Admission,
    acquire: Acquire,
    offer: Offer,
    *,
    lease_id: LeaseId | None = None,
) -> None:
    """Grant what was offered. `lease_id` is the lease's, if it has been named already."""
    caller, now_ns, table = acquire.caller, draft.now_ns, draft.table
    limits = admission.book.limits(caller.tenant)
    if limits.metered and table.ledger.meter(caller.tenant) is None:
        draft.emit(events.Metered(draft.event_id(), caller.tenant, rows_of(Meter())))
    lease_id = LeaseId(draft.ids()) if lease_id is None else lease_id
    subject = Subject(
        caller.tenant,
        caller.uid,
        caller.gid,
        lease_id.hex(),
        acquire.workload,
        acquire.tag,
        acquire.priority,
        caller.trust,
        offer.allotments,
        table.rate_hash,
    )
    draft.emit(
        events.Allocated(
            draft.event_id(),
            lease_id,
            subject,
            0,
            now_ns,
            acquire.command_id,
            acquire.ttl_ns,
            _deadline_ns(acquire, offer, limits.duration_ns_max, now_ns),
            acquire.bind_pid,
            _grace_ns(admission, acquire),
        )
    )
    level = level_of(acquire)
    unusual = offer.burst_until_ns or offer.backfill_until_ns or offer.borrowed
    if unusual or level is not LEVEL_OF[acquire.priority]:
        draft.emit(
            events.Admitted(
                draft.event_id(),
                lease_id,
                subject,
                0,
                now_ns,
                int(level),
                offer.burst_until_ns or 0,
                offer.backfill_until_ns or 0,
                offer.borrowed,
            )
        )
    for excess in offer.excesses:
        mark_soft(draft, excess)
    lease = table.leases[lease_id]
    draft.answers.append((acquire.command_id, Granted(lease)))
    draft.effects.append(Prepare(lease))


def _deadline_ns(acquire: Acquire, offer: Offer, longest: int | None, now_ns: int) -> int:
    """What was asked for, or the first end that bounds the lease."""
    first = now_ns + acquire.ttl_ns
    if longest is not None:
        first = min(first, now_ns + longest)
    for end_ns in (offer.burst_until_ns, offer.backfill_until_ns):
        if end_ns is not None and end_ns < first:
            first = end_ns
    return first


def _grace_ns(admission: Admission, acquire: Acquire) -> int:
    """What was asked for, within what the policy allows."""
    policy = admission.policy
    if acquire.grace_ns is None:
        return policy.grace_ns_preempt
    return max(0, min(acquire.grace_ns, policy.grace_ns_max))
