# SPDX-License-Identifier: Apache-2.0
"""The outlook of a request: when it could succeed at the earliest, if every present lease ends on
time.

Rule: as for every estimate (`estimate`): never too late. For what a tenant shares with others, what
they have is imagined gone, lease by lease in the order of their ends, in a copy of the share, and
the share itself is asked.

Does not say what may be had now (`admission`) and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from leased.lessor.accounts import ANY, Charge, covers
from leased.lessor.admission import Admission, uses_of
from leased.lessor.estimate import ends_of, less_ns, node_ns, room_ns, tenant_ns
from leased.lessor.quota import Limits, wanted_by
from leased.lessor.shares import Division, Share, Shares
from leased.lessor.table import LeaseTable
from leased.terms.command import Acquire
from leased.terms.identity import TenantId
from leased.terms.reply import Refusal


def earliest_ns(
    table: LeaseTable, admission: Admission, acquire: Acquire, now_ns: int
) -> int | None:
    """When `acquire` could succeed at the earliest; None: no end of a lease leads to that."""
    tenant = acquire.caller.tenant
    limits = admission.book.limits(tenant)
    if admission.meaning.meant(acquire) is not None or admission.may(acquire, limits) is not None:
        return None
    outlook = Outlook(table, admission.shares, tenant, now_ns)
    instants = (
        node_ns(table, admission.policy.leases_max, now_ns),
        _budget_ns(admission, limits, acquire, now_ns),
        outlook.divided_ns(wanted_by(acquire)),
        room_ns(table, acquire.asks, now_ns),
    )
    known = [at_ns for at_ns in instants if at_ns is not None]
    if len(known) < len(instants):
        return None
    lent_ns = outlook.lent_ns
    return tenant_ns(table, limits, acquire, now_ns, from_ns=max(known), lent_ns=lent_ns)


def _budget_ns(admission: Admission, limits: Limits, acquire: Acquire, now_ns: int) -> int | None:
    """When there is a budget for it: now, or when the period of the one that lacks ends."""
    if not limits.metered:
        return now_ns
    overrun = admission.budget_overrun(limits, uses_of(wanted_by(acquire), acquire))
    if overrun is None:
        return now_ns
    if not overrun.fits:
        return None
    periods = admission.calendar.periods
    return next((one.ends_ns for one in periods if one.period is overrun.period), None)


class Outlook:
    """What one tenant may hope for, from now on."""

    __slots__ = ("_now_ns", "_shares", "_table", "_tenant")

    def __init__(self, table: LeaseTable, shares: Shares, tenant: TenantId, now_ns: int) -> None:
        self._table, self._shares, self._tenant, self._now_ns = table, shares, tenant, now_ns

    def lent_ns(self, kind: int, more: int) -> int | None:
        """When `more` of a kind is lent to the tenant; None: no end of a lease leads to that."""
        loan = self._shares.loan(self._tenant)
        share = loan.share(kind)
        if share is None or more > loan.most(kind):
            return None
        return self._first_ns(share, lambda imagined: loan.covered_by(imagined, more))

    def divided_ns(self, charge: Charge) -> int | None:
        """When every division lets the tenant have `charge`; None: one of them never does."""
        latest, table = self._now_ns, self._table
        for division in self._shares.divisions:
            more = division.share.wanted(charge)
            verdict = division.verdict(self._tenant, more, table.pools) if more else None
            if verdict is None:
                continue
            if not verdict.waitable:
                return None
            if division.fair:
                at_ns = self._below_ns(division.share, verdict.refusal)
            else:
                at_ns = self._reserved_ns(division, more)
            latest = max(latest, self._now_ns if at_ns is None else at_ns)
        return latest

    def _below_ns(self, share: Share, short: Refusal) -> int | None:
        """When enough of what the tenant has of a share ends, so that what it was refused is no
        more than it may have.
        """
        account = self._table.accounts.get(self._tenant)
        if account is None:
            return None
        charges = account.charges
        over = short.usage + short.requested - short.limit - account.teardown[share.kind]
        return less_ns(
            account, over, lambda lease_id: share.wanted(charges.get(lease_id, ())), self._now_ns
        )

    def _reserved_ns(self, division: Division, more: int) -> int | None:
        """When everybody's reservation would still be there with `more` for the tenant."""
        tenant, common = self._tenant, division.common(self._table.pools)
        return self._first_ns(
            division.share,
            lambda imagined: division.leaves_reserves(imagined, tenant, more, common) is None,
        )

    def _first_ns(self, share: Share, fits: Callable[[Share], bool]) -> int | None:
        """When a share is as it has to be, as its leases end one after the other."""
        table, imagined = self._table, share.imagined()
        for tenant, used in share.used.items():
            account = table.accounts.get(tenant)
            if account is not None and account.teardown[share.kind]:
                imagined.change(tenant, -min(used, account.teardown[share.kind]))
        if fits(imagined):
            return self._now_ns
        pools = [
            pool
            for pool in table.pools.by_id.values()
            if pool.counted is pool and covers(share.kind, share.tier, ANY, pool.cell)
        ]
        ends, horizon_ns = ends_of(table, pools, self._now_ns)
        for at_ns, _, lease_id, capacity in sorted(ends):
            if horizon_ns is not None and at_ns > horizon_ns:
                break
            imagined.change(table.leases[lease_id].subject.tenant, -capacity)
            if fits(imagined):
                return at_ns
        return horizon_ns
