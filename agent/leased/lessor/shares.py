# SPDX-License-Identifier: Apache-2.0
"""Shares: capacity that several divide, and who has more than its own of it.

Rule: every tenant has a line in a share: its quota where idle quota is lent, its reservation where
capacity is reserved, nothing where it has neither. What lies above the line is somebody else's that
is idle, or nobody's; it can always be called back, so the owner comes first. The sums are kept as
leases come and go; a test recomputes them.

Does not call anything back (`yielding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from leased.lessor.accounts import ANY, Accounts, Charge, weigh
from leased.lessor.fairness import entitlements, jain_index
from leased.lessor.fitting import capacity_of
from leased.lessor.meaning import Verdict, no
from leased.lessor.pool import Pools
from leased.lessor.quota import TenantBook
from leased.lessor.window import Window, weights_of
from leased.terms.identity import TenantId
from leased.terms.policy import Allocation, Mode, Policy, Strategy
from leased.terms.reply import RefusalReason
from leased.terms.resource import Inventory, ResourceKind

NOT_HELD = 1 << 62
"""The line of a tenant without a quota that is lent or borrowed: it has borrowed nothing."""

WEIGHT_PM = 1000
"""The weight of a tenant that has none."""


def allocation_name(allocation: Allocation) -> str:
    """What it divides, as a policy document writes it."""
    tier = "" if allocation.tier is None else f".{allocation.tier.name.lower()}"
    return allocation.kind.name.lower() + tier


class Share:
    """One kind (or a tier of it): everybody's line, what they have, what is idle below the lines
    and what lies above them. `lenders` is whose idle part others may have; None: everybody's. The
    line of whoever has none of its own is `line_of_others`.
    """

    __slots__ = ("_lenders", "_line_of_others", "idle", "kind", "lines", "over", "tier", "used")

    def __init__(
        self,
        kind: int,
        tier: int,
        lines: Mapping[TenantId, int],
        lenders: Mapping[TenantId, bool] | None = None,
        line_of_others: int = 0,
    ) -> None:
        self.kind, self.tier, self.lines = kind, tier, lines
        self._line_of_others = line_of_others
        self._lenders = lenders
        self.used: dict[TenantId, int] = {}
        self.idle = sum(line for tenant, line in lines.items() if self._lends(tenant))
        self.over = 0

    def _lends(self, tenant: TenantId) -> bool:
        return self._lenders is None or self._lenders.get(tenant, False)

    def wanted(self, charge: Charge) -> int:
        """How much of it a lease has."""
        return weigh(charge, self.kind, self.tier, ANY)

    def moved(self, tenant: TenantId, charge: Charge, sign: int, now_ns: int) -> None:
        """A tenant has so much more, or less."""
        amount = self.wanted(charge)
        if amount:
            self.change(tenant, sign * amount)

    def change(self, tenant: TenantId, amount: int) -> int:
        """A tenant has so much more of it; what it has then."""
        after = self.used.get(tenant, 0) + amount
        self._set(tenant, after)
        return after

    def imagined(self) -> Share:
        """A copy to try things on."""
        other = Share(self.kind, self.tier, self.lines, self._lenders, self._line_of_others)
        other.used, other.idle, other.over = dict(self.used), self.idle, self.over
        return other

    def idle_most(self, tenant: TenantId) -> int:
        """What could be lent to a tenant, if nobody else had anything."""
        return sum(
            line for other, line in self.lines.items() if other != tenant and self._lends(other)
        )

    def fill(self, accounts: Accounts) -> None:
        """Begin with what everybody has."""
        for tenant, account in accounts.items():
            held = account.used(self.kind, self.tier, ANY)
            if held:
                self._set(tenant, held)

    def _set(self, tenant: TenantId, after: int) -> None:
        line, before = self.line(tenant), self.used.get(tenant, 0)
        if after > line or before > line:
            self.over += max(0, after - line) - max(0, before - line)
        if line and self._lends(tenant):
            self.idle += max(0, line - after) - max(0, line - before)
        if after:
            self.used[tenant] = after
        else:
            self.used.pop(tenant, None)

    def line(self, tenant: TenantId) -> int:
        """What is a tenant's own."""
        return self.lines.get(tenant, self._line_of_others)

    def own(self, tenant: TenantId, more: int) -> bool:
        """Whether `more` still lies below a line that the tenant has."""
        return self.used.get(tenant, 0) + more <= self.lines.get(tenant, 0)

    def after(self, tenant: TenantId, more: int) -> tuple[int, int]:
        """(idle, over) if the tenant had `more`."""
        line, before = self.line(tenant), self.used.get(tenant, 0)
        idle = self.idle
        if self._lends(tenant):
            idle -= max(0, line - before) - max(0, line - before - more)
        return idle, self.over + max(0, before + more - line) - max(0, before - line)


