# SPDX-License-Identifier: Apache-2.0
"""Quota: what a tenant may have, and whether more would go over it.

Rule: a limit is held against what its holder has from the grant to the proof (`accounts`), so it is
not exceeded at any instant, however long a teardown takes. What is asked for is judged before it is
placed, and once more as it was placed, because an entire device can be larger than the ask, and a
tier or NUMA node is often not named. The tenant's own limits come first, then those it shares.

Does not place anything, does not wait, and does not remember: what a soft limit let through is the
table's to know (`overage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from leased.lessor.accounts import (
    ANY,
    LIVE,
    OCCUPIED,
    Account,
    Accounts,
    Charge,
    group_key,
    weigh,
)
from leased.terms.command import Acquire
from leased.terms.identity import TenantId
from leased.terms.lease import Level
from leased.terms.policy import (
    Budget,
    CapacityLimit,
    LimitSet,
    Mode,
    Period,
    Policy,
    Rate,
    WhenOver,
)
from leased.terms.policy_turn import laid_over
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind

LEASES: Final = "leases_max"
CONCURRENT: Final = "concurrent_max"


class Row(msgspec.Struct, frozen=True, gc=False):
    """One limit on capacity, or on a number of leases. `ceiling` is what it never lets through; it
    is above `limit` where the mode allows that for a while.
    """

    name: str
    kind: int
    tier: int
    node: int
    limit: int
    ceiling: int
    mode: Mode
    overage_ns: int
    burst_ns: int
    when_over: WhenOver
    lend: bool

    @property
    def narrow(self) -> bool:
        """Whether it counts less than a whole kind."""
        return self.tier != ANY or self.node != ANY

    @property
    def borrows(self) -> bool:
        """Whether it can be exceeded by what others lend."""
        return self.mode is Mode.HARD and not self.narrow


class Limits(msgspec.Struct, frozen=True, gc=False):
    """What one holder may have; a group has no level, rates or duration, and no group. `narrow`: a
    placement matters to any of its rows, or to its group's. `metered`: what the tenant uses up
    counts against a budget, its own or its group's."""

    holder: str
    name: str
    leases_max: int | None
    concurrent_max: int | None
    waiting_max: int | None
    duration_ns_max: int | None
    level_max: Level
    submit_rate: Rate | None
    api_rate: Rate | None
    rows: tuple[Row, ...]
    counts: tuple[Row, ...]
    budgets: tuple[Budget, ...]
    cut_ns: int
    when_over: WhenOver
    group: Limits | None
    unlimited: bool
    narrow: bool
    metered: bool

    def all_rows(self) -> tuple[Row, ...]:
        """Whatever can be lowered below what its holder has."""
        return (*self.counts, *self.rows)

    def chain(self) -> tuple[Limits, ...]:
        """These, then those that are shared."""
        return (self,) if self.group is None else (self, self.group)


class Overrun(msgspec.Struct, frozen=True, gc=False):
    """A limit that a request would go over, in the unit of `what`. `most` is what its holder could
    ever have, where that is more than `limit`.
    """

    reason: RefusalReason
    holder: str
    rule: str
    what: str
    limit: int
    usage: int
    requested: int
    when_over: WhenOver
    period: Period | None = None
    most: int = 0

    @property
    def fits(self) -> bool:
        """Whether waiting could help: it would not go over, if its holder had nothing."""
        return self.requested <= max(self.limit, self.most)


class Excess(msgspec.Struct, frozen=True, gc=False):
    """A row that a request goes over where its mode lets it, and what its holder has then."""

    limits: Limits
    row: Row
    usage: int


class Loan(Protocol):
    """What others lend to one tenant."""

    def covers(self, kind: int, more: int) -> bool:
        """Whether so much of a kind, above the tenant's own quota, is lent now."""
        ...

    def most(self, kind: int) -> int:
        """What of a kind the tenant could have if all that may be lent were idle."""
        ...


