# SPDX-License-Identifier: Apache-2.0
"""Extension: a holder that was told to leave asks for more time to save its work.

Rule: from the first notice on a holder gets, all in all, no more than the ceiling of its class; the
time is counted from that notice, so that asking again gains nothing, and whoever waits for the
capacity knows the latest end at the first notice. What bounds a lease otherwise (its age, a burst,
room lent between those who wait, a budget) bounds this too. What an operator orders of one lease,
or a sick device, is not put off. Asking for no more than the notice gives seals nothing.

Does not give notices (`yielding`, `operations`, `cuts`).
"""

from __future__ import annotations

from typing import Final

from leased.lessor.admission import Admission
from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import CELLS, Answer, Trigger
from leased.lessor.renewal import beyond_bounds
from leased.lessor.table import LeaseTable, end_ns
from leased.terms.command import Extend
from leased.terms.effect import MoveDeadline
from leased.terms.lease import Lease, LeaseState, Priority, RevocationReason
from leased.terms.policy import Policy
from leased.terms.reply import Changed, Refusal, RefusalReason

FINAL: Final = frozenset(
    {
        RevocationReason.OPERATOR_REVOKE,
        RevocationReason.POLICY_VIOLATION,
        RevocationReason.DEVICE_UNHEALTHY,
    }
)
"""Reasons for which a notice stands as it was given."""


def notice_ceiling(policy: Policy, priority: Priority) -> tuple[int, str]:
    """How long a notice to a lease of `priority` may last in all, and the key that says so."""
    terms = policy.preemption
    if priority is Priority.SCAVENGER:
        return terms.checkpoint_ns_max_scavenger, "preemption.checkpoint_max_scavenger"
    if priority is Priority.STANDARD:
        return terms.checkpoint_ns_max_standard, "preemption.checkpoint_max_standard"
    return policy.grace_ns_max, "grace_max"


def latest_ns(lease: Lease, policy: Policy) -> tuple[int, str] | None:
    """Until when the holder of a lease that was told to leave may put that off at most, and by
    which key of the policy; None: not at all.
    """
    if lease.state is not LeaseState.DRAINING or lease.told_ns is None or lease.reason in FINAL:
        return None
    ceiling_ns, rule = notice_ceiling(policy, lease.subject.priority)
    return max(end_ns(lease), lease.told_ns + ceiling_ns), rule


def extend(draft: Draft, admission: Admission, lease: Lease, command: Extend) -> None:
    """Put the end of a notice off, if it may be."""
    now_ns = draft.now_ns
    trigger = Trigger.EXTEND if now_ns < end_ns(lease) else Trigger.RENEW_LATE
    cell = CELLS[lease.state][trigger]
    until_ns = now_ns + command.needed_ns
    if cell.answer is not Answer.MOVE:
        assert cell.reason is not None
        draft.answer(command.command_id, Refusal(cell.reason, "notice", requested=1))
        return
    if until_ns > end_ns(lease):
        refused = _refusal(draft.table, admission, lease, until_ns)
        if refused is not None:
            draft.answer(command.command_id, refused)
            return
        draft.move(lease, trigger, Facts(now_ns, reason=lease.reason, until_ns=until_ns))
    else:  # what gave it that time may be on its way to the reaper yet
        draft.effects.append(MoveDeadline(lease.lease_id, lease.generation, end_ns(lease)))
    draft.answer(command.command_id, Changed(draft.table.leases[lease.lease_id]))


def _refusal(
    table: LeaseTable, admission: Admission, lease: Lease, until_ns: int
) -> Refusal | None:
    """Why the notice cannot go on until then."""
    assert lease.told_ns is not None
    given_ns, asked_ns = end_ns(lease) - lease.told_ns, until_ns - lease.told_ns
    if lease.reason in FINAL:
        return Refusal(RefusalReason.NOTICE_FINAL, "ns", given_ns, given_ns, asked_ns)
    ceiling_ns, rule = notice_ceiling(admission.policy, lease.subject.priority)
    if asked_ns > ceiling_ns:
        reason = RefusalReason.NOTICE_LIMIT
        return Refusal(reason, "ns", ceiling_ns, given_ns, asked_ns, rule=rule)
    return beyond_bounds(table, admission, lease, until_ns)
