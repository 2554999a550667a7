# SPDX-License-Identifier: Apache-2.0
"""Cuts: what becomes of leases that a limit has no room for any more.

Rule: nothing is ever taken away at once. When a limit is lowered below what its holder has, that is
marked, and borne for the grace that the policy gives it; then the leases that are too many are told
to leave, the lowest level and the newest first, each within the grace of a reclaim or at its own
deadline, whichever comes first. What stays above a soft limit for too long is told that it is not
renewed, and no more than that.

Does not choose limits (`quota`) and does not watch the time (`lessor`).
"""

from __future__ import annotations

from collections.abc import Iterator

from leased.lessor.accounts import Account
from leased.lessor.draft import Draft
from leased.lessor.operations import tell
from leased.lessor.overage import Key, too_many
from leased.lessor.quota import Excess, Limits, Row, TenantBook
from leased.terms import event as events
from leased.terms.identity import TenantId
from leased.terms.lease import OverageCause, RevocationReason
from leased.terms.policy import Mode, Policy


def _holders(draft: Draft, book: TenantBook) -> Iterator[tuple[Limits, Account]]:
    accounts = draft.table.accounts
    for tenant, account in accounts.items():
        yield book.limits(tenant), account
    for name, account in accounts.groups():
        limits = book.groups.get(name)
        if limits is not None:
            yield limits, account


def mark_cuts(draft: Draft, book: TenantBook) -> None:
    """A policy took force: mark whoever has more than it allows, and note who no longer does."""
    overages = draft.table.overages
    for limits, account in _holders(draft, book):
        for row in limits.all_rows():
            usage = account.has(*_scope(row))
            if usage > book.bearable(limits, row):
                known = overages.get((limits.holder, row.name))
                if known is None or known.ended_ns is not None or known.limit != row.limit:
                    until_ns = draft.now_ns + limits.cut_ns
                    _mark(draft, limits, row, OverageCause.CUT, usage, until_ns)
            elif usage > row.limit and row.mode is Mode.SOFT:
                mark_soft(draft, Excess(limits, row, usage))
    end_overages(draft, book)


def mark_soft(draft: Draft, excess: Excess) -> None:
    """A holder has gone above a soft limit, if that is not on record already."""
    limits, row = excess.limits, excess.row
    overages = draft.table.overages
    if row.mode is not Mode.SOFT or overages.open(limits.holder, row):
        return
    until_ns = overages.borne_until_ns(limits.holder, row, draft.now_ns)
    if until_ns is not None:
        _mark(draft, limits, row, OverageCause.SOFT, excess.usage, until_ns)


def _mark(
    draft: Draft, limits: Limits, row: Row, cause: OverageCause, usage: int, until_ns: int
) -> None:
    draft.emit(
        events.OverageBegan(
            draft.event_id(), limits.holder, row.name, int(cause), row.limit, usage, until_ns
        )
    )


def end_overages(draft: Draft, book: TenantBook) -> None:
    """Note whoever has no more than it may again."""
    for key, overage in draft.table.overages.items():
        if overage.ended_ns is None:
            found = _row_of(draft, book, key)
            usage = 0 if found is None else found[1].has(*_scope(found[2]))
            if found is None or usage <= found[2].limit:
                draft.emit(events.OverageEnded(draft.event_id(), *key, usage))


def end_bearing(draft: Draft, book: TenantBook, policy: Policy, key: Key) -> None:
    """What was above a limit has been borne long enough."""
    overage = draft.table.overages.get(key)
    found = _row_of(draft, book, key)
    if overage is None or overage.ended_ns is not None or found is None:
        return
    _, account, row = found
    table = draft.table
    grace_ns = None if overage.cause is OverageCause.SOFT else policy.borrowing.grace_ns
    for lease in too_many(account, row, row.limit, table.leases, table.level):
        tell(draft, lease, RevocationReason.QUOTA_CUT, grace_ns)


def _scope(row: Row) -> tuple[int, int, int]:
    return (row.kind, row.tier, row.node)


def _row_of(draft: Draft, book: TenantBook, key: Key) -> tuple[Limits, Account, Row] | None:
    """The limit that an overage is about, as the policy has it now, and the account it counts."""
    holder, name = key
    if holder.startswith("@"):
        limits, account = book.groups.get(holder[1:]), draft.table.accounts.group(holder[1:])
    else:
        tenant = TenantId(holder)
        limits, account = book.limits(tenant), draft.table.accounts.get(tenant)
    if limits is None or account is None:
        return None
    row = next((row for row in limits.all_rows() if row.name == name), None)
    return None if row is None else (limits, account, row)