def account_of(accounts: Accounts, limits: Limits) -> Account | None:
    """The account that `limits` are held against."""
    return accounts.holder(limits.holder)


def wanted_by(acquire: Acquire) -> Charge:
    """What a request wants, as far as it says where."""
    return tuple(
        (
            (
                int(ask.kind),
                ANY if ask.tier is None else int(ask.tier),
                ANY if ask.node is None else ask.node,
            ),
            max(1, ask.count) * ask.capacity,
        )
        for ask in acquire.asks
    )


def count_overrun(limits: Limits, accounts: Accounts) -> Overrun | None:
    """The first limit on numbers of leases that one more would go over."""
    for one in limits.chain():
        if one.leases_max is None and one.concurrent_max is None:
            continue
        account = account_of(accounts, one)
        occupied, live = (0, 0) if account is None else (account.occupied, account.leases)
        if one.leases_max is not None and occupied >= one.leases_max:
            return _too_many(one, LEASES, one.leases_max, occupied)
        if one.concurrent_max is not None and live >= one.concurrent_max:
            return _too_many(one, CONCURRENT, one.concurrent_max, live)
    return None


def _too_many(limits: Limits, name: str, limit: int, usage: int) -> Overrun:
    return Overrun(
        RefusalReason.TENANT_LEASES,
        limits.holder,
        f"{limits.name}.{name}",
        "leases",
        limit,
        usage,
        1,
        limits.when_over,
    )


def capacity_overrun(
    limits: Limits, accounts: Accounts, charge: Charge, excesses: list[Excess], loan: Loan
) -> Overrun | None:
    """The first limit on capacity that `charge` more would go over; rows that let it through above
    their limit, or by what others lend, are put into `excesses`.
    """
    for one in limits.chain():
        if not one.rows:
            continue
        account = account_of(accounts, one)
        for row in one.rows:
            kind, tier, node = row.kind, row.tier, row.node
            more = weigh(charge, kind, tier, node)
            if not more:
                continue
            usage = 0 if account is None else account.used(kind, tier, node)
            if usage + more <= row.limit:
                continue
            if usage + more > row.ceiling:
                borrows = one is limits and row.borrows
                if not (borrows and loan.covers(kind, more)):
                    most = loan.most(kind) if borrows else 0
                    return over_row(one, row, row.ceiling, usage, more, most)
            excesses.append(Excess(one, row, usage + more))
    return None


def over_row(limits: Limits, row: Row, limit: int, usage: int, more: int, most: int = 0) -> Overrun:
    """That a row does not let `more` through."""
    return Overrun(
        RefusalReason.TENANT_CAPACITY,
        limits.holder,
        f"{limits.name}.{row.name}",
        ResourceKind(row.kind).name.lower(),
        limit,
        usage,
        more,
        row.when_over,
        most=most,
    )


# ---- from a policy to limits ---------------------------------------------------------------------


def row_name(limit: CapacityLimit) -> str:
    """What it counts, as a policy document writes it: "gpu", "mem.hbm", "mem.cxl@2"."""
    tier = "" if limit.tier is None else f".{limit.tier.name.lower()}"
    return f"{limit.kind.name.lower()}{tier}" + ("" if limit.node is None else f"@{limit.node}")


def _row(limit: CapacityLimit, policy: Policy, when_over: WhenOver) -> Row:
    ceiling = limit.capacity
    overage_pm = policy.overage_pm if limit.overage_pm is None else limit.overage_pm
    if limit.mode is Mode.SOFT:
        ceiling += ceiling * overage_pm // 1000
    elif limit.mode is Mode.BURST:
        ceiling = limit.burst_capacity
    return Row(
        row_name(limit),
        *limit.scope,
        limit.capacity,
        ceiling,
        limit.mode,
        policy.overage_ns if limit.overage_ns is None else limit.overage_ns,
        limit.burst_ns,
        limit.when_over or when_over,
        limit.lend,
    )