class Division:
    """One kind divided by FAIR_SHARE (then it is `fair`: by weights) or RESERVATION. `changed` are
    those who have had more or less of what is divided fairly since somebody looked.
    """

    __slots__ = (
        "_capacity",
        "_decay",
        "_span",
        "_step_ns",
        "_windows",
        "allocation",
        "changed",
        "fair",
        "share",
        "weights",
    )

    def __init__(self, allocation: Allocation, before: Division | None) -> None:
        self.allocation = allocation
        self.fair = allocation.strategy is Strategy.FAIR_SHARE
        tier = ANY if allocation.tier is None else int(allocation.tier)
        self.share = Share(int(allocation.kind), tier, dict(allocation.reservations))
        self.weights = dict(allocation.weights_pm)
        self._step_ns, self._decay = weights_of(allocation.window_ns, allocation.half_life_ns)
        self._span = self._step_ns * sum(self._decay)
        self.changed: dict[TenantId, None] = {}
        same = before is not None and before._step_ns == self._step_ns
        self._windows: dict[TenantId, Window] = before._windows if before and same else {}
        self._capacity: tuple[Inventory, int] = (Inventory(()), 0)

    @property
    def name(self) -> str:
        """The key of the policy that divides it."""
        return f"allocation.{allocation_name(self.allocation)}"

    @property
    def holder(self) -> str:
        """Whose limit it is, of what is reserved for nobody: no tenant's, and no group's."""
        return f"%{self.name}"

    def moved(self, tenant: TenantId, charge: Charge, sign: int, now_ns: int) -> None:
        """A tenant has so much more, or less."""
        amount = self.share.wanted(charge)
        if not amount:
            return
        held = self.share.change(tenant, sign * amount)
        if self.fair:
            self.changed[tenant] = None
            window = self._windows.get(tenant)
            if window is None:
                window = self._windows[tenant] = Window(0, now_ns)
            window.hold(held, now_ns, self._step_ns)

    def capacity(self, pools: Pools) -> int:
        """What there is to divide."""
        inventory, known = self._capacity
        if inventory is not pools.inventory:
            known = capacity_of(pools, self.share.kind, self.share.tier)
            self._capacity = (pools.inventory, known)
        return known

    def burden(self, tenant: TenantId, pools: Pools, now_ns: int) -> int:
        """What a tenant used within the window and will have used in another one like it if it
        keeps what it has, over its weight and over what there is: so that two divisions compare,
        and each grant counts at once.
        """
        window, capacity = self._windows.get(tenant), self.capacity(pools)
        if not capacity:
            return 0
        used = self.share.used.get(tenant, 0) * self._span
        if window is not None:
            used += window.used(now_ns, self._step_ns, self._decay)
        return used * WEIGHT_PM // (self.weights.get(tenant, WEIGHT_PM) * capacity)

    def entitled(self, pools: Pools, waiting: Mapping[TenantId, int]) -> dict[TenantId, int]:
        """What everybody who has or wants something is entitled to. `waiting` is what those who
        wait want beyond what they have.
        """
        demands = dict(self.share.used)
        for tenant, more in waiting.items():
            demands[tenant] = demands.get(tenant, 0) + more
        weights = dict.fromkeys(demands, WEIGHT_PM)
        weights.update(
            (tenant, weight) for tenant, weight in self.weights.items() if tenant in demands
        )
        return entitlements(
            self.capacity(pools),
            weights,
            demands,
            min_pm=self.allocation.min_share_pm,
            max_pm=self.allocation.max_share_pm,
        )

    def index(self, pools: Pools, waiting: Mapping[TenantId, int]) -> int:
        """Jain's index: how even what they have of what they are entitled to is, in millionths."""
        entitled = self.entitled(pools, waiting)
        used = self.share.used
        return jain_index(
            [(min(used.get(tenant, 0), part), part) for tenant, part in entitled.items()]
        )

    def common(self, pools: Pools) -> int:
        """What of it is for everybody."""
        pool = self.allocation.opportunistic
        if pool is not None:
            return pool
        return max(0, self.capacity(pools) - sum(self.share.lines.values()))

    def leaves_reserves(self, share: Share, tenant: TenantId, more: int, common: int) -> int | None:
        """None if what everybody has above their reservation stays within what there is for that,
        if `share` were its share; else how much that is.
        """
        idle, over = share.after(tenant, more)
        limit = common + (idle if self.allocation.borrow_idle else 0)
        return None if over <= share.over or over <= limit else limit

    def verdict(self, tenant: TenantId, more: int, pools: Pools) -> Verdict | None:
        """Whether a tenant may have `more` of it."""
        allocation, share = self.allocation, self.share
        capacity = self.capacity(pools)
        used = share.used.get(tenant, 0)
        ceiling = capacity * allocation.max_share_pm // 1000
        if self.fair and used + more <= ceiling:
            return None
        kind = ResourceKind(share.kind).name.lower()
        if self.fair:
            verdict = no(
                RefusalReason.SHARE,
                kind,
                limit=ceiling,
                usage=used,
                requested=more,
                rule=f"{self.name}.max_share",
                waitable=more <= ceiling,
            )
            return Verdict(verdict.refusal, verdict.waitable, tenant)
        common = self.common(pools)
        limit = self.leaves_reserves(share, tenant, more, common)
        if limit is None:
            return None
        lines = share.lines
        own = sum(lines.values()) if allocation.borrow_idle else lines.get(tenant, 0)
        verdict = no(
            RefusalReason.RESERVED,
            kind,
            limit=limit,
            usage=share.over,
            requested=more,
            rule=f"{self.name}.reservations",
            waitable=more <= common + own,
        )
        return Verdict(verdict.refusal, verdict.waitable, self.holder)


