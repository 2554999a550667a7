# SPDX-License-Identifier: Apache-2.0
"""Quota: what a tenant holds, and whether more would go over its hard limits.

Rule: a lease counts against its tenant from the grant until its teardown begins, which is as long
as the tenant pays; the capacity itself comes back only when it is proven clean, and that is the
pool's business, not the tenant's.

Does not place anything and does not wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from leased.lessor.deadlines import Deadlines, Endings
from leased.terms.identity import LeaseId, TenantId
from leased.terms.policy import Policy, TenantLimits
from leased.terms.resource import Allotment, Ask, ResourceKind

KIND_COUNT = len(ResourceKind)


def wanted_by_kind(asks: Sequence[Ask]) -> list[int]:
    """How much several asks want together, by kind."""
    wanted = [0] * KIND_COUNT
    for ask in asks:
        wanted[ask.kind] += max(1, ask.count) * ask.capacity
    return wanted


def taken_by_kind(allotments: Sequence[Allotment]) -> list[int]:
    """How much a lease of `allotments` would hold, by kind: entire devices can be larger than what
    was asked of them."""
    taken = [0] * KIND_COUNT
    for allotment in allotments:
        taken[allotment.kind] += allotment.capacity
    return taken


class Account:
    """What one tenant holds now: number of leases and capacity by kind, with the order in which
    they end.
    """

    __slots__ = ("capacities", "endings", "leases")

    def __init__(self, deadlines: Deadlines[LeaseId]) -> None:
        self.leases = 0
        self.capacities = [0] * KIND_COUNT
        self.endings: Endings[LeaseId] = Endings(deadlines)


class Overrun(msgspec.Struct, frozen=True):
    """A limit that a request would go over. `kind` None: the number of leases."""

    kind: ResourceKind | None
    limit: int
    usage: int
    requested: int


class Limits(msgspec.Struct, frozen=True):
    """One tenant's limits by kind, None where there is none. `unlimited`: nothing to check."""

    leases_max: int | None
    waiting_max: int | None
    capacities: tuple[int | None, ...]
    unlimited: bool

    def overrun(self, account: Account | None, wanted: Sequence[int]) -> Overrun | None:
        """The first limit that one more lease with `wanted` capacity by kind would go over."""
        if self.leases_max is not None:
            leases = account.leases if account is not None else 0
            if leases >= self.leases_max:
                return Overrun(None, self.leases_max, leases, 1)
        for kind in ResourceKind:
            limit, more = self.capacities[kind], wanted[kind]
            if limit is None or more == 0:
                continue
            usage = account.capacities[kind] if account is not None else 0
            if usage + more > limit:
                return Overrun(kind, limit, usage, more)
        return None


def _compile(limits: TenantLimits) -> Limits:
    capacities: list[int | None] = [None] * KIND_COUNT
    for limit in limits.capacities:
        known = capacities[limit.kind]
        capacities[limit.kind] = limit.capacity if known is None else min(known, limit.capacity)
    unlimited = limits.leases_max is None and all(limit is None for limit in capacities)
    return Limits(limits.leases_max, limits.waiting_max, tuple(capacities), unlimited)


class TenantBook:
    """The limits of every tenant under one policy."""

    __slots__ = ("_default", "_tenants")

    def __init__(self, policy: Policy) -> None:
        self._default = _compile(policy.tenant_default)
        self._tenants = {tenant: _compile(limits) for tenant, limits in policy.tenants}

    def limits(self, tenant: TenantId) -> Limits:
        """The tenant's own limits, or the default ones."""
        return self._tenants.get(tenant, self._default)