def _counts(limits: LimitSet, when_over: WhenOver) -> tuple[Row, ...]:
    """The limits on numbers of leases."""
    most = ((LEASES, OCCUPIED, limits.leases_max), (CONCURRENT, LIVE, limits.concurrent_max))
    return tuple(
        Row(name, kind, ANY, ANY, limit, limit, Mode.HARD, 0, 0, when_over, False)
        for name, kind, limit in most
        if limit is not None
    )


def _compile(
    holder: str, name: str, limits: LimitSet, policy: Policy, group: Limits | None
) -> Limits:
    rows = tuple(_row(limit, policy, policy.when_over) for limit in limits.capacities)
    free = limits.leases_max is None and limits.concurrent_max is None and not rows
    return Limits(
        holder,
        name,
        limits.leases_max,
        limits.concurrent_max,
        limits.waiting_max,
        limits.duration_ns_max,
        Level.NORMAL if limits.level_max is None else limits.level_max,
        limits.submit_rate,
        limits.api_rate,
        rows,
        _counts(limits, policy.when_over),
        limits.budgets,
        limits.grace_ns_cut or 0,
        policy.when_over,
        group,
        free and not limits.budgets and (group is None or group.unlimited),
        any(row.narrow for row in rows) or (group is not None and group.narrow),
        bool(limits.budgets) or (group is not None and group.metered),
    )


class TenantBook:
    """The limits of every tenant under one policy. Those of a tenant that the policy does not name
    are made when they are first asked for; at most `OTHERS_MAX` of those are kept. `paces_calls`:
    somebody has a limit on calls.
    """

    OTHERS_MAX = 4096

    __slots__ = (
        "_default",
        "_known",
        "_policy",
        "_tenants",
        "group_of",
        "groups",
        "lent_pm",
        "paces_calls",
    )

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.lent_pm = policy.borrowing.limit_pm if policy.borrowing.enabled else 0
        self.groups: dict[str, Limits] = {
            name: _compile(group_key(name), f"groups.{name}", group.together, policy, None)
            for name, group in policy.groups
        }
        each = {name: group.each for name, group in policy.groups}
        self._default = policy.tenant_default
        self.group_of: dict[TenantId, str] = {}
        self._tenants: dict[TenantId, Limits] = {}
        for tenant, own in policy.tenants:
            plain = LimitSet(
                **{name: getattr(self._default, name) for name in LimitSet.__struct_fields__}
            )
            if own.group is not None:
                plain = laid_over(plain, each[own.group])
                self.group_of[tenant] = own.group
            group = None if own.group is None else self.groups[own.group]
            name = f"tenants.{tenant}"
            self._tenants[tenant] = _compile(tenant, name, laid_over(plain, own), policy, group)
        self._known = dict(self._tenants)
        limited: tuple[LimitSet | Limits, ...] = (self._default, *self.groups.values())
        paced = (*limited, *self._tenants.values())
        self.paces_calls = any(limits.api_rate is not None for limits in paced)

    def limits(self, tenant: TenantId) -> Limits:
        """The tenant's own limits, with what it does not say from its group and the default."""
        found = self._known.get(tenant)
        if found is None:
            if len(self._known) >= len(self._tenants) + self.OTHERS_MAX:
                self._known = dict(self._tenants)
            found = _compile(tenant, "tenant_default", self._default, self._policy, None)
            self._known[tenant] = found
        return found

    def bearable(self, limits: Limits, row: Row) -> int:
        """How much of what a row counts its holder can have got by this policy."""
        if row.mode is not Mode.HARD or row.kind < 0:
            return row.ceiling
        borrows = limits.holder in self._tenants and not row.narrow
        return row.limit + (row.limit * self.lent_pm // 1000 if borrows else 0)

    def named(self) -> Mapping[TenantId, Limits]:
        """The limits of every tenant that the policy names."""
        return self._tenants