class Loan:
    """What others lend to one tenant, of each kind that is lent."""

    __slots__ = ("_limit_pm", "_shares", "_tenant")

    def __init__(self, shares: Mapping[int, Share], limit_pm: int, tenant: TenantId) -> None:
        self._shares, self._limit_pm, self._tenant = shares, limit_pm, tenant

    def share(self, kind: int) -> Share | None:
        """The share that the tenant has a line in, where there is one."""
        share = self._shares.get(kind)
        return None if share is None or self._tenant not in share.lines else share

    def ceiling(self, share: Share) -> int:
        """How much the tenant may have, however much is idle."""
        line = share.lines[self._tenant]
        return line + line * self._limit_pm // 1000

    def most(self, kind: int) -> int:
        """How much of a kind it could have, if nobody else had anything."""
        share = self.share(kind)
        if share is None:
            return 0
        return min(self.ceiling(share), share.lines[self._tenant] + share.idle_most(self._tenant))

    def covers(self, kind: int, more: int) -> bool:
        """Whether `more` of a kind, above the tenant's own quota, may be borrowed."""
        share = self.share(kind)
        return share is not None and self.covered_by(share, more)

    def covered_by(self, share: Share, more: int) -> bool:
        """The same, if the share were like that."""
        if share.used.get(self._tenant, 0) + more > self.ceiling(share):
            return False
        idle, over = share.after(self._tenant, more)
        return over <= idle


class Shares:
    """Everything that is divided under one policy."""

    __slots__ = ("_lent", "_limit_pm", "divisions")

    def __init__(
        self, policy: Policy, book: TenantBook, accounts: Accounts, before: Shares | None
    ) -> None:
        known: dict[str, Division] = {}
        for one in () if before is None else before.divisions:
            known[allocation_name(one.allocation)] = one
        self.divisions: list[Division] = []
        for allocation in policy.allocations:
            if allocation.strategy is not Strategy.PRIORITY:
                division = Division(allocation, known.get(allocation_name(allocation)))
                division.share.fill(accounts)
                self.divisions.append(division)
        self._limit_pm = policy.borrowing.limit_pm
        self._lent: dict[int, Share] = {}
        if policy.borrowing.enabled:
            self._lend(book, accounts)
        accounts.watchers = [*self.divisions, *self._lent.values()]

    def _lend(self, book: TenantBook, accounts: Accounts) -> None:
        for kind in ResourceKind:
            lines: dict[TenantId, int] = {}
            lenders: dict[TenantId, bool] = {}
            for tenant, limits in book.named().items():
                for row in limits.rows:
                    if row.kind == kind and not row.narrow and row.mode is Mode.HARD:
                        lines[tenant], lenders[tenant] = row.limit, row.lend
            if len(lines) > 1:
                share = self._lent[int(kind)] = Share(int(kind), ANY, lines, lenders, NOT_HELD)
                share.fill(accounts)

    def loan(self, tenant: TenantId) -> Loan:
        """What others lend to a tenant."""
        return Loan(self._lent, self._limit_pm, tenant)

    def verdict(self, tenant: TenantId, charge: Charge, pools: Pools) -> Verdict | None:
        """The first division that does not let a tenant have `charge`."""
        for division in self.divisions:
            more = division.share.wanted(charge)
            if more:
                verdict = division.verdict(tenant, more, pools)
                if verdict is not None:
                    return verdict
        return None

    @property
    def lent_out(self) -> bool:
        """Whether anybody has more than its line of something."""
        return any(share.over for share in self._lent.values()) or any(
            one.share.over for one in self.divisions if not one.fair
        )

    def owned(self, tenant: TenantId, charge: Charge) -> Iterable[Share]:
        """The shares in which all that a request wants of them is the tenant's own, so that others
        have to make way for it.
        """
        reserved = [one.share for one in self.divisions if not one.fair]
        for share in (*self._lent.values(), *reserved):
            more = share.wanted(charge)
            if more and share.own(tenant, more) and share.over:
                yield share

    def fair(self) -> list[Division]:
        """What is divided by weights."""
        return [division for division in self.divisions if division.fair]

    def changed(self) -> dict[TenantId, None]:
        """Who has more or less of what is divided by weights than when this was last asked."""
        found: dict[TenantId, None] = {}
        for division in self.divisions:
            if division.changed:
                found |= division.changed
                division.changed.clear()
        return found
