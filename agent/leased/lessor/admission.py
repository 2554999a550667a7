# SPDX-License-Identifier: Apache-2.0
"""Admission: may this request have a lease now, and of what; if not, why, and when it could at the
earliest.

Rule: the checks run in one order (can it be meant, may it be asked, node, tenant, capacity) and the
first that fails is the reason. `Verdict.waitable` says whether time or other people's leases could
change the answer. When it could is worked out only for a refusal that is given (`outlook`).

Does not change the table and does not build events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from leased.lessor.accounts import ANY, Charge, covers, weigh
from leased.lessor.bars import Ahead, Behind
from leased.lessor.budget import Prices, asked_of, budget_overrun
from leased.lessor.ledger import Key
from leased.lessor.meaning import QUEUE, Meaning, Verdict, clip, kind_named, name_of, no
from leased.lessor.placement import NONE_BARRED, place
from leased.lessor.queue import level_of
from leased.lessor.quota import (
    Excess,
    Limits,
    Overrun,
    TenantBook,
    account_of,
    capacity_overrun,
    count_overrun,
    over_row,
    wanted_by,
)
from leased.lessor.shares import Shares
from leased.lessor.table import LeaseTable
from leased.lessor.wholes import may_grow
from leased.terms.command import Acquire
from leased.terms.identity import TenantId
from leased.terms.policy import Calendar, Mode, Policy
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import Allotment, ResourceKind

Mark = tuple[int, int, int]
"""What a verdict on somebody's limit depends on: policies, changes of the inventory, and what left
that account.
"""
OF_ONE_HOLDER = frozenset({RefusalReason.TENANT_LEASES, RefusalReason.TENANT_CAPACITY})


class Offer(msgspec.Struct, gc=False):
    """Yes, and on what terms: until when a renewal may go (None: no such end), what of each kind is
    borrowed, and which limits are exceeded where they may be.
    """

    allotments: tuple[Allotment, ...]
    burst_until_ns: int | None = None
    backfill_until_ns: int | None = None
    borrowed: tuple[tuple[ResourceKind, int], ...] = ()
    excesses: Sequence[Excess] = ()


class Admission:
    """The judge: a table to look at and a policy to hold it against. `policies` counts those that
    were in force.
    """

    __slots__ = (
        "_table",
        "book",
        "calendar",
        "meaning",
        "policies",
        "policy",
        "prices",
        "shares",
    )

    def __init__(self, table: LeaseTable, policy: Policy) -> None:
        self._table = table
        self.prices = Prices()
        self.calendar = Calendar()
        self.policies = 0
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Judge by `policy` from here on."""
        before = self.shares if self.policies else None
        self.policy = policy
        self.policies += 1
        self.book = TenantBook(policy)
        self.shares: Shares = Shares(policy, self.book, self._table.accounts, before)
        self.meaning = Meaning(self._table, policy)

    def since(self, verdict: Verdict) -> Mark | None:
        """A mark that changes when there may be another verdict; None: it may change with time, or
        by what others do.
        """
        reason = verdict.refusal.reason
        if reason not in OF_ONE_HOLDER or (
            reason is RefusalReason.TENANT_CAPACITY and self.policy.borrowing.enabled
        ):
            return None
        holder, accounts = verdict.holder, self._table.accounts
        account = (
            accounts.group(holder[1:]) if holder.startswith("@") else accounts.get(TenantId(holder))
        )
        left = 0 if account is None else account.left
        return (self.policies, self._table.pools.changes, left)

    def is_within_its_own(self, acquire: Acquire) -> bool:
        """Whether what a request asks for is its tenant's own as far as there are limits, so that
        neither time nor what others have matters to that.
        """
        tenant = acquire.caller.tenant
        limits = self.book.limits(tenant)
        if limits.metered:
            return False
        charge = wanted_by(acquire)
        for one in limits.chain():
            account = account_of(self._table.accounts, one)
            for row in one.rows:
                more = weigh(charge, row.kind, row.tier, row.node)
                used = 0 if account is None else account.used(row.kind, row.tier, row.node)
                if more and used + more > row.limit and row.mode is not Mode.BURST:
                    return False
        for division in self.shares.divisions:
            more = division.share.wanted(charge)
            if more and not division.fair and not division.share.own(tenant, more):
                return False
        return True

    # ---- yes or no -------------------------------------------------------------------------------

    def judge(self, acquire: Acquire, ahead: Ahead | None, now_ns: int) -> Offer | Verdict:
        """What the lease would be, or why not. `ahead`: what those before this one wait for."""
        limits = self.book.limits(acquire.caller.tenant)
        verdict = self.meaning.meant(acquire) or self.may(acquire, limits)
        if verdict is not None:
            return verdict
        asks, table = acquire.asks, self._table
        if table.occupied >= self.policy.leases_max:
            return self._node_full()
        bounded = bool(self.shares.divisions) or not limits.unlimited
        if bounded and ahead is None:
            straight = self._straight(acquire, limits, now_ns)
            if straight is not None:
                return straight
        offer, charge = Offer(()), wanted_by(acquire) if bounded else ()
        if not limits.unlimited:
            verdict = self._within(acquire, limits, charge, offer, now_ns)
            if verdict is not None:
                return verdict
        if self.shares.divisions:
            verdict = self.shares.verdict(acquire.caller.tenant, charge, table.pools)
            if verdict is not None:
                return verdict
        barred: AbstractSet[str] = NONE_BARRED
        if ahead is not None:
            behind = ahead.hold_back(acquire, limits, self.shares)
            if behind is not None:
                return self._behind(behind, acquire)
            barred = ahead.pools
        placed = place(asks, table.pools, barred=barred)
        if not isinstance(placed, tuple):
            return self.meaning.no_room(asks, placed, barred)
        if not limits.unlimited and (limits.narrow or limits.metered or may_grow(asks)):
            within = self._placed_within(acquire, limits, placed, barred, offer, now_ns)
            if isinstance(within, Verdict):
                return within
            placed = within
        offer.allotments = placed
        return offer

    def _straight(self, acquire: Acquire, limits: Limits, now_ns: int) -> Offer | None:
        """What nearly every request is: placed at once, and within every limit as it was placed,
        which is never less than what was asked for. None: to be judged limit by limit, in the order
        in which a refusal names them.
        """
        pools = self._table.pools
        placed = place(acquire.asks, pools)
        if not isinstance(placed, tuple):
            return None
        charge, offer = self._charge(placed), Offer(placed)
        if not limits.unlimited and self._within(acquire, limits, charge, offer, now_ns):
            return None
        if self.shares.verdict(acquire.caller.tenant, charge, pools) is not None:
            return None
        return offer

    def may(self, acquire: Acquire, limits: Limits) -> Verdict | None:
        """Whether the caller may ask like this at all."""
        level = level_of(acquire)
        if level > limits.level_max and not acquire.caller.operator:
            return no(
                RefusalReason.LEVEL,
                "level",
                limit=limits.level_max,
                requested=level,
                rule=f"{limits.name}.level_max",
            )
        longest = limits.duration_ns_max
        if longest is not None and acquire.ttl_ns > longest:
            return no(
                RefusalReason.DURATION,
                "ns",
                limit=longest,
                requested=acquire.ttl_ns,
                rule=f"{limits.name}.duration_max",
            )
        return None

    def _within(
        self,
        acquire: Acquire,
        limits: Limits,
        charge: Charge,
        offer: Offer,
        now_ns: int,
        *,
        counted: bool = False,
    ) -> Verdict | None:
        """Whether the tenant, and those it shares limits with, may have `charge` more; how, goes
        into `offer`. `counted`: there is room for one more lease, whatever it has.
        """
        accounts = self._table.accounts
        overrun = None if counted else count_overrun(limits, accounts)
        if overrun is None:
            excesses: list[Excess] = []
            loan = self.shares.loan(acquire.caller.tenant)
            overrun = capacity_overrun(limits, accounts, charge, excesses, loan)
            if overrun is None and (excesses or offer.excesses):
                overrun = self._bear(excesses, charge, offer, now_ns)
        if overrun is None and limits.metered:
            overrun = self.budget_overrun(limits, uses_of(charge, acquire))
        return None if overrun is None else over_quota(overrun)

    def budget_overrun(self, limits: Limits, more: Mapping[Key, int]) -> Overrun | None:
        """The first budget that `more` would exceed."""
        ledger, members = self._table.ledger, self.book.group_of
        return budget_overrun(limits, members, ledger, self.prices, more)

    def _bear(
        self, excesses: Sequence[Excess], charge: Charge, offer: Offer, now_ns: int
    ) -> Overrun | None:
        """Whether what goes over limits may do so now."""
        until_ns: int | None = None
        for excess in excesses:
            limits, row = excess.limits, excess.row
            if row.mode is Mode.BURST:
                ends_ns = now_ns + row.burst_ns
                until_ns = ends_ns if until_ns is None else min(until_ns, ends_ns)
            elif (
                row.mode is Mode.SOFT
                and self._table.overages.borne_until_ns(limits.holder, row, now_ns) is None
            ):
                more = weigh(charge, row.kind, row.tier, row.node)
                return over_row(limits, row, row.limit, excess.usage - more, more, row.ceiling)
        offer.burst_until_ns, offer.excesses = until_ns, excesses
        offer.borrowed = tuple(
            (ResourceKind(one.row.kind), one.usage - one.row.limit)
            for one in excesses
            if one.row.mode is Mode.HARD
        )
        return None

    def _placed_within(
        self,
        acquire: Acquire,
        limits: Limits,
        placed: tuple[Allotment, ...],
        barred: AbstractSet[str],
        offer: Offer,
        now_ns: int,
    ) -> tuple[Allotment, ...] | Verdict:
        """As `_within`, for what was placed. Where it went may be what is over: then anywhere that
        is not.
        """
        verdict = self._within(acquire, limits, self._charge(placed), offer, now_ns, counted=True)
        if verdict is None or not limits.narrow:
            return placed if verdict is None else verdict
        closed = self._closed_to(limits, acquire)
        elsewhere = place(acquire.asks, self._table.pools, barred=barred | closed)
        if not isinstance(elsewhere, tuple):
            return verdict
        charge = self._charge(elsewhere)
        again = self._within(acquire, limits, charge, offer, now_ns, counted=True)
        return elsewhere if again is None else verdict

    def _charge(self, placed: tuple[Allotment, ...]) -> Charge:
        by_id = self._table.pools.by_id
        return tuple((by_id[one.resource_id].cell, one.capacity) for one in placed)

    def _closed_to(self, limits: Limits, acquire: Acquire) -> AbstractSet[str]:
        """What counts under a narrow limit that has no room for the smallest of the asks."""
        closed: dict[str, None] = {}
        for one in limits.chain():
            account = account_of(self._table.accounts, one)
            for row in one.rows:
                least = min(
                    (ask.capacity for ask in acquire.asks if ask.kind == row.kind), default=0
                )
                used = 0 if account is None else account.used(row.kind, row.tier, row.node)
                if row.narrow and least and used + least > row.limit:
                    closed.update(
                        (pool.counted.resource_id, None)
                        for pool in self._table.pools.by_id.values()
                        if covers(row.kind, row.tier, row.node, pool.cell)
                    )
        return closed.keys()

    def judge_wait(self, acquire: Acquire, *, waiting: int, of_tenant: int) -> Verdict | None:
        """Whether the queue has a place for one more request."""
        limit, usage = self.policy.waiting_max, waiting
        rule = "waiting_max"
        limits = self.book.limits(acquire.caller.tenant)
        own = limits.waiting_max
        if own is not None and of_tenant >= own:
            limit, usage, rule = own, of_tenant, f"{limits.name}.waiting_max"
        if usage < limit:
            return None
        return no(
            RefusalReason.QUEUE_FULL, "waiting", limit=limit, usage=usage, requested=1, rule=rule
        )

    def _node_full(self) -> Verdict:
        return no(
            RefusalReason.NODE_LEASES,
            "leases",
            limit=self.policy.leases_max,
            usage=self._table.occupied,
            requested=1,
            rule="leases_max",
            waitable=True,
        )

    def _behind(self, behind: Behind, acquire: Acquire) -> Verdict:
        """It would fit, but an earlier one waits for the same: all of it counts as spoken for."""
        reason, holder, told = behind
        if told is not None:
            limit, what, requested = told.limit, told.what, self._of(told, acquire)
        else:
            ask = acquire.asks[0]
            what, requested = name_of(ask), ask.capacity
            limit = sum(pool.capacity for pool in self._table.pools.usable(ask))
        refusal = Refusal(reason, what, clip(limit), clip(limit), clip(requested), rule=QUEUE)
        return Verdict(refusal, waitable=True, holder=holder, behind=True)

    def _of(self, told: Refusal, acquire: Acquire) -> int:
        """How much `acquire` asks of what an earlier one was told that it has to wait for."""
        charge, kind = wanted_by(acquire), kind_named(told.what)
        if kind is not None:
            return weigh(charge, kind, ANY, ANY)
        if told.reason is not RefusalReason.BUDGET:
            return 1  # lease
        limits = self.book.limits(acquire.caller.tenant)
        return asked_of(limits, told, self.prices, uses_of(charge, acquire))

    def cost_nano(self, acquire: Acquire) -> int:
        """What it would cost until its first deadline, in 10^-9 of the currency, rounded up."""
        return self.prices.cost_nano(uses_of(wanted_by(acquire), acquire))

    def share_of(self, acquire: Acquire, now_ns: int) -> int:
        """How much the tenant of a request used lately, and has, of what it asks for and is divided
        fairly, over its weight: whoever used less comes first.
        """
        fair = self.shares.fair()
        if not fair:
            return 0
        tenant, charge, pools = acquire.caller.tenant, wanted_by(acquire), self._table.pools
        return max(
            [one.burden(tenant, pools, now_ns) for one in fair if one.share.wanted(charge)],
            default=0,
        )


def over_quota(overrun: Overrun) -> Verdict:
    """The verdict on a request that goes over a limit of its tenant."""
    refusal = Refusal(
        overrun.reason,
        overrun.what,
        clip(overrun.limit),
        clip(overrun.usage),
        clip(overrun.requested),
        rule=overrun.rule,
    )
    # A request that is larger than the limit by itself never fits, whoever leaves.
    return Verdict(refusal, overrun.fits, overrun.holder, overrun.when_over)


def uses_of(charge: Charge, acquire: Acquire) -> dict[Key, int]:
    """What a lease of `charge` could use up until its first deadline."""
    more: dict[Key, int] = {}
    for (kind, tier, _), capacity in charge:
        key = (kind, tier, int(acquire.priority))
        more[key] = more.get(key, 0) + capacity * acquire.ttl_ns
    return more
